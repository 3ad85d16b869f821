"""Official files from a folder that the user names: found, parsed, checked; what is wrong is counted. Knows no task.

A missing, truncated or mistaken file always raises. A bad row, a doubled id or an absent image is counted and left out, and
stops a strict run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from atp.errors import BadInput

PLACES = ("", "annotations", "vqav2", "gqa", "pope", "coco", "questions", "chair", "textvqa")
IMAGE_PLACES = ("", "{subset}", "images", "images/{subset}", "gqa/images", "coco/{subset}", "train_images", "test_images")
SUBSETS = {"train": "train2014", "val": "val2014", "test": "test2015", "test-dev": "test-dev2015"}
SHOWN = 3  # ids named in a message

ABSENT = "images listed but absent"
LEFT_OUT = "questions left out because their image is absent"
MALFORMED = "malformed rows"


@dataclass
class Problems:
    """What was wrong in the files: kind -> keys, in the order found."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, key: object) -> None:
        """Count one more of a kind."""
        self.found.setdefault(kind, []).append(str(key))

    @property
    def counts(self) -> dict[str, int]:
        """How many of each kind."""
        return {kind: len(keys) for kind, keys in self.found.items()}

    def __str__(self) -> str:
        def line(kind: str, keys: list[str]) -> str:
            return f"{kind}: {len(keys)} ({', '.join(keys[:SHOWN])}{', ...' if len(keys) > SHOWN else ''})"

        return "; ".join(line(kind, keys) for kind, keys in self.found.items()) or "none"


