"""What one training asks for, as the command line says it. Knows names and numbers, no model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from atp.errors import BadInput
from atp.evals.tasks import list_tasks
from atp.plan import Site
from atp.registry import did_you_mean

KINDS = ("gate", "lvpruning")
SHARE = 0.005
"""Most parameters of a gate, as a share of the model's."""


@dataclass(frozen=True)
class Settings:
    """Two trainings with equal settings and steps give the same file.

    Attributes:
        model: shipped name, folder or hub id.
        out: the file to write; beside it `<out>.resume` while the training is not done.
        kind: the method to train.
        minutes: of training; measuring before and after comes on top.
        steps: instead of minutes, for a run that does not depend on the clock; None = minutes decide.
        budgets: shares of the unpruned FLOPs whose plans it is trained for, in turn (`gate`).
        sites: where; () = those of ATP's plans at these budgets, or the paper's (`lvpruning`).
        data: folder of official files, empty = generated scenes.
        task, split: what to read there.
        batch: questions of a step.
        answer: tokens of the unpruned model's answer to learn from.
        rank, width: of the modules; 0 = the largest rank that fits into 0.5 % of the parameters, width 32.
        rate: of learning, at its peak.
        noise: of the scores at the beginning, in units of the logarithm of saliency; a tenth of it at the end (`gate`).
        ratio: share of visual tokens after the first site, 0.2 less after each of the next (`lvpruning`).
        seed: of questions, noise and the first weights.
        dtype, device: as `atp.load` takes them.
    """

    model: str = "atp-mini-llava"
    out: Path = Path("gate.safetensors")
    kind: str = "gate"
    minutes: float = 8.0
    steps: int | None = None
    budgets: tuple[float, ...] = (0.6, 0.4)
    sites: tuple[Site, ...] = ()
    data: str = ""
    task: str = "vqav2"
    split: str = "train"
    batch: int = 16
    answer: int = 2
    rank: int = 0
    width: int = 32
    rate: float = 5e-4
    noise: float = 0.5
    ratio: float = 0.5
    seed: int = 0
    dtype: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadInput(f"unknown --kind {self.kind!r}.{did_you_mean(self.kind, KINDS)} Expected one of {', '.join(KINDS)}")
        if not self.budgets or any(not 0 < budget < 1 for budget in self.budgets):
            raise BadInput(f"--budget takes shares of the unpruned FLOPs in (0, 1), got {self.budgets}; e.g. --budget 0.6,0.4")
        if not self.minutes > 0 or (self.steps is not None and self.steps < 1):
            raise BadInput(f"nothing would be trained in {self.minutes:g} minutes, {self.steps} steps; e.g. --minutes 8")
        for name in ("batch", "answer", "width"):
            if getattr(self, name) < 1:
                raise BadInput(f"--{name} is at least 1, got {getattr(self, name)}")
        if self.kind == "lvpruning" and self.width % 8:
            raise BadInput(f"--width of lvpruning is a multiple of its 8 heads, got {self.width}; e.g. --width 32")
        if not 0 < self.ratio <= 1 or self.rank < 0 or not self.rate > 0 or self.noise < 0:
            given = f"ratio {self.ratio:g}, rank {self.rank}, rate {self.rate:g}, noise {self.noise:g}"
            raise BadInput(f"expected ratio in (0, 1], rank >= 0, rate > 0, noise >= 0, got {given}")
        if self.data and self.task not in list_tasks():
            raise BadInput(
                f"unknown --task {self.task!r}.{did_you_mean(self.task, list_tasks())} Known: {', '.join(list_tasks())}"
            )

    @property
    def resume(self) -> Path:
        """File of an unfinished training."""
        return self.out.with_name(f"{self.out.name}.resume")


def budgets(text: str) -> tuple[float, ...]:
    """Read `'0.6,0.4'`.

    Raises:
        BadInput: not numbers.
    """
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise BadInput(f"--budget takes numbers with commas between them, got {text!r}; e.g. --budget 0.6,0.4") from None


def sites(text: str) -> tuple[Site, ...]:
    """Read `'vision:2,language:4'`."""
    return tuple(Site.parse(part.strip()) for part in text.split(",") if part.strip())
