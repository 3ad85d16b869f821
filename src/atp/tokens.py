"""What a method sees (`Tokens`, `Rows`) and what a run remembers (`Record`, `Trace`). Knows tensors only.

Tokens are numbered per input by the place they started with: patch 0 .. N-1 of an image in the tower, visual token 0 .. N-1 of
a prompt in the language model. A number never changes, whatever has left before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from atp.errors import BadInput
from atp.fusion import Crowd, Halves, Matching, average, halve, match
from atp.tracing import lazy

RATERS = ("question", "last", "class", "visual")  # kinds, see `Rows`


@dataclass(frozen=True)
class Rows:
    """Attention that some raters pay to the tokens, averaged over the heads; softmax over all keys that a rater sees.

    Raters are, per input: `question` the live text tokens after the last visual one, without template tokens; `last` the last
    live prompt token; `class` the tower's class token; `visual` at most 32 evenly spaced visual tokens still alive.

    Attributes:
        values: `[B, R, N]`, 0 at tokens that are not alive.
        valid: `[B, R]` bool; inputs with fewer raters have invalid ones; `certain` = none has, known without the device.
        sees: `[B, R, N]` bool, whether the rater may attend to the token (a causal mask hides later ones).
        embeddings: `[B, R, D]`, the raters as they entered the stack; None unless the method reads "embeddings".
        register: `[B, R]` attention to a register token in the stack, or None where there is none.
    """

    values: Tensor
    valid: Tensor
    sees: Tensor
    embeddings: Tensor | None = None
    register: Tensor | None = None
    certain: bool = False

    def mean(self) -> Tensor:
        """Mean over the raters, `[B, N]`."""
        if self.certain and self.values.shape[1] == 1:
            return self.values[:, 0]
        weight = self.valid.to(self.values.dtype).unsqueeze(-1)
        return (self.values * weight).sum(1) / weight.sum(1).clamp(min=1)


@dataclass(frozen=True)
class Text:
    """The live text tokens of each prompt, in order; M is the largest number of them.

    Attributes:
        hidden, embeddings: `[B, M, D]` states at the site, and at layer 0.
        valid, asks: `[B, M]` bool; `asks` are tokens of the question: after the last visual token, not of the template.
        keys: `[B, M, H, d]` as `Tokens.keys`; None where the method reads no keys.
    """

    hidden: Tensor
    embeddings: Tensor
    valid: Tensor
    asks: Tensor
    keys: Tensor | None = None


READS = ("keys", "embeddings", "text", "joint")
"""What a method may read of `Tokens` besides rows and hidden states; it says so in `Method.reads`."""


@dataclass(frozen=True)
class Tokens:
    """The visual tokens at one site. N is the largest number that any input of the batch started with.

    Attributes:
        stack, layer: "vision" or "language", and the site's layer.
        alive, started: `[B, N]` bool, and how many tokens each input started with.
        position: `[B, N, 2]` int64, (row, column) in the grid of its image; (-1, -1) for a token that is no patch.
        image, grid: `[B, N]` int64, which image of its input a token belongs to; largest (height, width) of an image's grid.
        rows: attention rows by kind of rater, those that the method `needs`.
        carried: `[B, N]` last scores of the stack before, NaN where there is none; None at the first scored site.
        sizes: `[B, N]` how many tokens each stands for after merges; None = one each.
        kind, ids: kind of the tokens, and their ids `[B, N]` where it is text.
        crowd: how many tokens of each row are alive and, with fixed counts, are to stay, known on the host; None = not known.
        notes: what a method leaves here for itself, between the calls at one site.
    """

    stack: str
    layer: int
    alive: Tensor
    started: tuple[int, ...]
    position: Tensor
    image: Tensor
    grid: tuple[int, int]
    rows: Mapping[str, Rows] = field(default_factory=dict)
    carried: Tensor | None = None
    kind: str = "visual"
    sizes: Tensor | None = None
    ids: Tensor | None = None
    crowd: Crowd | None = None
    notes: dict[str, Any] = field(default_factory=dict, repr=False, compare=False, init=False)
    _hidden: Callable[[], Tensor] | None = field(default=None, repr=False)
    _keys: Callable[[], Tensor] | None = field(default=None, repr=False)
    _embeddings: Callable[[], Tensor] | None = field(default=None, repr=False)
    _text: Callable[[], Text] | None = field(default=None, repr=False)
    _joint: Callable[[], tuple[Tensor, Tensor]] | None = field(default=None, repr=False)

    @lazy
    def hidden(self) -> Tensor:
        """Hidden states `[B, N, D]`, gathered on first use; tokens that are gone have their last state."""
        assert self._hidden is not None, "these tokens were made without hidden states"
        return self._hidden()

    @lazy
    def likeness(self) -> Tensor:
        """Cosine similarity of the hidden states, `[B, N, N]` in float32, or float64 for double inputs."""
        wide = torch.promote_types(self.hidden.dtype, torch.float32)  # in bfloat16 most neighbours tie
        unit = torch.nn.functional.normalize(self.hidden.to(wide), dim=-1)
        return unit @ unit.transpose(1, 2)

    @lazy
    def keys(self) -> Tensor:
        """Keys `[B, N, H, d]` of the layer before the site, as projected: no rotary phases, H heads of keys."""
        assert self._keys is not None, "these tokens were made without keys: name them in the method's `reads`"
        return self._keys()

    @lazy
    def unit_keys(self) -> Tensor:
        """The keys' means over the heads, of length 1, `[B, N, d]` in float32, or float64 for double inputs."""
        wide = torch.promote_types(self.keys.dtype, torch.float32)
        return torch.nn.functional.normalize(self.keys.to(wide).mean(2), dim=-1)

    @lazy
    def key_likeness(self) -> Tensor:
        """Cosine similarity of the keys' means over the heads, `[B, N, N]` in float32, or float64 for double inputs."""
        unit: Tensor = self.unit_keys
        return unit @ unit.transpose(1, 2)

    def halves(self, window: int | None = None) -> Halves:
        """Compare the live tokens' keys half with half (`fusion.halve`), once a site."""
        made: Halves = self.notes.get("halves") or halve(self.unit_keys, self.alive, self.crowd, window)
        self.notes["halves"] = made
        return made

    def matched(self, counts: Tensor, ease: Tensor | None = None, window: int | None = None) -> Matching:
        """Merge the live tokens by their keys down to `counts` (`fusion.match`)."""
        return match(self.unit_keys, self.alive, counts, ease, self.crowd, window, self.halves(window))

    def merged(self, hidden: Tensor, matching: Matching) -> tuple[Tensor, Tensor]:
        """Return for each survivor of `hidden` `[B, N, D]` the mean of its group by sizes, and the new sizes `[B, N]`."""
        size = torch.ones_like(self.alive, dtype=torch.float32) if self.sizes is None else self.sizes
        if self.crowd is None or self.crowd.live != self.started:
            size = size.masked_fill(~self.alive, 0.0)
        return average(hidden, matching.into, size)

    @lazy
    def embeddings(self) -> Tensor:
        """The tokens as they entered the stack's layer 0, `[B, N, D]`."""
        assert self._embeddings is not None, "these tokens were made without embeddings: name them in the method's `reads`"
        return self._embeddings()

    @lazy
    def text(self) -> Text:
        """The text tokens of the prompts; there are none in a tower."""
        assert self._text is not None, "these tokens were made without text: name it in the method's `reads`"
        return self._text()

    @lazy
    def joint(self) -> tuple[Tensor, Tensor] | None:
        """Patches `[B, N, E]` and question `[B, E]` in the space of a text encoder that matches the tower; None = no such one."""
        return None if self._joint is None else self._joint()


