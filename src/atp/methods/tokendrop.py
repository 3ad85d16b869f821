"""Token dropping: text tokens leave by a table over the vocabulary. Knows tensors, nothing of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from atp.errors import InvalidPlan
from atp.methods.base import Method, register
from atp.tokens import Tokens

START, DECAY, PINNED = 10.0, 0.995, 1e4  # the authors' initial importance, beta, and value of ids that always stay
MAKE = "make one with atp.methods.tokendrop: blank(vocab), update(table, ids, losses), save(table, path)"


@register("tokendrop")
@dataclass(frozen=True)
class TokenDrop(Method):
    """Keep the text tokens whose ids are hard to predict: importance is a table over the vocabulary, a running mean of losses.

    Differences from the authors' code, which speeds up pre-training: it prunes at inference; dropped tokens do not come back
    before the last layer, and those that stay do not attend to them once more; the loss of an id is that of predicting it next.
    Cost: a look-up.

    Attributes:
        table: path of the importances, a safetensors file with one tensor `importance` `[vocab]`.
    """

    table: str = ""

    stacks: ClassVar[tuple[str, ...]] = ("language",)
    kinds: ClassVar[tuple[str, ...]] = ("text",)
    trained: ClassVar[bool] = True
    paper: ClassVar[str] = "Hou et al., Token Dropping for Efficient BERT Pretraining, ACL 2022"
    url: ClassVar[str] = "https://arxiv.org/abs/2203.13240"

    def __post_init__(self) -> None:
        if not self.table or not Path(self.table).is_file():
            raise InvalidPlan(f"method 'tokendrop' needs table=, the path of a table, got {str(self.table)!r}; {MAKE}")

    def score(self, tokens: Tokens) -> Tensor:
        """Return the importance of each token's id.

        Raises:
            InvalidPlan: the tokens are no text, or have ids beyond the table.
        """
        if tokens.ids is None:
            raise InvalidPlan("method 'tokendrop' scores text tokens, these are visual; use Step(site, keep=1.0, text=0.5)")
        table = load(str(self.table)).to(tokens.ids.device)
        ids = tokens.ids.masked_fill(~tokens.alive, 0)
        if ids.numel() and int(ids.max()) >= len(table):
            raise InvalidPlan(f"the table {self.table!r} has {len(table)} ids, the prompt has id {int(ids.max())}; {MAKE}")
        return table[ids]


def blank(vocab: int, special: Sequence[int] = ()) -> Tensor:
    """Return the table `[vocab]` to begin with; `special` ids always stay."""
    table = torch.full((vocab,), START)
    table[list(special)] = PINNED
    return table


def update(table: Tensor, ids: Tensor, losses: Tensor, decay: float = DECAY) -> Tensor:
    """Return the table after one batch: `decay` x old + (1 - decay) x mean loss, for every id that occurs and is not pinned.

    Args:
        table: `[vocab]`.
        ids, losses: of the same shape, the predicted ids and what predicting them cost.
        decay: beta.
    """
    flat, values = ids.reshape(-1), losses.reshape(-1).to(table.dtype)
    total = torch.zeros_like(table).scatter_add(0, flat, values)
    seen = torch.zeros_like(table).scatter_add(0, flat, torch.ones_like(values))
    return torch.where((seen > 0) & (table < PINNED), decay * table + (1 - decay) * total / seen.clamp(min=1), table)


def save(table: Tensor, path: str | Path) -> None:
    """Write a table."""
    save_file({"importance": table.to(torch.float32).contiguous()}, str(path))


@lru_cache(maxsize=4)
def load(path: str) -> Tensor:
    """Read a table `[vocab]`.

    Raises:
        InvalidPlan: a file that is none.
    """
    try:
        found = load_file(path)["importance"]
    except (OSError, SafetensorError, KeyError) as error:
        raise InvalidPlan(f"{path!r} is no table of importances ({error!r}); {MAKE}") from None
    return found
