"""What is measured: a loaded model with its processor's inputs, or an architecture with random weights and inputs of noise."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from atp.adapters import Adapter, adapt
from atp.adapters.architectures import skeleton
from atp.adapters.examples import example
from atp.bench import memory
from atp.bench.quantise import quantised, weight_bytes
from atp.bench.settings import Settings
from atp.budget.cost import Workload
from atp.calibrations import Given
from atp.errors import BadInput
from atp.images import load_image
from atp.loading import build_inputs, load
from atp.scenes import make_scene, render

QUESTION = "How many objects are there in the image, and what color is the largest one?"
SCENE = 672  # pixels: enough for several tiles where the processor cuts them
ROOM = 1.15  # ours: weights are not all that a run holds
FULL = ("out of memory", "not enough memory", "can't allocate memory")


@dataclass(frozen=True)
class Subject:
    """A model under test.

    Attributes:
        name: of it.
        adapter: its parts.
        processor: None where the weights are random.
        settings: of the benchmark.
        quantised: the parts of its quantised copy; None = there is none.
        given: calibrations of the settings, of this model.
    """

    name: str
    adapter: Adapter
    processor: Any
    settings: Settings
    quantised: Adapter | None = None
    given: tuple[Given, ...] = ()

    def adapter_of(self, quantised: bool) -> Adapter:
        """Return the parts of the model itself, or of its quantised copy."""
        return self.quantised if quantised and self.quantised is not None else self.adapter

    def idle_bytes(self, quantised: bool) -> int:
        """Count the bytes of the one of the two that does not run."""
        return 0 if self.quantised is None else weight_bytes(self.adapter_of(not quantised).model)

    @property
    def model(self) -> Any:
        """The model itself."""
        return self.adapter.model

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        device: torch.device = self.model.device
        return device

    def sized(self, grid: tuple[int, int]) -> Adapter:
        """Return an adapter that says the model's images have so many visual tokens."""
        shape, smaller = self.adapter.shape, copy.copy(self.adapter)
        smaller.grid, smaller.shape = grid, shape.of_size(grid[0] * grid[1] * shape.group)
        return smaller

    def inputs(
        self, batch: int, tiles: int | None = None, grid: tuple[int, int] | None = None, scale: float = 1.0
    ) -> dict[str, Tensor]:
        """Return a batch of prompts of one length, ready for `generate`; what is given takes the place of the settings' own."""
        wanted = self.settings
        if self.processor is None:
            adapter = self.adapter if grid is None else self.sized(grid)
            return example(adapter, batch, wanted.text, tiles or wanted.tiles, wanted.seed)
        places = range(batch) if self.given else [0] * batch  # counts per input are those of different pictures
        made = build_inputs(self.processor, [_picture(wanted, place, scale) for place in places], [QUESTION] * batch)
        model = self.model
        moved = {name: value.to(model.device) for name, value in made.items()}
        return {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in moved.items()}

    def workload(self, inputs: dict[str, Tensor], answer: int) -> Workload:
        """Say what one of the prompts asks for, so that a plan solved for it meets the budget."""
        ids, shape = inputs["input_ids"][0], self.adapter.shape
        token = getattr(self.model.config, "image_token_id", None)
        visual = 0 if token is None or shape.cross is not None else int((ids == token).sum())
        images = max(1, round(visual / shape.visual))
        return Workload(images=images, text=len(ids) - visual, answer=answer)


def _picture(settings: Settings, place: int, scale: float) -> Image.Image:
    if settings.image is not None:
        picture = load_image(settings.image)
    else:
        picture = Image.fromarray(render(make_scene(settings.seed + place, "val"), SCENE)[0])
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture if scale == 1 else picture.resize((width, height), Image.Resampling.BICUBIC)


def open_subject(settings: Settings, device: str) -> Subject:
    """Load or build what is to be measured.

    Args:
        settings: of the benchmark.
        device: "" = a GPU if there is one.

    Raises:
        BadInput: an unknown name, device or dtype; or it does not fit into memory.
    """
    if settings.arch is None:
        given = settings.given()
        with explained("loading the model", settings, device):
            model, processor = load(settings.subject, dtype=settings.dtype, device=device or None)
            for one in given:
                one.fits(model)
            return _subject(model, processor, settings, given)
    target = _target(device)
    kind: torch.dtype = getattr(torch, settings.dtype or "bfloat16")
    check_room(settings.arch, target, kind, settings.depth, 1 if settings.quant is None else 2)
    with explained("building the model", settings, device):
        return _subject(_built(settings.arch, target, kind, settings.seed, settings.depth), None, settings)


def _subject(model: Any, processor: Any, settings: Settings, given: tuple[Given, ...] = ()) -> Subject:
    copy = None if settings.quant is None else adapt(quantised(model, settings.quant))
    return Subject(settings.subject, adapt(model), processor, settings, copy, given)


def _target(device: str) -> torch.device:
    try:
        return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise BadInput(f"cannot use the device {device!r}; expected e.g. --device cpu or --device cuda:0") from None


def _built(arch: str, device: torch.device, dtype: torch.dtype, seed: int, depth: float) -> Any:
    """Draw random weights in the dtype at once, so that no wider copy ever exists."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(seed)
        return skeleton(arch, str(device), depth).to(dtype)
    except (RuntimeError, AssertionError) as error:
        if any(words in str(error).lower() for words in FULL):
            raise
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"cannot use the device {str(device)!r} ({reason}); use e.g. --device cpu") from None
    finally:
        torch.set_default_dtype(before)


def check_room(arch: str, device: torch.device, dtype: torch.dtype, depth: float = 1.0, copies: int = 1) -> None:
    """Refuse an architecture whose weights do not fit, before a byte of it exists.

    Raises:
        BadInput: an unknown architecture, or one that is too large, with both sizes.
    """
    model = skeleton(arch, depth=depth)
    needs = copies * ROOM * dtype.itemsize * sum(weight.numel() for weight in model.parameters())
    try:
        there = memory.free(device)
    except (RuntimeError, AssertionError):  # no such device: building says so
        return
    if there is not None and needs > there:
        kind = str(dtype).removeprefix("torch.")
        raise BadInput(
            f"{arch} in {kind} needs {needs / 1e9:.1f} GB on {device}, {there / 1e9:.1f} GB are free; use a smaller --arch or "
            "--depth 0.5, --dtype bf16, or another machine, e.g. --device cuda:0"
        )


@contextlib.contextmanager
def explained(doing: str, settings: Settings, device: str, batch: int | None = None) -> Iterator[None]:
    """Turn running out of memory into one sentence with the fix.

    Raises:
        BadInput: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error).lower() for words in FULL):
            raise
        fix = f"--batch {batch // 2}" if batch is not None and batch > 1 else "a smaller model, --dtype bf16, or another --device"
        size = "" if batch is None else f" at batch {batch}"
        where = device or "this device"
        raise BadInput(f"out of memory on {where} while {doing}{size} ({settings.subject}); use {fix}") from None
