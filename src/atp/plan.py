"""What leaves where: frozen `Site`, `Step` and `Plan`, read from and written to YAML or JSON.

Knows nothing of torch or models. A plan is static; how many tokens one input keeps at an adaptive step is decided by
`budget.allocate` from the step's threshold.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import yaml

from atp.errors import BadInput, InvalidPlan, told

STACKS = ("pixels", "vision", "language")


@dataclass(frozen=True, order=True)
class Site:
    """The input of layer `layer` (0-based) of `stack`: what leaves here is not seen by that layer nor by later ones.

    `pixels` has the single layer 0: the image before it is cut into patches (used by the `resize` control only).
    """

    stack: str
    layer: int

    def __post_init__(self) -> None:
        if self.stack not in STACKS:
            raise InvalidPlan(f"unknown stack {self.stack!r}; expected one of {', '.join(STACKS)}, e.g. 'language:2'")
        if isinstance(self.layer, bool) or not isinstance(self.layer, int) or self.layer < 0:
            raise InvalidPlan(f"a site's layer is a whole number >= 0, got {self.layer!r} (write e.g. '{self.stack}:2')")

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read `'language:2'`.

        Raises:
            InvalidPlan: the text is not `stack:layer`.
        """
        stack, _, layer = str(text).partition(":")
        if not layer.isdigit():
            raise InvalidPlan(f"cannot read the site {text!r}; expected 'stack:layer', e.g. 'language:2'")
        return cls(stack, int(layer))

    def __str__(self) -> str:
        return f"{self.stack}:{self.layer}"


@dataclass(frozen=True)
class Step:
    """How many tokens stay from one site on.

    Attributes:
        site: where.
        keep: share, in [0, 1], of the visual tokens that the stack **started with** (patches of the tower, visual tokens of the
            prompt); an adaptive step's expected mean share.
        threshold: None = every input keeps `round(keep * N)`; else an input keeps its tokens whose score is at least
            `threshold` times the mean score of the tokens still alive.
        floor, ceiling: bounds of an adaptive step's share, same unit as `keep`.
        absolute: whether the threshold is compared with the method's own measure (`Method.measure`) instead of the mean score.
        text: share, in [0, 1], of the prompt's text tokens that stay, in the language model; protected ones (see
            `engine.words.Guard`) stay in any case. 1 = no text leaves.
    """

    site: Site
    keep: float
    threshold: float | None = None
    floor: float = 0.02
    ceiling: float = 1.0
    absolute: bool = False
    text: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.site, Site):
            raise InvalidPlan(f"a step is at a Site, got {told(self.site)}; e.g. Step(Site('language', 2), 0.5)")
        if not _within(self.keep):
            raise InvalidPlan(f"step at {self.site}: keep is a share in [0, 1], got {self.keep!r}")
        if self.threshold is not None and not _within(self.threshold, math.inf):
            raise InvalidPlan(f"step at {self.site}: threshold is relative to the mean score, >= 0, got {self.threshold!r}")
        if not (_within(self.floor) and _within(self.ceiling) and self.floor <= self.ceiling):
            raise InvalidPlan(
                f"step at {self.site}: expected 0 <= floor <= ceiling <= 1, got {self.floor!r} and {self.ceiling!r}"
            )
        if not _within(self.text):
            raise InvalidPlan(f"step at {self.site}: text is a share in [0, 1], got {self.text!r}")
        if self.text < 1 and self.site.stack != "language":
            raise InvalidPlan(
                f"step at {self.site}: text tokens are in the language model only; give text={self.text!r} to a step there, "
                "e.g. at 'language:2'"
            )

    @property
    def adaptive(self) -> bool:
        """Whether the count depends on the input."""
        return self.threshold is not None


