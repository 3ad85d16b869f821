"""The model `atp` of lmms-eval: any model that `atp.load` takes, pruned while lmms-eval asks its own tasks.

    lmms-eval --model atp --model_args pretrained=llava-hf/llava-1.5-7b-hf,method=atp,budget=0.6 --tasks pope

lmms-eval 0.6 and later finds it by the entry point `lmms_eval.models`, in both forms: messages ("chat", which it prefers) and
image with context ("simple", `--force_simple`). One image and one question each; other tasks are refused by name.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import groupby
from typing import Any

import torch
from PIL import Image

from atp.asking import build_inputs, new_tokens, words
from atp.engine import prune
from atp.errors import BadInput
from atp.evals.harness.answering import Asker
from atp.evals.harness.settings import REFERENCE
from atp.loading import load

try:
    _Base: Any = importlib.import_module("lmms_eval.api.model").lmms
except ModuleNotFoundError:  # then nobody asks for it; `manifest` says so
    _Base = object

LONGEST = 16  # new tokens where a task names no number
ARGUMENTS = "pretrained, method, budget, plan, seed, dtype, device, batch_size"


def manifest() -> Any:
    """Return what lmms-eval registers; its entry point."""
    try:
        registry = importlib.import_module("lmms_eval.models.registry_v2")
    except ModuleNotFoundError:
        raise BadInput("this needs lmms-eval 0.6 or later: pip install 'lmms-eval>=0.6'") from None
    return registry.ModelManifest("atp", simple_class_path=f"{__name__}.Simple", chat_class_path=f"{__name__}.Chat")


class Simple(_Base):  # type: ignore[misc]
    """Answers requests of image and context.

    Args:
        pretrained: shipped name, folder or hub id.
        method: of `atp.list_methods()`; `none` = the unpruned model.
        budget: share of the FLOPs; None = the method's default.
        plan: file of a plan, in place of method and budget.
        seed: of methods that draw.
        dtype, device: as `atp.load` takes them.
        batch_size: prompts at once.
        more: refused by name, but for `max_batch_size`.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "atp-mini-llava",
        method: str = "atp",
        budget: float | None = None,
        plan: str | None = None,
        seed: int | None = None,
        dtype: str | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
        **more: Any,
    ) -> None:
        super().__init__()
        more.pop("max_batch_size", None)
        if more:
            raise BadInput(f"unknown arguments of the model atp: {', '.join(sorted(more))}; it takes {ARGUMENTS}")
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise BadInput(f"batch_size is a whole number >= 1, got {batch_size!r}; e.g. --batch_size 8")
        rank = os.environ.get("LOCAL_RANK")
        if rank is not None and torch.cuda.is_available() and device in (None, "cuda"):
            device = f"cuda:{rank}"
        self.asker = Asker(*load(pretrained, dtype=dtype, device=device))
        self.batch_size = int(batch_size)
        self.plain = plan is None and method == REFERENCE
        options: dict[str, Any] = {} if seed is None else {"seed": seed}
        self.how = {"plan": plan} if plan is not None else {"method": method, "budget": budget, **options}
        self.report: Any = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self.asker.model.device)

    def asked(self, request: Any) -> tuple[str, Image.Image, dict[str, Any]]:
        """Return question, image and options of generation of a request."""
        context, options, visual, number, task, split = request.args
        return context, _only(visual(self.task_dict[task][split][number]), task), dict(options)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer requests, in their order; `report` then has what all of them cost."""
        asked = [self.asked(request) for request in requests]
        answers: dict[int, str] = {}
        pruned = nullcontext() if self.plain else prune(self.asker.model, processor=self.asker.processor, **self.how)
        with pruned as run:
            for numbers in self._batches(asked):
                answers.update(zip(numbers, self._batch([asked[n] for n in numbers]), strict=True))
        self.report = None if run is None or not asked else run.report()
        return [answers[number] for number in range(len(asked))]

    def _batches(self, asked: Sequence[tuple[str, Image.Image, dict[str, Any]]]) -> Iterator[list[int]]:
        """Group requests of equal options and length."""

        def alike(number: int) -> tuple[str, int]:
            return repr(sorted(asked[number][2].items())), words(self.asker.processor, asked[number][0])

        for _, group in groupby(sorted(range(len(asked)), key=alike), alike):
            numbers = list(group)
            yield from (numbers[at : at + self.batch_size] for at in range(0, len(numbers), self.batch_size))

    def _batch(self, asked: Sequence[tuple[str, Image.Image, dict[str, Any]]]) -> list[str]:
        processor, model = self.asker.processor, self.asker.model
        inputs = self.asker.placed(build_inputs(processor, [image for _, image, _ in asked], [text for text, *_ in asked]))
        tokenizer, options = processor.tokenizer, asked[0][2]
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        with torch.inference_mode():
            out = model.generate(**inputs, **generation(options), pad_token_id=pad)
        said = processor.batch_decode(new_tokens(inputs, out), skip_special_tokens=True)
        return [cut(text, options.get("until") or ()).strip() for text in said]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refuse: what pruning takes out of a prompt has no logits to compare."""
        raise NotImplementedError("the model atp answers in words; choose a task with output_type: generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuse."""
        raise NotImplementedError("the model atp answers one question at a time; choose a task with output_type: generate_until")


class Chat(Simple):
    """Answers requests of messages."""

    is_simple = False

    def asked(self, request: Any) -> tuple[str, Image.Image, dict[str, Any]]:
        """Return question, image and options of generation of a request."""
        _, messages, options, number, task, split = request.args
        turns = messages(self.task_dict[task][split][number])
        if len(turns) != 1 or turns[0]["role"] != "user":
            roles = ", ".join(str(turn["role"]) for turn in turns)
            raise BadInput(f"task {task!r} has the turns {roles or '(none)'}; the model atp answers one turn of a user")
        parts = turns[0]["content"]
        texts = [part["text"].strip() for part in parts if part["type"] == "text"]
        return "\n".join(texts), _only([part.get("url") for part in parts if part["type"] != "text"], task), dict(options)


def _only(visuals: Sequence[Any], task: str) -> Image.Image:
    if len(visuals) != 1 or not isinstance(visuals[0], Image.Image):
        kinds = ", ".join(type(visual).__name__ for visual in visuals) or "nothing to see"
        raise BadInput(f"task {task!r} shows {kinds}; the model atp answers questions about one image, e.g. pope, gqa, vqav2_val")
    return visuals[0].convert("RGB")


def generation(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of `generate` from a task's own, which name a temperature of 0 where nothing is drawn.

    Example:
        >>> generation({"max_new_tokens": 8, "temperature": 0, "top_p": 1.0, "until": ["."]})
        {'max_new_tokens': 8, 'num_beams': 1, 'do_sample': False}
    """
    drawn = bool(options.get("temperature")) and options.get("do_sample", True)
    found = {"max_new_tokens": int(options.get("max_new_tokens") or LONGEST), "num_beams": int(options.get("num_beams") or 1)}
    more = {name: options[name] for name in ("temperature", "top_p") if drawn and options.get(name) is not None}
    return {**found, "do_sample": bool(drawn), **more}


def cut(text: str, until: str | Sequence[str]) -> str:
    """Return the text before the first of the stops.

    Example:
        >>> cut("yes. no", ["."])
        'yes'
    """
    for stop in [until] if isinstance(until, str) else until:
        text = text.partition(stop)[0] if stop else text
    return text
