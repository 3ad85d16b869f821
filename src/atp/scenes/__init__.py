"""A procedural, seeded world of photographs-of-a-kind with questions, answers, captions and ground truth.

Needs numpy and pillow only; knows nothing of models. `python -m atp.scenes --help` writes it as VQAv2, GQA and COCO files.
"""

from atp.scenes.captions import caption as caption
from atp.scenes.questions import Question as Question
from atp.scenes.questions import ask as ask
from atp.scenes.render import render as render
from atp.scenes.world import SPLITS as SPLITS
from atp.scenes.world import Scene as Scene
from atp.scenes.world import Thing as Thing
from atp.scenes.world import make_scene as make_scene
