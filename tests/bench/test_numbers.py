"""Medians, ratios, the rule about noise and the order of turns, on timings made by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from torch import nn

from atp.bench.clock import PARTS, Stopwatch
from atp.bench.measure import Sample, take_turns, turns
from atp.bench.settings import LEAST
from atp.bench.sides import BASE, Side
from atp.bench.summary import NOISY, Spread, gains, noise, spread, summary, verdict
from atp.bench.table import lines, milliseconds, size
from bench.timings import sample


def test_quartiles() -> None:
    assert spread([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(3.0, 2.0, 4.0)
    assert spread([1.0, 2.0]) == Spread(1.5, 1.25, 1.75)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0)


def test_gains_are_ratios_of_neighbours_over_what_the_flops_promise() -> None:
    base = [sample(6.0, 4.0, 2.0), sample(12.0, 8.0, 4.0), sample(6.0, 4.0, 2.0)]  # the machine halved its speed for a round
    side = [sample(3.0, 2.0, 2.0, True), sample(6.0, 4.0, 4.0, True), sample(4.0, 4.0, 2.0, True)]
    found = gains(base, side)
    prompt, whole = found["vision+prefill"], found["end to end"]
    assert prompt.measured.median == 2.0
    assert prompt.ideal == pytest.approx(990 / (475 + 15))
    assert prompt.realised == pytest.approx(2.0 * 490 / 990)
    assert whole.measured.median == pytest.approx(12 / 7)
    assert whole.ideal == pytest.approx(1000 / 500)
    assert whole.realised == pytest.approx(12 / 14)


def test_noise_is_the_quartiles_distance() -> None:
    assert noise([1.0, 1.0, 1.0]) == 0.0
    assert noise([0.9, 0.95, 1.0, 1.05, 1.1]) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("rounds", "unrest", "speedup", "says"),
    [
        (LEAST - 1, 0.0, 2.0, "too few rounds"),
        (LEAST, NOISY + 0.01, 2.0, "too noisy"),
        (LEAST, 0.05, 1.04, "no difference"),
        (LEAST, 0.05, 0.97, "no difference"),
        (LEAST, 0.05, 1.2, "faster"),
        (LEAST, 0.05, 0.8, "slower"),
    ],
)
def test_the_rule(rounds: int, unrest: float, speedup: float, says: str) -> None:
    assert says in verdict(rounds, unrest, speedup)


def test_turns_alternate_and_memory_comes_last() -> None:
    order = list(turns(["A", "B"], rounds=2, warmup=1))
    assert [name for name, _ in order] == list("ABABABAB")
    assert [purpose for _, purpose in order] == ["warm-up"] * 2 + ["timed"] * 4 + ["memory"] * 2


def test_only_timed_turns_count() -> None:
    ran: list[tuple[str, bool]] = []

    def run(side: Side, weigh: bool) -> Sample:
        ran.append((side.name, weigh))
        return dataclasses.replace(sample(len(ran), 0.0, 0.0), peak=100 + len(ran) if weigh else None)

    told: list[str] = []
    found = take_turns([Side("A"), Side("B")], 2, 1, run, told.append)
    assert ran == [(name, place >= 6) for place, name in enumerate("ABABABAB")]
    assert {name: [one.seconds["vision"] for one in own] for name, own in found.items()} == {"A": [3, 5], "B": [4, 6]}
    assert {name: {one.peak for one in own} for name, own in found.items()} == {"A": {107}, "B": {108}}
    assert told[0] == "A (warm-up)" and told[-1] == "B (memory)"


def test_summary_and_its_table() -> None:
    samples = {BASE: [sample(6.0, 4.0, 2.0)] * 3, "atp 0.5": [sample(3.0, 2.0, 2.0, True)] * 3}
    samples["int8"] = [sample(5.0, 4.0, 1.0)] * 3
    made = summary(samples, tokens=6, steps=2)
    base, side, small = made["sides"]
    assert side["hooks"] == pytest.approx({"seconds": 0.05, "share": 0.06, "step_seconds": 0.02})
    assert base["hooks"] == {"seconds": 0.0, "share": 0.0, "step_seconds": 0.0}
    assert base["tokens_per_second"] == 0.5 and small["gains"]["end to end"]["ideal"] == 1.0 and small["flops_share"] == 1.0
    assert small["gains"]["end to end"]["realised"] == pytest.approx(1.2) and "flops" not in small
    assert made["noise"] == 0.0 and made["rounds"] == 3
    assert set(base["seconds"]) == {*PARTS, "total"} and "gains" not in base
    assert side["flops_share"] == 0.5 and side["verdict"] == "faster" and side["selection_seconds"] == 0.25
    case = {
        "device": "cpu", "dtype": "float32", "batch": 2, "patches": 16, "visual": 16, "text": 5, "answer": 3, **made,
        "left_out": {"fastv 0.5": "budget 0.5 cannot be reached"},
    }  # fmt: skip
    machine = {"torch": "2", "threads": 1, "cores": 2, "vectors": "AVX2", "load": 0.2}
    result = {"subject": "x", "settings": {"arch": "x"}, "machine": machine, "rule": "the rule", "cases": [case]}
    text = "\n".join(lines(result))
    for words in (
        "x1.71",
        "x2.00",
        "86%",
        "50.0%",
        "12000 ms",
        "7 B",
        "50.0 ms",
        "20000 us",
        "faster",
        "fastv 0.5 left out",
        "noise 0.0%",
        "the rule",
    ):
        assert words in text
    assert "note: load" not in text
    machine.update(load=1.6, threads=2)
    assert "note: load 1.6" in "\n".join(lines(result)) and "--threads 1" in "\n".join(lines(result))


@pytest.mark.parametrize(("count", "text"), [(None, "-"), (12, "12 B"), (2_000, "2 kB"), (3_500_000, "3.5 MB"), (10**9, "1 GB")])
def test_sizes(count: int | None, text: str) -> None:
    assert size(count) == text
    assert milliseconds(0.0123) == "12.3 ms" and milliseconds(1.5) == "1500 ms"


class Ticks:
    """A clock that goes on by one at every mark."""

    def __init__(self) -> None:
        self.now = 0

    def mark(self) -> int:
        self.now += 1
        return self.now

    def seconds(self, begin: int, end: int) -> float:
        return float(end - begin)

    def settle(self) -> None:
        """Nothing is under way."""


class Nest(nn.Module):
    """Calls its parts, one after the other."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: int) -> int:
        for part in self.parts:
            part(x)
        return x


def test_stopwatch_counts_each_second_once_and_leaves_no_hook() -> None:
    tower, connector, text = Nest(), Nest(), Nest()
    base = Nest(tower, connector, text)
    top = Nest(base)
    adapter: Any = type("Parts", (), {"stacks": ("vision", "language"), "reader": None})()
    adapter.tower, adapter.connector, adapter.text, adapter.base, adapter.top = tower, connector, text, base, top
    clock = Ticks()
    with Stopwatch(adapter, clock) as watch:
        begin = clock.mark()  # 1
        top(0)  # top 2-11: base 3-10: tower 4-5, connector 6-7, text 8-9
        text(0)  # 12-13: a later call
        end = clock.mark()  # 14
    found = watch.seconds(begin, end)
    assert found == {"vision": 1.0, "connector": 1.0, "prefill": 7.0, "decode": 1.0, "other": 3.0, "total": 13.0}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in (top, base, tower, connector, text))
