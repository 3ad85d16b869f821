"""What every registered method owes: exact counts, no dead token, each input for itself, the same again, honest FLOPs."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import sample
from atp.methods.base import METHODS, Method, Work
from atp.methods.tokendrop import blank, save
from atp.plan import Site
from atp.tokens import READS, Tokens
from gate import parts

NAMES = [name for name in METHODS.names() if METHODS.get(name).__module__.startswith("atp.methods")]
CASES = [(name, stack) for name in NAMES for stack in ("vision", "language") if stack in METHODS.get(name).stacks]
TOWERS = [(*case, True) for case in CASES] + [
    (*case, False) for case in CASES if "class" in METHODS.get(case[0]).needs.get(case[1], ())
]
SHARES = (0.05, 0.4, 0.9, 1.0)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes a method by name, with weights where it needs some."""
    folder = tmp_path_factory.mktemp("weights")

    @cache
    def make(name: str, **options: Any) -> Method:
        if name == "tokendrop":
            torch.manual_seed(3)
            save(blank(64) * torch.rand(64), folder / "table.safetensors")
            options["table"] = str(folder / "table.safetensors")
        if name in ("gate", "lvpruning"):
            sites = [Site(stack, 2) for stack in METHODS.get(name).stacks]
            widths = {"vision": 16, "language": 16}
            path = parts.write(folder / f"{name}.safetensors", name, sites, widths, parts.files.Mark("", ()))
            options["weights"] = str(path)
        return METHODS.get(name)(**options)

    return make


def wanted(made: Tokens, share: float) -> Tensor:
    """Counts that differ from input to input."""
    total = made.alive.sum(1)
    return torch.minimum((total * share).to(torch.int64).clamp(min=1) + torch.arange(len(total)), total)


