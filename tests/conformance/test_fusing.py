"""Methods that merge what leaves into what stays, and what methods are told at a site: against the unhooked model, by layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import invariants
import reference
import tiny
from atp.adapters import adapt
from atp.engine import Run, passes, prune
from atp.errors import InvalidPlan
from atp.methods import METHODS
from atp.methods.base import Method
from atp.plan import Plan, Site, Step
from atp.tokens import Tokens
from conformance.test_families import SERVED, model_of, said

FUSING = [name for name in METHODS.names() if METHODS.get(name).fuses and not METHODS.get(name).trained]  # the gate: tests/gate
IMAGES = (1, 2, 1)


@dataclass
class Seen:
    """What a method was told at one site, and what it made of it."""

    tokens: Tokens
    keep: Tensor
    given: Tensor
    fused: Tensor
    scores: Tensor
    sizes: Tensor | None = None


@contextmanager
def spying(cls: type[Method]) -> Iterator[list[Seen]]:
    """Write down every call of `fuse`."""
    seen: list[Seen] = []
    plain = cls.fuse

    def fuse(self: Method, hidden: Tensor, keep: Tensor, scores: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        made = plain(self, hidden, keep, scores, tokens)
        seen.append(Seen(tokens, keep, hidden, made[0], scores, made[1]))
        return made

    cls.fuse = fuse  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        cls.fuse = plain  # type: ignore[method-assign]


def places(model: Any, inputs: Any, seen: Seen) -> list[Tensor]:
    """Places in the sequence of each row's tokens."""
    if seen.tokens.stack == "vision":
        prefix = int(model.config.vision_config.model_type == "clip_vision_model")
        return [torch.arange(tiny.PATCHES) + prefix for _ in seen.keep]
    return [(row == tiny.IMAGE).nonzero().flatten() for row in inputs["input_ids"]]