@dataclass(frozen=True)
class Record:
    """What one site did in one forward. Rows are images in the tower, prompts in the language model.

    Attributes:
        forward: number of the forward, from 0; the tower's pass belongs to the forward that reads its features.
        stack, layer: the site; `text` for text tokens that leave in the language model, numbered in the order of the prompt.
        input_index: which rows.
        started: tokens each row's stack started with.
        counts: tokens each row keeps.
        keep: `[B, N]` bool on the device.
        raw_scores: `[B, N]` on the device, NaN-free only where tokens were alive; None where nothing was scored.
        alive: `[B, N]` bool, the tokens alive before.
        seconds: host time of scoring and choosing.
        measured: `[B, N]`, what thresholds are compared with where the method has its own measure (`Method.measure`); else None.
    """

    forward: int
    stack: str
    layer: int
    input_index: list[int]
    started: list[int]
    counts: list[int]
    keep: Tensor = field(repr=False)
    raw_scores: Tensor | None = field(repr=False)
    alive: Tensor = field(repr=False)
    seconds: float = 0.0
    measured: Tensor | None = field(default=None, repr=False)

    @lazy
    def kept(self) -> list[Tensor]:
        """Per row the sorted original indices of the tokens kept, int64 on the CPU."""
        return [row.nonzero().flatten() for row in self.keep.cpu()]

    @lazy
    def scores(self) -> list[Tensor] | None:
        """Per row the scores of the tokens alive before, in their order, on the CPU."""
        return self._live(self.raw_scores)

    @lazy
    def bars(self) -> list[Tensor] | None:
        """Per row what a threshold is compared with, as `scores`: the method's own measure, or the scores."""
        return self._live(self.raw_scores if self.measured is None else self.measured)

    def _live(self, values: Tensor | None) -> list[Tensor] | None:
        return None if values is None else [row[live] for row, live in zip(values.cpu(), self.alive.cpu(), strict=True)]

    def joined(self, other: Record) -> Record:
        """The same site with the rows of another record behind its own."""
        most = max(self.keep.shape[1], other.keep.shape[1])

        def join(own: Tensor | None, more: Tensor | None, fill: float) -> Tensor | None:
            if own is None and more is None:
                return None
            wide = [
                torch.full_like(record.keep, fill, dtype=torch.float32) if part is None else part
                for record, part in ((self, own), (other, more))
            ]
            return torch.cat([torch.nn.functional.pad(one, (0, most - one.shape[1]), value=fill) for one in wide])

        keep, alive = join(self.keep, other.keep, False), join(self.alive, other.alive, False)
        assert keep is not None and alive is not None
        return replace(
            self,
            input_index=list(range(len(keep))),
            started=self.started + other.started,
            counts=self.counts + other.counts,
            keep=keep,
            raw_scores=join(self.raw_scores, other.raw_scores, torch.nan),
            alive=alive,
            seconds=self.seconds + other.seconds,
            measured=join(self.measured, other.measured, torch.nan),
        )


