"""Text tokens that may leave: which are protected, how many stay, and what a method is told of them. Part of the engine."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from atp.adapters import adapt
from atp.adapters.base import Adapter, OwnView
from atp.adapters.meaning import meaning_ids
from atp.asking import text_places, workload
from atp.budget.amount import check_share
from atp.budget.cost import TAIL, Workload, whole
from atp.budget.sites import spelled, text_site
from atp.engine.attention import VISUAL_RATERS, Attention
from atp.engine.census import Census, Words
from atp.engine.facts import Place
from atp.errors import InvalidPlan
from atp.methods.base import Method
from atp.plan import Plan, Step
from atp.rows import spread
from atp.tokens import Rows, Tokens


@dataclass(frozen=True)
class Guard:
    """Text tokens that never leave, besides the first of each prompt, on which the others rest their attention.

    Attributes:
        tail: last text tokens of the prompt. They are the question and the end of its template, and so also who rates the others.
        ids: special tokens; numbers and negations, too, where the tokenizer is known.
        meant: whether it is.
    """

    tail: int = TAIL
    ids: frozenset[int] = frozenset()
    meant: bool = False

    def meaning(self, ids: Tensor) -> Tensor:
        """Tell which ids never leave, bool."""
        if not self.ids:
            return torch.zeros_like(ids, dtype=torch.bool)
        return torch.isin(ids, torch.tensor(sorted(self.ids), device=ids.device))

    def words(self, census: Census) -> Words:
        """Take the text tokens of prompts; guesses of assisted decoding are none. One device sync."""
        ids = census.ids
        assert ids is not None, "a tower has no text"
        number = torch.arange(ids.shape[1], device=ids.device)
        live = census.others & (number < ids.shape[1] - census.candidates)
        where = torch.sort((~live).to(torch.uint8), dim=1, stable=True).indices
        alive, count = live.gather(1, where), live.sum(1)
        last = alive & (number >= count.unsqueeze(1) - self.tail)
        held = alive & (last | (number == 0) | self.meaning(ids.gather(1, where)))
        started, least = torch.stack([count, held.sum(1)]).tolist()
        where, alive, held, last = (part[:, : max(started)] for part in (where, alive, held, last))
        return Words(where, alive, held, last, list(started), started, least, min(TAIL, self.tail))


def check_tail(tail: int) -> None:
    """Refuse a number of last tokens that is none.

    Raises:
        InvalidPlan: it is no whole number >= 1.
    """
    if isinstance(tail, bool) or not isinstance(tail, int) or tail < 1:
        raise InvalidPlan(f"text_tail is a whole number >= 1, got {tail!r}; e.g. text_tail={TAIL}")


def guard_of(adapter: Adapter, processor: Any, tail: int) -> Guard:
    """Return what guards the text of a model's prompts; it reads the whole vocabulary."""
    check_tail(tail)
    return Guard(tail, adapter.template_ids(None) | adapter.marks() | meaning_ids(processor), processor is not None)


def workload_of(model: Any, processor: Any, inputs: Any, answer: int = 3, text_tail: int = TAIL) -> Workload:
    """Describe the mean prompt of a batch, with the text that `atp.prune(model, text=..., processor=processor)` never lets leave.

    Args:
        model: a supported model.
        processor: of the model.
        inputs: what the model is called with, `input_ids [B, L]` and `attention_mask [B, L]`.
        answer: tokens generated.
        text_tail: as given to `prune`.

    Returns:
        What `atp.prune(model, budget=..., text=..., workload=...)` meets its budget for.

    Raises:
        BadInput: `processor` or `inputs` is none.

    Example:
        >>> work = atp.workload_of(model, processor, inputs)
        >>> with atp.prune(model, budget=0.6, text=0.5, processor=processor, workload=work) as run:
        ...     out = model.generate(**inputs)
    """
    adapter = adapt(model)
    said, guard = text_places(adapter.shape, processor, inputs), guard_of(adapter, processor, text_tail)
    rank = said.cumsum(1) - 1
    held = said & ((rank == 0) | (rank >= said.sum(1, keepdim=True) - text_tail) | guard.meaning(inputs["input_ids"]))
    return dataclasses.replace(workload(adapter.shape, processor, inputs, answer), protected=round(int(held.sum()) / len(held)))


