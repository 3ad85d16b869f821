"""Small parts of a training: a frozen model, averaged weights, where an answer ends. Knows no method."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Ask for no gradients of the model's weights and for no dropout, and leave it as it was."""
    asked, training = [one for one in model.parameters() if one.requires_grad], model.training
    for one in asked:
        one.requires_grad_(False)
    model.eval()
    try:
        yield
    finally:
        for one in asked:
            one.requires_grad_(True)
        model.train(training)


@torch.no_grad()
def follow(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Move averaged parameters towards those of a module."""
    for slow, fast in zip(average.parameters(), module.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)


def lasting(answer: Tensor, end: int | Sequence[int] | None) -> Tensor:
    """Mark the tokens `[B, A]` of an answer up to its end, the end included."""
    if end is None:
        return torch.ones_like(answer, dtype=torch.bool)
    ended = torch.isin(answer, torch.tensor(end, device=answer.device)).cumsum(1)
    return torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], 1) == 0


def extended(name: str, value: Tensor, answer: Tensor, prompt: int) -> Tensor:
    """Append the answer `[B, A]` to an input: its tokens, ones to the mask, zeros to what else has one value a token."""
    if value.dim() != 2 or value.shape[1] != prompt or value.is_floating_point() or not answer.shape[1]:
        return value
    if name == "input_ids":
        return torch.cat([value, answer], 1)
    more = torch.ones_like if name == "attention_mask" else torch.zeros_like
    return torch.cat([value, more(answer, dtype=value.dtype)], 1)
