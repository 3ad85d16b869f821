"""What happens at one site: rows from the layer before, scores, counts, the tokens that stay. Part of the engine."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from atp.adapters.base import StackView
from atp.budget.allocate import allocate_adaptive, fixed_counts
from atp.engine.census import Census
from atp.errors import AtpError
from atp.methods.base import Method
from atp.plan import Step
from atp.rows import attention_rows, rotate, split_heads, spread
from atp.subset import Subset, gather
from atp.tokens import Record, Rows, Tokens

VISUAL_RATERS = 32
QUESTION_RATERS = 64


@dataclass
class Capture:
    """What the layer before a site projected.

    Attributes:
        subset: rows that ran there, None = all.
        mask, phases: as that layer got them, cut to the subset.
        past: keys stored before, `[B, H_kv, C, d]`, phases applied; None = none.
        queries, keys: `[S, K, H * d]`.
    """

    subset: Subset | None
    mask: Tensor | None
    phases: tuple[Tensor, Tensor] | None
    past: Tensor | None
    queries: Tensor | None = None
    keys: Tensor | None = None

    def attention(self, view: StackView, census: Census) -> _Attention:
        """Return what computes rows from it."""
        return _Attention(view, census, self)


@dataclass
class Chooser:
    """Scores and chooses at the sites of one plan.

    Attributes:
        method: the method.
        template: ids that ask no question, on the host.
        score_all: whether to score at sites where nothing leaves.
        spent: FLOPs of the rows computed so far.
        levelled: stacks in which all inputs of a batch kept as many as the largest, for want of a mask.
    """

    method: Method
    template: frozenset[int] = frozenset()
    score_all: bool = False
    spent: float = 0.0
    levelled: set[str] = field(default_factory=set)

    def choose(
        self, step: Step, view: StackView, census: Census, capture: Capture | None, hidden: Tensor, forward: int
    ) -> Record:
        """Decide who stays at a step, change the census, and return what was done."""
        begin = time.perf_counter()
        before, counts = census.alive, None
        if not step.adaptive:
            counts = fixed_counts(step, census.started, census.counts)
        scores = None
        keep = before
        if counts != census.counts or self.score_all:
            tokens = self._tokens(step, view, census, capture, hidden)
            scores = self._scores(tokens)
            if counts is None:
                chosen, counts = allocate_adaptive(scores, before, step, torch.tensor(census.started, device=scores.device))
            else:
                chosen = torch.tensor(counts, device=scores.device)
            if not view.maskable and len(set(counts)) > 1:  # nothing can hide padding: the batch's largest count for all
                counts = [max(counts)] * len(counts)
                self.levelled.add(view.name)
                chosen = torch.full_like(chosen, counts[0])
            if counts != census.counts:
                keep = self.method.select(scores, tokens, chosen)
            census.scores = scores.masked_fill(~before, torch.nan)
        assert counts is not None
        census.alive, census.counts, census.history[step.site.layer] = keep, counts, counts
        return Record(
            forward=forward,
            stack=view.name,
            layer=step.site.layer,
            input_index=list(range(len(counts))),
            started=list(census.started),
            counts=list(counts),
            keep=keep,
            raw_scores=scores,
            alive=before,
            seconds=time.perf_counter() - begin,
        )

    def _scores(self, tokens: Tokens) -> Tensor:
        scores = self.method.score(tokens)
        if scores.shape != tokens.alive.shape:
            raise AtpError(
                f"method {self.method.name!r} at {tokens.stack}:{tokens.layer} returned scores of shape {list(scores.shape)}, "
                f"expected {list(tokens.alive.shape)}: one row an input, one column a token"
            )
        return scores.detach()

    def _tokens(self, step: Step, view: StackView, census: Census, capture: Capture | None, hidden: Tensor) -> Tokens:
        kinds = rater_kinds(self.method, view)
        rows: dict[str, Rows] = {}
        if kinds and capture is not None:
            attention = capture.attention(view, census)
            rows = attention.rows(kinds, self.template)
            self.spent += attention.flops
        return Tokens(
            stack=view.name,
            layer=step.site.layer,
            alive=census.alive,
            started=tuple(census.started),
            position=census.position,
            image=census.image,
            grid=census.grid,
            rows=rows,
            carried=census.carried,
            _hidden=lambda: _patches(hidden, census).mean(2),
        )


def _patches(states: Tensor, census: Census) -> Tensor:
    """Take `[S, T, D]` at the places of the tokens' patches, `[B, N, g, D]`."""
    found = states.gather(1, census.places.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
    return found.view(*census.where.shape, states.shape[-1])


def rater_kinds(method: Method, view: StackView) -> tuple[str, ...]:
    """Return the raters a method needs in a stack; `class` becomes `visual` where there is no class token."""
    kinds = method.raters(view.name)
    return tuple(dict.fromkeys("visual" if kind == "class" and not view.prefix else kind for kind in kinds))


@dataclass
class _Attention:
    """Rows of the captured layer's attention, in the census's numbering.

    Images packed into one sequence are laid side by side first; a layer's window does not hide patches of the same image then.
    """

    view: StackView
    census: Census
    capture: Capture
    flops: float = 0.0
    where: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.where = self.census.where
        if self.census.packed:
            self._unpack()

    def _unpack(self) -> None:
        """Turn the packed sequence into one sequence an image."""
        census, capture = self.census, self.capture
        assert capture.queries is not None and capture.keys is not None, "the layer before the site did not run"
        inputs, most, group = self.where.shape
        index = self.slots(census.places).unsqueeze(-1)

        def lay(packed: Tensor) -> Tensor:
            return packed.gather(1, index.expand(-1, -1, packed.shape[-1])).view(inputs, most * group, packed.shape[-1])

        alive = census.alive.unsqueeze(-1).expand_as(self.where).reshape(inputs, 1, 1, -1)
        phases = capture.phases
        cut = None if phases is None else (lay(phases[0]), lay(phases[1]))
        self.capture = Capture(None, alive, cut, None, lay(capture.queries), lay(capture.keys))
        self.where = torch.arange(most * group, device=index.device).view(1, most, group).expand(inputs, -1, -1)
        self.__dict__.pop("slot", None)

    @cached_property
    def slot(self) -> Tensor | None:
        """`[B, T]`, the place of each token of the sequence among the rows that ran; None = the same."""
        subset = self.capture.subset
        if subset is None:
            return None
        batch, size = subset.rows.shape
        places = torch.arange(size, device=subset.rows.device).expand(batch, -1)
        return torch.zeros(batch, subset.length, dtype=torch.int64, device=places.device).scatter(1, subset.rows, places)

    def slots(self, positions: Tensor) -> Tensor:
        """Turn places in the sequence into places among the rows that ran."""
        return positions if self.slot is None else self.slot.gather(1, positions)

    def rows(self, kinds: tuple[str, ...], template: frozenset[int]) -> dict[str, Rows]:
        """Compute all raters' rows at once."""
        found = [self.raters(kind, template) for kind in kinds]
        positions = torch.cat([index for index, _ in found], dim=1)
        values, sees = self.attend(self.slots(positions))
        result, start = {}, 0
        for kind, (index, valid) in zip(kinds, found, strict=True):
            end = start + index.shape[1]
            result[kind] = Rows(values[:, start:end], valid, sees[:, start:end])
            start = end
        return result

    def raters(self, kind: str, template: frozenset[int]) -> tuple[Tensor, Tensor]:
        """Return places in the sequence `[B, R]` and which of them are raters."""
        census = self.census
        if kind == "visual":
            index, valid = spread(census.alive, VISUAL_RATERS)
            return self.where[..., 0].gather(1, index), valid
        if kind == "class":
            first = self.where.new_zeros(self.where.shape[0], 1)
            return first, torch.ones_like(first, dtype=torch.bool)
        last = self.last()
        if kind == "last":
            return last, torch.ones_like(last, dtype=torch.bool)
        asking = self.question(template)
        fallback = torch.zeros_like(asking).scatter(1, last, True)
        asking = torch.where(asking.any(1, keepdim=True), asking, fallback)
        return spread(asking, max(1, min(QUESTION_RATERS, max(census.other_counts))))

    def prompt(self, tokens: Tensor) -> Tensor:
        """Take the guesses of assisted decoding out of `[B, T]`."""
        if not self.census.candidates:
            return tokens
        return tokens & (torch.arange(tokens.shape[1], device=tokens.device) < tokens.shape[1] - self.census.candidates)

    def last(self) -> Tensor:
        """Place of the last live prompt token, `[B, 1]`."""
        live = self.prompt(self.census.live())
        number = torch.arange(live.shape[1], device=live.device)
        return (live * (number + 1)).amax(1, keepdim=True).sub(1).clamp(min=0)

    def question(self, template: frozenset[int]) -> Tensor:
        """Live text tokens after the last visual one, without template tokens, `[B, T]`."""
        census = self.census
        assert census.ids is not None, "a tower has no question"
        started = torch.tensor(census.started, device=census.where.device).unsqueeze(1)
        end = census.where[..., 0].gather(1, (started - 1).clamp(min=0)).masked_fill(started == 0, -1)
        number = torch.arange(census.ids.shape[1], device=census.where.device)
        asking = self.prompt(census.others) & (number > end)
        if template:
            asking = asking & ~torch.isin(census.ids, torch.tensor(sorted(template), device=census.ids.device))
        return asking

    def attend(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Return attention `[B, R, N]` to the census's tokens, and whether a rater may see them."""
        capture, view, census = self.capture, self.view, self.census
        assert capture.queries is not None and capture.keys is not None, "the layer before the site did not run"
        keys = split_heads(capture.keys, view.head_dim)
        index = slots.unsqueeze(-1)
        queries = split_heads(capture.queries.gather(1, index.expand(-1, -1, capture.queries.shape[-1])), view.head_dim)
        if capture.phases is not None:
            cos, sin = (phase.expand(slots.shape[0], -1, -1) for phase in capture.phases)
            keys = rotate(keys, cos, sin)
            wide = index.expand(-1, -1, cos.shape[-1])
            queries = rotate(queries, cos.gather(1, wide), sin.gather(1, wide))
        ran = keys.shape[2]
        if capture.past is not None:
            keys = torch.cat([capture.past.to(keys.dtype), keys], dim=2)
        allowed = self.allowed(slots, keys.shape[2], ran)
        rows = attention_rows(queries, keys, allowed, view.scaling, view.softcap)
        self.flops += 2.0 * keys.shape[0] * slots.shape[1] * keys.shape[2] * view.heads * view.head_dim
        batch, count = slots.shape
        columns = self.slots(self.where.reshape(batch, -1)).unsqueeze(1).expand(-1, count, -1)
        alive = census.alive.unsqueeze(1)
        values = rows[..., -ran:].gather(2, columns).view(batch, count, -1, census.group).sum(-1) * alive
        if allowed is None:
            return values, alive.expand_as(values)
        open_ = allowed if allowed.dtype == torch.bool else allowed > torch.finfo(allowed.dtype).min / 2
        open_ = open_[:, 0].expand(batch, count, -1)[..., -ran:]
        return values, open_.gather(2, columns).view(batch, count, -1, census.group).all(-1) & alive

    def allowed(self, slots: Tensor, stored: int, ran: int) -> Tensor | None:
        """Return the raters' rows of the layer's mask, `[B, 1 or H, R, C]`; None = everything is seen."""
        mask = self.capture.mask
        if mask is None:
            if not self.view.causal:
                return None
            column = torch.arange(stored, device=slots.device) - (stored - ran)
            return (column <= slots.unsqueeze(-1)).unsqueeze(1)
        mask = mask.expand(slots.shape[0], -1, -1, -1)
        if mask.shape[2] == 1:
            return mask
        index = slots[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3])
        return mask.gather(2, index)


def cut_phases(phases: tuple[Tensor, Tensor] | None, subset: Subset | None) -> tuple[Tensor, Tensor] | None:
    """Take the rotary phases of the rows that run."""
    if phases is None or subset is None:
        return phases
    return gather(phases[0], subset), gather(phases[1], subset)