@dataclass
class Trace:
    """Everything a run did, forward by forward. Appended by the engine; read by reports, pictures and calibration.

    Attributes:
        records: in the order in which the sites were met.
        grids: patch grid (height, width) of each image of the last forward.
        image_rows: the prompt row of each image of the last forward, where known.
        tiles: whether each tile of the last call of the tower ran; [] = all.
        layout: how the last forward's images became visual tokens, where the family needs to be told; else None.
        texts: records of text tokens.
    """

    records: list[Record] = field(default_factory=list)
    grids: list[tuple[int, int]] = field(default_factory=list)
    image_rows: list[int] = field(default_factory=list)
    tiles: list[bool] = field(default_factory=list)
    layout: Any = None
    texts: list[Record] = field(default_factory=list)

    def last(self, stack: str) -> list[Record]:
        """Return the records of the last forward that met a site of the stack."""
        mine = [record for record in (*self.records, *self.texts) if record.stack == stack]
        return [record for record in mine if record.forward == mine[-1].forward]

    def kept(self, stack: str) -> dict[int, list[int]]:
        """Return, for the last forward, the tokens kept at each site's layer, row by row."""
        return {record.layer: list(record.counts) for record in self.last(stack)}

    def alive_at_end(self, stack: str, row: int) -> Tensor:
        """Return the sorted original indices of the row's tokens that left at no site of the stack; BadInput: it met none."""
        records: list[Record] = self.last(stack)
        if not records:
            met = sorted({one.stack for one in (*self.records, *self.texts)}) or "none: run the model inside the block first"
            raise BadInput(f"no forward has met a site of {stack!r}, so no token left there; stacks with sites: {met}")
        return records[-1].kept[row]  # type: ignore[no-any-return]

    def join(self, passes: Sequence[Sequence[Record]]) -> None:
        """Make one pass of several through the same sites: the rows of the first, then those of the next."""
        taken = {id(record) for one in passes for record in one}
        self.records = [record for record in self.records if id(record) not in taken]
        for records in zip(*passes, strict=True):
            self.records.append(reduce(Record.joined, records))

    def clear(self) -> None:
        """Forget all records."""
        self.records.clear()
        self.texts.clear()
