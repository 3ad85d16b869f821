"""What a benchmark shall do, read from the command line and checked. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from atp.calibrations import Given, read_all
from atp.errors import BadInput
from atp.loading import check_dtype

QUANTS = ("int8", "int4")
"""Weight-only quantisation that torchao does on CPUs and GPUs alike."""

KERNELS = ("torch", "triton")

SHORT = {"bf16": "bfloat16", "fp32": "float32", "fp16": "float16"}
LEAST = 3
"""Fewer rounds have no quartiles worth the name."""

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """One benchmark.

    Attributes:
        model: a shipped name, a folder or a hub id; None where `arch` is given.
        arch: name of an architecture, built at its true size with random weights.
        methods, budgets: every method at every budget is one side.
        compare: methods that stand beside them at the same budgets.
        keep_all: one more side with all the machinery and nothing saved.
        round_to: one more side each, its counts rounded down to rows in multiples of this.
        quant: all sides once more on a copy with weights in int8 or int4; None = none.
        batches, answers: every batch size with every answer length is one case.
        devices: e.g. "cpu", "cuda:0"; "" = a GPU if there is one.
        dtype: of the weights; None = bfloat16 for an architecture, else what `atp.load` takes.
        rounds, warmup: how often each side is timed, and how often it runs before that.
        text: words of a prompt, for an architecture.
        tiles: images of the tower in a prompt, for an architecture; None = those of a typical image.
        keep_tiles: share of a picture's tiles that every method keeps before the tower runs; None = all.
        depth: share of the layers of an architecture that are built.
        image: file, for a model; None = a drawn scene.
        threads: of the host; None = torch's own choice.
        seed: of weights, prompts and random pruning.
        calibrations: files or "adaptive", each one side a budget, see `calibrations.read`.
        eager: methods once more with eager attention in the language model, as their authors run them.
        kernels: "triton" = pruned sides once more with attention rows by Triton, see `atp.kernels`; "torch" = not.
    """

    model: str | None = None
    arch: str | None = None
    methods: tuple[str, ...] = ("atp",)
    budgets: tuple[float, ...] = (0.6,)
    batches: tuple[int, ...] = (1,)
    answers: tuple[int, ...] = (8,)
    devices: tuple[str, ...] = ("",)
    dtype: str | None = None
    rounds: int = 5
    warmup: int = 1
    text: int = 32
    tiles: int | None = None
    image: str | None = None
    threads: int | None = None
    seed: int = 0
    compare: tuple[str, ...] = ()
    keep_all: bool = False
    round_to: int | None = None
    quant: str | None = None
    depth: float = 1.0
    keep_tiles: float | None = None
    kernels: str = "torch"
    calibrations: tuple[str, ...] = ()
    eager: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.model and self.arch:
            raise BadInput(f"both --model {self.model} and --arch {self.arch} say what to measure; give one of them")
        if self.arch and self.image:
            raise BadInput("--image is for a model with a processor; an --arch sees noise of its own size; leave it away")
        if self.depth != 1.0 and not self.arch:
            raise BadInput("--depth builds an --arch with fewer layers; a --model has its own; leave it away")
        if self.calibrations and (self.arch or self.keep_tiles is not None):
            other = f"--arch {self.arch}" if self.arch else f"--keep-tiles {self.keep_tiles:g}"
            why = "is for trained weights, an --arch has random ones" if self.arch else "was fitted with all tiles"
            raise BadInput(f"--calibration {self.calibrations[0]} {why}; leave it or {other} away")
        alone = sorted(set(self.eager) - {*self.methods, *self.compare})
        if alone:
            raise BadInput(f"--eager {','.join(alone)} is measured beside the same method; add it: --compare {','.join(alone)}")
        if self.quant is not None and self.quant not in QUANTS:
            raise BadInput(f"--quant is {' or '.join(QUANTS)}, got {self.quant!r}; e.g. --quant {QUANTS[0]}")
        if self.kernels not in KERNELS:
            raise BadInput(f"--kernels is {' or '.join(KERNELS)}, got {self.kernels!r}; e.g. --kernels {KERNELS[-1]}")
        limits = (
            ("--rounds", self.rounds, 1), ("--warmup", self.warmup, 1), ("--threads", self.threads, 1),
            ("--round-to", self.round_to, 2),
        )  # fmt: skip
        for name, value, least in limits:
            if value is not None and value < least:
                raise BadInput(f"{name} is at least {least}, got {value}; e.g. {name} {max(least, 2)}")

    @property
    def subject(self) -> str:
        """What is measured, in a word."""
        name = self.arch or self.model or "atp-mini-llava"
        return name if self.depth == 1.0 else f"{name} at {self.depth:g} of its depth"

    def given(self) -> tuple[Given, ...]:
        """Return the calibrations, read.

        Raises:
            BadInput: one cannot be used for this model or these budgets.
        """
        return read_all(self.calibrations, self.subject, self.budgets, (*self.methods, *self.compare))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def words(option: str, text: str) -> tuple[str, ...]:
    """Read a comma-separated list, each once.

    Raises:
        BadInput: it is empty.
    """
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise BadInput(f"{option} is empty ({text!r}); expected one or more, separated by commas")
    return found


def numbers(option: str, text: str, example: str) -> tuple[int, ...]:
    """Read a comma-separated list of whole numbers >= 1.

    Raises:
        BadInput: naming the part that is none.
    """
    return _each(option, text, example, int, lambda value: value >= 1, "whole numbers >= 1")


def shares(option: str, text: str) -> tuple[float, ...]:
    """Read a comma-separated list of shares below 1: at 1 there is nothing to compare.

    Raises:
        BadInput: naming the part that is none.
    """
    return _each(option, text, "0.6,0.4", float, lambda value: 0 < value < 1, "shares of the FLOPs between 0 and 1")


def _each(
    option: str, text: str, example: str, read: Callable[[str], T], good: Callable[[T], bool], expected: str
) -> tuple[T, ...]:
    found = []
    for part in words(option, text):
        try:
            value = read(part)
        except ValueError:
            value = None
        if value is None or not good(value):
            raise BadInput(f"{option} takes {expected}, separated by commas, got {part!r}; e.g. {option} {example}")
        found.append(value)
    return tuple(found)


def dtype(name: str | None) -> str | None:
    """Return the name of a dtype that models are loaded in; bf16, fp32 and fp16 are short for three.

    Raises:
        BadInput: an unknown one.
    """
    return None if name is None else check_dtype(SHORT.get(name, name))
