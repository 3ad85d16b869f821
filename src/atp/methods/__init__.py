"""Pruning methods. Importing the package registers them; each name is written once, in its own file."""

from atp.methods import (  # noqa: F401
    atp,
    atp_paper,
    cdpruner,
    controls,
    dart,
    divprune,
    evit,
    fastervlm,
    fastv,
    gate,
    lvpruning,
    occamtoken,
    prumerge,
    pyramiddrop,
    resize,
    sparsevlm,
    tokendrop,
    tome,
    visionzip,
    vispruner,
)
from atp.methods.base import METHODS, Method, list_methods, register, spelled

__all__ = ["METHODS", "Method", "list_methods", "register", "spelled"]