def decide(method: Method, made: Tokens, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, what stays, and the states after merging (those of survivors, else zero)."""
    scores = method.score(made)
    keep = method.select(scores, made, counts)
    return scores, keep, method.fuse(made.hidden, keep, scores, made)[0] * keep.unsqueeze(-1)


@pytest.mark.parametrize("kind", sample.KINDS)
@pytest.mark.parametrize(("name", "stack", "cls"), TOWERS)
def test_counts_are_met_and_nobody_dead_stays(build: Any, name: str, stack: str, kind: str, cls: bool) -> None:
    made = sample.tokens(kind, stack, cls=cls)
    method = build(name)
    scores = method.score(made)
    assert scores.shape == made.alive.shape
    live = scores[made.alive]
    assert torch.isfinite(live).all()
    assert (live >= 0).all(), "an adaptive step needs scores >= 0"
    for share in SHARES:
        counts = wanted(made, share)
        keep = method.select(scores, made, counts)
        assert keep.dtype == torch.bool
        assert not (keep & ~made.alive).any(), "a dead token was kept"
        assert keep.sum(1).tolist() == counts.tolist()
        fused, sizes = method.fuse(made.hidden, keep, scores, made)
        assert fused.shape == made.hidden.shape and fused.dtype == made.hidden.dtype
        assert torch.isfinite(fused[keep]).all()
        assert sizes is None or sizes[keep].sum() == made.alive.sum(), "tokens got lost or were counted twice"
        if share == 1.0:
            assert torch.equal(keep, made.alive)
            assert torch.equal(fused[keep], made.hidden[keep]), "nothing left, so nothing may change"


@pytest.mark.parametrize("kind", sample.KINDS)
@pytest.mark.parametrize(("name", "stack", "cls"), TOWERS)
def test_a_batch_is_its_singles(build: Any, name: str, stack: str, kind: str, cls: bool) -> None:
    made = sample.tokens(kind, stack, cls=cls)
    method = build(name)
    for share in SHARES[:3]:
        counts = wanted(made, share)
        scores, keep, fused = decide(method, made, counts)
        for row in range(len(counts)):
            length = made.started[row]
            alone = sample.pick(made, torch.tensor([row]), length)
            one, kept, states = decide(method, alone, counts[row : row + 1])
            live = alone.alive[0]
            torch.testing.assert_close(one[0][live], scores[row, :length][live])
            assert torch.equal(kept[0], keep[row, :length]), f"input {row} keeps others alone"
            torch.testing.assert_close(states[0], fused[row, :length])


@pytest.mark.parametrize(("name", "stack"), CASES)
def test_more_than_there_are_is_all(build: Any, name: str, stack: str) -> None:
    """Where layers take no mask, every input keeps as many as the one with most; some have fewer alive."""
    made = sample.tokens("dead", stack)
    _, keep, states = decide(build(name), made, made.alive.sum(1).clamp(min=30))
    assert torch.equal(keep, made.alive)
    assert torch.equal(states[keep], made.hidden[keep])


@pytest.mark.parametrize(("name", "stack"), CASES)
def test_a_lone_token_stays(build: Any, name: str, stack: str) -> None:
    made = sample.tokens(stack=stack, side=4)
    alive = torch.zeros_like(made.alive)
    alive[torch.arange(3), torch.tensor([5, 15, 0])] = True
    made = sample.pick(replace(made, alive=alive), torch.arange(3))
    scores, keep, states = decide(build(name), made, torch.ones(3, dtype=torch.int64))
    assert torch.equal(keep, alive)
    assert torch.isfinite(scores[alive]).all()
    assert torch.equal(states[alive], made.hidden[alive])


@pytest.mark.parametrize("kind", ["plain", "duplicates", "dead"])
@pytest.mark.parametrize(("name", "stack"), CASES)
def test_order_of_inputs_and_repetition_change_nothing(build: Any, name: str, stack: str, kind: str) -> None:
    made, order = sample.tokens(kind, stack), torch.tensor([2, 0, 1])
    method, counts = build(name), wanted(made, 0.4)
    first = decide(method, made, counts)
    for again, index in ((sample.tokens(kind, stack), torch.arange(3)), (sample.shuffled(made, order), order)):
        scores, keep, states = decide(method, again, counts[index])
        assert torch.equal(keep, first[1][index])
        torch.testing.assert_close(scores[again.alive], first[0][index][again.alive])
        torch.testing.assert_close(states, first[2][index])


@pytest.mark.parametrize(("name", "stack"), CASES)
def test_dead_tokens_are_never_read(build: Any, name: str, stack: str) -> None:
    made = sample.tokens("dead", stack)
    counts = wanted(made, 0.4)
    want = decide(build(name), made, counts)
    gone = ~made.alive
    for value in (made.hidden, made.keys, made.embeddings):
        value[gone] = 1e3
    again = sample.pick(made, torch.arange(3))  # without what was computed before
    got = decide(build(name), again, counts)
    assert torch.equal(want[1], got[1])
    torch.testing.assert_close(want[0][made.alive], got[0][made.alive])
    torch.testing.assert_close(want[2], got[2])


@pytest.mark.parametrize(("name", "stack", "cls"), TOWERS)
def test_flops_are_those_of_torch(build: Any, name: str, stack: str, cls: bool) -> None:
    made = sample.tokens(stack=stack, batch=2, side=12, cls=cls)
    method, counts = build(name), torch.tensor([40, 40])
    with FlopCounterMode(display=False) as counter:
        decide(method, made, counts)
    kinds = [("visual" if kind == "class" and not cls else kind) for kind in method.raters(stack)]
    work = Work(stack, 144, 144, 40, 16, 8, 2, 6, sum(made.rows[kind].values.shape[1] for kind in kinds))
    assert method.flops(work) * 2 == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_every_method_says_what_it_is(name: str) -> None:
    cls = METHODS.get(name)
    said = cls.__doc__ or ""
    assert "Cost" in said or name in ("none", "random")
    if cls.url:
        assert cls.paper and cls.url.startswith("https://")
        assert "Differences from" in said
    assert set(cls.needs) <= {"vision", "language"}
    assert all(part in READS for parts in cls.reads.values() for part in parts)
    assert set(cls.kinds) <= {"visual", "text"}
    assert cls.fuses == (cls.fuse is not Method.fuse), "`fuses` must say whether there is a `fuse`"
