"""AdamW on one flat vector, averaged over workers, with an exponential moving average."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

VECTORS = ("master", "m", "v", "ema")


class Flat:
    """fp32 master weights, AdamW moments and EMA of a parameter list, each one flat vector."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        self.params = params
        self.master = torch.cat([p.detach().float().flatten() for p in params])
        self.m, self.v = torch.zeros_like(self.master), torch.zeros_like(self.master)
        self.ema = self.master.clone()
        self.decay = torch.cat([torch.full((p.numel(),), 0.03 if p.ndim > 1 else 0.0, device=p.device) for p in params])
        self.step_count = 0

    def step(self, rate: float, workers: int) -> float:
        grad = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).float().flatten() for p in self.params])
        if workers > 1:
            dist.all_reduce(grad)
            grad /= workers
        norm = grad.norm().item()
        if not math.isfinite(norm):
            return norm
        grad *= min(1.0, 1.0 / (norm + 1e-6))
        self.step_count += 1
        t = self.step_count
        self.m.mul_(0.9).add_(grad, alpha=0.1)
        self.v.mul_(0.98).addcmul_(grad, grad, value=0.02)
        update = (self.m / (1 - 0.9**t)) / ((self.v / (1 - 0.98**t)).sqrt() + 1e-8)
        self.master.add_(update + self.decay * self.master, alpha=-rate)
        self.ema.lerp_(self.master, max(1 - 0.9985, 1 / (t + 1)))
        self.write(self.master)
        return norm

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds, on the CPU."""
        return {key: getattr(self, key).cpu() for key in VECTORS}

    def resume(self, state: dict[str, Tensor], steps: int) -> None:
        """Go on from `state` after so many steps."""
        for key in VECTORS:
            setattr(self, key, state[key].to(self.master.device))
        self.step_count = steps

    def write(self, vector: Tensor) -> None:
        """Copy a flat vector into the parameters."""
        parts = vector.split([p.numel() for p in self.params])
        with torch.no_grad():
            torch._foreach_copy_(self.params, [part.view_as(p) for part, p in zip(parts, self.params, strict=True)])
        for p in self.params:
            p.grad = None
