"""What a run says, remembers and refuses."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import invariants
import tiny
from atp.engine import prune
from atp.errors import AlreadyPruned, BadInput, InvalidPlan, NothingPruned, UnknownMethod, UnsupportedModel
from atp.methods import METHODS, Method, register
from atp.plan import Plan, Site, Step
from atp.tokens import Tokens
from atp.trace import Trace

GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True}
PLAN = tiny.plan("atp")
IMAGES = (1, 2, 1)


def one(model: Any, text: int = 6, images: int = 1) -> dict[str, Tensor]:
    return tiny.prompts(model, (text,), (images,))


# --- what is said -----------------------------------------------------------------------------------------------------


def test_a_run_that_prunes_nothing_warns_or_raises() -> None:
    model = tiny.model()
    inputs = one(model)
    with pytest.warns(UserWarning, match="removed no token in 1 forwards"), prune(model, plan=tiny.plan("none", keep=1.0)):
        model(**inputs)
    with pytest.raises(NothingPruned, match="lower the budget"), prune(model, plan=Plan("atp"), strict=True):
        model(**inputs)
    with pytest.raises(NothingPruned, match="no forward with an image"), prune(model, plan=PLAN, strict=True):
        pass
    with warnings.catch_warnings(), prune(model, plan=PLAN):
        warnings.simplefilter("error")


def test_who_forgets_the_with_is_told() -> None:
    model = tiny.model()
    run = prune(model, plan=PLAN)
    with pytest.raises(AttributeError, match=r"has no 'report'.*`with atp.prune\(...\) as run:`, .* use run.report"):
        run.report()  # type: ignore[attr-defined]
    with run as entered:
        model(**one(model))
    assert entered.report().ratio < 1
    seen = []

    @prune(model, plan=PLAN)
    def answered() -> None:
        seen.append(model(**one(model)).logits)

    answered()
    answered()
    assert torch.equal(*seen)


def test_text_only_is_exact_and_warns_once() -> None:
    model = tiny.model()
    ids = torch.tensor([[5, 9, 12, 30]])
    want = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
    with prune(model, plan=PLAN) as run:
        with pytest.warns(UserWarning, match="no image"):
            model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
        got = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
    assert torch.equal(torch.stack(got.logits), torch.stack(want.logits))
    assert run.report().ratio == 1


def test_generation_without_cache_warns() -> None:
    model = tiny.model()
    with prune(model, plan=PLAN):
        model.generate(**one(model), max_new_tokens=1, do_sample=False, use_cache=False)
        with pytest.warns(UserWarning, match="use use_cache=True"):
            model.generate(**one(model), max_new_tokens=3, do_sample=False, use_cache=False)


def test_tuples_instead_of_outputs() -> None:
    model = tiny.model()
    inputs = tiny.prompts(model)
    with torch.no_grad(), prune(model, plan=PLAN):
        assert torch.equal(model(**inputs, return_dict=False)[0], model(**inputs).logits)


def test_an_error_inside_is_not_hidden_by_a_warning() -> None:
    model = tiny.model()

    def fails() -> None:
        with prune(model, plan=Plan("atp"), strict=True):
            model(**one(model))
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fails()


def test_the_report() -> None:
    model = tiny.model()
    inputs = tiny.prompts(model, images=IMAGES)
    with prune(model, plan=PLAN) as run:
        model.generate(**inputs, max_new_tokens=4, do_sample=False)
        model.generate(**inputs, max_new_tokens=4, do_sample=False)
        run.trace.clear()
    report = run.report()
    data = report.to_dict()
    assert data["prompts"] == 6
    assert data["images"] == 8
    assert data["kept"] == {"vision": {"1": [13] * 4, "3": [8] * 4}, "language": {"1": [6, 13, 6], "3": [3, 6, 3]}}
    assert data["flops_ratio"] == pytest.approx(data["flops"]["total"] / data["flops_unpruned"]["total"])
    assert 0 < data["flops"]["selection"] < 0.05 * data["flops"]["total"]
    assert data["selection_seconds"] > 0
    per_prompt = [(8 * n + 2 * k + 2 * j) / 5 for n, k, j in ((1, 6, 3), (2, 13, 6), (1, 6, 3))]
    assert data["equivalent_tokens"] == pytest.approx(sum(per_prompt) / 3)
    text = str(report)
    assert "selection" in text
    assert "kept at language:3: 3, 6, 3" in text


def test_a_third_partys_method_needs_nothing_but_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered from outside: sites and counts come from the solver, options from keyword arguments."""

    @dataclasses.dataclass(frozen=True)
    class Mine(Method):
        slope: float = 1.0

        def score(self, tokens: Tokens) -> Tensor:
            return tokens.hidden.norm(dim=-1) * self.slope

    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))
    register("mine")(Mine)
    model = tiny.model()
    with prune(model, method="mine", budget=0.8, slope=-1.0) as run:
        invariants.decode(model, tiny.prompts(model), 2)
    assert run.plan.options == {"slope": -1.0}
    assert run.report().ratio < 0.85
    invariants.equals_reference(model, tiny.prompts(model, images=IMAGES), run.plan)


