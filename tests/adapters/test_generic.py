"""The generic adapter: does what a family's own adapter does in the language model, and refuses what it does not understand."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import pytest
import torch
from transformers import Cohere2Config, Cohere2VisionConfig, Cohere2VisionForConditionalGeneration, SiglipVisionConfig

import invariants
from atp.adapters import adapt
from atp.budget.cost import Workload
from atp.engine import prune
from atp.errors import AlreadyPruned, InvalidPlan, UnsupportedModel
from atp.plan import Plan, Site, Step
from families import FAMILIES
from families.base import IMAGE, TEXT, TOWER, build, noise, prompts

PASSED = "the generic adapter passed its check"


@cache
def model_of(name: str) -> Any:
    """Built once, read only."""
    return FAMILIES[name].make(layers=4)


def plan(method: str) -> Plan:
    return Plan(method, (Step(Site("language", 1), 0.6), Step(Site("language", 2), 0.3)))


@cache
def cohere() -> Any:
    """Sliding layers, interleaved phases: a type without adapter."""
    vision = SiglipVisionConfig(num_hidden_layers=3, image_size=16, patch_size=4, vision_use_head=False, **TOWER)
    text = Cohere2Config(num_hidden_layers=4, num_key_value_heads=2, sliding_window=8, **TEXT)
    config = Cohere2VisionConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE, downsample_factor=2, alignment_intermediate_size=48
    )
    return build(Cohere2VisionForConditionalGeneration, config, torch.float64, "sdpa", 0)


def photographs(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    inputs = prompts((6, 9, 4), [[[IMAGE] * 4], [[IMAGE] * 4] * 2, [[IMAGE] * 4]], "left", generator)
    inputs["pixel_values"] = noise(generator, model, 4, 3, 16, 16)
    return inputs


@pytest.mark.parametrize("name", ["llava-clip-llama", "llava_next", "internvl", "idefics3"])
@pytest.mark.parametrize("method", ["random", "fastv"])
def test_equals_the_familys_own_adapter(name: str, method: str) -> None:
    model = model_of(name)
    inputs = FAMILIES[name].inputs(model)
    options = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad(), prune(model, plan=plan(method)) as own:
        want = model.generate(**inputs, **options)
    with torch.no_grad(), pytest.warns(UserWarning, match=PASSED), prune(model, plan=plan(method), adapter="generic") as run:
        got = model.generate(**inputs, **options)
    assert torch.equal(got.sequences, want.sequences)
    assert torch.equal(torch.stack(got.logits), torch.stack(want.logits))
    assert run.report().kept == own.report().kept
    assert run.report().flops.prefill == own.report().flops.prefill
    assert run.report().flops.vision == 0


@pytest.mark.parametrize(("name", "method"), [("fast_vlm", "atp"), ("cohere2_vision", "uniform")])
def test_an_unknown_family(name: str, method: str) -> None:
    model = cohere() if name == "cohere2_vision" else model_of(name)
    inputs = photographs(model) if name == "cohere2_vision" else FAMILIES[name].inputs(model)
    with pytest.raises(UnsupportedModel, match=rf"no adapter for model_type '{name}'.*atp\.prune\(model, adapter='generic'\)"):
        adapt(model)
    want = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    before = invariants.fingerprint(model)
    with torch.no_grad(), prune(model, plan=plan(method), adapter="generic") as run:
        with pytest.warns(UserWarning, match=PASSED):
            first = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        model.generate(**inputs, max_new_tokens=3, do_sample=False, num_beams=2)
        model(**inputs)
        with pytest.raises(AlreadyPruned), prune(model, adapter="generic", budget=0.5):
            pass
    started = [int(n) for n in (inputs["input_ids"] == IMAGE).sum(1)]
    assert run.trace.kept("language")[2] == [round(0.3 * n) for n in started]
    assert first.shape == want.shape
    assert invariants.fingerprint(model) == before
    assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), want)


def test_a_budget_is_of_the_language_model() -> None:
    model = model_of("fast_vlm")
    inputs = FAMILIES["fast_vlm"].inputs(model, (32,), (4,))
    work = Workload(images=4, text=34, answer=1)
    passed = pytest.warns(UserWarning, match=PASSED)
    with torch.no_grad(), passed, prune(model, budget=0.7, adapter="generic", workload=work) as run:
        model(**inputs)
    report = run.report()
    assert report.ratio == pytest.approx(0.7, abs=0.02)
    assert report.flops.vision == report.flops.connector == 0


def test_the_towers_sites_are_refused() -> None:
    steps = (Step(Site("vision", 1), 0.5),)
    said = pytest.raises(
        InvalidPlan, match="the Generic adapter prunes language only, the plan has a step at vision:1; remove it"
    )
    with said, prune(model_of("internvl"), plan=Plan("uniform", steps), adapter="generic"):
        pass


def test_other_names_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="unknown adapter 'general'; expected 'generic', or leave adapter= away"):
        adapt(model_of("internvl"), "general")


def checked(model: Any, inputs: Any, method: str = "uniform") -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with torch.no_grad(), prune(model, plan=plan(method), adapter="generic"):
            model(**inputs)


def test_layers_that_mix_neighbours_are_noticed() -> None:
    """A token that looks at the place beside it, not at a key, does not see what leaves: pruned is not masked."""
    model = FAMILIES["internvl"].make(layers=4)
    inputs = FAMILIES["internvl"].inputs(model, (5,), (1,))
    checked(model, inputs)

    def mix(module: Any, args: Any, output: Any) -> Any:
        return output + torch.roll(args[0], 1, dims=1)

    for layer in model.model.language_model.layers:
        layer.mlp.register_forward_hook(mix)
    with pytest.raises(UnsupportedModel, match="half of the visual tokens removed instead of masked, its states differ by"):
        checked(model, inputs)
    with torch.no_grad(), prune(model, plan=plan("uniform"), adapter="generic"):
        for _ in range(2):  # it stays refused
            with pytest.raises(UnsupportedModel, match="check failed on this internvl model"):
                model(**inputs)


def test_layers_that_read_the_length_are_noticed() -> None:
    model = FAMILIES["internvl"].make(layers=4)

    def longer(module: Any, args: Any, output: Any) -> Any:
        return output * args[0].shape[1]

    model.model.language_model.layers[1].mlp.register_forward_hook(longer)
    with pytest.raises(UnsupportedModel, match=r"check failed on this internvl model: with half .*, its states differ by"):
        checked(model, FAMILIES["internvl"].inputs(model))


def test_a_model_that_fails_in_the_check_is_named() -> None:
    model = FAMILIES["internvl"].make(layers=4)
    calls = []

    def fail(module: Any, args: Any, output: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError("planned")

    model.model.language_model.layers[1].mlp.register_forward_hook(fail)
    with pytest.raises(UnsupportedModel, match="check failed on this internvl model: it raised ZeroDivisionError: planned"):
        checked(model, FAMILIES["internvl"].inputs(model))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mllama", "has no image_token_id|matrices of layer 0|no self_attn"),
        ("idefics", "no decoder layers found in its language_model"),
    ],
)
def test_unusual_models_are_refused(name: str, says: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"the generic adapter cannot prune a .* model: .*({says}).*`atp models`"):
        adapt(model_of(name), "generic")


def test_other_phases_are_not_scored() -> None:
    with pytest.raises(
        UnsupportedModel, match=r"Cohere2DecoderLayer turns its phases .* use method='uniform' or method='random'"
    ):
        checked(cohere(), photographs(cohere()), "atp")
