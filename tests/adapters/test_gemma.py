"""PaliGemma and Gemma 3: rows under norms of heads, soft caps, windows and masks of both directions; sizes; what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from atp.adapters import adapt
from atp.adapters.cache_layer import PrunedLayer
from atp.engine import prune
from atp.errors import UnsupportedModel
from atp.methods.base import METHODS
from atp.plan import Plan, Site, Step
from families import FAMILIES
from families.base import IMAGE
from test_rows import Probe

NAMES = ("paligemma", "paligemma2", "gemma3")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_rows_are_those_that_the_model_attends_with(monkeypatch: pytest.MonkeyPatch, name: str, layer: int) -> None:
    """At every kind of layer, against the model's own eager attention."""
    monkeypatch.setitem(METHODS._entries, "probe", Probe)
    monkeypatch.setattr(Probe, "name", "probe")
    Probe.seen.clear()
    family = FAMILIES[name]
    model = family.make(attention="eager", dtype=torch.float32, layers=4)
    inputs = family.inputs(model)
    with torch.no_grad():
        want: Tensor = model(**inputs, output_attentions=True).attentions[layer - 1].mean(1)
        with prune(model, plan=Plan("probe", (Step(Site("language", layer), 0.5),))):
            model(**inputs)
    found = Probe.seen[0].rows
    for row, ids in enumerate(inputs["input_ids"]):
        visual = (ids == family.image_token_id).nonzero().flatten()
        places = range(int(visual[-1]) + 1, len(ids))
        for kind, at in (("last", [len(ids) - 1]), ("question", list(places)), ("visual", visual.tolist())):
            rated = found[kind]
            got = rated.values[row][rated.valid[row]][:, : len(visual)]
            torch.testing.assert_close(got, want[row, at][:, visual], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_are_those_of_the_parameters(name: str) -> None:
    model = FAMILIES[name].make(layers=3)
    shape = adapt(model).shape
    layer, tower = model.model.language_model.layers[0], model.model.vision_tower.encoder.layers[0]
    for stack, attention, mlp in ((shape.language, layer.self_attn, layer.mlp), (shape.vision, tower.self_attn, tower.mlp)):
        assert tuple(attention.q_proj.weight.shape) == (stack.heads * stack.head_dim, stack.hidden)
        assert tuple(attention.k_proj.weight.shape) == (stack.kv_heads * stack.head_dim, stack.hidden)
        matrices = [one for one in mlp.parameters() if one.dim() == 2]
        assert [sorted(one.shape) for one in matrices] == [sorted((stack.hidden, stack.intermediate))] * stack.mlp_matrices
    (bridge,) = (one for one in model.model.multi_modal_projector.parameters() if one.dim() == 2)
    assert sorted(shape.connector[0]) == sorted(bridge.shape)
    assert not shape.pooling_head


def test_a_layer_with_a_window_forgets_nothing_that_its_mask_needs() -> None:
    """Layers before the first site keep the model's own cache; those behind it store their subset without eviction."""
    model = FAMILIES["gemma3"].make(layers=4)
    inputs = FAMILIES["gemma3"].inputs(model)
    with torch.no_grad(), prune(model, plan=Plan("uniform", (Step(Site("language", 1), 0.5),))) as run:
        cache = model(**inputs, use_cache=True).past_key_values
    window = model.config.text_config.sliding_window
    text = (inputs["attention_mask"].bool() & (inputs["input_ids"] != IMAGE)).sum(1)
    kept = torch.tensor(run.trace.kept("language")[1])
    assert [type(layer) is PrunedLayer for layer in cache.layers] == [False, True, True, True]
    assert cache.layers[0].keys.shape[-2] == window - 1
    assert [layer.keys.shape[-2] for layer in cache.layers[1:]] == [int((kept + text).max())] * 3
    assert [layer.is_sliding for layer in cache.layers] == [True, True, False, True]


def test_pooling_that_leaves_patches_over_is_refused() -> None:
    model: Any = FAMILIES["gemma3"].make(layers=2)
    model.model.multi_modal_projector.tokens_per_side = 3
    model.model.multi_modal_projector.kernel_size = 2
    with pytest.raises(UnsupportedModel, match=r"8 x 8 patches do not divide into 3 x 3 .*mm_tokens_per_image"):
        adapt(model)


def test_a_smaller_image_gives_what_the_tower_gives_for_it() -> None:
    model = FAMILIES["paligemma"].make(layers=2)
    pixels = FAMILIES["paligemma"].inputs(model)["pixel_values"]
    small = torch.nn.functional.interpolate(pixels, size=(8, 8), mode="bicubic", antialias=True)
    with torch.no_grad():
        want = model.get_image_features(small, interpolate_pos_encoding=True, return_dict=True).pooler_output
        with prune(model, plan=Plan("resize", (Step(Site("pixels", 0), 0.25),))) as run:
            got = model.get_image_features(pixels, return_dict=True).pooler_output
    places = run.trace.records[0].kept[0]
    assert places.tolist() == [5, 7, 13, 15]
    torch.testing.assert_close(got[:, places], want, rtol=0, atol=1e-9)
