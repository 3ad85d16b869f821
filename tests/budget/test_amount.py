"""amount.py, price.py and solve.py: budgets in tokens, bytes and milliseconds, met from below and counted on true caches."""

from __future__ import annotations

import json
import math
import re
import warnings
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from atp.adapters import adapt
from atp.budget.amount import Budget
from atp.budget.calibration import Calibration, fingerprint
from atp.budget.cost import Workload, cache_bytes, equivalent_tokens, lengths_of
from atp.budget.price import Clock, Prices, fit
from atp.budget.solve import solve
from atp.engine import prune, tables, timing
from atp.errors import InvalidPlan, UnreachableBudget
from atp.plan import Plan, Site, Step

from .models import MAKES, build, inputs, shape_of
from .test_solve import MINI, SHAPES

TEXT = 9
WORK = Workload(1, TEXT, 1)


@pytest.mark.parametrize(
    ("given", "value", "unit"),
    [
        (0.6, 0.6, "share"),
        (1, 1, "share"),
        ("0.6", 0.6, "share"),
        (" .5 ", 0.5, "share"),
        ("60%", 0.6, "share"),
        ("64 tokens", 64, "tokens"),
        ("1 token", 1, "tokens"),
        ("64.5tokens", 64.5, "tokens"),
        ("250 ms", 250, "ms"),
        ("1.5 s", 1500, "ms"),
        ("24 MB", 24_000_000, "bytes"),
        ("24 MiB", 24 * 1024**2, "bytes"),
        ("3 kb", 3000, "bytes"),
        ("2 GiB", 2 * 1024**3, "bytes"),
        ("1e3 B", 1000, "bytes"),
        (Budget(7, "ms"), 7, "ms"),
    ],
)
def test_forms(given: float | str | Budget, value: float, unit: str) -> None:
    found = Budget.parse(given)
    assert (found.value, found.unit) == (pytest.approx(value), unit)


@pytest.mark.parametrize("given", [np.float32(0.6), np.float64(0.6), np.array(0.6), torch.tensor(0.6), Fraction(3, 5)])
def test_numbers_of_numpy_and_torch_are_numbers(given: Any) -> None:
    """They become Python's own, which a file can hold."""
    found = Budget.parse(given).value
    assert (type(found), found) == (float, 0.6)
    model: Any = tiny.model()
    want = [with_budget(model, 0.6, text) for text in (None, 0.6)]
    assert [with_budget(model, given, text) for text in (None, given)] == want


def with_budget(model: Any, budget: Any, text: Any) -> Plan:
    work = None if text is None else Workload(1, 64, 1)
    with warnings.catch_warnings(), prune(model, budget, text=text, workload=work) as run:
        warnings.simplefilter("ignore")
    assert Plan.from_dict(json.loads(json.dumps(run.plan.to_dict()))) == run.plan
    return run.plan


@pytest.mark.parametrize("given", [True, np.True_, torch.tensor(True), torch.tensor([0.6]), np.array([0.6, 0.4]), 1j, [0.6]])
def test_what_is_no_number_is_no_budget(given: Any) -> None:
    with pytest.raises(InvalidPlan, match=r"budget is a share in \(0, 1\], got .*budget=0\.6"):
        Budget.parse(given)
    with pytest.raises(InvalidPlan, match=r"text is a share in \[0, 1\], got"):
        prune(tiny.model(), plan=Plan("atp"), text=given).__enter__()


@pytest.mark.parametrize(
    "given", ["", "many", "64 token s", "64 patches", "-1", "-3 ms", "nan", "inf ms", "1,5 s", "0x10 B", "1 TB"]
)
def test_what_cannot_be_read_is_answered_with_the_forms(given: str) -> None:
    with pytest.raises(InvalidPlan, match=rf"cannot read the budget '{re.escape(given)}'; .*'64 tokens', .*'250 ms', .*'24 MB'"):
        Budget.parse(given)


