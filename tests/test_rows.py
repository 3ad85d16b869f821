"""Rater choice and attention rows against the full square, and against what the model itself attends to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import reference
import tiny
from atp import rows
from atp.engine import attention, prune
from atp.methods import Method
from atp.methods.base import METHODS
from atp.plan import Plan, Site, Step
from atp.tokens import Tokens


def test_spread_is_even_ordered_and_independent_of_neighbours() -> None:
    candidates = torch.zeros(3, 50, dtype=torch.bool)
    candidates[0, 10:50] = True
    candidates[1, [3, 7]] = True
    index, valid = rows.spread(candidates, 4)
    assert index[0].tolist() == [19, 29, 39, 49]
    assert valid.tolist() == [[True] * 4, [True, True, False, False], [False] * 4]
    assert index[1, :2].tolist() == [3, 7]
    assert torch.equal(rows.spread(candidates[:1], 4)[0], index[:1])
    assert rows.spread(candidates[:, :3], 4)[0].shape == (3, 3)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("additive", [None, False, True])
def test_rows_equal_the_full_softmax(groups: int, additive: bool | None) -> None:
    q, k = torch.randn(2, 4, 3, 8, dtype=torch.float64), torch.randn(2, groups, 5, 8, dtype=torch.float64)
    allowed = torch.rand(2, 1, 3, 5) > 0.3
    allowed[..., 0] = True
    logits = q @ k.repeat_interleave(4 // groups, 1).transpose(2, 3) * 0.3
    mask: Tensor | None = None
    if additive is not None:
        mask = torch.zeros(2, 1, 3, 5, dtype=torch.float64).masked_fill(~allowed, -1e30) if additive else allowed
        logits = logits.masked_fill(~allowed, -torch.inf)
    torch.testing.assert_close(rows.attention_rows(q, k, mask, 0.3), logits.softmax(-1).mean(1))


def test_half_precision_rows_are_float32() -> None:
    made = rows.attention_rows(torch.randn(1, 2, 3, 4).bfloat16(), torch.randn(1, 2, 5, 4).bfloat16(), None, 0.5)
    assert made.dtype == torch.float32


@dataclass(frozen=True)
class Probe(Method):
    """Look at every kind of row, keep the even tokens first."""

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vision": ("class", "visual"),
        "language": ("question", "last", "visual"),
    }
    seen: ClassVar[list[Tokens]] = []

    def score(self, tokens: Tokens) -> Tensor:
        self.seen.append(tokens)
        return (torch.arange(tokens.alive.shape[1]) % 2 == 0).double().expand_as(tokens.alive) + 0.5


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(METHODS._entries, "probe", Probe)
    monkeypatch.setattr(Probe, "name", "probe")
    Probe.seen.clear()
    return Probe


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_those_that_the_model_attends_with(probe: Any, kind: str, side: str) -> None:
    """At the second site of each stack, where tokens have left before, against eager attention of the masked reference."""
    model = tiny.model(kind, attention="eager", dtype=torch.float32)
    inputs = tiny.prompts(model, (6, 9, 4), side=side)
    sites = [Site("vision", 1), Site("vision", 3), Site("language", 1), Site("language", 3)]
    plan = Plan("probe", tuple(Step(site, keep) for site, keep in zip(sites, (0.8, 0.6, 0.4, 0.2), strict=True)))
    template = frozenset({int(inputs["input_ids"][0, -1])}) if side == "left" else frozenset()
    with torch.no_grad(), prune(model, plan=plan, template_ids=template) as run:
        model(**inputs)
    caught: dict[str, Tensor] = {}

    def catch(name: str) -> Any:
        return lambda module, args, output: caught.__setitem__(name, output[1].mean(1))

    tower, text = model.model.vision_tower.encoder.layers[2], model.model.language_model.layers[2]
    handles = [tower.self_attn.register_forward_hook(catch("vision")), text.self_attn.register_forward_hook(catch("language"))]
    try:
        reference.logits(model, inputs, run.trace)
    finally:
        for handle in handles:
            handle.remove()
    vision, language = probe.seen[1], probe.seen[3]
    prefix = int(kind.startswith("clip"))
    for image in range(3):
        alive = vision.alive[image]
        if prefix:
            got = vision.rows["class"].values[image, 0][alive]
            torch.testing.assert_close(got, caught["vision"][image, 0, prefix:][alive], rtol=1e-4, atol=1e-6)
        patches = alive.nonzero().flatten()
        rated = vision.rows["visual"]
        assert int(rated.valid[image].sum()) == len(patches)
        want = caught["vision"][image, prefix:, prefix:][patches][:, alive]
        torch.testing.assert_close(rated.values[image][rated.valid[image]][:, alive], want, rtol=1e-4, atol=1e-6)
    for row in range(3):
        ids, real = inputs["input_ids"][row], inputs["attention_mask"][row].bool()
        visual = (ids == tiny.IMAGE).nonzero().flatten()
        alive = language.alive[row]
        last = int(real.nonzero().max())
        got = language.rows["last"].values[row, 0][alive]
        torch.testing.assert_close(got, caught["language"][row, last, visual][alive], rtol=1e-4, atol=1e-6)
        asking = [p for p in range(int(visual[-1]) + 1, last + 1) if int(ids[p]) not in template]
        question = language.rows["question"]
        assert int(question.valid[row].sum()) == len(asking)
        want = caught["language"][row, asking][:, visual][:, alive]
        torch.testing.assert_close(question.values[row][question.valid[row]][:, alive], want, rtol=1e-4, atol=1e-6)
        sees = language.rows["visual"].sees[row][language.rows["visual"].valid[row]][:, alive]
        assert torch.equal(sees, torch.ones_like(sees).tril())


def test_a_prompt_of_template_tokens_only_falls_back_to_the_last_one(probe: Any) -> None:
    model = tiny.model()
    inputs = tiny.prompts(model, (5,))
    template = frozenset(int(one) for one in inputs["input_ids"][0, -5:])
    plan = Plan("probe", (Step(Site("language", 2), 0.5),))
    with torch.no_grad(), prune(model, plan=plan, template_ids=template):
        model(**inputs)
    question, last = probe.seen[0].rows["question"], probe.seen[0].rows["last"]
    assert question.valid[0].sum() == 1
    assert torch.equal(question.values[0][question.valid[0]], last.values[0])


def test_a_second_image_is_rated_against_everything_cached(probe: Any) -> None:
    """Rows after a cached turn = rows of the same prompt in one piece."""
    model = tiny.model()
    inputs = tiny.prompts(model, (6,), (2,))
    plan = Plan("probe", (Step(Site("language", 2), 1.0),))
    cut = 2 + tiny.PATCHES
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    told = pytest.warns(UserWarning, match="removed no token")
    with told, torch.no_grad(), prune(model, plan=plan, record_all_scores=True):
        model(**inputs)
        first = model(input_ids=ids[:, :cut], pixel_values=pixels[:1])
        model(input_ids=ids[:, cut:], pixel_values=pixels[1:], past_key_values=first.past_key_values)
    whole, _, second = (tokens.rows["question"] for tokens in probe.seen)
    torch.testing.assert_close(second.values[second.valid], whole.values[whole.valid][:, tiny.PATCHES :])


def test_the_engine_and_the_cost_model_agree_on_raters() -> None:
    from atp.budget import cost

    assert attention.VISUAL_RATERS == cost.VISUAL_RATERS
