"""What is trained: the modules of a method, how they hide tokens with a gradient, and what they are paid for."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, one_hot, softmax

from atp.budget.allocate import fixed_counts
from atp.errors import BadInput
from atp.methods import gate, lvpruning
from atp.methods.base import top
from atp.plan import Site, Step
from atp.tokens import Tokens

RANKS = (16, 12, 8, 6, 4, 2, 1)
RATIO_WEIGHT = 2.0
"""Weight of LVPruning's ratio loss beside its cross-entropy; the paper gives none, this is DynamicViT's."""
TEMPERATURE = 4.0
"""Of the answers that the gate is distilled from: most are so sure that their other words teach more than the first one."""
COOL = 0.1  # what is left of the noise, and of the Gumbel softmax's temperature, at the end


@dataclass
class Trainee(ABC):
    """Modules of one method, by site.

    Attributes:
        modules: one a site.
        sizes: of the modules, for the file's header.
        shares: of the plan that is trained for, by site; a site that is absent hides nothing.
        heat: of the exploration, from 1 at the beginning to `COOL`; 0 = none, as in use.
        draws: where noise comes from.
        kept: share of the visual tokens after each site of the last call, with a gradient.
    """

    kind: ClassVar[str]
    modules: nn.ModuleDict
    sizes: dict[str, int]
    shares: Mapping[str, float] = field(default_factory=dict)
    heat: float = 0.0
    draws: torch.Generator | None = None
    kept: list[Tensor] = field(default_factory=list)

    def hide(self, tokens: Tokens) -> Tensor | None:
        """Decide at a site, see `hiding.Hide`."""
        site = f"{tokens.stack}:{tokens.layer}"
        if site not in self.shares:
            return None
        made = self.decide(self.modules[site], tokens, Step(Site.parse(site), self.shares[site]))
        made = torch.where(tokens.alive, made, 1.0)
        self.kept.append((made * tokens.alive).sum(1) / torch.tensor(tokens.started, device=made.device))
        return made

    @abstractmethod
    def decide(self, module: nn.Module, tokens: Tokens, step: Step) -> Tensor:
        """Return 1 = stays, 0 = is hidden `[B, N]`, with a gradient; what stands at dead tokens is not read."""

    @abstractmethod
    def loss(self, said: Tensor, taught: Tensor, weight: Tensor) -> Tensor:
        """Return what to make smaller.

        Args:
            said, taught: logits `[B, A, V]` of the answer's tokens, with hidden tokens and without.
            weight: `[B, A]`, 0 behind the answer's end.
        """

    def gumbel(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Draw noise."""
        drawn = torch.rand(*shape, generator=self.draws).clamp(1e-6, 1 - 1e-6)
        return -(-drawn.log()).log().to(device)


@dataclass
class GateTrainee(Trainee):
    """The gate: as many tokens stay as the plan says; distilled from the answers of the unpruned model.

    Attributes:
        noise: of the scores.
        coverage: of the tower's selection, as in use.
    """

    kind: ClassVar[str] = "gate"
    noise: float = 0.5
    coverage: float = gate.COVERAGE

    def decide(self, module: nn.Module, tokens: Tokens, step: Step) -> Tensor:
        logits: Tensor = module(tokens)
        if self.heat:
            logits = logits + self.noise * self.heat * self.gumbel(logits.shape, logits.device)
        alive = tokens.alive
        counts = torch.tensor(fixed_counts(step, tokens.started, alive.sum(1).tolist()), device=alive.device)
        keep = gate.select(logits.detach(), tokens, counts, self.coverage)
        return through(keep, torch.sigmoid(logits - border(logits.detach(), alive & ~keep)))

    def loss(self, said: Tensor, taught: Tensor, weight: Tensor) -> Tensor:
        return TEMPERATURE**2 * divergence(said / TEMPERATURE, taught / TEMPERATURE, weight)


@dataclass
class LVTrainee(Trainee):
    """LVPruning's modules with its own losses: cross-entropy of the answer, and how far the shares are from their targets."""

    kind: ClassVar[str] = "lvpruning"

    def decide(self, module: nn.Module, tokens: Tokens, step: Step) -> Tensor:
        assert isinstance(module, lvpruning.Scorer)
        logits = lvpruning.logits(module, tokens)
        if not self.heat:  # as in use: the highest, as many as the step says
            counts = torch.tensor(fixed_counts(step, tokens.started, tokens.alive.sum(1).tolist()), device=logits.device)
            return top(logits.softmax(2)[..., 0], tokens.alive, counts).to(logits.dtype)
        soft = softmax((logits + self.gumbel(logits.shape, logits.device)) / self.heat, 2)
        return through(one_hot(soft.argmax(2), 2)[..., 0].bool(), soft[..., 0])

    def loss(self, said: Tensor, taught: Tensor, weight: Tensor) -> Tensor:
        truth = taught.argmax(2)  # the unpruned model's answer stands in for the label
        each = cross_entropy(said.float().flatten(0, 1), truth.flatten(), reduction="none").view_as(weight)
        off = [(share - kept.mean()) ** 2 for share, kept in zip(self.shares.values(), self.kept, strict=True)]
        return (each * weight).sum() / weight.sum().clamp(min=1) + RATIO_WEIGHT * torch.stack(off).mean()


def divergence(said: Tensor, taught: Tensor, weight: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the unpruned answer, summed over its tokens, mean over the questions."""
    each = kl_div(log_softmax(said.float(), 2), log_softmax(taught.float(), 2), log_target=True, reduction="none").sum(2)
    return (each * weight).sum(1).mean()


def through(hard: Tensor, soft: Tensor) -> Tensor:
    """Return the value of `hard` with the gradient of `soft`."""
    return hard.to(soft.dtype) + (soft - soft.detach())


def border(logits: Tensor, gone: Tensor) -> Tensor:
    """Return `[B, 1]`, the highest logit that is not kept; 0 where all are."""
    found = logits.masked_fill(~gone, -torch.inf).amax(1, keepdim=True)
    return torch.where(found.isfinite(), found, 0.0)


def make_gate(sites: Sequence[Site], widths: Mapping[str, int], sizes: tuple[int, int], most: int, noise: float) -> GateTrainee:
    """Build a gate of at most `most` parameters.

    Args:
        sites: where.
        widths: D of the states, by stack.
        sizes: rank of the projections, 0 = the largest that fits; width of the perceptrons.
        most: parameters.
        noise: of the scores.

    Raises:
        BadInput: it has more.
    """
    rank, width = sizes
    for size in (rank,) if rank else RANKS:
        modules = nn.ModuleDict({str(site): gate.Scorer(widths[site.stack], size, width, str(site)) for site in sites})
        if parameters(modules) <= most:
            return GateTrainee(modules, {"rank": size, "width": width}, noise=noise)
    raise BadInput(
        f"a gate of rank {size} and width {width} at {len(sites)} sites has {parameters(modules)} parameters, more than 0.5 % of "
        f"the model's ({most}); use a smaller one (--rank 2 --width 8) or fewer sites (--sites {sites[0]})"
    )


def make_lvpruning(sites: Sequence[Site], hidden: int, width: int) -> LVTrainee:
    """Build LVPruning's modules."""
    modules = nn.ModuleDict({str(site): lvpruning.Scorer(hidden, width) for site in sites})
    return LVTrainee(modules, {"width": width})


def parameters(module: nn.Module) -> int:
    """How many there are."""
    return sum(one.numel() for one in module.parameters())


def cooled(done: float) -> float:
    """Return the heat when a share of the training is done."""
    return COOL + (1 - COOL) * (1 + math.cos(math.pi * min(1.0, done))) / 2
