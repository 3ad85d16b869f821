"""Tasks: official files in, examples out, answers scored by the official rules.

`list_tasks()` names them, `open_task(name, folder)` reads one. A module of this folder holds one data set or one set of rules.
"""

from atp.evals.tasks import chair as _chair
from atp.evals.tasks import coco as _coco
from atp.evals.tasks import gqa as _gqa
from atp.evals.tasks import pope as _pope
from atp.evals.tasks import spurious as _spurious
from atp.evals.tasks import textvqa as _textvqa
from atp.evals.tasks import vqav2 as _vqav2
from atp.evals.tasks.base import Example as Example
from atp.evals.tasks.base import Scores as Scores
from atp.evals.tasks.base import Task as Task
from atp.evals.tasks.base import UnknownTask as UnknownTask
from atp.evals.tasks.base import list_tasks as list_tasks
from atp.evals.tasks.base import open_task as open_task
from atp.evals.tasks.results import read_results as read_results
from atp.evals.tasks.results import write_results as write_results

_TASKS = (_chair, _coco, _gqa, _pope, _spurious, _textvqa, _vqav2)  # importing a module registers its tasks
