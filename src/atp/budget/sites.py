"""Sites that a model does not have, refused by name."""

from __future__ import annotations

from collections.abc import Iterable

from atp.budget.shape import ModelShape
from atp.errors import InvalidPlan
from atp.plan import Site


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
