"""How many tensor operations pruning adds. They are counted, not timed: no machine and no load on it changes the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

import atp
from atp import asking, loading
from atp.engine.choice import Chooser

SCENE = Path(atp.__file__).parent / "scenes" / "demo" / "01.jpg"
ALL, KERNELS = 882, 586
"""What a pruned answer of three tokens may have more than an unpruned one; it was 1,515 and 871 before any was spared."""
SITE = {"vision": 104, "language": 165}
"""What one site may have for scoring and choosing; it was 160 and 213."""


class Counter(TorchDispatchMode):
    """Counts operators, and those among them that compute: no view of another tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.all = self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.all += 1
        self.kernels += not (func.is_view or func.name().split(".")[0] in ("aten::_unsafe_view", "aten::lift_fresh"))
        return func(*args, **(kwargs or {}))


def test_operations_of_a_pruned_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = loading.load("atp-mini-llava")
    inputs = asking.build_inputs(processor, [Image.open(SCENE).convert("RGB")], ["Is there a bottle in the image?"])

    def answer() -> Counter:
        with torch.no_grad(), Counter() as counted:
            model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
        return counted

    sites: list[tuple[str, int]] = []
    choose = Chooser.choose

    def choosing(self: Chooser, step: Any, place: Any, forward: int) -> Any:
        with Counter() as counted:
            made = choose(self, step, place, forward)
        sites.append((place.view.name, counted.all))
        return made

    plain = answer()
    with atp.prune(model, budget=0.5, processor=processor):  # at all six sites
        pruned = answer()
        monkeypatch.setattr(Chooser, "choose", choosing)
        answer()
    added = (pruned.all - plain.all, pruned.kernels - plain.kernels)
    assert [stack for stack, _ in sites] == ["vision"] * 4 + ["language"] * 2
    assert added[0] <= ALL and added[1] <= KERNELS, added
    assert all(count <= SITE[stack] for stack, count in sites), sites
