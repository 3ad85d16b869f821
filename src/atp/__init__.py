"""atp: faster answers from any vision-language model by computing only the tokens that matter.

The names below are the whole public API; each is imported on first use, so `import atp` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from atp.adapters import list_models as list_models
    from atp.budget.calibration import Calibration as Calibration
    from atp.budget.cost import Workload as Workload
    from atp.budget.solve import solve as solve
    from atp.chat import Chat as Chat
    from atp.engine import prune as prune
    from atp.engine import workload_of as workload_of
    from atp.errors import AtpError as AtpError
    from atp.fitting import fit_counts as fit_counts
    from atp.grouping import batches as batches
    from atp.images import load_image as load_image
    from atp.loading import build_inputs as build_inputs
    from atp.loading import load as load
    from atp.methods import Method as Method
    from atp.methods import list_methods as list_methods
    from atp.methods import register as register
    from atp.plan import Plan as Plan
    from atp.plan import Site as Site
    from atp.plan import Step as Step
    from atp.tokens import Tokens as Tokens
    from atp.trace import Trace as Trace

_WHERE = {
    "AtpError": "errors",
    "Calibration": "budget.calibration",
    "Chat": "chat",
    "Method": "methods",
    "Plan": "plan",
    "Site": "plan",
    "Step": "plan",
    "Tokens": "tokens",
    "Trace": "trace",
    "Workload": "budget.cost",
    "batches": "grouping",
    "build_inputs": "loading",
    "fit_counts": "fitting",
    "list_methods": "methods",
    "list_models": "adapters",
    "load": "loading",
    "load_image": "images",
    "prune": "engine",
    "register": "methods",
    "solve": "budget.solve",
    "workload_of": "engine",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'atp' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"atp.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
