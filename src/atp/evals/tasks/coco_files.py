"""COCO captions and instances files, unchanged: which images, what people said of them, what stands in them."""

from __future__ import annotations

from dataclasses import dataclass

from atp.evals.tasks.files import Source, read_json

CAPTIONS = "captions_{subset}.json"
INSTANCES = "instances_{subset}.json"
PICTURE = {"id": int, "file_name": str}


@dataclass(frozen=True)
class Captions:
    """Attributes: `files` image id -> file name; `said` image id -> captions, images without any left out."""

    files: dict[int, str]
    said: dict[int, tuple[str, ...]]


@dataclass(frozen=True)
class Instances:
    """What stands in the images.

    Attributes:
        files: image id -> file name.
        objects: image id -> category names, each once, in the order of the file; empty where nothing is annotated.
        categories: all category names of the file.
    """

    files: dict[int, str]
    objects: dict[int, tuple[str, ...]]
    categories: tuple[str, ...]


def read_captions(source: Source) -> Captions:
    """Read `captions_<subset>.json`; captions of unknown images, empty ones and images without any are counted.

    Raises:
        BadInput: absent or broken file.
    """
    path = source.need("COCO captions", CAPTIONS)
    content = read_json(path)
    files = {row["id"]: row["file_name"] for row in source.rows(path, "images", PICTURE, "id", content)}
    said: dict[int, list[str]] = {image: [] for image in files}
    for row in source.rows(path, "annotations", {"id": int, "image_id": int, "caption": str}, "id", content):
        if row["image_id"] not in said:
            source.problems.add("captions of unknown images", row["image_id"])
        elif not row["caption"].strip():
            source.problems.add("empty captions", row["id"])
        else:
            said[row["image_id"]].append(row["caption"])
    for image, captions in said.items():
        if not captions:
            source.problems.add("images without captions", image)
    return Captions(files, {image: tuple(captions) for image, captions in said.items() if captions})


def read_instances(source: Source) -> Instances:
    """Read `instances_<subset>.json`; objects of unknown images or categories are counted.

    Raises:
        BadInput: absent or broken file.
    """
    path = source.need("COCO instances", INSTANCES)
    content = read_json(path)
    files = {row["id"]: row["file_name"] for row in source.rows(path, "images", PICTURE, "id", content)}
    names = {row["id"]: row["name"] for row in source.rows(path, "categories", {"id": int, "name": str}, "id", content)}
    objects: dict[int, dict[str, None]] = {image: {} for image in files}
    for row in source.rows(path, "annotations", {"id": int, "image_id": int, "category_id": int}, "id", content):
        if row["image_id"] not in objects:
            source.problems.add("objects of unknown images", row["image_id"])
        elif row["category_id"] not in names:
            source.problems.add("objects of unknown categories", row["category_id"])
        else:
            objects[row["image_id"]][names[row["category_id"]]] = None
    return Instances(files, {image: tuple(found) for image, found in objects.items()}, tuple(names.values()))
