"""What a run kept is read off its trace as it is; the deletion test keeps the others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from atp.errors import BadInput
from atp.evals.grounding.watching import chance, dropped, fixed, own_plans, watch
from atp.evals.harness.answering import Asker
from atp.plan import Plan, Site, Step
from families import FAMILIES

STEPS = (Step(Site("vision", 1), 0.5), Step(Site("language", 1), 0.25))
CALL = {"longest": 2}


def asker(name: str) -> tuple[Asker, list[Any]]:
    """A tiny model and one batch of two prompts with one image each; answers are the ids."""
    family = FAMILIES[name]
    model = family.make(dtype=torch.float64)
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=None, all_special_ids=[0, 1, 2, 3], chat_template=None)

    def said(ids: torch.Tensor, **_: Any) -> list[str]:
        return [" ".join(map(str, row.tolist())) for row in ids]

    processor = SimpleNamespace(tokenizer=tokenizer, batch_decode=said, chat_template=None)
    return Asker(model, processor), [([1, 0], family.inputs(model, texts=(4, 4), images=(1, 1)))]


def own(name: str, method: str = "atp") -> Plan:
    """A plan that both stacks of the family can follow."""
    if name == "idefics":  # the first site of its language model is behind the first gated layer
        return Plan(method, (STEPS[0], Step(Site("language", 2), 0.5)))
    return Plan(method, STEPS)


def test_sites_are_read_as_they_were() -> None:
    one, prompts = asker("llava-clip-llama")
    found = watch(one, prompts, Plan("atp", STEPS), **CALL)
    assert sorted(found.sites) == ["language:1", "vision:1"]
    assert 0.2 < found.flops_share < 0.95
    for label, share in (("vision:1", 0.5), ("language:1", 0.25)):
        assert sorted(found.sites[label]) == [0, 1]
        for seen in found.sites[label].values():
            assert seen.grid is not None and len(seen.kept) == seen.grid[0] * seen.grid[1]
            assert seen.kept.sum() == round(share * len(seen.kept))
            assert not (seen.kept & ~seen.alive).any()
            assert seen.scores is not None
            assert np.array_equal(np.isfinite(seen.scores), seen.alive)
    # what leaves in the tower is not there in the language model; answers stand at their subjects' numbers
    assert np.array_equal(found.sites["language:1"][0].alive, found.sites["vision:1"][0].kept)
    turned = watch(one, [([0, 1], prompts[0][1])], Plan("atp", STEPS), **CALL)
    assert turned.answers == found.answers[::-1]
    assert np.array_equal(turned.sites["vision:1"][0].kept, found.sites["vision:1"][1].kept)


@pytest.mark.parametrize(("name", "patches"), [("llava-clip-llama", True), ("blip-2-opt", False), ("idefics", False)])
def test_queries_and_latents_are_no_patches(name: str, patches: bool) -> None:
    one, prompts = asker(name)
    found = watch(one, prompts, own(name), **CALL)
    tower, language = (
        next(seen for label, seen in found.sites.items() if label.startswith(stack)) for stack in ("vision", "language")
    )
    assert tower[0].grid is not None
    assert (language[0].grid is not None) == patches


def test_several_tiles_are_refused() -> None:
    one = asker("llava-clip-llama")[0]
    family = FAMILIES["llava-clip-llama"]
    two = [([0, 1], family.inputs(one.model, texts=(4, 4), images=(1, 2)))]
    with pytest.raises(BadInput, match="made 3 images of 2, and grounding is measured on one grid an image"):
        watch(one, two, Plan("atp", STEPS), **CALL)


def test_own_attention_drops_nothing() -> None:
    one, prompts = asker("llava-clip-llama")
    whole = watch(one, prompts, Plan("none"), **CALL)
    plans = own_plans([Site("vision", 0), Site("vision", 2), Site("language", 1)])
    assert [(plan.method, [str(step.site) for step in plan.steps]) for plan in plans] == [
        ("fastervlm", ["vision:2"]),
        ("fastv", ["language:1"]),
    ]
    for plan in plans:
        found = watch(one, prompts, plan, all_scores=True, **CALL)
        assert found.answers == whole.answers
        for seen in next(iter(found.sites.values())).values():
            assert seen.kept.all() and seen.scores is not None and np.isfinite(seen.scores).all()


def test_dropped_takes_what_was_not_kept_then_the_lowest() -> None:
    scores = torch.tensor([[5.0, 1.0, 4.0, 2.0, 3.0, 9.0]] * 2)
    alive = torch.tensor([[True] * 5 + [False]] * 2)
    kept = torch.tensor([[True, False, True, False, False, False], [True, True, True, False, True, False]])
    found = dropped(scores, alive, kept, torch.tensor([2, 4]))
    assert found.tolist() == [
        [False, True, False, True, False, False],  # 1 and 2, not 3: the lowest of those that left
        [False, True, True, True, True, False],  # the only one that left, then the lowest three of the others
    ]


@pytest.mark.parametrize("method", ["atp", "fastv", "random"])
def test_the_inverse_keeps_the_others_at_equal_counts(method: str) -> None:
    one, prompts = asker("llava-clip-llama")
    steps = STEPS[1:] if method == "fastv" else STEPS
    kept, other = (watch(one, prompts, Plan(method, steps), inverse=inverse, **CALL) for inverse in (False, True))
    first = str(steps[0].site)
    for number in (0, 1):
        mine, theirs = kept.sites[first][number].kept, other.sites[first][number].kept
        assert mine.sum() == theirs.sum()
        assert not (mine & theirs).any()
    assert kept.flops_share == pytest.approx(other.flops_share, rel=0.02)
    again = watch(one, prompts, Plan(method, steps), **CALL)  # nothing of it is left in the method
    assert np.array_equal(again.sites[first][0].kept, kept.sites[first][0].kept)


def test_nothing_is_merged_in_the_deletion_test() -> None:
    """EViT's survivors are the same, without the fused token the next site scores others."""
    one, prompts = asker("llava-clip-llama")
    plan = Plan("evit", (Step(Site("vision", 1), 0.5), Step(Site("vision", 2), 0.25)))
    merged, alone, inverse = (watch(one, prompts, plan, **CALL, **how) for how in ({}, {"alone": True}, {"inverse": True}))
    assert (merged.fuses, alone.fuses, inverse.fuses) == (True, False, False)
    assert np.array_equal(merged.sites["vision:1"][0].kept, alone.sites["vision:1"][0].kept)
    assert not np.array_equal(merged.sites["vision:2"][0].scores, alone.sites["vision:2"][0].scores, equal_nan=True)
    assert not (alone.sites["vision:1"][0].kept & inverse.sites["vision:1"][0].kept).any()
    assert watch(one, prompts, plan, **CALL).fuses


def test_chance_has_the_same_counts() -> None:
    one, prompts = asker("llava-clip-llama")
    adaptive = Plan("atp", (Step(Site("vision", 1), 0.5, threshold=1.1), STEPS[1]))
    assert fixed(adaptive) == Plan("atp", STEPS)
    found = watch(one, prompts, chance(adaptive, 3), **CALL)
    mine = watch(one, prompts, fixed(adaptive), **CALL)
    for label, images in mine.sites.items():
        assert [seen.kept.sum() for seen in images.values()] == [seen.kept.sum() for seen in found.sites[label].values()]
    assert not np.array_equal(found.sites["vision:1"][0].kept, mine.sites["vision:1"][0].kept)
