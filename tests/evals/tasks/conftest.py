"""Two folders for the same readers: scenes as `python -m atp.scenes` writes them, and small official-looking data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from atp.evals.tasks.signs import write_signs
from atp.scenes.official import write

PHOTOS = {42: "dog", 73: "cat", 581929: "car"}


def _answers(*said: str) -> list[dict[str, Any]]:
    return [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(said, 1)]


def _vqav2(folder: Path) -> None:
    head = {"info": {"version": "2.0"}, "license": {"name": "CC"}, "data_type": "mscoco", "data_subtype": "val2014"}
    rows = [
        (42000, 42, "Is there a dog?", "is there a", "yes/no", _answers(*["yes"] * 10)),
        (42001, 42, "How many dogs are there?", "how many", "number", _answers(*["two"] * 6, *["2"] * 3, "3")),
        (
            73000,
            73,
            "What is the cat on?",
            "what is the",
            "other",
            _answers(*["the mat"] * 4, *["mat"] * 2, *["rug."] * 3, "sofa"),
        ),
        (581929000, 581929, "Is the car red?", "is the", "yes/no", _answers(*["no"] * 8, "yes", "yes")),
    ]
    questions = [{"question_id": q, "image_id": i, "question": text} for q, i, text, *_ in rows]
    annotations = [
        {
            "question_id": q,
            "image_id": i,
            "question_type": kind,
            "answer_type": coarse,
            "multiple_choice_answer": max((a["answer"] for a in said), key=[a["answer"] for a in said].count),
            "answers": said,
        }
        for q, i, _, kind, coarse, said in rows
    ]
    _dump(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {**head, "task_type": "Open-Ended", "questions": questions})
    _dump(folder / "v2_mscoco_val2014_annotations.json", {**head, "annotations": annotations})


def gqa_entry(question: str, answer: str, structural: str, **more: Any) -> dict[str, Any]:
    """An entry of a GQA questions file with all official fields."""
    return {
        "semantic": [{"operation": "select", "argument": "wall (7)", "dependencies": []}],
        "semanticStr": "select: wall (7)",
        "question": question,
        "answer": answer,
        "fullAnswer": f"{answer}.",
        "imageId": "2370799",
        "isBalanced": True,
        "entailed": [],
        "equivalent": [],
        "groups": {"global": None, "local": "x"},
        "annotations": {"question": {}, "answer": {}, "fullAnswer": {}},
        "types": {"structural": structural, "semantic": "attr", "detailed": "x"},
        **more,
    }


def _gqa(folder: Path) -> None:
    color = [
        {"operation": "select", "argument": "wall (7)", "dependencies": []},
        {"operation": "query", "argument": "color", "dependencies": [0]},
    ]
    verify = [
        {"operation": "select", "argument": "wall (7)", "dependencies": []},
        {"operation": "verify color", "argument": "white", "dependencies": [0]},
        {"operation": "exist", "argument": "?", "dependencies": [1]},
    ]
    questions = {
        "07333408": gqa_entry(
            "What color is the wall?",
            "white",
            "query",
            semantic=color,
            entailed=["07333408", "07333409", "07333410"],
            groups={"global": "color", "local": "l"},
            annotations={"question": {"4": "7"}, "answer": {"0": "7"}, "fullAnswer": {"1": "7"}},
        ),
        "07333409": gqa_entry("Is the wall white?", "yes", "verify", semantic=verify, entailed=["07333408"], imageId="n42"),
        "07333411": gqa_entry(
            "What do they have in common?",
            "color",
            "query",
            groups={"global": "color", "local": "l"},
            types={"structural": "query", "semantic": "attr", "detailed": "twoCommon"},
        ),
    }
    more = {"07333410": gqa_entry("Is the wall red?", "no", "verify", isBalanced=False)}
    _dump(folder / "gqa" / "val_balanced_questions.json", questions)
    _dump(folder / "gqa" / "val_all_questions.json", questions | more)
    wall = {"name": "wall", "x": 0, "y": 0, "w": 50, "h": 100, "attributes": ["white"], "relations": []}
    graphs = {image: {"width": 100, "height": 100, "objects": {"7": wall}} for image in ("2370799", "n42")}
    _dump(folder / "gqa" / "val_sceneGraphs.json", graphs)
    choices = {qid: {"valid": ["white", "red", "yes", "no"], "plausible": ["white", "yes"]} for qid in questions}
    _dump(folder / "gqa" / "val_choices.json", choices)


def _coco(folder: Path) -> None:
    head: dict[str, Any] = {"info": {}, "licenses": []}
    head["images"] = [
        {"id": i, "file_name": f"COCO_val2014_{i:012d}.jpg", "height": 16, "width": 16, "license": 1} for i in PHOTOS
    ]
    said = {
        42: ["Two dogs on a mat.", "A dog and another dog near a car."],
        73: ["A cat on a couch.", "The kitten sleeps."],
        581929: ["A red car."],
    }
    captions = [{"image_id": i, "id": 10 * i + k, "caption": text} for i, texts in said.items() for k, text in enumerate(texts)]
    names = {18: "dog", 17: "cat", 3: "car", 63: "couch", 1: "person"}
    standing = {42: ["dog", "dog", "person"], 73: ["cat", "couch", "person"], 581929: ["car", "person", "dog"]}
    number = {name: i for i, name in names.items()}
    instances = [
        {
            "id": 100 * i + k,
            "image_id": i,
            "category_id": number[name],
            "bbox": [0.0, 0.0, 4.0, 4.0],
            "area": 16.0,
            "iscrowd": 0,
            "segmentation": [[0, 0, 4, 0, 4, 4]],
        }
        for i, found in standing.items()
        for k, name in enumerate(found)
    ]
    categories = [{"id": i, "name": name, "supercategory": "x"} for i, name in names.items()]
    _dump(folder / "annotations" / "captions_val2014.json", {**head, "annotations": captions})
    _dump(folder / "annotations" / "instances_val2014.json", {**head, "annotations": instances, "categories": categories})


def _pope(folder: Path) -> None:
    for variant in ("random", "popular", "adversarial"):
        lines = []
        for i, name in PHOTOS.items():
            for other, label in ((name, "yes"), ("umbrella", "no")):
                text = f"Is there {'an' if other == 'umbrella' else 'a'} {other} in the image?"
                row = {"question_id": len(lines) + 1, "image": f"COCO_val2014_{i:012d}.jpg", "text": text, "label": label}
                lines.append(json.dumps(row))
        path = folder / "pope" / f"coco_pope_{variant}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n")


def _textvqa(folder: Path) -> None:
    rows = [
        (
            "003a8ae2ef43b901",
            34602,
            "what is the brand of this camera?",
            ["dakota"] * 7 + ["clos culombu", "nous les gosses", "dakota digital"],
        ),
        ("96d07fa8b6a4ad6e", 34603, "what number is on the bus?", ["23"] * 10),
        ("96d07fa8b6a4ad6e", 34604, "what is the bus line?", ["the five"] * 5 + ["5"] * 5),
    ]
    data = [
        {
            "question": question,
            "image_id": image,
            "image_classes": ["Camera"],
            "image_width": 16,
            "image_height": 16,
            "answers": answers,
            "question_tokens": question.split(),
            "question_id": number,
            "set_name": "val",
        }
        for image, number, question, answers in rows
    ]
    head = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    _dump(folder / "TextVQA_0.5.1_val.json", {**head, "data": data})


def _dump(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_official(folder: Path) -> Path:
    """Write small data sets in the official schemas, with their images."""
    for make in (_vqav2, _gqa, _coco, _pope, _textvqa):
        make(folder)
    names = [*(f"val2014/COCO_val2014_{i:012d}.jpg" for i in PHOTOS), "images/2370799.jpg", "images/n42.jpg"]
    names += ["train_images/003a8ae2ef43b901.jpg", "train_images/96d07fa8b6a4ad6e.jpg"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (200, 30, 30)).save(folder / name)
    return folder


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A fresh folder that a test may spoil."""
    return write_official(tmp_path)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight generated scenes; not to be changed."""
    out = tmp_path_factory.mktemp("scenes")
    write(out, range(8), size=64)
    write_signs(out, range(8))
    return out


@pytest.fixture(params=["official", "scenes"])
def folder(request: pytest.FixtureRequest) -> Path:
    """Either of the two."""
    found: Path = request.getfixturevalue(request.param)
    return found
