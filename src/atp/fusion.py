"""What becomes of the tokens that leave: nothing (gather), or they are merged into their nearest survivor.

Pure tensor code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atp.subset import Subset, gather

__all__ = ["gather", "merge_nearest"]


def merge_nearest(full: Tensor, subset: Subset, dropped: Tensor) -> Tensor:
    """Average every dropped token into the survivor of the highest cosine similarity.

    Args:
        full: `[B, T, D]`.
        subset: the rows that stay.
        dropped: `[B, T]` bool, the rows that leave here (not those gone before, nor padding).

    Returns:
        `[B, K, D]`, the survivors; each the mean of itself and the tokens merged into it.

    Example:
        >>> subset = build(torch.tensor([[True, False]]), [1])
        >>> merge_nearest(torch.tensor([[[1.0], [3.0]]]), subset, torch.tensor([[False, True]]))
        tensor([[[2.]]])
    """
    kept = gather(full, subset)
    unit, target = torch.nn.functional.normalize(full, dim=-1), torch.nn.functional.normalize(kept, dim=-1)
    likeness = unit @ target.transpose(1, 2)  # [B, T, K]
    if subset.valid is not None:
        likeness = likeness.masked_fill(~subset.valid.unsqueeze(1), -2.0)
    share = torch.zeros_like(likeness).scatter(2, likeness.argmax(2, keepdim=True), 1.0) * dropped.unsqueeze(-1)
    return (kept + share.transpose(1, 2) @ full) / (1 + share.sum(1).unsqueeze(-1))
