"""Rows of the attention in the layer before a site, from what it projected. Part of the engine."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from atp.adapters.base import StackView
from atp.engine.census import Census
from atp.rows import attention_rows, rotate, split_heads, spread
from atp.subset import Subset, gather, take
from atp.tokens import Rows
from atp.tracing import lazy

CERTAIN = ("class", "last")  # one for every input
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
        hides: whether the mask may hide tokens that are alive, instead of only weighing them.
    """

    subset: Subset | None
    mask: Tensor | None
    phases: tuple[Tensor, Tensor] | None
    past: Tensor | None
    queries: Tensor | None = None
    keys: Tensor | None = None
    hides: bool = True

    def attention(self, view: StackView, census: Census) -> Attention:
        """Return what computes rows from it."""
        return Attention(view, census, self)

    @lazy
    def slot(self) -> Tensor | None:
        """`[S, T]`, the place of each token of the sequence among the rows that ran; None = the same."""
        if self.subset is None:
            return None
        batch, size = self.subset.rows.shape
        places = torch.arange(size, device=self.subset.rows.device).expand(batch, -1)
        return torch.zeros(batch, self.subset.length, dtype=torch.int64, device=places.device).scatter(
            1, self.subset.rows, places
        )

    def slots(self, positions: Tensor) -> Tensor:
        """Turn places in the sequence into places among the rows that ran."""
        return positions if self.slot is None else self.slot.gather(1, positions)