def test_the_trace() -> None:
    model = tiny.model()
    with torch.no_grad(), prune(model, plan=PLAN) as run:
        model(**tiny.prompts(model, images=IMAGES))
    trace = run.trace
    assert trace.image_rows == [0, 1, 1, 2]
    assert trace.grids == [(4, 4)] * 4
    assert trace.kept("language") == {1: [6, 13, 6], 3: [3, 6, 3]}
    assert trace.alive_at_end("vision", 3).tolist() == trace.records[1].kept[3].tolist()
    with pytest.raises(BadInput, match=r"a site of 'text', so no token left there; ask for 'language' or 'vision'"):
        trace.alive_at_end("text", 0)
    with pytest.raises(BadInput, match="run the model inside the block first"):
        Trace().alive_at_end("vision", 0)
    assert [record.forward for record in trace.records] == [0] * 4
    for record in trace.records:
        assert record.scores is not None
        assert [len(row) for row in record.scores] == record.alive.sum(1).tolist()
        assert all(row.is_sorted() if hasattr(row, "is_sorted") else (row.diff() > 0).all() for row in record.kept)


def test_thresholds_can_be_replaced_but_sites_cannot() -> None:
    model = tiny.model()
    inputs = one(model)
    with torch.no_grad(), prune(model, plan=PLAN) as run:
        model(**inputs)
        run.plan = dataclasses.replace(PLAN, steps=tuple(dataclasses.replace(step, threshold=0.0) for step in PLAN.steps))
        model(**inputs)
        assert run.trace.kept("vision") == {1: [16], 3: [16]}
        with pytest.raises(InvalidPlan, match="new sites \\['language:2'\\]"):
            run.plan = Plan("atp", (Step(Site("language", 2), 0.5),))
        with pytest.raises(InvalidPlan, match="got method 'uniform'"):
            run.plan = tiny.plan("uniform")


@pytest.mark.parametrize(
    ("inputs", "adaptive", "syncs"), [((6,), False, 0), ((6, 9), False, 1), ((6,), True, 4), ((6, 9), True, 1 + 4)]
)
def test_fixed_plans_do_not_wait_for_the_device(
    monkeypatch: pytest.MonkeyPatch, inputs: tuple[int, ...], adaptive: bool, syncs: int
) -> None:
    """None for a single prompt, one a forward for a padded batch, and one a site where the plan is adaptive."""
    model = tiny.model()
    batch = tiny.prompts(model, inputs)
    if len(inputs) == 1:
        del batch["attention_mask"]
    reads = 0

    def counted(name: str) -> Any:
        whole = getattr(Tensor, name)

        def read(self: Tensor, *args: Any) -> Any:
            nonlocal reads
            reads += "atp" in sys._getframe(1).f_globals.get("__name__", "").split(".")[0]
            return whole(self, *args)

        return read

    for name in ("tolist", "item", "__bool__", "__int__", "__float__", "nonzero", "cpu"):
        monkeypatch.setattr(Tensor, name, counted(name))
    with torch.no_grad(), prune(model, plan=tiny.plan("atp", adaptive)):
        model(**batch)
        assert reads == syncs


# --- what is refused --------------------------------------------------------------------------------------------------


