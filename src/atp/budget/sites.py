"""Where tokens leave unless told otherwise, and sites that a model does not have, refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from atp.budget.shape import ModelShape
from atp.errors import InvalidPlan
from atp.plan import STACKS, Site, Step

DEPTHS = (1 / 3, 2 / 3)
"""Where sites lie by default, as shares of a stack's depth."""


def check_sites(shape: ModelShape, sites: Iterable[Site]) -> None:
    """Refuse sites outside the model.

    Raises:
        InvalidPlan: naming the site, the layers that exist and the nearest one.
    """
    layers = {"pixels": 1, "vision": shape.vision.layers, "language": shape.language.layers}
    for site in sites:
        last = layers[site.stack] - 1
        if site.layer > last:
            raise InvalidPlan(
                f"the plan has a step at {site}, but the model's {site.stack} stack has layers 0 to {last}; "
                f"use '{site.stack}:{last}' or an earlier one"
            )
        looks = shape.cross.places[-1] if shape.cross and site.stack == "language" else last
        if site.layer > looks:
            raise InvalidPlan(
                f"the plan has a step at {site}, but no layer behind layer {looks} looks at visual tokens; "
                f"use 'language:{looks}' or an earlier one"
            )


def places(sites: Sequence[Site | str] | str) -> tuple[Site, ...]:
    """Read sites, `"vision:0/vision:3"` or `["vision:0", Site("vision", 3)]`, and sort them as a token meets them.

    Raises:
        InvalidPlan: none, or one that is not `stack:layer`.
    """
    given = [part for part in re.split("[/, ]+", sites) if part] if isinstance(sites, str) else list(sites)
    if not given:
        raise InvalidPlan(f"sites={sites!r} names no site; e.g. sites='vision:0/vision:3'")
    return ordered(site if isinstance(site, Site) else Site.parse(site) for site in given)


def default_sites(shape: ModelShape, method: str = "atp", depths: Sequence[float] = DEPTHS) -> tuple[Site, ...]:
    """Sites at which a method prunes unless told otherwise.

    `fastv` has language:2 and `resize` pixels:0; all others have sites at `depths` of both stacks, never at layer 0, where
    no layer has yet computed the rows that scores need.
    """
    if method == "resize":
        return (Site("pixels", 0),)
    if method == "fastv":
        return workable(shape, (Site("language", min(2, shape.language.layers - 1)),))
    sites = {
        Site(name, max(1, round(depth * layers)))
        for name, layers in (("vision", shape.vision.layers), ("language", shape.language.layers))
        for depth in depths
        if layers > 1 and round(depth * layers) < layers
    }
    return workable(shape, sites)


def workable(shape: ModelShape, sites: Iterable[Site]) -> tuple[Site, ...]:
    """Move sites behind the first layer that looks at visual tokens across, but not behind the last; others stay."""
    if shape.cross is None:
        return ordered(sites)
    first, last = shape.cross.places[0] + 1, shape.cross.places[-1]
    moved = (Site("language", min(max(site.layer, first), last)) if site.stack == "language" else site for site in sites)
    return ordered(site for site in moved if site.stack != "language" or first <= last)


def text_site(shape: ModelShape, method: str, sites: Iterable[Site]) -> Site | None:
    """Where text leaves: at the first of these sites in the language model, or of the default ones; None = it has none."""
    found = (site for some in (sites, default_sites(shape, method)) for site in some if site.stack == "language")
    return next(found, None)


def spelled(steps: Sequence[Step], site: Site | None, text: float) -> tuple[Step, ...]:
    """Let a share of the text leave at a site, too, with a step of its own where there is none."""
    if site is None:
        return tuple(steps)
    known = next((step for step in steps if step.site == site), Step(site, 1.0))
    return (*(step for step in steps if step.site != site), replace(known, text=text))


def ordered(sites: Iterable[Site]) -> tuple[Site, ...]:
    """Sort sites as a token meets them, each once."""
    return tuple(sorted(set(sites), key=lambda site: (STACKS.index(site.stack), site.layer)))
