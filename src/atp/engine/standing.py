"""Whether the model is still the one that was hooked, and whether its scores mean anything. Part of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from atp.adapters.base import Adapter, Args, Kwargs, StackView
from atp.errors import AtpError, UnsupportedModel
from atp.plan import Site
from atp.tracing import traced


class Standing:
    """The hook that looks at the model before each call.

    Args:
        adapter: of the model.
        read: stacks and layers whose projections are read.
    """

    def __init__(self, adapter: Adapter, read: Sequence[tuple[StackView, int]]) -> None:
        self.adapter = adapter
        self.read = [(view, layer, view.projections(layer)) for view, layer in read]

    def __call__(self, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """Before the base model.

        Raises:
            UnsupportedModel: its attention was switched, or layers were replaced.
        """
        self.adapter.check()
        for view, layer, hooked in self.read:
            for old, new in zip(hooked, view.projections(layer), strict=True):
                if old is not new:
                    what = "vision tower" if view.name == "vision" else "language model"
                    raise UnsupportedModel(
                        f"a projection of layer {layer} of the {what} was replaced inside the block by a {type(new).__name__}, "
                        "but scores are read from what was there at its beginning; wrap the model first, then atp.prune(model)"
                    )


NOTES = 32  # kept of a site and device


def _odd(notes: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Whether any live score is NaN or infinite."""
    scores, alive = (torch.cat([part.flatten() for part in parts]) for parts in zip(*notes, strict=True))
    return (~scores.isfinite() & alive).any()


@dataclass
class Finite:
    """Remembers live scores of fixed steps; looked at when the block ends, so that no step waits.

    Attributes:
        found: of each site, by device: scores and who was alive, the last few; those before in one pair, NaN where any was odd.
    """

    found: dict[tuple[Site, torch.device], list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def note(self, site: Site, scores: Tensor, alive: Tensor) -> None:
        """Take the scores `[B, N]` of a fixed step."""
        if traced():
            return
        notes = self.found.setdefault((site, scores.device), [])
        notes.append((scores, alive))
        if len(notes) == NOTES:
            odd = _odd(notes).view(1, 1)
            notes[:] = [(torch.zeros_like(odd, dtype=scores.dtype).masked_fill(odd, torch.nan), torch.ones_like(odd))]

    def check(self) -> None:
        """Look.

        Raises:
            AtpError: naming the first site.
        """
        for (site, _), notes in self.found.items():
            if _odd(notes):
                raise AtpError(
                    f"step at {site}: some scores are NaN or infinite, expected finite numbers, so what was kept there means "
                    "nothing; the model overflows here (load it with dtype=torch.bfloat16 or float32 instead of float16) or the "
                    "method's `score` divides by zero"
                )
