"""What a pruning method is: a frozen dataclass whose fields are its options. Knows tensors only."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from atp.budget.shape import ModelShape
from atp.errors import InvalidPlan, UnknownMethod
from atp.plan import Site
from atp.registry import Registry
from atp.tokens import Rows, Tokens
from atp.tracing import refuse_loops, traced

NOTHING: Mapping[str, tuple[str, ...]] = MappingProxyType({})


@dataclass(frozen=True)
class Work:
    """Sizes of one input at one site, to count the FLOPs of choosing with.

    Attributes:
        stack: "vision" or "language".
        tokens: N, the tokens that the stack started with.
        alive, kept: how many are left before the site, and after it.
        hidden: width D of the residual stream.
        head_dim, key_heads: d and H of the keys.
        text: M text tokens.
        raters: R rows computed.
    """

    stack: str
    tokens: int
    alive: int
    kept: int
    hidden: int
    head_dim: int = 0
    key_heads: int = 0
    text: int = 0
    raters: int = 0


@dataclass(frozen=True)
class Method(ABC):
    """Base of all methods. A subclass scores tokens; the plan says where and how many.

    Attributes:
        needs: kinds of raters (see `atp.tokens.Rows`) by stack. A stack that is named cannot be pruned at layer 0, for the
            rows come from the layer before the site (but see `embedded`). `class` means `visual` on a tower without class token.
        reads: lazy parts of `Tokens` that the method uses (see `atp.tokens.READS`) by stack. Keys come from the layer before.
        stacks: where the method can prune.
        kinds: kinds of tokens that it can make leave, "visual" or "text"; it is told which by `Tokens.kind`.
        text_raters: kinds of raters whose rows over text tokens it needs: `question`, here the last ones of the prompt, `visual`.
        fuses: whether what leaves is merged into what stays (see `merges`); `fuse` is then called where tokens leave.
        carries: whether the method scores the tower's last states although nothing leaves there, to have `Tokens.carried`.
        trained: whether it needs weights of its own.
        paper: who thought of it; url: where to read it.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[Mapping[str, tuple[str, ...]]] = NOTHING
    reads: ClassVar[Mapping[str, tuple[str, ...]]] = NOTHING
    stacks: ClassVar[tuple[str, ...]] = ("vision", "language")
    kinds: ClassVar[tuple[str, ...]] = ("visual",)
    text_raters: ClassVar[tuple[str, ...]] = ()
    fuses: ClassVar[bool] = False
    carries: ClassVar[bool] = False
    trained: ClassVar[bool] = False
    paper: ClassVar[str] = ""
    url: ClassVar[str] = ""

    def raters(self, stack: str) -> tuple[str, ...]:
        """Return the raters that these options need in a stack."""
        return self.needs.get(stack, ())

    def reading(self, stack: str) -> tuple[str, ...]:
        """Return the lazy parts of `Tokens` that these options read in a stack."""
        return self.reads.get(stack, ())

    def default_sites(self, shape: ModelShape) -> tuple[Site, ...] | None:
        """Return the sites to prune at when none are given; None leaves them to the solver."""
        return None

    def fits(self, mark: Any) -> None:  # noqa: B027  # only weights of a method's own may not
        """Refuse a model, given its `Fingerprint`, that weights of the method's own were not trained beside.

        Raises:
            InvalidPlan: they were not.
        """

    @abstractmethod
    def score(self, tokens: Tokens) -> Tensor:
        """Return `[B, N]`, higher = keep; what stands at dead tokens is not read. Row i depends on row i only."""

    def select(self, scores: Tensor, tokens: Tokens, counts: Tensor) -> Tensor:
        """Return `[B, N]` bool: the `counts` `[B]` live tokens of each row that stay. Here: the highest scores."""
        return top(scores, tokens.alive, counts)

    def count(self, scores: Tensor, tokens: Tokens, threshold: float) -> Tensor | None:
        """Return how many tokens `[B]` each row of an adaptive step would keep, where the method has a rule of its own.

        None = as many as reach `threshold` times the mean score. The step's floor and ceiling hold in either case.
        """
        return None

    def measure(self, scores: Tensor, tokens: Tokens) -> Tensor | None:
        """Return `[B, N]` >= 0, what an absolute step (`Step.absolute`) compares with its threshold; None = nothing.

        A token stays where it is at least the threshold. For what has a meaning of its own, such as how unlike its neighbours a
        token is; scores are compared with a share of their mean.
        """
        return None

    def measures(self, stack: str) -> bool:
        """Return whether `measure` gives something in this stack."""
        return False

    def embedded(self, stack: str) -> bool:
        """Return whether the method can act at layer 0 of a stack, where it gets no rows, and for keys the states themselves."""
        return False

    def merges(self, stack: str) -> bool:
        """Return whether what leaves in this stack is merged into what stays."""
        return self.fuses

    def weighs(self, stack: str) -> bool:
        """Return whether merged tokens count in a stack's attention as the tokens they stand for (proportional attention)."""
        return False

    def fuse(self, hidden: Tensor, keep: Tensor, scores: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        """Return `[B, N, D]`, the states at the site once tokens have left, and `[B, N]`, how many tokens each stands for.

        Only what stands at `keep` is read; sizes None = as before.
        """
        return hidden, None

    def flops(self, work: Work) -> float:
        """Return the FLOPs of the matrix products of score, select and fuse for one input, besides the rows themselves."""
        return 0.0


def top(scores: Tensor, alive: Tensor, counts: Tensor) -> Tensor:
    """Mark the `counts` `[B]` highest live scores of each row of `[B, N]`; ties go to the earlier token."""
    order = scores.masked_fill(~alive, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    rank = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.zeros_like(alive).scatter(1, order, rank < counts.unsqueeze(1)) & alive


def even(tokens: Tokens) -> Tensor:
    """Return `[B, N]` scores of which the highest k, for any k, are spread evenly over each image.

    The order is that of the ordered-dither (Bayer) matrix; a token that is no patch comes first.
    """
    row, column = tokens.position.unbind(-1)
    order = torch.zeros_like(row)
    bits = max(max(tokens.grid) - 1, 1).bit_length()
    for bit in range(bits):  # the lowest bit of the place is the highest of the rank
        x, y = (column >> bit) & 1, (row >> bit) & 1
        order = order * 4 + 2 * (x ^ y) + y
    order = order.masked_fill(row < 0, -1)
    return (1.0 / (2.0 + order.to(torch.float32))).expand_as(tokens.alive)


METHODS: Registry[Method] = Registry("method", UnknownMethod, "atp.methods")
register = METHODS.register


def spelled(text: str) -> tuple[str, dict[str, Any]]:
    """Split a method with options, `tome:proportional=all` or `atp:merge=false+alpha=0.7`, into its name and options.

    `sites`, as in `atp:sites=vision:0/vision:3`, is no field of a method but an argument of `atp.prune`.

    Raises:
        UnknownMethod: no such method.
        InvalidPlan: no such option, or a value that the method refuses.

    Example:
        >>> spelled("atp:proportional=false")
        ('atp', {'proportional': False})
    """
    name, _, rest = text.partition(":")
    method, options = METHODS.get(name), dict[str, Any]()
    known = [*(field.name for field in fields(method)), "sites"]
    for part in filter(None, rest.split("+")):
        option, equals, value = part.partition("=")
        if not equals or option not in known:
            raise InvalidPlan(
                f"{text!r}: {part!r} is no option of {name!r}, expected option=value with one of {', '.join(known)}; "
                "e.g. 'atp:proportional=false+alpha=0.7'"
            )
        try:
            options[option] = json.loads(value)
        except ValueError:
            options[option] = value
    own = {option: value for option, value in options.items() if option != "sites"}
    if own:
        method(**own)
    return name, options


def list_methods() -> list[str]:
    """Return the names of all methods."""
    return METHODS.names()


def relative(values: Tensor, alive: Tensor) -> Tensor:
    """Divide `[B, N]` by its mean over the live tokens of each row, so that 1 is the average token."""
    values = values.masked_fill(~alive, 0.0)
    mean = values.sum(1, keepdim=True) / alive.sum(1, keepdim=True).clamp(min=1)
    return values / mean.clamp(min=torch.finfo(values.dtype).tiny)


def checked(option: str, value: object, allowed: Sequence[object]) -> None:
    """Refuse an option's value.

    Raises:
        InvalidPlan: naming the option and what is allowed.
    """
    if value not in allowed:
        raise InvalidPlan(f"{option} is one of {', '.join(map(repr, allowed))}, got {value!r}; e.g. {option}={allowed[0]!r}")


def received(rows: Rows) -> Tensor:
    """Attention that tokens receive from visual raters, `[B, N]`.

    Each rater's row is divided by its mean over the tokens it sees, and each token averages over the raters that see it: a
    causal mask then favours neither early nor late tokens. A token that no rater sees counts as average.
    """
    sees = rows.sees & rows.valid.unsqueeze(-1)
    weight = sees.to(rows.values.dtype)
    values = rows.values * weight
    mean = values.sum(2, keepdim=True) / weight.sum(2, keepdim=True).clamp(min=1)
    share = values / mean.clamp(min=torch.finfo(values.dtype).tiny)
    seen = weight.sum(1)
    return torch.where(seen > 0, share.sum(1) / seen.clamp(min=1), 1.0)


def class_attention(tokens: Tokens) -> Tensor:
    """Attention of the class token, `[B, N]`; in a tower without one, what tokens receive from sampled patches, mean 1."""
    return tokens.rows["class"].mean() if "class" in tokens.rows else received(tokens.rows["visual"])


def tower_end(shape: ModelShape) -> tuple[Site, ...]:
    """The input of the tower's last layer: the last site a tower has, and what many models take their features from."""
    return (Site("vision", max(1, shape.vision.layers - 1)),)


def rank(marked: Tensor) -> Tensor:
    """Number the marked places of each row of `[B, N]` from 0, in order; what stands elsewhere means nothing."""
    return marked.cumsum(1) - 1


def earliest(values: Tensor, free: Tensor) -> Tensor:
    """Return `[B, 1]`, the first free place of each row whose value is the highest up to rounding.

    Equal tokens get values that differ in the last bits, by the batch they are in; this must not choose between them.
    """
    best = values.masked_fill(~free, -torch.inf).amax(1, keepdim=True)
    slack = torch.where(best.isfinite(), 64 * torch.finfo(values.dtype).eps * best.abs(), 0.0)
    return ((values >= best - slack) & free).to(torch.uint8).argmax(1, keepdim=True)


def largest(counts: Tensor) -> int:
    """The most that any row keeps, on the host: how often a greedy loop runs. The one device sync of such a method."""
    if traced():
        refuse_loops()
    return int(counts.max()) if counts.numel() else 0
