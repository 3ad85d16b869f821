"""OccamToken: as many tokens as stand above a register token. Knows tensors, nothing of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from atp.budget.shape import ModelShape
from atp.errors import InvalidPlan
from atp.methods.base import Method, checked, class_attention, register
from atp.plan import Site
from atp.tokens import Tokens

REFERENCES = ("mean", "register")


@register("occamtoken")
@dataclass(frozen=True)
class OccamToken(Method):
    """Score patches by the class token, later by the question's word that looks at them most; thresholds decide the count.

    An adaptive step's `threshold` is the paper's lambda: relative to the mean score, or to the score of a register token.

    Differences from the paper (there is no code): the mean is the reference unless the tower has a register token (0.7 and 1.3
    points less, in the paper's ablation at 22 and 11 %); words of the template do not count; a tower without class token
    scores by the attention that patches receive. Without thresholds the counts are the plan's.
    Cost: 2 x raters x keys x heads x head_dim FLOPs an input and site; raters: 1 (32 without class token), or the question.

    Attributes:
        reference: what a threshold is relative to, `mean` or `register`.
    """

    reference: str = "mean"

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {"vision": ("class",), "language": ("question",)}
    paper: ClassVar[str] = "OccamToken, arXiv 2605.29657, 2026"
    url: ClassVar[str] = "https://arxiv.org/abs/2605.29657"

    def __post_init__(self) -> None:
        checked("reference", self.reference, REFERENCES)

    def default_sites(self, shape: ModelShape) -> tuple[Site, ...]:
        """Return the tower's end and the layer at a third of the language model (11 of the paper's 32)."""
        layers = shape.language.layers
        tower, middle = Site("vision", max(1, shape.vision.layers - 1)), Site("language", max(1, round(layers * 11 / 32)))
        return (tower, middle) if layers > 1 else (tower,)

    def score(self, tokens: Tokens) -> Tensor:
        """Return the class token's row, or each token's largest attention over the question's words."""
        if tokens.stack == "vision":
            return class_attention(tokens)
        rows = tokens.rows["question"]
        return rows.values.masked_fill(~rows.valid.unsqueeze(-1), 0.0).amax(1)

    def count(self, scores: Tensor, tokens: Tokens, threshold: float) -> Tensor | None:
        """Return how many tokens reach threshold x the register's score; None with the mean as reference.

        Raises:
            InvalidPlan: the register is the reference and the stack has none.
        """
        if self.reference == "mean":
            return None
        rows = tokens.rows.get("question" if tokens.stack == "language" else "class")
        if rows is None or rows.register is None:
            raise InvalidPlan(f"reference='register', but {tokens.stack}:{tokens.layer} has no register; use reference='mean'")
        seen = (rows.register * rows.valid).sum(1) / rows.valid.sum(1).clamp(min=1)
        return ((scores >= threshold * seen.unsqueeze(1)) & tokens.alive).sum(1)
