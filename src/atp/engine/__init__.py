"""`prune` and what it is made of: the only place where adapters, methods and budgets meet."""

from atp.engine.block import prune as prune
from atp.engine.report import Report as Report
from atp.engine.run import Run as Run
from atp.engine.words import workload_of as workload_of

__all__ = ["Report", "Run", "prune", "workload_of"]
