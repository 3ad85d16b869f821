"""What an encoder left for the decoder that looks at it. Part of the engine."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atp.adapters.base import Adapter, Args, Kwargs
from atp.engine.ledger import Ledger
from atp.errors import UnsupportedModel
from atp.subset import Subset, repeat


class Encoded:
    """The rows of the last prompts that are alive at the encoder's end, and the hook of the decoder.

    Args:
        adapter: the model.
        ledger: counts the decoder's tokens.
    """

    def __init__(self, adapter: Adapter, ledger: Ledger) -> None:
        self.adapter, self.ledger = adapter, ledger
        self.states: Tensor | None = None
        self.subset: Subset | None = None
        self._known: tuple[Tensor, Subset | None] | None = None
        self._started = False

    def note(self, subset: Subset | None, states: Tensor) -> None:
        """Take the encoder's output `[B, T, D]` and which of its rows are alive, None = all."""
        self.subset, self.states, self._known, self._started = subset, states, None, False

    def enter_reader(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        """Before the decoder: what left is no key of its."""
        given, (batch, length) = self.adapter.read_keys(kwargs)
        if self.states is None or given is None:
            return None
        subset = self.subset_of(given, self.states)
        prefill = 0 if self._started else self.states.shape[0]  # the first token of each prompt
        self._started = True
        self.ledger.decoded += batch * length - prefill
        return None if subset is None else (args, self.adapter.cut_keys(kwargs, subset))

    def subset_of(self, given: Tensor, states: Tensor) -> Subset | None:
        """Return which rows of `given` `[B * copies, T, D]` are alive; it is compared with the output once.

        Raises:
            UnsupportedModel: it is not the output of the last call of the encoder.
        """
        if self._known is None or self._known[0] is not given:
            copies, rest = divmod(given.shape[0], states.shape[0])
            same = rest == 0 and given.shape[1:] == states.shape[1:]
            if not same or not (given is states or torch.equal(given[::copies], states)):
                raise UnsupportedModel(
                    "the decoder is called with encoder states that are not those of the last prompts, so it is unknown which "
                    "of their tokens left; encode and decode one batch after the other"
                )
            self._known = (given, None if self.subset is None else repeat(self.subset, copies))
        return self._known[1]
