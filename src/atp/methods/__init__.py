"""Pruning methods. Importing the package registers them; each name is written once, in its own file."""

from atp.methods import atp, controls, fastv, resize
from atp.methods.base import METHODS, Method, list_methods, register

__all__ = ["METHODS", "Method", "atp", "controls", "fastv", "list_methods", "register", "resize"]
