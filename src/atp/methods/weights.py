"""One small file for a trained method: safetensors, and in its metadata whose it is. Knows tensors and names, no model."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from atp.errors import InvalidPlan
from atp.plan import Site

FORMAT = "atp-weights-1"
METADATA = "atp"


@dataclass(frozen=True)
class Mark:
    """The model that weights were trained beside, see `atp.budget.calibration.Fingerprint`."""

    structure: str
    sample: tuple[float, ...]


@dataclass(frozen=True)
class Header:
    """What stands beside the tensors.

    Attributes:
        method: the method that can use them.
        mark: of the model.
        sites: where there is a module, as `'language:2'`; its tensors are named `<site>.<parameter>`.
        sizes: of the modules, e.g. `{"rank": 16}`.
        versions: of the packages that trained them.
        notes: how they were trained; nothing reads it.
    """

    method: str
    mark: Mark
    sites: tuple[str, ...]
    sizes: Mapping[str, int]
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    def places(self) -> tuple[Site, ...]:
        """Return the sites, parsed."""
        return tuple(Site.parse(site) for site in self.sites)

    def check(self, path: str, mark: Any) -> None:
        """Refuse another model's weights.

        Args:
            path: of the file, for the message.
            mark: fingerprint of the model at hand.

        Raises:
            InvalidPlan: it is another.
        """
        if not mark.matches(self.mark):
            what = "other sizes" if mark.structure != self.mark.structure else "the same sizes but other weights"
            raise InvalidPlan(
                f"{path!r} was trained beside another model: this one has {what} ({mark.structure}, expected "
                f"{self.mark.structure}); train its own: atp train-gate --kind {self.method} --model <this model> --out {path}"
            )


def save(path: str | Path, header: Header, tensors: Mapping[str, Tensor]) -> None:
    """Write the file in one piece: a reader never sees half of it.

    Raises:
        InvalidPlan: the path cannot be written.
    """
    path = Path(path)
    told = json.dumps({"format": FORMAT, **dataclasses.asdict(header)})
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, str(part), {METADATA: told})
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise InvalidPlan(
            f"cannot write the weights {str(path)!r} ({error}); expected a writable path, e.g. gate.safetensors"
        ) from None


def load(path: str | Path, method: str) -> tuple[Header, dict[str, Tensor]]:
    """Read what `save` wrote.

    Raises:
        InvalidPlan: no path, no such file, no weights of that method.
    """
    make = f"make them: atp train-gate --kind {method} --model <model> --out {method}.safetensors"
    if not path or not Path(path).is_file():
        raise InvalidPlan(f"method {method!r} needs weights=, the path of its trained modules, got {str(path)!r}; {make}")
    try:
        with safe_open(str(path), framework="pt") as file:
            data = json.loads((file.metadata() or {})[METADATA])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        if data.pop("format") != FORMAT or data["method"] != method:
            raise ValueError(f"they are of method {data['method']!r}")
        mark = Mark(data["mark"]["structure"], tuple(map(float, data["mark"]["sample"])))
        header = Header(**{**data, "mark": mark, "sites": tuple(data["sites"])})
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InvalidPlan(f"{str(path)!r} holds no modules of {method!r} ({error!r}); {make}") from None
    return header, tensors


def of_site(tensors: Mapping[str, Tensor], site: str) -> dict[str, Tensor]:
    """Return the tensors of one site, by the parameter's own name."""
    return {name.removeprefix(f"{site}."): value for name, value in tensors.items() if name.startswith(f"{site}.")}


def missing(path: str, tokens_at: str, header: Header) -> InvalidPlan:
    """Say that there is no module for a site."""
    return InvalidPlan(f"{path!r} has no module for {tokens_at}; use sites among {', '.join(header.sites) or 'none'}")
