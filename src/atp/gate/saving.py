"""The files of a training: the weights, and what an unfinished one needs to go on."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from atp.adapters import adapt
from atp.budget.calibration import fingerprint
from atp.errors import BadInput
from atp.gate.trainees import parameters
from atp.methods import weights as files

if TYPE_CHECKING:
    from atp.gate.settings import Settings
    from atp.gate.training import Training


def write(training: Training, after: dict[str, float] | None = None) -> files.Header:
    """Write the best modules so far, and return the header of the file."""
    settings, progress, whole = training.settings, training.progress, adapt(training.model).model
    mark = fingerprint(whole.named_parameters())
    told: dict[str, Any] = dataclasses.asdict(settings)
    told.update(out=settings.out.name, sites=[str(site) for site in settings.sites])
    header = files.Header(
        method=training.trainee.kind,
        mark=files.Mark(mark.structure, mark.sample),
        sites=tuple(training.trainee.modules),
        sizes=training.trainee.sizes,
        versions={name: version(name) for name in ("torch", "transformers")},
        notes={
            "settings": told,
            "plans": training.plans,
            "steps": progress.step,
            "best step": progress.best,
            "seconds": round(progress.seconds, 1),
            "share of the model's parameters": round(parameters(training.trainee.modules) / parameters(whole), 6),
            "held-out divergence before": progress.before,
            "held-out divergence after": after or {},
        },
    )
    files.save(settings.out, header, training.best.state_dict())
    return header


def keep(training: Training) -> None:
    """Write the file of the unfinished training."""
    path = training.settings.resume
    part = path.with_name(f"{path.name}.part")
    state = {
        "settings": repr(training.settings),
        "progress": dataclasses.asdict(training.progress),
        "modules": training.trainee.modules.state_dict(),
        "average": training.average.state_dict(),
        "best": training.best.state_dict(),
        "optimizer": training.optimizer.state_dict(),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, part)
        part.replace(path)
    except (OSError, RuntimeError) as error:
        raise BadInput(f"cannot write {str(path)!r} ({error}); expected --out in a writable folder") from None


def unfinished(settings: Settings) -> dict[str, Any] | None:
    """Read the file of an unfinished training; None = there is none.

    Raises:
        BadInput: one of other settings, a broken file, or a finished one that would be lost.
    """
    path, out = settings.resume, settings.out
    if not path.is_file():
        if out.exists():
            raise BadInput(
                f"{str(out)!r} is there already, and no unfinished training beside it; remove it, or choose another --out"
            )
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        given = state["settings"]
    except Exception as error:  # a broken file may fail in any way
        raise BadInput(f"cannot read the unfinished training {str(path)!r} ({error}); remove it to begin anew") from None
    if given != repr(settings):
        raise BadInput(
            f"{str(path)!r} is an unfinished training with other settings ({given}); repeat that command, remove the file, or "
            "choose another --out"
        )
    return state


def restore(training: Training) -> int:
    """Go on where an unfinished training was left, see `unfinished`; return the step."""
    state = unfinished(training.settings)
    if state is None:
        return 0
    training.trainee.modules.load_state_dict(state["modules"])
    training.average.load_state_dict(state["average"])
    training.best.load_state_dict(state["best"])
    training.optimizer.load_state_dict(state["optimizer"])
    training.progress = type(training.progress)(**state["progress"])
    return training.progress.step
