"""FLOPs of one prompt, part by part: the only place of the package that counts them.

One multiply-add is 2 FLOPs. Counted is every matrix product of the vision tower (with its patch embedding), the connector,
the prefill, the decoded tokens and the selection itself; softmax, norms, activations, rotary phases and sampling are not.
Attention is counted as the full square of queries x keys, as `FlopCounterMode` does under the MATH backend.
Knows shapes and lengths; nothing of models or methods.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from atp.budget.layers import attention_flops, language_flops, layer_flops, stored_rows
from atp.budget.shape import ModelShape
from atp.budget.sites import check_sites as check_sites
from atp.budget.workload import TAIL as TAIL
from atp.budget.workload import Workload as Workload
from atp.errors import InvalidPlan
from atp.plan import Plan, Site, Step

VISUAL_RATERS = 32
"""At most so many evenly spaced visual tokens rate the others."""

QUESTION_RATERS = 64
"""At most so many tokens of the question rate the visual ones."""


@dataclass(frozen=True)
class Lengths:
    """Tokens that run in each layer; an expected value where they depend on the input.

    Attributes:
        vision: per tower layer, patches and prefix tokens of one image.
        language: per language layer, visual and text tokens of one prompt; also the keys that its cache stores.
        embedded: patches of one image that are embedded; None = all.
        connected: visual tokens of one image that pass the connector (dead patches do not); None = all.
        recalled: share of the keys that a cross-attention layer would project again at a decoded token, but that are remembered.
        text: per language layer, the text tokens among them; () = all of the prompt's.
    """

    vision: tuple[float, ...]
    language: tuple[float, ...]
    embedded: float | None = None
    connected: float | None = None
    recalled: float = 0.0
    text: tuple[float, ...] = ()

    def texts(self, workload: Workload) -> tuple[float, ...]:
        """Text tokens at each language layer."""
        return self.text or (float(workload.text),) * len(self.language)


@dataclass(frozen=True)
class Flops:
    """FLOPs by part."""

    vision: float
    connector: float
    prefill: float
    decode: float
    selection: float = 0.0

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return self.vision + self.connector + self.prefill + self.decode + self.selection

    def to_dict(self) -> dict[str, float]:
        """Return the parts and the total by name."""
        return {**dataclasses.asdict(self), "total": self.total}


def count(shape: ModelShape, workload: Workload, lengths: Lengths | None = None, selection: float = 0.0) -> Flops:
    """Count the FLOPs of one prompt, from pixels to the last generated token.

    Args:
        shape: sizes of the model.
        workload: images, text tokens and generated tokens.
        lengths: tokens in each layer; None = unpruned.
        selection: FLOPs of choosing, from `selection_flops` or measured.

    Raises:
        InvalidPlan: `lengths` does not have one value a layer.

    Example:
        >>> ratio = count(shape, workload, lengths).total / count(shape, workload).total
    """
    lengths = unpruned(shape, workload) if lengths is None else lengths
    for name, stack, given in (("vision", shape.vision, lengths.vision), ("language", shape.language, lengths.language)):
        if len(given) != stack.layers:
            raise InvalidPlan(f"lengths of the {name} stack: expected one a layer, {stack.layers}, got {len(given)}")
    embedded = shape.patches if lengths.embedded is None else lengths.embedded
    connected = shape.visual if lengths.connected is None else lengths.connected
    tower = 2.0 * embedded * shape.patch_inputs * shape.vision.hidden
    whole_tower = shape.patches + shape.prefix
    for layer, n in enumerate(lengths.vision):
        window = shape.windows[layer] if shape.windows else whole_tower  # a window empties as fast as the image
        tower += layer_flops(shape.vision, n, n * min(1.0, window / whole_tower))
    tower += _pooling_flops(shape, embedded)
    bridge = sum(2.0 * connected * rows * columns for rows, columns in shape.connector)
    if shape.connects == "keys":
        bridge += shape.query_flops + shape.key_flops * (lengths.vision[-1] if lengths.vision else whole_tower)
    head = 2.0 * shape.language.hidden * shape.vocab
    steps = workload.answer - 1
    prefill, decode = language_flops(shape, lengths.texts(workload), lengths.language, steps, lengths.recalled)
    return Flops(
        vision=workload.images * tower,
        connector=workload.images * bridge,
        prefill=prefill + head,
        decode=decode + steps * head,
        selection=selection,
    )


def unpruned(shape: ModelShape, workload: Workload) -> Lengths:
    """Lengths of a run in which nothing leaves."""
    tower, prompt = float(shape.patches + shape.prefix), float(workload.images * shape.visual + workload.text)
    return Lengths((tower,) * shape.vision.layers, (prompt,) * shape.language.layers)


def whole(keep: float, started: float) -> int:
    """Count that a fixed step keeps: `keep` of `started`, rounded, and at least one where there was one."""
    return max(min(1, int(started)), round(keep * started))


def lengths_of(shape: ModelShape, workload: Workload, plan: Plan, keeps: Mapping[Site, float] | None = None) -> Lengths:
    """Lengths to expect under a plan.

    Fixed steps give whole tokens, exactly those the engine keeps. Adaptive steps, and sites named in `keeps`, give the
    mean share times the starting count. Patches dead at the tower's end pass neither the
    connector nor language layer 0.

    Args:
        shape: sizes of the model.
        workload: images and text of the prompt.
        plan: steps.
        keeps: mean shares, of the starting count, that replace those of the plan at these sites (e.g. measured ones).

    Raises:
        InvalidPlan: a step lies at a layer that the model does not have.
    """
    check_sites(shape, [step.site for step in plan.steps])
    keeps = keeps or {}
    pixels = plan.at("pixels", 0)
    embedded = _target(pixels, shape.patches, keeps) if pixels else float(shape.patches)
    group = shape.group  # a plan counts what leaves as one
    tower, tokens = _walk(plan, "vision", shape.vision.layers, embedded / group, shape.patches / group, keeps)
    patches = tokens * group
    started = workload.images * shape.visual
    connected = visual_after(shape, patches)
    prompt, _ = _walk(plan, "language", shape.language.layers, workload.images * connected, started, keeps)
    texts = _texts(plan, workload, shape.language.layers)
    return Lengths(
        vision=tuple(n * group + shape.prefix for n in tower),
        language=tuple(n + text for n, text in zip(prompt, texts, strict=True)),
        text=texts if plan.spells else (),
        embedded=embedded if pixels else None,
        connected=connected if connected < shape.visual and shape.connects == "rows" else None,
        recalled=float(shape.cross is not None and not shape.cross.cached),
    )


def visual_after(shape: ModelShape, patches: float) -> float:
    """Visual tokens of one image that enter language layer 0 when `patches` patches of it are alive at the tower's end.

    Where the prefix token is a visual token too (LLaVA's `full` feature selection), it stays.
    """
    if shape.connects == "keys" or not shape.patches:
        return float(shape.visual)
    if shape.prefix and shape.visual == shape.patches + shape.prefix:
        return patches + shape.prefix
    return patches * shape.visual / shape.patches


def rater_count(names: Iterable[str], shape: ModelShape, workload: Workload, stack: str = "language") -> float:
    """Rows that a site of a stack computes for the raters `names`; for `question`, those of a question without template.

    Raises:
        InvalidPlan: a name that is none of question, last, class, visual.
    """
    visual = shape.patches // shape.group if stack == "vision" else max(1, workload.images) * shape.visual
    question = max(1, min(QUESTION_RATERS, workload.text))
    known = {"question": question, "last": 1, "class": 1, "visual": min(VISUAL_RATERS, visual)}
    total = 0
    for name in names:
        if name not in known:
            raise InvalidPlan(f"unknown raters {name!r}; expected some of {', '.join(known)}")
        rates = "visual" if name == "class" and not shape.prefix else name
        total += known[rates]
    return float(total)


def selection_flops(
    shape: ModelShape, workload: Workload, plan: Plan, raters: Mapping[str, float], lengths: Lengths | None = None
) -> float:
    """FLOPs of choosing under a plan: at each site raters x keys x head_dim x heads x 2.

    Queries and keys were projected by the layer before the site, so no projection is counted again; the keys are the tokens
    that ran in that layer. A step at layer 0 has no such layer and costs nothing.

    Args:
        shape: sizes of the model.
        workload: images and text of the prompt.
        plan: steps.
        raters: rows per site of each stack, e.g. `{"vision": 1, "language": 20}`; an absent stack has none.
        lengths: as measured; None = those of the plan.
    """
    lengths = lengths_of(shape, workload, plan) if lengths is None else lengths
    total = 0.0
    for step in plan.steps:
        if step.site.stack == "pixels" or step.site.layer == 0 or text_only(step, workload, lengths):
            continue
        tower = step.site.stack == "vision"
        stack, ran = (shape.vision, lengths.vision) if tower else (shape.language, lengths.language)
        rows = raters.get(step.site.stack, 0.0) * (workload.images if tower else 1)
        total += 2.0 * rows * ran[step.site.layer - 1] * stack.heads * stack.head_dim
    return total


def text_only(step: Step, workload: Workload, lengths: Lengths) -> bool:
    """Whether text leaves at a step, but no visual token, so that none is scored."""
    layer, texts = step.site.layer, lengths.texts(workload)
    if step.text == 1 or step.adaptive or layer == 0:
        return False
    visual = [lengths.language[at] - texts[at] for at in (layer - 1, layer)]
    return abs(visual[0] - visual[1]) < 0.5


def equivalent_tokens(lengths: Lengths, workload: Workload) -> float:
    """Mean number of visual tokens at a language layer's input."""
    return (sum(lengths.language) - sum(lengths.texts(workload))) / len(lengths.language)


def cache_bytes(shape: ModelShape, workload: Workload, lengths: Lengths | None = None, value_bytes: int = 2) -> float:
    """Bytes of keys and values stored after the last decode step, over all language layers (bf16 by default)."""
    lengths = unpruned(shape, workload) if lengths is None else lengths
    rows = stored_rows(shape, lengths.texts(workload), lengths.language, workload.answer - 1)
    return 2.0 * rows * shape.language.kv_heads * shape.language.head_dim * value_bytes


def _walk(
    plan: Plan, stack: str, layers: int, alive: float, started: float, keeps: Mapping[Site, float]
) -> tuple[list[float], float]:
    """Alive prunable tokens at each layer of a stack, and at its end."""
    lengths = []
    for layer in range(layers):
        step = plan.at(stack, layer)
        if step is not None:
            alive = min(alive, _target(step, started, keeps))
        lengths.append(float(alive))
    return lengths, float(alive)


def _texts(plan: Plan, workload: Workload, layers: int) -> tuple[float, ...]:
    """Text tokens at each language layer."""
    alive, found = float(workload.text), []
    for layer in range(layers):
        alive = workload.text_after(plan.at("language", layer), alive)
        found.append(alive)
    return tuple(found)


def _target(step: Step, started: float, keeps: Mapping[Site, float]) -> float:
    if step.site in keeps:
        return keeps[step.site] * started
    return step.keep * started if step.adaptive else float(whole(step.keep, started))


def _pooling_flops(shape: ModelShape, patches: float) -> float:
    """The pooling head attends with one query to the whole grid that the tower was given."""
    if not shape.pooling_head:
        return 0.0
    stack, keys = shape.vision, patches + shape.prefix
    square = 2.0 * stack.hidden * stack.hidden
    mlp = 2.0 * stack.hidden * stack.intermediate * stack.mlp_matrices
    return square * (2 + 2 * keys) + attention_flops(stack, 1, keys) + mlp
