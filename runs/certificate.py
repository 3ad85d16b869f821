"""Write `docs/certificate.md`: how often certified bounds are broken over 200 random splits. `python runs/certificate.py`.

Populations with known true drops, tests that are valid and two that are not, and, with `--records FOLDER`, the answers that
`atp eval` recorded: there each draw of items is a split, and the truth is the mean over all recorded ones.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atp.evals.certify.pvalues import TESTS, Test
from atp.evals.certify.simulate import population, splits
from atp.evals.certify.testing import fixed_sequence, items_needed
from atp.evals.harness.gather import gather
from atp.evals.harness.settings import REFERENCE

OUT = Path(__file__).parents[1] / "docs" / "certificate.md"
ROUNDS, LEVEL, BOUND = 200, 0.05, 0.01
BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5)
WORLDS = {
    "at the bound, few changes": ([0.0101] * 5, [0.02] * 5, 1000),
    "at the bound, many changes": ([0.0101] * 5, [0.2] * 5, 4000),
    "falling off slowly": ([0.0, 0.002, 0.006, 0.0101, 0.02], [0.01, 0.02, 0.03, 0.05, 0.08], 2000),
    "falling off fast": ([0.001, 0.003, 0.02, 0.05, 0.1], [0.01, 0.02, 0.05, 0.1, 0.2], 2000),
    "no loss at all": ([0.0] * 5, [0.01, 0.02, 0.03, 0.04, 0.05], 2000),
}
"""True drops and shares of changed answers by budget, dear to cheap, and items of a split: ours."""


def normal(drops: NDArray[np.float64], bound: float, level: float) -> float:
    """Return the p-value of the normal approximation, which is not valid."""
    spread = float(drops.std()) / math.sqrt(len(drops))
    return 0.5 * math.erfc((bound - float(drops.mean())) / spread / math.sqrt(2)) if spread else float(drops.mean() >= bound)


def peeking(items: NDArray[np.float64], n: int, test: Test, rounds: int) -> int:
    """Count the rounds in which the cheapest setting that passes, without order, breaks the bound; settings are drawn apart."""
    rng, broken = np.random.default_rng(0), 0
    for _ in range(rounds):
        drawn = [row[rng.integers(len(row), size=n)] for row in items]
        passed = [index for index, drops in enumerate(drawn) if fixed_sequence([drops], BOUND, LEVEL, test)[0].passed]
        broken += bool(passed) and items[passed[-1]].mean() > BOUND
    return broken


def recorded(folder: Path, rounds: int) -> list[str]:
    """Return rows of the table for the answers in a folder of `atp eval`: one item an image, all settings of each method."""
    gathered, rows = gather([folder]), []
    for task, cells in ((task, gathered.cells(task)) for task in gathered.tasks):
        whole = gathered.of(task, "none", REFERENCE)
        first = {entry.image: name for name, entry in reversed(whole.items()) if "accuracy" in entry.scores}
        for method in dict.fromkeys(cell["method"] for cell in cells.values() if cell["method"] != REFERENCE):
            grid = sorted(
                (c for c in cells.items() if c[1]["method"] == method and "plan" in c[1]), key=lambda c: -c[1]["budget"]
            )
            found = [gathered.of(task, "none", label) for label, _ in grid]
            names = [name for name in first.values() if all(name in one for one in found)]
            if not grid or len(names) < 20:
                continue
            drops = np.array([[whole[n].scores["accuracy"] - one[n].scores["accuracy"] for n in names] for one in found])
            test = TESTS["exact" if set(np.unique(drops)) <= {-1.0, 0.0, 1.0} else "betting"]
            rows += table(f"{folder.name}: {method} on {task}, {len(names)} images", drops, len(names), [test], rounds)
    return rows


def table(name: str, items: NDArray[np.float64], n: int, tests: Sequence[Test], rounds: int) -> list[str]:
    """Return one row a test."""
    rows = []
    for test in tests:
        broken, chosen = splits(items, n, BOUND, LEVEL, test, rounds=rounds)
        truth = ", ".join(f"{100 * drop:+.2f}" for drop in items.mean(1))
        rows.append(f"| {name} | {truth} | {n} | {test.__name__} | {broken / rounds:.1%} | {', '.join(map(str, chosen))} |")
    return rows


def needed() -> list[str]:
    """Return how many items each test takes for a bound of 0.01, by observed drop and share of changed answers."""
    rows = ["", "Items that a bound of one point takes at 95 %:", "", "| drop | changed | " + " | ".join(TESTS) + " |"]
    rows.append("|---" * (2 + len(TESTS)) + "|")
    for drop, changed in ((0.0, 0.0), (0.0, 0.01), (0.0, 0.04), (0.002, 0.02), (0.005, 0.03)):
        drops = population([drop], [changed], 1000)[0]
        counts = [items_needed(drops, BOUND, LEVEL, test) for test in TESTS.values()]
        rows.append(
            f"| {drop:.3f} | {changed:.2f} | " + " | ".join("> 100,000" if c is None else f"{c:,}" for c in counts) + " |"
        )
    return rows


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=Path, nargs="*", default=[], help="folders that `atp eval` wrote")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    lines = [
        "# Certificates: how often the bound is broken",
        "",
        f"{given.rounds} random splits each, most drop {BOUND:g}, confidence {1 - LEVEL:g}, grid from dear to cheap; written by "
        "`python runs/certificate.py`, seed 0.",
        "Drops in points. Chosen: how often each budget was certified last, none at the end. A share of 5 % is what is allowed.",
        "",
        "| population | true drops | items | test | bound broken | chosen |",
        "|---|---|---|---|---|---|",
    ]
    for name, (drops, changed, n) in WORLDS.items():
        lines += table(name, population(drops, changed), n, [TESTS["exact"], TESTS["betting"]], given.rounds)
    for folder in given.records:
        lines += recorded(folder, given.rounds)
    lines += ["", "What would be wrong, and shows:", "", "| | bound broken |", "|---|---|"]
    few = splits(population([0.03], [0.03]), 40, BOUND, LEVEL, normal, rounds=given.rounds)[0]
    right = splits(population([0.03], [0.03]), 40, BOUND, LEVEL, TESTS["exact"], rounds=given.rounds)[0]
    peeked = peeking(population([0.0101] * 8, [0.02] * 8), 1000, TESTS["exact"], given.rounds)
    lines.append(f"| normal approximation, 40 items, true drop 3 points | {few / given.rounds:.1%} |")
    lines.append(f"| exact, the same items | {right / given.rounds:.1%} |")
    lines.append(f"| exact, cheapest of eight settings that passes, in no order | {peeked / given.rounds:.1%} |")
    lines += needed()
    given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
