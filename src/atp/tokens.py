"""What a method sees (`Tokens`, `Rows`). Knows tensors only.

Tokens are numbered per input by the place they started with: patch 0 .. N-1 of an image in the tower, visual token 0 .. N-1 of
a prompt in the language model. A number never changes, whatever has left before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

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
        hidden: `[B, M, D]` states at the site.
        embeddings: `[B, M, D]` states at layer 0.
        valid: `[B, M]` bool.
        asks: `[B, M]` bool, tokens of the question: after the last visual token, not of the template.
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
        alive: `[B, N]` bool.
        started: how many tokens each input started with.
        position: `[B, N, 2]` int64, (row, column) in the grid of its image; (-1, -1) for a token that is no patch.
        image: `[B, N]` int64, which image of its input a token belongs to.
        grid: largest (height, width) of an image's grid of tokens.
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
