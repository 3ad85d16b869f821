"""Pictures and pages of what a run kept. Reads a `Trace`; knows nothing of models, methods or the engine."""

from atp.explain.overlay import overlay as overlay
from atp.explain.page import Card as Card
from atp.explain.page import page as page
from atp.explain.story import Stage as Stage
from atp.explain.story import Story as Story
from atp.explain.story import story as story

__all__ = ["Card", "Stage", "Story", "overlay", "page", "story"]
