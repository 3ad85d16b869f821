"""Methods on whole models: what reaches the connector and the language model, against formulas over transformers' own maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from atp.budget.cost import Workload
from atp.engine import prune
from atp.methods import METHODS
from atp.plan import Plan, Site, Step

COUNT = 10


def tower_states(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the layer before the last: patches' states, class attention averaged over the heads, keys `[P, N, H, d]`."""
    tower = model.model.vision_tower
    caught: list[Tensor] = []
    handle = tower.encoder.layers[-2].self_attn.k_proj.register_forward_hook(lambda module, args, output: caught.append(output))
    try:
        out = tower(pixels, output_hidden_states=True, output_attentions=True)
    finally:
        handle.remove()
    heads = model.config.vision_config.num_attention_heads
    keys = caught[0][:, 1:].unflatten(2, (heads, -1))
    return out.hidden_states[-2][:, 1:], out.attentions[-2].mean(1)[:, 0, 1:], keys


def connected(model: Any, inputs: dict[str, Tensor], method: str, **options: Any) -> Tensor:
    """What enters the connector, `[P, COUNT, D]`."""
    caught: list[Tensor] = []
    layers = model.config.vision_config.num_hidden_layers
    plan = Plan(method, (Step(Site("vision", layers - 1), COUNT / tiny.PATCHES),), options)
    handle = model.model.multi_modal_projector.linear_1.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    try:
        with prune(model, plan=plan):
            model(**inputs)
    finally:
        handle.remove()
    return caught[0]


def visionzip(states: Tensor, scores: Tensor, keys: Tensor) -> list[Tensor]:
    """Dominant patches, and 5/32 of the tokens as targets: each plus the mean of those whose key is most like its own."""
    best = scores.argsort(descending=True).tolist()[: COUNT - 2]
    rest = [i for i in range(len(states)) if i not in best]
    targets = rest[:: len(rest) // 2][:2]
    metric = torch.nn.functional.normalize(keys.mean(1), dim=1)
    made = {i: states[i] for i in best}
    for target in targets:
        own = [i for i in rest if i not in targets and max(targets, key=lambda t: float(metric[i] @ metric[t])) == target]
        made[target] = states[target] + (states[own].mean(0) if own else 0)
    return [made[i] for i in sorted(made)]


def fastervlm(states: Tensor, scores: Tensor, keys: Tensor) -> list[Tensor]:
    """The patches of highest class attention."""
    return [states[i] for i in sorted(scores.argsort(descending=True).tolist()[:COUNT])]


def evit(states: Tensor, scores: Tensor, keys: Tensor) -> list[Tensor]:
    """The patches of highest class attention, and all others summed with it as weights at the place of the best of them."""
    order = scores.argsort(descending=True).tolist()
    fused = sum(scores[i] * states[i] for i in order[COUNT - 1 :])
    return [fused if i == order[COUNT - 1] else states[i] for i in sorted(order[:COUNT])]  # type: ignore[misc]


def prumerge(states: Tensor, scores: Tensor, keys: Tensor) -> list[Tensor]:
    """Each patch plus its neighbours (all of 15) weighted by class attention; the rest summed likewise."""
    order = scores.argsort(descending=True).tolist()
    total = sum(scores[i] * states[i] for i in order)
    made = {i: states[i] + total - scores[i] * states[i] for i in order[: COUNT - 1]}
    made[order[COUNT - 1]] = sum(scores[i] * states[i] for i in order[COUNT - 1 :])
    return [made[i] for i in sorted(made)]


@pytest.mark.parametrize(("formula", "options"), [(visionzip, {}), (fastervlm, {}), (evit, {}), (prumerge, {"grid": 0.0})])
@torch.no_grad()
def test_the_connector_gets_what_the_formula_says(formula: Any, options: dict[str, Any]) -> None:
    """Scores come from one row of a tower on fused attention, the formula's from the eager tower's whole maps."""
    inputs = tiny.prompts(tiny.model(), (6, 9))
    want = [
        torch.stack(formula(*one))
        for one in zip(*tower_states(tiny.model(attention="eager"), inputs["pixel_values"]), strict=True)
    ]
    got = connected(tiny.model(), inputs, formula.__name__, **options)
    torch.testing.assert_close(got, torch.stack(want), rtol=0, atol=1e-5)  # eager softmax is float32


@torch.no_grad()
def test_divprune_compares_projected_features() -> None:
    inputs = tiny.prompts(tiny.model(), (6, 9))
    with prune(tiny.model(), plan=Plan("divprune", (Step(Site("language", 0), 0.5),))) as run:
        tiny.model()(**inputs)
    features = tiny.model().model.get_image_features(inputs["pixel_values"]).pooler_output
    for row, kept in enumerate(run.trace.last("language")[0].kept):
        unit = torch.nn.functional.normalize(features[row], dim=1)
        apart = 1 - unit @ unit.T
        picks = [int(apart.sort(1).values[:, 1].argmax())]
        while len(picks) < 8:
            picks.append(int(apart[picks].min(0).values.index_fill(0, torch.tensor(picks), -1).argmax()))
        assert kept.tolist() == sorted(picks)


SITED = [name for name in METHODS.names() if "default_sites" in vars(METHODS.get(name)) and not METHODS.get(name).trained]


@pytest.mark.parametrize("name", [name for name in SITED if name not in ("none", "resize")])
@torch.no_grad()
def test_default_sites_work_under_a_budget(name: str) -> None:
    """Solved for a share that every one of them can reach, selection counted, nothing spent beyond it."""
    inputs = tiny.prompts(tiny.model(), (12,))
    with prune(tiny.model(), budget=0.85, method=name, workload=Workload(images=1, text=14, answer=1)) as run:
        tiny.model()(**inputs)
    assert run.dropped > 0
    assert 0.7 <= run.report().ratio <= 0.8501