@pytest.mark.parametrize("given", ["0 tokens", "0 ms", "0 MB", "1e999 B"])
def test_amounts_are_positive(given: str) -> None:
    with pytest.raises(InvalidPlan, match="is a number > 0, got"):
        Budget.parse(given)
    with pytest.raises(InvalidPlan, match="unknown unit 'miles'; expected one of share, tokens, ms, bytes"):
        Budget(1.0, "miles")


CLOCK = Clock(fixed=2.0, per_tower=3.0, per_language=1.5, choosing=0.25)


def prices(name: str = "mini", workload: Workload | None = None, value_bytes: int = 2) -> Prices:
    return Prices(SHAPES[name], workload or Workload(), {"vision": 1, "language": 32}, value_bytes=value_bytes, clock=CLOCK)


@pytest.mark.parametrize("name", sorted(SHAPES))
@pytest.mark.parametrize("unit", ["tokens", "bytes", "ms"])
@pytest.mark.parametrize("share", [0.85, 0.5])
@pytest.mark.parametrize("method", ["atp", "resize"])
def test_met_from_below_and_one_token_more_is_too_much(name: str, unit: str, share: float, method: str) -> None:
    known = prices(name)
    shape = known.shape
    everything = known.of(Plan(method), unit)
    budget = Budget(share * everything, unit)
    try:
        plan = solve(shape, budget, method, raters=known.raters, clock=CLOCK)
    except UnreachableBudget as error:
        assert error.lowest > budget.value  # noqa: PT017
        assert (name, unit, share) in {("full", "bytes", 0.5), ("siglip", "bytes", 0.5)} or unit == "ms"  # most rows are text
        return
    spent = known.of(plan, unit)
    assert spent <= budget.value
    assert plan.budget == pytest.approx(known.of(plan, "share"), abs=1e-6)
    if method == "atp":
        last = plan.steps[-1]
        started = shape.visual if last.site.stack == "language" else shape.patches
        grown = replace(plan, steps=(*plan.steps[:-1], replace(last, keep=last.keep + 1 / started)))
        assert known.of(grown, unit) > budget.value


def test_tokens_and_bytes_by_hand() -> None:
    plan = Plan("atp", (Step(Site("vision", 3), 0.5), Step(Site("language", 2), 49 / 196)))
    known = prices(workload=Workload(1, 20, 8), value_bytes=4)
    assert known.of(plan, "tokens") == pytest.approx((2 * 98 + 4 * 49) / 6)
    assert known.of(plan, "bytes") == 2 * 4 * 32 * 4 * (
        2 * (98 + 20) + 4 * (49 + 20)
    )  # keys and values, heads, width, bytes, rows
    assert known.of(Plan("atp"), "tokens") == 196
    first = known.flops(plan, Workload(1, 20, 1))
    assert known.of(plan, "ms") == pytest.approx(2.25 + 3e-9 * (first.vision + first.connector) + 1.5e-9 * first.prefill)
    assert known.of(Plan("atp"), "ms") - CLOCK.choosing < known.of(Plan("atp"), "ms")


@pytest.mark.parametrize("given", ["196 tokens", "1 GB", "1000 s", "100%", 1.0])
def test_what_everything_fits_into_prunes_nothing(given: str | float) -> None:
    plan = solve(MINI, given, clock=CLOCK)
    assert plan.steps == () and plan.budget == 1.0


@pytest.mark.parametrize(("given", "unit"), [("0.5 tokens", "tokens"), ("9 kB", "B"), ("2.01 ms", "ms")])
def test_out_of_reach_names_the_lowest_in_the_same_unit(given: str, unit: str) -> None:
    with pytest.raises(UnreachableBudget, match=rf"lowest reachable is '[\d.]+ {unit}'; use budget='[\d.]+ {unit}'") as caught:
        solve(MINI, given, clock=CLOCK)
    named = re.search(r"use budget='(.*?)'", str(caught.value))[1]  # type: ignore[index]
    assert solve(MINI, named, clock=CLOCK).steps
    assert Budget.parse(named).value == caught.value.lowest
    with pytest.raises(UnreachableBudget):
        solve(MINI, Budget(0.97 * caught.value.lowest, Budget.parse(named).unit), clock=CLOCK)


