"""Weights for tests: modules with random corrections, written as a training writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from atp.adapters import adapt
from atp.budget.calibration import fingerprint
from atp.methods import weights as files
from atp.methods.gate import Scorer as GateScorer
from atp.methods.lvpruning import Scorer as LVScorer
from atp.plan import Site


def mark_of(model: Any) -> files.Mark:
    """The fingerprint as a file holds it."""
    found = fingerprint(adapt(model).model.named_parameters())
    return files.Mark(found.structure, found.sample)


def modules_of(method: str, sites: Sequence[Site], widths: dict[str, int], seed: int = 3) -> nn.ModuleDict:
    """Random ones; a gate's correction is far from zero."""
    torch.manual_seed(seed)
    if method == "lvpruning":
        return nn.ModuleDict({str(site): LVScorer(widths[site.stack], 8) for site in sites})
    modules = nn.ModuleDict({str(site): GateScorer(widths[site.stack], 3, 8, str(site)) for site in sites})
    for module in modules.values():
        nn.init.normal_(module.out.weight, std=2.0)
    return modules


def write(path: Path, method: str, sites: Sequence[Site], widths: dict[str, int], mark: files.Mark, seed: int = 3) -> Path:
    """Write random modules to a file."""
    sizes = {"rank": 3, "width": 8} if method == "gate" else {"width": 8}
    header = files.Header(method, mark, tuple(map(str, sites)), sizes)
    files.save(path, header, modules_of(method, sites, widths, seed).state_dict())
    return path


def written(path: Path, method: str, model: Any, sites: Sequence[Site], seed: int = 3) -> Path:
    """Write random modules for a model."""
    adapter = adapt(model)
    widths = {view.name: getattr(adapter.shape, view.name).hidden for view in adapter.views}
    return write(path, method, sites, widths, mark_of(model), seed)
