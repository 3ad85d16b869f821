"""Shapes, versions, template ids, the smaller image, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import invariants
import tiny
from atp import adapters
from atp.adapters import adapt, list_models
from atp.adapters.scattered import live_tokens
from atp.engine import prune
from atp.errors import BadInput, UnsupportedModel
from atp.plan import Plan, Site, Step


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_shapes_are_those_of_the_parameters(kind: str) -> None:
    model = tiny.model(kind)
    shape = adapt(model).shape
    for stack, layers in (
        (shape.vision, model.model.vision_tower.encoder.layers),
        (shape.language, model.model.language_model.layers),
    ):
        attention, mlp = layers[0].self_attn, layers[0].mlp
        assert len(layers) == stack.layers
        assert tuple(attention.q_proj.weight.shape) == (stack.heads * stack.head_dim, stack.hidden)
        assert tuple(attention.k_proj.weight.shape) == (stack.kv_heads * stack.head_dim, stack.hidden)
        matrices = [p for p in mlp.parameters() if p.dim() == 2]
        assert len(matrices) == stack.mlp_matrices
        assert all(sorted(p.shape) == sorted((stack.hidden, stack.intermediate)) for p in matrices)
    bridge = model.model.multi_modal_projector
    assert shape.connector == tuple((w.in_features, w.out_features) for w in (bridge.linear_1, bridge.linear_2))
    assert model.model.vision_tower.embeddings.patch_embedding.weight[0].numel() == shape.patch_inputs
    assert (shape.patches, shape.visual, shape.vocab) == (16, 16, model.lm_head.out_features)
    assert shape.prefix == int(kind.startswith("clip"))
    assert not shape.pooling_head


def test_two_feature_layers_widen_the_connector() -> None:
    shape = adapt(tiny.make(vision_feature_layer=[-2, 1], vision_feature_select_strategy="full")).shape
    assert (shape.connector[0], shape.visual) == ((64, 32), 17)


def test_unknown_models_are_named() -> None:
    assert list_models() == sorted(adapters.ADAPTERS)
    assert all(kind in adapters.adapter_class(kind).model_types for kind in list_models())

    def like(kind: Any) -> Any:
        return SimpleNamespace(config=SimpleNamespace(model_type=kind))

    with pytest.raises(
        UnsupportedModel, match=r"model_type 'llavaa'\. Did you mean 'llava'\? Supported: .*llava, .*adapter='generic'\)"
    ):
        adapt(like("llavaa"))
    with pytest.raises(UnsupportedModel, match=r"no adapter for model_type 'bert'\. Supported"):
        adapt(like("bert"))
    with pytest.raises(UnsupportedModel, match="expected a transformers model, got Linear"):
        adapt(torch.nn.Linear(1, 1))
    with pytest.raises(UnsupportedModel, match="language head, got LlavaModel"):
        adapt(tiny.model().model)
    wrapped = SimpleNamespace(config=tiny.model().config, lm_head=None, model=tiny.model())
    with pytest.raises(UnsupportedModel, match=r"got SimpleNamespace without 'vision_tower'; .*model\.get_base_model"):
        adapt(wrapped)
    other = tiny.make()
    other.config.text_config.model_type = "gemma"
    with pytest.raises(UnsupportedModel, match="language model is of type 'gemma'; supported: llama, qwen2, mistral"):
        adapt(other)


@pytest.mark.parametrize(("version", "good"), [("5.19.3", False), ("5.20.0", True), ("5.23.1.dev0", True), ("5.24", False)])
def test_versions(version: str, good: bool) -> None:
    if good:
        adapters.check_version(version)
        return
    with pytest.raises(UnsupportedModel, match=f"transformers {version} is outside .*>=5.20,<5.24"):
        adapters.check_version(version)


def test_a_missing_transformers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise adapters.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(adapters.metadata, "version", absent)
    with pytest.raises(UnsupportedModel, match=r"not installed; pip install 'transformers>=5.20,<5.24'"):
        adapters.check_version()


def test_other_attention_is_refused() -> None:
    model = tiny.make()
    model.config.text_config._attn_implementation = "flex_attention"
    with pytest.raises(UnsupportedModel, match=r"'flex_attention' of the language model .*set_attn_implementation\('sdpa'\)"):
        adapt(model)


def test_a_model_on_several_devices_is_refused() -> None:
    model = tiny.make()
    model.hf_device_map = {"model": 0, "lm_head": "cpu"}
    with pytest.raises(UnsupportedModel, match="spread over 0, cpu"):
        adapt(model)


def test_live_tokens() -> None:
    assert live_tokens(None, 3, 0) is None
    mask = torch.tensor([[0, 1, 1, 1]])
    assert live_tokens(mask, 3, 1).tolist() == [[True] * 3]  # type: ignore[union-attr]
    causal = torch.ones(4, 4, dtype=torch.bool).tril()
    causal[0] = False
    square = causal.view(1, 1, 4, 4)
    assert live_tokens(square, 4, 0).tolist() == [[False, True, True, True]]  # type: ignore[union-attr]
    added = torch.zeros(1, 1, 4, 4).masked_fill(~square, -1e30)
    assert live_tokens(added, 4, 0).tolist() == [[False, True, True, True]]  # type: ignore[union-attr]
    with pytest.raises(BadInput, match=r"shape \[1, 4\], expected \[batch, 5\]"):
        live_tokens(mask, 5, 0)


@pytest.mark.parametrize("additive", [False, True])
def test_a_mask_of_four_dimensions_given_by_the_user(additive: bool) -> None:
    model = tiny.model()
    inputs = tiny.prompts(model)
    real = inputs["attention_mask"].bool()
    length = real.shape[1]
    square = torch.ones(length, length, dtype=torch.bool).tril() & real[:, None, None, :]
    mask = torch.zeros(square.shape, dtype=model.dtype).masked_fill(~square, torch.finfo(model.dtype).min) if additive else square
    positions = (real.long().cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), prune(model, plan=tiny.plan("atp")):
        want = model(**inputs, position_ids=positions).logits
        got = model(**(inputs | {"attention_mask": mask}), position_ids=positions).logits
    text = real & (inputs["input_ids"] != tiny.IMAGE)
    assert (got - want)[text].abs().max() < 1e-9


def test_template_ids_of_a_processor(loaded: Any) -> None:
    model, processor = loaded
    ids = adapt(model).template_ids(processor)
    words = {processor.tokenizer.convert_ids_to_tokens(one) for one in ids}
    assert {"USER:", "ASSISTANT:", "<s>", "<image>"} <= words
    assert not words & {"dogs", "cat", "how", "?"}
    assert adapt(model).template_ids(None) == {0, 2, 3, 4}
    bare = SimpleNamespace(tokenizer=processor.tokenizer, chat_template=None)
    assert adapt(model).template_ids(bare) <= ids


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_smaller_image_is_what_the_tower_would_give_for_it(kind: str) -> None:
    """Resize to 2 x 2 patches = features of the downsampled image, in the places 0, 2, 8, 10 of the prompt."""
    model = tiny.model(kind)
    inputs = tiny.prompts(model)
    plan = Plan("resize", (Step(Site("pixels", 0), 0.25),))
    with torch.no_grad():
        with prune(model, plan=plan) as run:
            logits, _answer, cache = invariants.decode(model, inputs, 3)
        small = torch.nn.functional.interpolate(inputs["pixel_values"], size=(16, 16), mode="bicubic", antialias=True)
        features = model.get_image_features(small, interpolate_pos_encoding=True, return_dict=True).pooler_output
    places = [5, 7, 13, 15]
    assert run.trace.records[0].kept[0].tolist() == places
    assert [layer.keys.shape[-2] for layer in cache.layers] == [2 + 4 + 9 + 3] * 5
    # The same by hand: embeddings of the kept places only, with the positions that they have in the whole prompt.
    row = tiny.single(inputs, 1)
    embedded = model.get_input_embeddings()(row["input_ids"])
    where = (row["input_ids"][0] == tiny.IMAGE).nonzero().flatten()
    embedded[0, where[places]] = features[1]
    keep = torch.ones(embedded.shape[1], dtype=torch.bool)
    keep[where] = False
    keep[where[places]] = True
    with torch.no_grad():
        places_kept = keep.nonzero().flatten()[None]
        want = model(
            inputs_embeds=embedded[:, keep], position_ids=places_kept, attention_mask=torch.ones_like(places_kept)
        ).logits
    text = inputs["input_ids"][1] != tiny.IMAGE
    got = logits[1, : len(text)][text & inputs["attention_mask"][1].bool()]
    visual = (row["input_ids"][0] == tiny.IMAGE)[keep]
    assert (got - want[0][~visual]).abs().max() < 1e-9
