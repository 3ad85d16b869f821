"""Whether a result was measured to its end: `python runs/whole.py FILE` exits with 0 if it was. A run that was cut off is not."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path


def whole(file: Path) -> bool:
    """Tell from what the file itself says."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if "cases" in found:
        asked = found["settings"]
        wanted = found.get("wanted") or math.prod(len(asked[name]) for name in ("devices", "batches", "answers"))
        return len(found["cases"]) + len(found.get("refused", ())) >= wanted
    return not found.get("unfinished", False)


if __name__ == "__main__":
    sys.exit(0 if whole(Path(sys.argv[1])) else 1)
