"""Several questions about one image, each on the cache of what was said before. Uses the public API only."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from atp.adapters import adapt
from atp.asking import build_inputs, next_prompt
from atp.budget.amount import check_count
from atp.engine import prune
from atp.errors import BadInput
from atp.plan import Plan


class Chat:
    """A conversation about one image; ask inside of `atp.prune(model, ...)` to prune it.

    Args:
        model, processor: see `atp.load`; of a model whose `generate` goes on with a cache that holds the image, such as LLaVA.
        image: RGB, see `load_image`.
        max_new_tokens: longest answer.

    Attributes:
        ids: `[1, L]` all that was said, the answers included.

    Example:
        >>> with atp.prune(model, budget=0.4, second_turn="reselect"):
        ...     chat = atp.Chat(model, processor, image)
        ...     print(chat.ask("What is the leftmost object?"), chat.ask("What color is the cup?"))
    """

    def __init__(self, model: Any, processor: Any, image: Image.Image, max_new_tokens: int = 16) -> None:
        check_count("max_new_tokens", max_new_tokens, 16)
        if adapt(model).shape.cross is not None or adapt(model).connects == "keys":
            raise BadInput(
                f"a chat goes on with a cache that holds the image; that of a {type(model).__name__} does not: ask "
                "each question as a first one"
            )
        self.model, self.processor, self.image, self.longest = model, processor, image, max_new_tokens
        self.ids: Tensor | None = None
        self._cache: Any = None

    def ask(self, question: str) -> str:
        """Ask the next question on the cache; return the answer.

        Raises:
            BadInput: an empty question, or a processor whose chat template knows no second one.
            AtpError: whatever pruning raises.
        """
        if self.ids is None:
            return self._say(build_inputs(self.processor, [self.image], [question]))
        ids = self.following(question)
        return self._say({"input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": self._cache})

    def whole(self, question: str) -> dict[str, Tensor]:
        """Return the inputs of a call on the whole conversation and another question, without a cache; nothing is asked."""
        first = build_inputs(self.processor, [self.image], ["?"])
        ids = self.following(question)
        return {**first, "input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def following(self, question: str) -> Tensor:
        """Return the ids `[1, L]` of the conversation with another question behind it."""
        if self.ids is None:
            raise BadInput("nothing was asked yet, so no question follows; ask a first one: chat.ask('What is in the image?')")
        end, rest = self.processor.tokenizer.eos_token, next_prompt(self.processor, question)
        if int(self.ids[0, -1]) == self.processor.tokenizer.eos_token_id:
            rest = rest.lstrip().removeprefix(end)
        new = self.processor.tokenizer(rest, add_special_tokens=False, return_tensors="pt")["input_ids"]
        return torch.cat([self.ids, new.to(self.ids.device)], 1)

    def _say(self, inputs: dict[str, Any]) -> str:
        model = self.model
        placed = {
            name: value.to(model.device, model.dtype if value.is_floating_point() else None) if torch.is_tensor(value) else value
            for name, value in inputs.items()
        }
        with torch.inference_mode():
            out = model.generate(
                **placed, max_new_tokens=self.longest, do_sample=False, return_dict_in_generate=True, use_cache=True
            )
        asked = placed["input_ids"].shape[1]
        self.ids, self._cache = out.sequences, out.past_key_values
        if self.ids.shape[1] <= asked or self._cache is None:
            kind = type(model).__name__
            raise BadInput(f"a {kind} does not go on with a cache from `generate`; ask each question as a first one")
        return str(self.processor.batch_decode(self.ids[:, asked:], skip_special_tokens=True)[0]).strip()


@dataclass(frozen=True)
class Talk:
    """What one setting answered, turn by turn.

    Attributes:
        answers: one a question.
        flops: counted FLOPs of each turn, of tower, connector, language model and choosing.
        ids: `[1, L]` the conversation after each turn.
        kept: tokens kept, by stack and layer, at the last choice.
    """

    answers: list[str]
    flops: list[float]
    ids: list[Tensor]
    kept: dict[str, dict[int, list[int]]]


def talk(
    model: Any, processor: Any, image: Image.Image, questions: Sequence[str], max_new_tokens: int = 16, **pruning: Any
) -> Talk:
    """Ask several questions in a row, pruned or not.

    Args:
        model, processor, image, max_new_tokens: as `Chat` takes them.
        questions: at least one.
        pruning: arguments of `atp.prune`; none = all tokens.

    Raises:
        BadInput: no question; and as `Chat.ask`.
    """
    if not questions:
        raise BadInput("no question given; expected e.g. ['What is the leftmost object?', 'What color is the cup?']")
    answers: list[str] = []
    ids: list[Tensor] = []
    totals = [0.0]
    with warnings.catch_warnings():
        if not pruning:
            warnings.filterwarnings("ignore", "the plan .* removed no token", UserWarning)
        with prune(model, processor=processor, **(pruning or {"plan": Plan("none")})) as run:
            chat = Chat(model, processor, image, max_new_tokens)
            for question in questions:
                answers.append(chat.ask(question))
                totals.append(run.report().flops.total)
                assert chat.ids is not None
                ids.append(chat.ids)
    return Talk(answers, [b - a for a, b in itertools.pairwise(totals)], ids, run.report().kept)


def talks(
    model: Any,
    processor: Any,
    image: Image.Image,
    questions: Sequence[str],
    max_new_tokens: int = 16,
    on_step: Callable[[str], None] | None = None,
    **pruning: Any,
) -> dict[str, Talk]:
    """Ask in a row with all tokens, pruned, and pruned with second turns chosen anew where the model can.

    Args, Raises: as `talk`; `on_step` is called with a few words before each part of the work.
    """
    asked, found = (model, processor, image, questions, max_new_tokens), {}
    say = on_step or (lambda words: None)
    say("answering with all tokens")
    found["all tokens"] = talk(*asked)
    for name, how in (("pruned", "keep"), ("pruned, chosen anew", "reselect")):
        say(f"answering {name}")
        found[name] = talk(*asked, second_turn=how, **pruning)
    return found
