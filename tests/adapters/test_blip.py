"""BLIP-2 and InstructBLIP: what the registry-wide invariants do not ask."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tiny
from atp.adapters import adapt
from atp.engine import prune
from atp.errors import UnsupportedModel
from atp.plan import Plan, Site, Step
from families import FAMILIES

NAMES = ("blip-2-opt", "instructblip-llama")
PLAN = Plan(
    "atp", tuple(Step(Site(*site), keep) for site, keep in ((("vision", 2), 0.5), (("language", 2), 0.4))), tiny.unmerged("atp")
)


@cache
def model_of(name: str) -> Any:
    return FAMILIES[name].make(layers=4)


@cache
def inputs_of(name: str) -> Any:
    return FAMILIES[name].inputs(model_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_those_of_the_parameters(name: str) -> None:
    model = model_of(name)
    shape = adapt(model).shape
    layer, text = model.vision_model.encoder.layers[0], adapt(model).language.layers[0]
    assert layer.self_attn.qkv.weight.shape == (3 * shape.vision.heads * shape.vision.head_dim, shape.vision.hidden)
    assert layer.mlp.fc1.weight.shape == (shape.vision.intermediate, shape.vision.hidden)
    assert model.vision_model.embeddings.patch_embedding.weight[0].numel() == shape.patch_inputs
    assert shape.connector == ((model.language_projection.in_features, model.language_projection.out_features),)
    assert (shape.patches, shape.prefix, shape.visual) == (16, 1, model.query_tokens.shape[1])
    assert model.language_model.lm_head.weight.shape == (shape.vocab, shape.language.hidden)
    assert len([p for n, p in text.named_parameters() if p.dim() == 2 and "attn" not in n]) == shape.language.mlp_matrices


@pytest.mark.parametrize("name", NAMES)
def test_the_model_itself_and_generate_choose_alike(name: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    with prune(model, plan=PLAN) as run, torch.no_grad():
        logits = model(**inputs).logits[:, -1]
        first = [record.kept for record in run.trace.records]
        encoded = model.get_image_features(**{k: v for k, v in inputs.items() if k == "pixel_values" or "qformer" in k})
        given = {key: value for key, value in inputs.items() if key != "pixel_values" and "qformer" not in key}
        more = {key: value for key, value in inputs.items() if "qformer" in key}
        again = model(pixel_values=None, mm_encoder_outputs={"image": encoded}, **given, **more).logits[:, -1]
        out = model.generate(
            **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
        )  # fmt: skip
        last = [record.kept for record in run.trace.records[-2:]]
    torch.testing.assert_close(logits, again, rtol=0, atol=0)
    torch.testing.assert_close(logits.float(), out.logits[0], rtol=0, atol=1e-5)
    assert all(torch.equal(a, b) for one, two in zip(first, last, strict=True) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_beams_share_their_prompts_choice(name: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    with prune(model, plan=PLAN) as run:
        out = model.generate(**inputs, max_new_tokens=4, num_beams=2, do_sample=False)
    assert out.shape[0] == 3
    kept = [row.tolist() for row in run.trace.last("language")[0].kept]
    assert len(kept) == 6
    assert kept[0::2] == kept[1::2]
    for row in range(3):
        with prune(model, plan=PLAN):
            alone = model.generate(**FAMILIES[name].single(inputs, row), max_new_tokens=4, num_beams=2, do_sample=False)
        assert out[row, -4:].tolist() == alone[0, -4:].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_a_second_turn_goes_on_with_what_is_left(name: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    turn = torch.tensor([[40, 41, 42]] * 3)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(turn)], 1)
    found = []
    for together in (True, False):
        with prune(model, plan=PLAN), torch.no_grad():
            out = model(**inputs, use_cache=True).language_model_outputs
            cache = out.past_key_values
            if together:
                logits = model.language_model(input_ids=turn, attention_mask=mask, past_key_values=cache).logits[:, -1]
            else:
                for place in range(3):
                    seen = mask[:, : mask.shape[1] - 2 + place]
                    step = model.language_model(input_ids=turn[:, place : place + 1], attention_mask=seen, past_key_values=cache)
                logits = step.logits[:, -1]
        stored = [layer.keys.shape[-2] for layer in cache.layers]
        assert stored[0] - stored[-1] == 10  # 16 queries, 6 of them kept from layer 2 on
        found.append(logits)
    torch.testing.assert_close(*found, rtol=0, atol=1e-9)


def test_a_caption_needs_no_text() -> None:
    model, pixels = model_of("blip-2-opt"), inputs_of("blip-2-opt")["pixel_values"]
    with prune(model, plan=PLAN) as run:
        model.generate(pixel_values=pixels, max_new_tokens=2, do_sample=False)
    assert [list(record.counts) for record in run.trace.records] == [[8] * 3, [6] * 3]


def test_thresholds_are_levelled_in_a_tower_without_masks() -> None:
    model, inputs = model_of("blip-2-opt"), inputs_of("blip-2-opt")
    plan = Plan("atp", (Step(Site("vision", 2), 0.5, 1.0),))
    counts = []
    for row in range(3):
        with prune(model, plan=plan) as run, torch.no_grad():
            model(**FAMILIES["blip-2-opt"].single(inputs, row))
        counts += run.trace.last("vision")[0].counts
        assert run.report().levelled == ()
    assert len(set(counts)) > 1, "the images have equal counts, which shows nothing"
    with prune(model, plan=plan) as run, torch.no_grad():
        model(**inputs)
    assert run.trace.last("vision")[0].counts == [max(counts)] * 3
    assert run.report().levelled == ("vision",)
    assert "vision: its layers take no mask" in str(run.report())


def test_what_cannot_be_right_is_refused() -> None:
    narrow = FAMILIES["blip-2-opt"].make(layers=1)
    narrow.config.text_config.word_embed_proj_dim = 16
    with pytest.raises(UnsupportedModel, match="embeds words in 16 dimensions and computes in 32"):
        adapt(narrow)
    with pytest.raises(UnsupportedModel, match=r"got SimpleNamespace without 'vision_model'.*model\.get_base_model"):
        adapt(SimpleNamespace(config=model_of("blip-2-opt").config, lm_head=None))  # type: ignore[arg-type]
    model, inputs = model_of("blip-2-opt"), inputs_of("blip-2-opt")
    embedded = model.get_input_embeddings()(inputs["input_ids"])
    more = {"attention_mask": inputs["attention_mask"], "pixel_values": inputs["pixel_values"]}
    with prune(model, plan=PLAN), pytest.raises(UnsupportedModel, match="pass input_ids instead of inputs_embeds"):
        model.generate(inputs_embeds=embedded, max_new_tokens=1, **more)
