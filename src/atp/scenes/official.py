"""Write scenes as VQAv2, GQA and COCO files, in the official schemas, so that one reader serves these and the real sets.

The ten VQAv2 answers are **simulated** annotators (each file's `info` says so): they agree with the truth about as often as
people do on the real set (leave-one-out 95 / 80 / 67 % on yes/no, number, other questions) and give confidences in the real
shares. Shapes are no COCO categories; their ids start at 101.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atp.scenes.captions import caption
from atp.scenes.catalog import CATEGORIES, COLOR_NAMES, N_GLYPHS
from atp.scenes.questions import Question, ask
from atp.scenes.render import render
from atp.scenes.world import Scene, make_scene

_AGREE = {"yes/no": 0.95, "number": 0.66, "other": 0.66}
_CONFIDENCE = (("yes", "maybe", "no"), (0.81, 0.17, 0.02))
_TYPES = (
    "what color is the",
    "what is the color of the",
    "what is the",
    "how many",
    "are there any",
    "are there",
    "is there an",
    "is there a",
    "is there",
    "is the",
)
_LICENSE = {
    "name": "Creative Commons Attribution 4.0 International License",
    "url": "http://creativecommons.org/licenses/by/4.0/",
}
_STRUCTURE = {
    "existence": "verify",
    "color": "query",
    "count": "query",
    "comparison": "compare",
    "relation": "verify",
    "extreme": "query",
    "logical": "logical",
}
_SEMANTIC = {
    "existence": "obj",
    "color": "attr",
    "count": "obj",
    "comparison": "obj",
    "relation": "rel",
    "extreme": "cat",
    "logical": "obj",
}


def answer_type(answer: str) -> str:
    """VQAv2's coarse type: yes/no, number or other."""
    return "yes/no" if answer in ("yes", "no") else "number" if answer.isdigit() else "other"


def annotators(question: Question, seed: int) -> list[dict[str, Any]]:
    """Simulate ten people; the truth stays the most frequent answer."""
    rng = random.Random(f"{seed}:{question.text}")
    kind = answer_type(question.answer)
    if kind == "yes/no":
        others = ["no" if question.answer == "yes" else "yes"]
    elif kind == "number":
        others = [str(int(question.answer) + d) for d in (-2, -1, 1, 2) if int(question.answer) + d >= 0]
    elif question.answer in COLOR_NAMES:
        others = [c for c in COLOR_NAMES if c != question.answer]
    else:
        others = [c.name for c in CATEGORIES if c.name != question.answer]
    answers = [question.answer if rng.random() < _AGREE[kind] else rng.choice(others) for _ in range(10)]
    while max(set(answers), key=answers.count) != question.answer:
        answers[rng.randrange(10)] = question.answer
    return [{"answer": a, "answer_confidence": rng.choices(*_CONFIDENCE)[0], "answer_id": i + 1} for i, a in enumerate(answers)]


def _info(what: str) -> dict[str, str]:
    return {
        "description": f"{what} over generated scenes; annotators are simulated",
        "version": "1.0",
        "url": "",
        "year": "2026",
        "contributor": "atp scenes",
        "date_created": "2026-01-01 00:00:00",
    }