@dataclass
class Source:
    """A folder of official files.

    Attributes:
        folder: as the user unpacked it; files are looked for in it and in `PLACES` below it.
        split: `val`, `train`, `test`, `test-dev` or a COCO subset such as `val2017`.
        images: False = only score answers made elsewhere, so no image is needed.
        problems: filled while reading.
    """

    folder: Path
    split: str = "val"
    images: bool = True
    problems: Problems = field(default_factory=Problems)

    def __post_init__(self) -> None:
        self.folder = Path(self.folder)
        if not self.folder.is_dir():
            raise BadInput(
                f"no folder {str(self.folder)!r}; give the folder with the official files, or make one: "
                f"python -m atp.scenes {self.folder} --images 100"
            )

    @property
    def subset(self) -> str:
        """COCO's name of the split: `val` is `val2014`."""
        return SUBSETS.get(self.split, self.split)

    def find(self, *names: str) -> Path | None:
        """Return the first of the files that exists (or the folder of chunks that GQA ships for large ones)."""
        for name in names:
            for place in PLACES:
                path = self.folder / place / name.format(split=self.split, subset=self.subset)
                if path.is_file() or (path.suffix == ".json" and path.with_suffix("").is_dir()):
                    return path
        return None

    def need(self, what: str, *names: str) -> Path:
        """Like `find`.

        Raises:
            BadInput: none of them exists.
        """
        path = self.find(*names)
        if path is None:
            tried = " or ".join(repr(n.format(split=self.split, subset=self.subset)) for n in names)
            raise BadInput(
                f"no {what} in {str(self.folder)!r}: looked for {tried}, there and in its folders "
                f"{', '.join(p for p in PLACES if p)}; put the official file there unchanged, or name another split "
                f"(this is split={self.split!r})"
            )
        return path

    def rows(self, path: Path, under: str, spec: Mapping[str, type], key: str, content: Any = None) -> Iterator[dict[str, Any]]:
        """Yield the good rows of a file with a list under one key; bad and doubled ones are counted.

        Args:
            path: of the file.
            under: where the list is, "" = the file is the list.
            spec: fields that a row must have, and their types.
            key: field that must be unique, "" = none.
            content: of the file where it is read already.

        Raises:
            BadInput: the file is no such file, or none of its rows is good.
        """
        content = read_json(path) if content is None else content
        listed = content.get(under) if under and isinstance(content, dict) else content
        if not isinstance(listed, list):
            expected = f"an object with a list under {under!r}" if under else "a list"
            given = f"keys {sorted(content)[:8]}" if isinstance(content, dict) else type(content).__name__
            raise BadInput(f"{path}: expected {expected}, got {given}; is it the right file?")
        yield from self.checked(path, listed, spec, key)

    def checked(self, path: Path, listed: Iterable[Any], spec: Mapping[str, type], key: str) -> Iterator[dict[str, Any]]:
        """Yield good rows of a list, see `rows`."""
        seen: set[object] = set()
        number, good = -1, 0
        for number, row in enumerate(listed):
            if not self.fits(path, row, spec, f"row {number}"):
                continue
            if key and row[key] in seen:
                self.problems.add(f"doubled {key} in {path.name}", row[key])
                continue
            good += 1
            if key:
                seen.add(row[key])
            yield row
        if number >= 0 and not good:
            raise wrong_file(path, number + 1, spec)

    def fits(self, path: Path, row: Any, spec: Mapping[str, type], where: str) -> bool:
        """Whether a row has its fields; one that has not is counted."""
        good = isinstance(row, dict) and all(isinstance(row.get(name), kind) for name, kind in spec.items())
        if not good:
            self.problems.add(f"{MALFORMED} in {path.name}", where)
        return good

    @property
    def image_subset(self) -> str:
        """Subset in the names of image files: test-dev's images are those of the test set."""
        return "test2015" if self.subset == "test-dev2015" else self.subset

    def image(self, *names: str) -> Path | None:
        """Return the first of the image files that exists; an absent one is counted once."""
        if not self.images:
            return None
        for name in names:
            if name in self._listing:
                return self._listing[name] / name
        if names[0] not in self._missing:
            self._missing.add(names[0])
            self.problems.add(ABSENT, names[0])
        return None

    @cached_property
    def _missing(self) -> set[str]:
        return set()

    @cached_property
    def _listing(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for place in IMAGE_PLACES:
            folder = self.folder / place.format(subset=self.image_subset)
            if folder.is_dir():
                for path in folder.iterdir():
                    found.setdefault(path.name, folder)
        return found


def wrong_file(path: Path, rows: int, spec: Mapping[str, type]) -> BadInput:
    """Return the error for a file none of whose rows is good."""
    wanted = ", ".join(f"{name}: {kind.__name__}" for name, kind in spec.items())
    return BadInput(f"{path}: none of its {rows} rows has the fields {wanted}; is it the right file?")


def read_json(path: Path) -> Any:
    """Parse a JSON file, or a folder of chunks of one (`name/name_0.json`, ...), which are merged.

    Raises:
        BadInput: absent, empty, cut off, not JSON, not UTF-8.
    """
    if not path.is_file() and path.with_suffix("").is_dir():
        chunks = sorted(path.with_suffix("").glob("*.json"))
        merged: dict[str, Any] = {}
        for chunk in chunks:
            part = read_json(chunk)
            if not isinstance(part, dict):
                raise BadInput(f"{chunk}: a chunk must be an object of questions, got {type(part).__name__}")
            merged.update(part)
        if not merged:
            raise BadInput(f"{path.with_suffix('')}: a folder without chunks *.json; unpack the archive again")
        return merged
    return _parse(_text(path), str(path))


def read_lines(path: Path) -> list[Any]:
    """Parse a file of JSON lines; a file that is one JSON list works too.

    Raises:
        BadInput: see `read_json`.
    """
    text = _text(path)
    if text.lstrip().startswith("["):
        return list(_parse(text, str(path)))
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise BadInput(f"{path}: the file is empty; download it again")
    return [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"no file {str(path)!r}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text (byte {error.start}); is it still compressed? Unpack it first") from None


def _parse(text: str, where: str) -> Any:
    if not text.strip():
        raise BadInput(f"{where}: the file is empty; download it again")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        cut = len(text) - error.pos < 2 or error.msg.startswith("Unterminated")
        what = "cut off" if cut else "not valid JSON"
        raise BadInput(f"{where}: {what} at character {error.pos} of {len(text)} ({error.msg}); download it again") from None