@dataclass(frozen=True)
class Plan:
    """The method, its options, and the steps in the order in which a token meets them.

    Attributes:
        method: registered name.
        steps: sorted by stack (pixels, vision, language) and layer; at most one a site.
        options: the method's own fields, e.g. `{"alpha": 0.7}`.
        budget: the share of the unpruned FLOPs it was solved for, None for a hand-written plan.
        tiles: of pictures in tiles, what stays before the tower runs, beside the thumbnail: a share of each picture's tiles, or
            ">0.02": those that differ from the thumbnail by more than that. None = all. Shares of steps in the tower are of
            the tiles that stay, those of steps in the language model of all visual tokens.
    """

    method: str
    steps: tuple[Step, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    budget: float | None = None
    tiles: float | str | None = None

    def __post_init__(self) -> None:
        _check_tiles(self.tiles)
        if not isinstance(self.steps, tuple | list) or not all(isinstance(step, Step) for step in self.steps):
            raise InvalidPlan(f"steps are a tuple of Step, got {told(self.steps)}; e.g. (Step(Site('language', 2), 0.5),)")
        if not isinstance(self.options, Mapping):
            raise InvalidPlan(f"options are a mapping, got {told(self.options)}; e.g. {{'alpha': 0.7}}")
        ordered = tuple(sorted(self.steps, key=lambda step: (STACKS.index(step.site.stack), step.site.layer)))
        sites = [step.site for step in ordered]
        twice = sorted({str(site) for site in sites if sites.count(site) > 1})
        if twice:
            raise InvalidPlan(f"two steps at {', '.join(twice)}; a plan has at most one step a site")
        object.__setattr__(self, "steps", ordered)
        for stack in STACKS:
            last = 1.0
            for step in (s for s in ordered if s.site.stack == stack):
                if step.keep > last + 1e-9:
                    raise InvalidPlan(
                        f"step at {step.site} keeps {step.keep:g} but an earlier one of that stack kept {last:g}; "
                        "shares are of the starting count, so they cannot grow"
                    )
                last = step.keep

    def at(self, stack: str, layer: int) -> Step | None:
        """Return the step at that site, or None."""
        return next((s for s in self.steps if s.site.stack == stack and s.site.layer == layer), None)

    @property
    def adaptive(self) -> bool:
        """Whether any step's count depends on the input."""
        return any(step.adaptive for step in self.steps)

    @property
    def spells(self) -> bool:
        """Whether text tokens leave at any step."""
        return any(step.text < 1 for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `from_dict` reads back to an equal plan."""
        steps = []
        for step in self.steps:
            entry = dataclasses.asdict(step)
            entry["site"] = str(step.site)
            steps.append(entry)
        tiles = {} if self.tiles is None else {"tiles": self.tiles}
        return {"method": self.method, "budget": self.budget, **tiles, "options": dict(self.options), "steps": steps}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Build a plan from plain values.

        Raises:
            InvalidPlan: an unknown or a missing key, or a value out of range.
        """
        _check_keys("plan", data, {f.name for f in dataclasses.fields(cls)}, {"method"})
        steps, given = [], data.get("steps") or ()
        if not isinstance(given, list | tuple):
            raise InvalidPlan(f"a plan's steps are a list, got {told(given)}; e.g. [{{site: 'language:2', keep: 0.5}}]")
        for entry in given:
            if isinstance(entry, Mapping) and entry.get("kinds") == ["visual"]:  # as files of version 0.1 say
                entry = {name: value for name, value in entry.items() if name != "kinds"}
            _check_keys("step", entry, {f.name for f in dataclasses.fields(Step)}, {"site", "keep"})
            steps.append(Step(**dict(entry, site=Site.parse(entry["site"]))))
        return cls(data["method"], tuple(steps), data.get("options") or {}, data.get("budget"), data.get("tiles"))

    def save(self, path: str | Path) -> None:
        """Write YAML, or JSON where the name ends in `.json`.

        Raises:
            BadInput: it cannot be written.
        """
        as_json = str(path).endswith(".json")
        text = json.dumps(self.to_dict(), indent=1) if as_json else yaml.safe_dump(self.to_dict(), sort_keys=False)
        write(path, text, "plan", "plan.yaml")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read what `save` wrote.

        Raises:
            InvalidPlan: the file is absent, not YAML/JSON, or not a plan.
        """
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, TypeError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InvalidPlan(f"cannot read the plan {str(path)!r}: {error}") from None
        if not isinstance(data, Mapping):
            found = type(data).__name__
            raise InvalidPlan(f"{str(path)!r} is no plan: expected a mapping with 'method' and 'steps', got {found}")
        return cls.from_dict(data)


def write(path: str | Path, text: str, what: str, example: str) -> None:
    """Write a file, and the folder it lies in.

    Raises:
        BadInput: naming what it would have been, and why it cannot be.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")
    except TypeError:
        raise BadInput(f"cannot write the {what}: expected a path, got {told(path)}; e.g. {example!r}") from None
    except OSError as error:
        raise BadInput(f"cannot write the {what} {str(path)!r}: {error.strerror}; choose another file: {example!r}") from None


def _within(value: Any, most: float = 1.0) -> bool:
    """Whether it is a number from 0 on."""
    return isinstance(value, Real) and 0 <= float(value) <= most


def _check_tiles(tiles: Any) -> None:
    if tiles is None or (isinstance(tiles, (int, float)) and not isinstance(tiles, bool) and 0 <= tiles <= 1):
        return
    if not (isinstance(tiles, str) and re.fullmatch(r">\s*(\d+\.?\d*|\.\d+)", tiles.strip())):
        raise InvalidPlan(
            "tiles is a share of each picture's tiles in [0, 1], such as 0.5, or the least difference from the thumbnail in "
            f"normalised pixels, such as '>0.02'; got {tiles!r}"
        )


def _check_keys(what: str, data: Any, known: set[str], needed: set[str]) -> None:
    if not isinstance(data, Mapping):
        raise InvalidPlan(f"a {what} is a mapping, got {data!r}")
    unknown, missing = sorted(set(data) - known), sorted(needed - set(data))
    if unknown:
        raise InvalidPlan(f"unknown key {unknown[0]!r} in a {what}; known: {', '.join(sorted(known))}")
    if missing:
        raise InvalidPlan(f"a {what} needs the key {missing[0]!r}; got: {', '.join(sorted(data)) or 'nothing'}")
