"""Write `docs/conformance.md`: families x invariants, from a run of the suite itself. `python runs/conformance.py`."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "conformance.md"
SUITE = tuple(f"tests/conformance/test_{name}.py" for name in ("families", "modes", "more_modes"))
ABSENT = "·"


def run() -> ElementTree.Element:
    """Run the suite and return its JUnit record."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "junit.xml"
        subprocess.run([sys.executable, "-m", "pytest", "-q", f"--junitxml={path}", *SUITE], cwd=ROOT, check=False)
        return ElementTree.parse(path).getroot()


def verdict(case: ElementTree.Element) -> str:
    """One case: passed, skipped or failed."""
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    return "skipped" if case.find("skipped") is not None else "passed"


def main() -> None:
    """Run and write."""
    sys.path.insert(0, str(ROOT / "tests"))
    from families import FAMILIES

    cells: dict[tuple[str, str], list[str]] = defaultdict(list)
    skips: dict[str, set[str]] = defaultdict(set)
    features: list[str] = []
    for case in run().iter("testcase"):
        name, _, parameters = case.get("name", "").partition("[")
        family = max((one for one in FAMILIES if one in parameters), key=len, default=None)
        if family is None:
            continue
        feature = name.removeprefix("test_").replace("_", " ")
        features += [] if feature in features else [feature]
        cells[family, feature].append(verdict(case))
        skipped = case.find("skipped")
        if skipped is not None:
            skips[re.sub(r"\s+", " ", skipped.get("message", ""))].add(family)
    letters = {feature: chr(ord("A") + index) for index, feature in enumerate(features)}
    lines = [
        "# Conformance",
        "",
        f"Tiny random models of the true classes in float64, transformers {version('transformers')}, torch {version('torch')}; "
        "written by `python runs/conformance.py`.",
        "Numbers are cases that passed; `s` = skipped for a reason below, `·` = not asked of this family, **F** = failed.",
        "",
        *(f"- **{letter}**: {feature}" for feature, letter in letters.items()),
        "",
        "| family | " + " | ".join(letters.values()) + " |",
        "|---" * (len(letters) + 1) + "|",
    ]
    for family in FAMILIES:
        row = []
        for feature in features:
            found = cells.get((family, feature), [])
            passed, skipped, failed = (found.count(one) for one in ("passed", "skipped", "failed"))
            parts = [str(passed)] * bool(passed) + [f"{skipped}s"] * bool(skipped) + [f"**{failed}F**"] * bool(failed)
            row.append(" ".join(parts) or ABSENT)
        if any(cell != ABSENT for cell in row):
            lines.append(f"| {family} | " + " | ".join(row) + " |")
    lines += ["", "Skipped:", "", *(f"- {', '.join(sorted(who))}: {why}" for why, who in skips.items())]
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
