"""The page of trained modules, from what gate.sh recorded: `python runs/gate.py out/gate docs/results/gate.md`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from pages import table

from atp.methods import weights as files

SHARE = "share of the model's parameters"
HEADS = ("method", "FLOPs", "accuracy", "atp", "trained minus atp", "verdict", "parameters", "minutes", "best step")


def verdict(low: float, high: float, best: int) -> str:
    """Say what the 95 % interval of the gain over the training-free score allows; weights of step 0 are no gain."""
    return "not worth it" if high < 0 or not best else "beats" if low > 0 else "undecided"


def rows(folder: Path) -> tuple[list[list[str]], list[str], list[str]]:
    """Return the table's rows, their verdicts, and what was asked of whom.

    Raises:
        SystemExit: nothing is recorded there.
    """
    found, said, asked = [], [], []
    for path in sorted(folder.glob("*/*/table.json"), key=lambda p: (p.parts[-3], -float(p.parts[-2]))):
        kind, read = path.parts[-3], json.loads(path.read_text(encoding="utf-8"))
        header, _ = files.load(folder / f"{kind}.safetensors", kind)
        entries: dict[str, Any] = {entry["name"]: entry for entry in read["rows"]}
        entry, gap = entries[kind], entries[kind]["atp_minus_this"]
        gain, low, high = (0.0 - gap[name] for name in ("mean", "high", "low"))
        notes = header.notes
        judged = verdict(low, high, notes["best step"])
        said.append(f"{kind} at {read['budget']:g}: {judged}")
        found.append(
            [f"{kind} at {read['budget']:g}", f"{entry['flops_ratio']:.3f}", f"{entry['accuracy']:.2f}",
             f"{entries['atp']['accuracy']:.2f} at {entries['atp']['flops_ratio']:.3f}", f"{gain:+.2f} [{low:+.2f}, {high:+.2f}]",
             judged, f"{notes[SHARE]:.2%}",
             f"{notes['seconds'] / 60:.1f}", f"{notes['best step']} of {notes['steps']}"]
        )  # fmt: skip
        asked.append(f"`{read['model']}`, {read['questions']} held-out questions about {read['images']} scenes")
    if not found:
        raise SystemExit(f"no */*/table.json in {folder}; expected what `bash runs/gate.sh` records there: run it first")
    return found, said, asked


def main(folder: Path, page: Path) -> None:
    """Write the page."""
    found, said, asked = rows(folder)
    words = [
        "# Trained modules beside the training-free score",
        "",
        f"{'; '.join(sorted(set(asked)))}. Written by `bash runs/gate.sh`.",
        "The gate keeps as many tokens as atp at every site; LVPruning acts in the language model only, and may need more FLOPs.",
        "Intervals: 95 %, paired bootstrap over scenes; above zero the trained modules are better. The weights are those of the",
        "step with the least divergence on other held-out questions; step 0 is untrained, where the gate is atp itself.",
        *table(HEADS, found),
        f"Verdict: {'; '.join(said)}.",
    ]
    page.write_text("\n".join(words) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