def expected(adapter: Adapter, work: Workload | None, plan_given: bool, text: Any, tail: int, told: bool) -> Workload | None:
    """Return the workload to solve for, with what `tail` protects; warns if text leaves by a budget `told` without workload.

    Raises:
        InvalidPlan: `tail` is no whole number >= 1, `work` no workload.
    """
    check_tail(tail)
    if work is not None and not isinstance(work, Workload):
        raise InvalidPlan(f"workload is an atp.Workload, got {work!r}; e.g. atp.workload_of(model, processor, inputs)")
    share = isinstance(text, int | float) and 0 <= text < 1  # anything else is refused later
    if not share or plan_given:
        return work
    if work is None and told:
        warnings.warn(
            f"text={text!r}: how much text prompts have is not known, so the budget is met for {Workload().text} tokens of it, "
            "of which none leave; give workload=atp.workload_of(model, processor, inputs)",
            stacklevel=5,
        )
    work = work or Workload(images=adapter.tiles)
    return work if work.protected is not None else dataclasses.replace(work, protected=tail + 1)


class WordAttention(Attention):
    """Rows over the text tokens: by the question, which is the last tokens here, and by the visual tokens."""

    def __post_init__(self) -> None:
        words = self.census.words
        assert words is not None
        self.words, self.where, self.cap = words, words.where.unsqueeze(-1), words.asking

    @property
    def alive(self) -> Tensor:
        return self.words.alive & ~self.words.held

    def raters(self, kind: str, template: frozenset[int]) -> tuple[Tensor, Tensor]:
        if kind != "visual":
            return super().raters(kind, template)
        index, valid = spread(self.census.alive, VISUAL_RATERS)
        return self.census.where[..., 0].gather(1, index), valid

    def question(self, template: frozenset[int]) -> Tensor:
        asking = torch.zeros_like(self.census.others).scatter(1, self.words.where, self.words.last)
        return self.untold(asking, template)


def word_counts(share: float, words: Words) -> list[int]:
    """How many text tokens of each prompt stay: a share of those that it began with, and at least the protected ones."""
    known = zip(words.started, words.counts, words.least, strict=True)
    return [max(least, min(now, whole(share, started))) for started, now, least in known]


def text_raters(method: Method, across: bool) -> tuple[str, ...]:
    """Return who rates text; visual tokens that are keys across are no rows of the sequence, and ask nothing."""
    return tuple(kind for kind in method.text_raters if not (across and kind == "visual"))


def word_tokens(method: Method, place: Place, template: frozenset[int]) -> tuple[Tokens, float]:
    """Return the text tokens at a site that may leave, and the FLOPs of their rows."""
    census = place.census
    words, ids = census.words, census.ids
    assert words is not None and ids is not None
    alive = words.alive & ~words.held
    rows: dict[str, Rows] = {}
    spent = 0.0
    raters = text_raters(method, isinstance(place.view, OwnView))
    if raters and place.capture is not None:
        attention = WordAttention(place.view, census, place.capture)
        rows, spent = attention.rows(raters, template), attention.flops
    made = Tokens(
        stack=place.view.name,
        layer=place.layer,
        alive=alive,
        started=tuple(words.started),
        position=torch.full((*alive.shape, 2), -1, device=alive.device),
        image=torch.zeros_like(words.where),
        grid=(1, 1),
        rows=rows,
        kind="text",
        ids=ids.gather(1, words.where),
        _hidden=lambda: place.hidden.gather(1, words.where.unsqueeze(-1).expand(-1, -1, place.hidden.shape[-1])),
    )
    return made, spent


def with_text(adapter: Adapter, plan: Plan, method: Method, text: float | None) -> Plan:
    """Return the plan with a share of the text leaving at its first step in the language model, made where there is none.

    Raises:
        InvalidPlan: a share outside [0, 1].
    """
    if text is None:
        return plan
    check_share("text", text)
    known = [step.site for step in plan.steps]
    site = text_site(adapter.shape, method.name, known)
    if text == 1 and site not in known:
        return plan
    return dataclasses.replace(plan, steps=spelled(plan.steps, site, text))


def check_kinds(method: Method, step: Step, own: OwnView | None) -> None:
    """Refuse kinds of tokens that the method cannot make leave, or text before any layer that it could be scored by.

    Raises:
        InvalidPlan: naming the step and what to use instead.
    """
    if step.keep < 1 and "visual" not in method.kinds:
        raise InvalidPlan(
            f"step at {step.site}: method {method.name!r} makes text tokens leave only, got keep={step.keep:g}; "
            "use keep=1.0 and text=0.5, or method='atp'"
        )
    if step.text < 1 and "text" not in method.kinds:
        raise InvalidPlan(
            f"step at {step.site}: method {method.name!r} makes visual tokens leave only, got text={step.text:g}; "
            "use text=1.0, or method='atp'"
        )
    if step.text < 1 and method.text_raters and own is not None and own.before(step.site.layer) is None:
        raise InvalidPlan(
            f"method {method.name!r} scores text with attention of a layer before a site in which text attends to text, so "
            f"{step.site} is too early; use language:{own.first} or later"
        )