def test_milliseconds_need_a_clock() -> None:
    with pytest.raises(InvalidPlan, match=r"those of a model on a device; use atp.prune\(model, budget='250 ms'\)"):
        solve(MINI, "250 ms")


def test_a_tower_that_spares_no_token_is_left_alone() -> None:
    shape = replace(MINI, connects="keys", visual=32)
    plan = solve(shape, "16 tokens")
    assert {step.site.stack for step in plan.steps} == {"language"}
    assert 15.8 < equivalent_tokens(lengths_of(shape, Workload(), plan), Workload()) <= 16


def stored(model: torch.nn.Module, cache: object) -> int:
    """Bytes of keys and values in a true cache."""
    adapter = adapt(model)
    keys = [adapter.stored_keys(cache, layer) for layer in range(adapter.shape.language.layers)]
    return sum(2 * key.numel() * key.element_size() for key in keys if key is not None)


@pytest.mark.parametrize("make", sorted(MAKES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_of_the_true_cache(make: str, dtype: torch.dtype) -> None:
    model, shape = build(make).to(dtype), shape_of(make)
    batch = inputs(shape, TEXT)
    batch["pixel_values"] = batch["pixel_values"].to(dtype)
    whole = int(cache_bytes(shape, WORK, value_bytes=dtype.itemsize))
    with torch.no_grad():
        assert stored(model, model(**batch, use_cache=True).past_key_values) == whole
        budget = int(0.7 * whole)
        with prune(model, budget=f"{budget} B", method="uniform", workload=WORK) as run:
            held = stored(model, model(**batch, use_cache=True).past_key_values)
    assert held == cache_bytes(shape, WORK, lengths_of(shape, WORK, run.plan), dtype.itemsize)
    token = 2 * shape.language.kv_heads * shape.language.head_dim * dtype.itemsize
    assert budget - token * shape.language.layers < held <= budget


@pytest.mark.parametrize("make", ["clip-llama", "siglip-qwen2"])
def test_tokens_are_those_of_the_report(make: str) -> None:
    model, shape = build(make), shape_of(make)
    with torch.no_grad(), prune(model, budget="8 tokens", method="uniform", workload=WORK) as run:
        model(**inputs(shape, TEXT))
    tokens = run.report().equivalent_tokens
    assert 8 - 1 < tokens <= 8
    assert tokens == pytest.approx(equivalent_tokens(lengths_of(shape, WORK, run.plan), WORK))


def test_a_calibration_serves_other_units(tmp_path: Path) -> None:
    model = build("clip-llama")
    shape = shape_of("clip-llama")
    known = Prices(shape, WORK, {})
    plans = tuple(solve(shape, share, sites=(Site("vision", 2), Site("language", 2))) for share in (0.75, 0.9))
    table = Calibration(plans, fingerprint(model.named_parameters()), WORK)
    low, high = (known.of(plan, "tokens") for plan in plans)
    middle = (low + high) / 2
    with prune(model, budget=Budget(middle, "tokens"), calibration=table, workload=WORK) as run:
        found = known.of(run.plan, "tokens")
    assert low < found <= middle
    assert tables.share_for(table, Budget(low - 1, "tokens"), known) is None
    with pytest.raises(
        InvalidPlan, match=r"budget '1 tokens' is outside this calibration, which reaches from '[\d.]+ tokens' to"
    ):
        prune(model, budget="1 tokens", calibration=table, workload=WORK).__enter__()
    table.save(tmp_path / tables.CALIBRATION)
    model.config._name_or_path = str(tmp_path)
    with prune(model, budget=Budget(middle, "tokens"), workload=WORK) as run:
        assert known.of(run.plan, "tokens") == found


# --- milliseconds -----------------------------------------------------------------------------------------------------


def test_the_clock_is_found_from_exact_times() -> None:
    known = prices()
    first = Workload(answer=1)
    halves = [Plan("atp", steps) for steps in ((Step(Site("vision", 2), 0.4),), (Step(Site("language", 2), 0.3),))]
    plans = [Plan("atp"), *halves, solve(MINI, 0.7), solve(MINI, 0.5)]
    points = [(known.flops(p, first), bool(p.steps), CLOCK.milliseconds(known.flops(p, first), bool(p.steps))) for p in plans]
    found = fit(points)
    assert (found.fixed, found.per_tower, found.per_language, found.choosing) == pytest.approx((2.0, 3.0, 1.5, 0.25), rel=1e-6)
    assert found.misfit < 1e-9
    noisy = fit([(f, pruned, took * (0.7 if pruned else 1.0)) for f, pruned, took in points])
    assert min(noisy.fixed, noisy.per_tower, noisy.per_language, noisy.choosing) >= 0
    assert noisy.misfit > 0.01
    with pytest.raises(InvalidPlan, match="at least one measured time"):
        fit([])


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No times are known yet."""
    monkeypatch.setattr(timing, "MEMORY", tmp_path / "cache" / "times.json")
    monkeypatch.setattr(timing, "_known", {})
    return tmp_path / "cache" / "times.json"


def test_times_are_measured_once_for_a_model_and_device(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, shape = build("clip-llama"), shape_of("clip-llama")
    asked: list[int] = []

    def timed(adapter: object, plans: list[Plan]) -> list[tuple[Plan, float]]:
        asked.append(len(plans))
        flat = Prices(shape, Workload(images=1, answer=1), {})
        return [(plan, 1000 * flat.of(plan, "share")) for plan in plans]

    monkeypatch.setattr(timing, "_timed", timed)
    monkeypatch.setattr(timing, "MISFIT", math.inf)
    with prune(model, budget="800 ms", method="uniform") as run:
        first = run.plan
    assert asked == [5]  # everything, two shares, the stacks of the first (of the last it is the tower only)
    assert first.steps and 0.7 < (first.budget or 0) < 0.9
    assert len(json.loads(memory.read_text())) == 1
    monkeypatch.setattr(timing, "_known", {})  # as in another process
    with prune(model, budget="800 ms", method="uniform") as run:
        assert run.plan == first
    assert asked == [5]
    with prune(model.double(), budget="800 ms", method="uniform"):
        assert len(asked) == 2  # another dtype
    with pytest.raises(UnreachableBudget, match=r"the lowest reachable is '[\d.]+ ms'"):
        prune(model, budget="10 ms", method="uniform").__enter__()


def test_true_times(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's own prefill is timed, under plans and without."""
    monkeypatch.setattr(timing, "ROUNDS", 1)
    monkeypatch.setattr(timing, "MISFIT", -1.0)
    model = build("clip-llama")
    warned = pytest.warns(UserWarning, match=r"times that a budget in milliseconds rests on differ by up to .*measure again")
    with warned, prune(model, budget="100 s", method="uniform") as run:
        assert not run.plan.steps
    found = Clock(**next(iter(json.loads(memory.read_text()).values())))
    assert found.fixed + found.per_tower + found.per_language > 0


def test_a_family_that_only_its_processor_feeds_says_so(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("clip-llama")
    model.config.model_type = "llava"
    monkeypatch.setattr("atp.adapters.examples.MAKERS", {})
    with pytest.raises(InvalidPlan, match=r"milliseconds cannot be measured here .*give budget= as a share, tokens or bytes"):
        prune(model, budget="5 ms", method="uniform").__enter__()