@dataclass
class Attention:
    """Rows of the captured layer's attention, in the census's numbering.

    Images packed into one sequence are laid side by side first; a layer's window does not hide patches of the same image then.
    """

    view: StackView
    census: Census
    capture: Capture
    flops: float = 0.0
    where: Tensor = field(init=False)
    cap: int = field(default=QUESTION_RATERS, init=False)

    def __post_init__(self) -> None:
        self.where = self.census.where
        if self.census.packed:
            self._unpack()

    def _unpack(self) -> None:
        """Turn the packed sequence into one sequence an image."""
        census, capture = self.census, self.capture
        assert capture.queries is not None and capture.keys is not None, "the layer before the site did not run"
        inputs, most, group = self.where.shape
        index = capture.slots(census.places)

        def lay(packed: Tensor) -> Tensor:
            return take(packed, index).view(inputs, most * group, packed.shape[-1])

        alive = census.alive.unsqueeze(-1).expand_as(self.where).reshape(inputs, 1, 1, -1)
        phases = capture.phases
        cut = None if phases is None else (lay(phases[0]), lay(phases[1]))
        self.capture = Capture(None, alive, cut, None, lay(capture.queries), lay(capture.keys))
        self.where = torch.arange(most * group, device=index.device).view(1, most, group).expand(inputs, -1, -1)

    @property
    def alive(self) -> Tensor:
        """`[B, N]` bool, the tokens that are rated."""
        return self.census.alive

    def rows(self, kinds: tuple[str, ...], template: frozenset[int], entered: Tensor | None = None) -> dict[str, Rows]:
        """Compute all raters' rows at once, with their states `[S, T, D]` at layer 0 where given."""
        found = [self.raters(kind, template) for kind in kinds]
        positions = found[0][0] if len(found) == 1 else torch.cat([index for index, _ in found], dim=1)
        values, sees = self.attend(self.capture.slots(positions))
        widths = [index.shape[1] for index, _ in found]
        parts = zip(kinds, found, torch.split(values, widths, 1), torch.split(sees, widths, 1), strict=True)
        return {
            kind: Rows(value, valid, seen, self.states(entered, index), certain=kind in CERTAIN)
            for kind, (index, valid), value, seen in parts
        }

    def states(self, entered: Tensor | None, index: Tensor) -> Tensor | None:
        """Take the states of raters at `index` `[B, R]`; images packed into one sequence are laid side by side first."""
        if entered is None:
            return None
        if self.census.packed:
            entered = take(entered, self.census.places).view(len(index), -1, entered.shape[-1])
        return take(entered, index)

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
        return spread(asking, max(1, min(self.cap, max(census.other_counts))))

    def prompt(self, tokens: Tensor) -> Tensor:
        """Take the guesses of assisted decoding out of `[B, T]`."""
        if not self.census.candidates:
            return tokens
        return tokens & (torch.arange(tokens.shape[1], device=tokens.device) < tokens.shape[1] - self.census.candidates)

    def last(self) -> Tensor:
        """Place of the last live prompt token, `[B, 1]`."""
        live = self.prompt(self.census.live())
        number = torch.arange(1, live.shape[1] + 1, device=live.device)
        return (live * number).amax(1, keepdim=True).sub(1).clamp(min=0)

    def question(self, template: frozenset[int]) -> Tensor:
        """Live text tokens after the last visual one, without template tokens, `[B, T]`."""
        return self.census.asked.of(self.census.others, template, make=lambda: self.found(template))

    def found(self, template: frozenset[int]) -> Tensor:
        """Find the question."""
        census = self.census
        assert census.ids is not None, "a tower has no question"
        started = torch.tensor(census.started, device=census.where.device).unsqueeze(1)
        end = census.where[..., 0].gather(1, (started - 1).clamp(min=0)).masked_fill(started == 0, -1).clamp(min=census.turn - 1)
        number = torch.arange(census.ids.shape[1], device=census.where.device)
        return self.untold(self.prompt(census.others) & (number > end), template)

    def untold(self, asking: Tensor, template: frozenset[int]) -> Tensor:
        """Take template tokens out of `[B, T]`."""
        ids = self.census.ids
        assert ids is not None
        return asking & ~torch.isin(ids, torch.tensor(sorted(template), device=ids.device)) if template else asking

    def attend(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Return attention `[B, R, N]` to the census's tokens, and whether a rater may see them."""
        capture, view, census = self.capture, self.view, self.census
        assert capture.queries is not None and capture.keys is not None, "the layer before the site did not run"
        keys = split_heads(capture.keys, view.head_dim)
        queries = split_heads(take(capture.queries, slots), view.head_dim)
        if capture.phases is not None:
            cos, sin = (phase if len(phase) == len(slots) else phase.expand(len(slots), -1, -1) for phase in capture.phases)
            keys = rotate(keys, cos, sin)
            queries = rotate(queries, take(cos, slots), take(sin, slots))
        ran = keys.shape[2]
        if capture.past is not None:
            keys = torch.cat([capture.past.to(keys.dtype), keys], dim=2)
        allowed = self.allowed(slots, keys.shape[2], ran)
        rows = attention_rows(queries, keys, allowed, view.scaling, view.softcap)
        self.flops += 2.0 * keys.shape[0] * slots.shape[1] * keys.shape[2] * view.heads * view.head_dim
        batch, count = slots.shape
        columns = capture.slots(self.where.reshape(batch, -1))
        alive = self.alive.unsqueeze(1)
        values = take(rows if capture.past is None else rows[..., -ran:], columns, dim=2)
        values = (values if census.group == 1 else values.view(batch, count, -1, census.group).sum(-1)) * alive
        if allowed is None or not capture.hides:
            return values, alive.expand_as(values)
        open_ = allowed if allowed.dtype == torch.bool else allowed > torch.finfo(allowed.dtype).min / 2
        open_ = take(open_[:, 0].expand(batch, count, -1)[..., -ran:], columns, dim=2)
        return values, (open_ if census.group == 1 else open_.view(batch, count, -1, census.group).all(-1)) & alive

    def allowed(self, slots: Tensor, stored: int, ran: int) -> Tensor | None:
        """Return the raters' rows of the layer's mask, `[B, 1 or H, R, C]`; None = everything is seen."""
        mask = self.capture.mask
        if mask is None:
            if not self.view.causal:
                return None
            column = torch.arange(stored, device=slots.device) - (stored - ran)
            return (column <= slots.unsqueeze(-1)).unsqueeze(1)
        mask = mask if len(mask) == len(slots) else mask.expand(len(slots), -1, -1, -1)
        if mask.shape[2] == 1:
            return mask
        index = slots[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3])
        return mask.gather(2, index)


def cut_phases(phases: tuple[Tensor, Tensor] | None, subset: Subset | None) -> tuple[Tensor, Tensor] | None:
    """Take the rotary phases of the rows that run."""
    if phases is None or subset is None:
        return phases
    return gather(phases[0], subset), gather(phases[1], subset)