def vqav2(rows: list[tuple[int, Scene, list[Question]]], subset: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the questions file and the annotations file."""
    questions, annotations = [], []
    for image_id, scene, asked in rows:
        for k, question in enumerate(asked):
            key = {"image_id": image_id, "question_id": image_id * 1000 + k}
            questions.append({**key, "question": question.text})
            lower = question.text.lower()
            annotations.append(
                {
                    **key,
                    "question_type": next((t for t in _TYPES if lower.startswith(t + " ")), "none of the above"),
                    "answer_type": answer_type(question.answer),
                    "multiple_choice_answer": question.answer,
                    "answers": annotators(question, scene.seed),
                }
            )
    head: dict[str, Any] = {"info": _info("VQA"), "license": _LICENSE, "data_type": "mscoco", "data_subtype": subset}
    return {**head, "task_type": "Open-Ended", "questions": questions}, {**head, "annotations": annotations}


def _object_id(image_id: int, index: int) -> str:
    return f"{image_id}{index:02d}"


def _relations(scene: Scene, image_id: int, index: int) -> list[dict[str, str]]:
    here = scene.things[index]
    out = []
    for other, thing in enumerate(scene.things):
        if other != index and abs(thing.x - here.x) >= 0.12:
            name = "to the left of" if here.x < thing.x else "to the right of"
            out.append({"name": name, "object": _object_id(image_id, other)})
        if other != index and abs(thing.y - here.y) >= 0.12:
            out.append({"name": "above" if here.y < thing.y else "below", "object": _object_id(image_id, other)})
    return out


def scene_graph(scene: Scene, image_id: int, size: int) -> dict[str, Any]:
    """Return one image's entry of the GQA scene graphs."""
    objects = {}
    for index, thing in enumerate(scene.things):
        left, top, wide, high = (round(v * size) for v in thing.box)
        objects[_object_id(image_id, index)] = {
            "name": thing.name,
            "x": left,
            "y": top,
            "w": wide,
            "h": high,
            "attributes": [thing.color_name] if thing.color_name else [],
            "relations": _relations(scene, image_id, index),
        }
    return {"width": size, "height": size, "objects": objects}


def _pointers(question: Question, scene: Scene, image_id: int) -> dict[str, str]:
    tokens = re.findall(r"[A-Za-z0-9]+", question.text.lower())
    out: dict[str, str] = {}
    for index in question.about:
        name = scene.things[index].name.split()
        for at in range(len(tokens) - len(name) + 1):
            if tokens[at : at + len(name)] == name:
                key = str(at) if len(name) == 1 else f"{at}:{at + len(name)}"
                out.setdefault(key, _object_id(image_id, index))
    return out


def gqa(rows: list[tuple[int, Scene, list[Question]]]) -> dict[str, Any]:
    """Return the GQA questions file: question id -> entry."""
    out: dict[str, Any] = {}
    for image_id, scene, asked in rows:
        ids = [f"{image_id:06d}{k:03d}" for k in range(len(asked))]
        for qid, question in zip(ids, asked, strict=True):
            twins = [i for i, other in zip(ids, asked, strict=True) if i != qid and other.program == question.program]
            ops = [{"operation": o, "argument": a, "dependencies": list(d)} for o, a, d in question.program]
            structural = "choose" if question.program[-1][0].startswith("choose") else _STRUCTURE[question.kind]
            if question.kind == "color" and question.answer in ("yes", "no"):
                structural = "verify"
            where = _pointers(question, scene, image_id)
            out[qid] = {
                "semantic": ops,
                "semanticStr": "->".join(f"{o}: {a} {list(d)}" for o, a, d in question.program),
                "question": question.text,
                "answer": question.answer,
                "fullAnswer": f"{question.answer.capitalize()}.",
                "imageId": str(image_id),
                "isBalanced": True,
                "entailed": twins,
                "equivalent": [qid, *twins],
                "groups": {"global": question.kind, "local": f"{question.kind}-{question.program[0][1]}"},
                "annotations": {"question": where, "answer": {}, "fullAnswer": {}},
                "types": {"structural": structural, "semantic": _SEMANTIC[question.kind], "detailed": question.kind},
            }
            if question.kind == "extreme":
                out[qid]["annotations"]["answer"] = {"0": _object_id(image_id, question.about[0])}
    return out


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed RLE: column-major run lengths, zeros first."""
    flat = mask.ravel(order="F").tolist()
    runs = [len(list(group)) for _, group in groupby(flat)]
    return [0, *runs] if flat and flat[0] else runs


def category_id(index: int) -> int:
    """Official COCO id; shapes follow from 101."""
    return CATEGORIES[index].coco_id or 101 + index - N_GLYPHS


def coco(rows: list[tuple[int, Scene, NDArray[np.int8]]], subset: str, size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the captions file and the instances file."""
    images, captions, instances = [], [], []
    for image_id, scene, owner in rows:
        images.append(
            {
                "license": 1,
                "file_name": file_name(image_id, subset),
                "coco_url": "",
                "height": size,
                "width": size,
                "date_captured": "2026-01-01 00:00:00",
                "flickr_url": "",
                "id": image_id,
            }
        )
        for variant in range(5):
            captions.append({"image_id": image_id, "id": image_id * 10 + variant, "caption": caption(scene, variant)})
        for index, thing in enumerate(scene.things):
            mask = owner == index
            if not mask.any():
                continue
            ys, xs = np.nonzero(mask)
            box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
            instances.append(
                {
                    "id": image_id * 100 + index,
                    "image_id": image_id,
                    "category_id": category_id(thing.category),
                    "bbox": [float(v) for v in box],
                    "area": float(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": {"size": [size, size], "counts": run_lengths(mask)},
                }
            )
    head: dict[str, Any] = {"info": _info("COCO annotations"), "licenses": [{"id": 1, **_LICENSE}], "images": images}
    categories = [{"supercategory": c.supercategory, "id": category_id(i), "name": c.name} for i, c in enumerate(CATEGORIES)]
    return {**head, "annotations": captions}, {**head, "annotations": instances, "categories": categories}


def file_name(image_id: int, subset: str) -> str:
    """COCO's naming."""
    return f"COCO_{subset}_{image_id:012d}.jpg"


def write(folder: str | Path, seeds: Iterable[int], split: str = "val", size: int = 224, questions: int = 20) -> dict[str, int]:
    """Write images and all annotation files; returns how many images, questions and objects.

    Args:
        folder: made if absent. Gets `val2014/*.jpg`, the two VQAv2 files, `gqa/val_{questions,sceneGraphs}.json`, and
            `annotations/{captions,instances}_val2014.json`.
        seeds: scene seeds; image ids are seed + 1.
        split: one of `world.SPLITS`.
        size: side of the images in pixels.
        questions: at most so many a scene.
    """
    folder, subset = Path(folder), "val2014"
    for name in (subset, "gqa", "annotations"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    asked, drawn = [], []
    for seed in seeds:
        scene = make_scene(seed, split)
        picture, owner = render(scene, size)
        Image.fromarray(picture).save(folder / subset / file_name(seed + 1, subset), quality=95)
        asked.append((seed + 1, scene, ask(scene, questions)))
        drawn.append((seed + 1, scene, owner))
    questions_file, annotations_file = vqav2(asked, subset)
    captions_file, instances_file = coco(drawn, subset, size)
    graphs = {str(i): scene_graph(scene, i, size) for i, scene, _ in asked}
    files = {
        "v2_OpenEnded_mscoco_val2014_questions.json": questions_file,
        "v2_mscoco_val2014_annotations.json": annotations_file,
        "gqa/val_questions.json": gqa(asked),
        "gqa/val_sceneGraphs.json": graphs,
        "annotations/captions_val2014.json": captions_file,
        "annotations/instances_val2014.json": instances_file,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return {"images": len(asked), "questions": len(questions_file["questions"]), "objects": len(instances_file["annotations"])}