@contextmanager
def edited(model: Any, inputs: Any, seen: list[Seen], found: list[tuple[Tensor, list[Tensor]]]) -> Iterator[None]:
    """Write what was fused into the states of the full-length model at the sites, and note what stood there before."""
    parts = {"vision": model.model.vision_tower.encoder.layers, "language": model.model.language_model.layers}
    handles = []
    for one in seen:

        def hook(module: Any, args: Any, kwargs: Any, one: Seen = one) -> Any:
            states = (args[0] if args else kwargs["hidden_states"]).clone()
            own = places(model, inputs, one)
            found.append((states.clone(), own))
            for row, where in enumerate(own):
                kept = one.keep[row, : len(where)]
                states[row, where[kept]] = one.fused[row, : len(where)][kept]
            return ((states, *args[1:]), kwargs) if args else (args, dict(kwargs, hidden_states=states))

        handles.append(parts[one.tokens.stack][one.tokens.layer].register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def weights(seen: list[Seen], layers: int) -> list[Tensor]:
    """Logarithm of how many patches each patch stands for, layer by layer of the tower, `[P, N]`."""
    made = [torch.zeros(seen[0].keep.shape, dtype=torch.float64)] * layers
    for one in seen:
        if one.tokens.stack == "vision":
            assert one.sizes is not None
            grown = torch.where(one.keep, one.sizes, 1.0).log().to(torch.float64)
            made[one.tokens.layer :] = [grown] * (layers - one.tokens.layer)
    return made


def at_places(model: Any, inputs: Any, grown: Tensor) -> Tensor:
    """Lay the patches' weights out over the prompts, `[B, T]`."""
    ids = inputs["input_ids"]
    size = tiny.visual(model)
    cut = tiny.PATCHES - size  # a class token that is a visual token stands for itself
    made = torch.zeros(ids.shape, dtype=torch.float64)
    for number, (row, place) in enumerate((ids == tiny.IMAGE).nonzero().tolist()):
        patch = number % size + cut
        made[row, place] = grown[number // size, patch] if patch >= 0 else 0.0
    return made


@pytest.mark.parametrize("kind", ["clip-llama", "siglip-qwen2"])
@pytest.mark.parametrize("name", FUSING)
@pytest.mark.parametrize(("adaptive", "side"), [(False, "left"), (True, "right")])
def test_fused_states_go_on_in_the_place_of_the_survivors(kind: str, name: str, adaptive: bool, side: str) -> None:
    check_fused(kind, dataclasses.replace(tiny.plan(name, adaptive), options={}), side)


@pytest.mark.parametrize("kind", ["clip-llama", "siglip-qwen2"])
@pytest.mark.parametrize("name", [name for name in FUSING if METHODS.get(name)().embedded("vision")])
@pytest.mark.parametrize("adaptive", [False, True])
def test_patches_merge_before_the_first_layer(kind: str, name: str, adaptive: bool) -> None:
    threshold = (1.5 if name == "atp" else 1.0) if adaptive else None  # a cost, or a share of the mean distance
    first = Step(Site("vision", 0), 0.7, threshold, floor=0.1, absolute=adaptive and name == "atp")
    last = [Step(Site("language", 2), 0.3)] if "language" in METHODS.get(name).stacks else []
    run = check_fused(kind, Plan(name, (first, Step(Site("vision", 2), 0.5), *last)), "left")
    merged = next(record for record in run.trace.records if record.layer == 0)
    assert max(merged.counts) < tiny.PATCHES, "nothing merged there"


def check_fused(kind: str, merging: Plan, side: str) -> Run:
    """Decode under a plan, and let the unhooked, masked model go on with the states that were fused."""
    model, name = tiny.model(kind), merging.method
    inputs = tiny.prompts(model, images=IMAGES, side=side)
    with spying(METHODS.get(name)) as seen, prune(model, plan=merging) as run:
        got, answer, _ = invariants.decode(model, inputs, 4)
    assert seen and run.dropped > 0
    found: list[tuple[Tensor, list[Tensor]]] = []
    with edited(model, inputs, seen, found):
        more: tuple[Any, ...] = ()
        if run.method.weighs("vision"):
            layers = weights(seen, len(model.model.vision_tower.encoder.layers))
            more = (at_places(model, inputs, layers[-1]) if run.method.weighs("language") else None, layers)
        want = reference.logits(model, inputs, run.trace, answer, *more)
    assert (got - want)[invariants.readable(inputs, answer)].abs().max() <= 1e-9
    assert len(found) == len(seen)
    for one, (states, own) in zip(seen, found, strict=True):
        for row, where in enumerate(own):
            live = one.tokens.alive[row, : len(where)]
            torch.testing.assert_close(one.given[row, : len(where)][live], states[row, where[live]], rtol=0, atol=1e-9)
    plain = reference.logits(model, inputs, run.trace, answer)
    assert (got - plain)[invariants.readable(inputs, answer)].abs().max() > 1e-6, "merging changed nothing"
    return run


def test_the_reference_notices_when_merged_patches_count_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "weighted", lambda mask, *rest: mask)
    with pytest.raises(AssertionError):
        test_fused_states_go_on_in_the_place_of_the_survivors("clip-llama", "atp", False, "left")


def test_sizes_add_up_over_sites() -> None:
    model = tiny.model()
    with spying(METHODS.get("tome")) as seen, prune(model, plan=tiny.plan("tome")):
        model(**tiny.prompts(model, images=IMAGES))
    first, second = seen
    assert first.tokens.sizes is None
    assert second.tokens.sizes is not None
    assert second.tokens.sizes[first.keep].sum() == first.tokens.alive.sum()
    assert second.tokens.sizes.max() > 1


def test_gradients_flow_through_what_was_fused() -> None:
    model = tiny.make()
    inputs = tiny.prompts(model)
    with prune(model, plan=tiny.plan("visionzip")):
        model(**inputs).logits.square().mean().backward()
    grad = model.model.vision_tower.embeddings.patch_embedding.weight.grad
    assert grad is not None and bool(grad.isfinite().all()) and float(grad.abs().max()) > 0


@dataclass(frozen=True)
class Curious(Method):
    """Reads everything, keeps the first tokens."""

    needs: ClassVar[Any] = {"vision": ("class", "visual"), "language": ("question", "visual", "last")}
    reads: ClassVar[Any] = {"vision": ("keys", "embeddings"), "language": ("keys", "embeddings", "text")}
    seen: list[Any] = field(default_factory=list)

    def score(self, tokens: Tokens) -> Tensor:
        self.seen.append(tokens)
        for part in self.reads[tokens.stack]:
            getattr(tokens, part)
        _ = tokens.hidden
        return torch.arange(tokens.alive.shape[1], 0, -1).expand_as(tokens.alive).double()


@pytest.fixture
def curious(monkeypatch: pytest.MonkeyPatch) -> Any:
    METHODS.names()
    monkeypatch.setattr(Curious, "name", "curious")
    monkeypatch.setitem(METHODS._entries, "curious", Curious)
    return "curious"


def projected(model: Any, inputs: Any, trace: Any, stack: str, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys of the layer before a site, states at the site and at layer 0, of the masked full-length model."""
    layers = {"vision": model.model.vision_tower.encoder.layers, "language": model.model.language_model.layers}[stack]
    found: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            found[name] = args[0] if args else kwargs["hidden_states"]

        return hook

    handles = [
        layers[layer - 1].self_attn.k_proj.register_forward_hook(lambda module, args, output: found.update(keys=output)),
        layers[layer].register_forward_pre_hook(note("hidden"), with_kwargs=True),
        layers[0].register_forward_pre_hook(note("entered"), with_kwargs=True),
    ]
    reference.logits(model, inputs, trace)
    for handle in handles:
        handle.remove()
    return found["keys"], found["hidden"], found["entered"]


@pytest.mark.parametrize("kind", ["clip-llama", "siglip-qwen2"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_method_is_told_what_the_model_computes(kind: str, side: str, curious: str) -> None:
    model = tiny.model(kind)
    inputs = tiny.prompts(model, images=IMAGES, side=side)
    steps = [("vision", 1, 0.8), ("vision", 3, 0.5), ("language", 1, 0.4), ("language", 3, 0.2)]
    with prune(model, plan=Plan(curious, tuple(Step(Site(stack, layer), keep) for stack, layer, keep in steps))) as run:
        method: Any = run.method
        invariants.decode(model, inputs, 0)
    assert [(one.stack, one.layer) for one in method.seen] == [step[:2] for step in steps]
    for one in method.seen:
        keys, hidden, entered = projected(model, inputs, run.trace, one.stack, one.layer)
        blank = Seen(one, one.alive, one.hidden, one.hidden, one.hidden)
        for row, where in enumerate(places(model, inputs, blank)):
            live = one.alive[row, : len(where)]
            at = where[live]
            for got, want in ((one.keys.flatten(2), keys), (one.hidden, hidden), (one.embeddings, entered)):
                torch.testing.assert_close(got[row, : len(where)][live], want[row, at], rtol=0, atol=1e-9)
            assert one.keys.shape[2] * one.keys.shape[3] == keys.shape[-1]
        if one.stack == "language":
            _the_text_is_right(one, inputs, (keys, hidden, entered))


def _the_text_is_right(one: Tokens, inputs: Any, states: tuple[Tensor, Tensor, Tensor]) -> None:
    keys, hidden, entered = states
    text, asked = one.text, one.rows["question"]
    for row, ids in enumerate(inputs["input_ids"]):
        real = inputs["attention_mask"][row].bool() & (ids != tiny.IMAGE)
        at, last = real.nonzero().flatten(), int((ids == tiny.IMAGE).nonzero().max())
        valid = text.valid[row]
        assert int(valid.sum()) == len(at)
        assert text.keys is not None
        for got, want in ((text.keys.flatten(2), keys), (text.hidden, hidden), (text.embeddings, entered)):
            torch.testing.assert_close(got[row][valid], want[row, at], rtol=0, atol=1e-9)
        assert torch.equal(text.asks[row][valid], at > last)
        assert asked.embeddings is not None
        torch.testing.assert_close(asked.embeddings[row][asked.valid[row]], entered[row, at[at > last]], rtol=0, atol=1e-12)


def test_nothing_is_gathered_that_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from atp.engine import facts

    def never(*args: Any) -> Any:
        raise AssertionError("gathered although nobody reads it")

    for part in ("keys", "embeddings", "at_places"):
        monkeypatch.setattr(facts, part, never)
    model = tiny.model()
    with prune(model, plan=tiny.plan("atp")) as run:
        model(**tiny.prompts(model))
    assert run.dropped > 0


def test_a_method_counts_by_a_rule_of_its_own() -> None:
    """PruMerge: outliers x threshold and one more, within the step's bounds."""
    model = tiny.model()
    inputs = tiny.prompts(model, images=IMAGES)
    step = Step(Site("vision", 3), 0.5, threshold=1.0, floor=0.0)
    with prune(model, plan=Plan("prumerge", (step,), {"grid": 0.0})) as run:
        model(**inputs)
    record = run.trace.last("vision")[0]
    assert record.scores is not None
    for scores, kept in zip(record.scores, record.counts, strict=True):
        low, high = torch.quantile(scores, 0.25), torch.quantile(scores, 0.75)
        assert kept == min(int((scores > high + 1.5 * (high - low)).sum()) + 1, tiny.PATCHES)
    bounded = Step(Site("vision", 3), 0.5, threshold=1.0, floor=0.5)
    with prune(model, plan=Plan("prumerge", (bounded,), {"grid": 0.0})) as run:
        model(**inputs)
    assert min(run.trace.last("vision")[0].counts) >= tiny.PATCHES // 2


def test_the_tower_is_scored_where_a_method_carries_although_nothing_leaves_there() -> None:
    model = tiny.model()
    inputs = tiny.prompts(model, images=IMAGES)
    with prune(model, plan=Plan("atp-paper", (Step(Site("language", 0), 0.5),), {"alpha": 0.0})) as run:
        model(**inputs)
    (tower,) = run.trace.last("vision")
    assert tower.layer == model.config.vision_config.num_hidden_layers - 1
    assert tower.counts == tower.started
    assert tower.scores is not None
    (record,) = run.trace.last("language")
    first = 0
    for row, images in enumerate(IMAGES):
        scores = torch.cat(tower.scores[first : first + images])
        first += images
        assert record.kept[row].tolist() == scores.topk(record.counts[row]).indices.sort().values.tolist()
    assert run.report().flops.selection > 0


@pytest.mark.parametrize("family", [name for name in SERVED if "blip" in name])
def test_queries_look_at_a_merged_patch_as_at_all_it_stands_for(family: str) -> None:
    model, served = model_of(family), SERVED[family]
    adapter, masks = adapt(model), []
    inputs = served.inputs(model)
    plan = Plan("atp", (Step(Site("vision", 1), 0.6),))
    looking = next(part for name, part in adapter.connector.named_modules() if name.endswith("crossattention.attention"))
    with spying(METHODS.get("atp")) as seen, prune(model, plan=plan):
        handle = looking.register_forward_pre_hook(lambda module, args, kwargs: masks.append((args, kwargs)), with_kwargs=True)
        said(model, served, inputs, steps=1)
        handle.remove()
    (one,) = seen
    assert one.sizes is not None and one.sizes.max() > 1
    given = [value for value in (*masks[0][0], *masks[0][1].values()) if isinstance(value, Tensor)]
    want = torch.stack([torch.cat([torch.ones(1), own[kept]]) for own, kept in zip(one.sizes, one.keep, strict=True)])
    (mask,) = [value for value in given if value.dim() == 4 and value.shape[-1] == want.shape[1]]
    torch.testing.assert_close(mask[:, 0, 0].double(), want.double().log())


@pytest.mark.parametrize("family", SERVED)
@pytest.mark.parametrize("embedded", [True, False])
def test_each_patch_of_a_token_merges_with_its_counterparts(family: str, embedded: bool) -> None:
    """The states that the layer at the site gets are the fused ones, patch by patch; sizes x states add up to what was there."""
    model, served = model_of(family), SERVED[family]
    adapter = adapt(model)
    if "vision" not in adapter.stacks:
        pytest.skip("nothing merges in its tower")
    if family == "mllama":
        pytest.skip("class tokens and padding stand between its tiles, and the test takes the last places")
    site, images, got = 0 if embedded else adapter.shape.vision.layers - 2, [], []
    inputs = served.inputs(model)
    with spying(METHODS.get("tome")) as seen, prune(model, plan=Plan("tome", (Step(Site("vision", site), 0.6),))):
        hooks = [
            adapter.tower.register_forward_pre_hook(
                lambda module, args, kwargs: images.append(adapter.images(args, kwargs)), with_kwargs=True
            ),
            adapter.vision.layers[site].register_forward_pre_hook(
                lambda module, args, kwargs: got.append(adapter.vision.read(args, kwargs).hidden), with_kwargs=True
            ),
        ]
        said(model, served, inputs, steps=1)
        for hook in hooks:
            hook.remove()
    (one,), group = seen, adapter.shape.group
    fused = one.fused.unflatten(2, (group, -1))
    sizes = METHODS.get("tome")().fuse(one.tokens.hidden, one.keep, one.scores, one.tokens)[1]
    assert sizes is not None
    before = one.given.unflatten(2, (group, -1)) * one.tokens.alive[..., None, None]
    torch.testing.assert_close((fused * (sizes * one.keep)[..., None, None]).sum(1), before.sum(1), rtol=0, atol=1e-9)
    rows: dict[int, list[tuple[int, Tensor]]] = {}
    for image, kept in enumerate(one.keep):
        sequence = rows.setdefault(0 if images[0].packed else image, [])
        for token in kept.nonzero().flatten().tolist():
            sequence += [(int(place), fused[image, token, part]) for part, place in enumerate(images[0].where[image, token])]
    wanted = {at: torch.stack([state for _, state in sorted(states, key=lambda pair: pair[0])]) for at, states in rows.items()}
    if len(got[0]) < len(rows):  # one after the other, without padding
        wanted = {0: torch.cat([wanted[at] for at in sorted(wanted)])}
    for sequence, want in wanted.items():
        torch.testing.assert_close(got[0][sequence, -len(want) :], want, rtol=0, atol=1e-12)


def test_a_count_of_its_own_is_not_calibrated() -> None:
    model = tiny.model()
    plan = Plan("prumerge", (Step(Site("vision", 3), 0.5, threshold=1.0),))
    says = "'prumerge' counts by a rule of its own at vision:3, .* use a fixed plan, or .* leave record_all_scores away"
    with pytest.raises(InvalidPlan, match=says), prune(model, plan=plan, record_all_scores=True):
        model(**tiny.prompts(model))


def test_a_register_is_asked_for_by_name_where_there_is_none() -> None:
    model = tiny.model()
    plan = Plan("occamtoken", (Step(Site("vision", 3), 0.5, threshold=1.0),), {"reference": "register"})
    with pytest.raises(InvalidPlan, match="vision:3 has no register; use reference='mean'"), prune(model, plan=plan):
        model(**tiny.prompts(model))