def test_prune_on_a_pruned_model() -> None:
    model = tiny.model()
    with prune(model, plan=PLAN), pytest.raises(AlreadyPruned, match="leave it first"), prune(model, plan=PLAN):
        pass
    with prune(model, plan=PLAN):
        pass


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"budget": 0}, InvalidPlan, "budget is a share in"),
        ({"budget": 1.2}, InvalidPlan, "budget is a share in"),
        ({"budget": 0.01}, InvalidPlan, "lowest reachable is 0"),
        ({"method": "none", "budget": 0.5}, InvalidPlan, "lowest reachable is 1.00"),
        ({"method": "fastvv"}, UnknownMethod, "Did you mean 'fastv'"),
        ({"method": "atp", "alhpa": 0.5}, InvalidPlan, "no option 'alhpa'. Did you mean 'alpha'"),
        ({"method": "atp", "alpha": 2}, InvalidPlan, "alpha is a share"),
        ({"method": "atp", "intra": "some"}, InvalidPlan, "intra is one of 'received'"),
        ({"plan": PLAN, "budget": 0.5}, InvalidPlan, "both plan= and budget="),
        ({"plan": PLAN, "calibration": "file.json"}, InvalidPlan, "both plan= and calibration="),
        ({"plan": PLAN, "method": "fastv"}, InvalidPlan, "the plan is of method 'atp'"),
        ({"plan": 3}, InvalidPlan, "plan is an atp.Plan or the path"),
        ({"plan": "no-such-plan.yaml"}, InvalidPlan, "cannot read the plan"),
        ({"calibration": 3}, InvalidPlan, "calibration is a Calibration or the path"),
        ({"plan": Plan("atp", (Step(Site("language", 5), 0.5),))}, InvalidPlan, "layers 0 to 4"),
        ({"plan": Plan("atp", (Step(Site("vision", 7), 0.5),))}, InvalidPlan, "layers 0 to 4"),
        ({"plan": Plan("atp", (Step(Site("language", 0), 0.5),))}, InvalidPlan, "too early; use language:1"),
        ({"plan": Plan("fastv", (Step(Site("vision", 2), 0.5),))}, InvalidPlan, "prunes language only"),
        ({"plan": Plan("atp", (Step(Site("pixels", 0), 0.5),))}, InvalidPlan, "prunes vision and language only"),
        ({"plan": Plan("resize", (Step(Site("pixels", 0), 0.5, threshold=1.0),))}, InvalidPlan, "one size for all images"),
        ({"plan": Plan("fastv", (Step(Site("language", 2), 1.0, text=0.5),))}, InvalidPlan, "got text=0.5; use text=1.0"),
        ({"sites": "vision:1/language:7"}, InvalidPlan, "the plan has a step at language:7, .* layers 0 to 4"),
        ({"sites": " / "}, InvalidPlan, "names no site; e.g. sites='vision:0/vision:3'"),
        ({"sites": ["vision"]}, InvalidPlan, "cannot read the site 'vision'"),
        ({"sites": "language:0"}, InvalidPlan, "too early; use language:1"),
        ({"sites": "vision:2", "method": "fastv"}, InvalidPlan, "prunes language only"),
        ({"sites": "vision:2", "plan": PLAN}, InvalidPlan, "both sites= and plan="),
        ({"sites": "vision:2", "calibration": "file.json"}, InvalidPlan, "both sites= and calibration="),
        ({"method": "atp:sites=vision:9"}, InvalidPlan, "layers 0 to 4"),
        ({"method": "atp:alhpa=1"}, InvalidPlan, "'alhpa=1' is no option"),
        ({"budget": 0.8, "text": 1.5}, InvalidPlan, r"text is a share in \[0, 1\], got 1.5"),
        ({"budget": 0.8, "text": 0.5, "text_tail": 0}, InvalidPlan, "text_tail is a whole number >= 1, got 0; e.g. text_tail=32"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    model = tiny.model()
    before = invariants.fingerprint(model)
    with pytest.raises(error, match=match), prune(model, **arguments):
        pass
    assert invariants.fingerprint(model) == before


def test_tokens_leave_where_the_caller_says() -> None:
    model = tiny.model()
    inputs = one(model)
    places = (Site("vision", 2), Site("language", 3))
    for how in (
        {"sites": "language:3/vision:2"},
        {"sites": ["vision:2", Site("language", 3)]},
        {"method": "atp:sites=vision:2/language:3"},
    ):
        with prune(model, 0.8, **how) as run:
            model(**inputs)
        assert tuple(step.site for step in run.plan.steps) == places, how
        kept = run.report().kept
        assert set(kept["vision"]) == {2} and set(kept["language"]) == {3}, how
        assert 0.75 < run.plan.budget <= 0.8
    with prune(model, 0.8, "atp:alpha=0.7+sites=vision:2", alpha=0.3) as run:
        pass
    assert run.plan.options == {"alpha": 0.3}  # what is said apart is said last


def test_caches_that_cannot_store_a_subset() -> None:
    model = tiny.model()
    inputs = one(model)
    with prune(model, plan=PLAN):
        with pytest.raises(UnsupportedModel, match="StaticLayer, which cannot store a subset"):
            model.generate(**inputs, max_new_tokens=3, cache_implementation="static")
        # Before 5.23 the chunks have lost their image, of which a warning tells.
        with pytest.raises((UnsupportedModel, UserWarning), match=r"prefill_chunk_size=None|the prompt has no image"):
            model.generate(**inputs, max_new_tokens=3, prefill_chunk_size=8)
        with pytest.raises(UnsupportedModel, match="pass input_ids"):
            model(inputs_embeds=model.get_input_embeddings()(inputs["input_ids"]), pixel_values=inputs["pixel_values"])
        model(**inputs)


def test_a_pruned_cache_outside_the_block() -> None:
    model = tiny.model()
    with torch.no_grad():
        with prune(model, plan=PLAN):
            cache = model(**one(model), use_cache=True).past_key_values
        with pytest.raises(Exception, match=r"filled inside `atp\.prune`"):
            model(input_ids=torch.tensor([[9]]), past_key_values=cache)


def test_a_prompt_with_unexpanded_image_tokens() -> None:
    model = tiny.model()
    inputs = tiny.prompts(model, (4, 4))
    ids = inputs["input_ids"]
    ids[0, 2], ids[1, -1] = 9, tiny.IMAGE  # one token of the first image has moved to the second prompt
    with (
        pytest.raises(BadInput, match="the prompts have 15, 17 image tokens, but their 2 images take 16, 16"),
        prune(model, plan=PLAN),
    ):
        model(**inputs)


def test_a_method_that_returns_the_wrong_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    from atp.errors import AtpError
    from atp.methods.controls import Uniform

    model = tiny.model()
    monkeypatch.setattr(Uniform, "score", lambda self, tokens: torch.ones(3))
    match = r"returned scores of shape \[3\], expected \[1, 16\]"
    with pytest.raises(AtpError, match=match), prune(model, plan=tiny.plan("uniform")):
        model(**one(model))
