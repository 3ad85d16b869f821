"""The Java programs that published caption numbers rest on, from the archives in `pycocoevalcap`. Knows words only."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from atp.errors import BadInput

TOKENIZER = ("tokenizer", "stanford-corenlp-3.4.1.jar")
METEOR = ("meteor", "meteor-1.5.jar")
SECONDS = 600


def archive(what: str, parts: Sequence[str]) -> Path:
    """Return the path of an archive.

    Args:
        what: wants it, for the message.
        parts: of its path in the package.

    Raises:
        BadInput: no Java or no `pycocoevalcap`.
    """
    found = importlib.util.find_spec("pycocoevalcap")
    if shutil.which("java") is None or found is None or not found.submodule_search_locations:
        lacking = "java" if shutil.which("java") is None else "the package pycocoevalcap"
        raise BadInput(f"{what} needs {lacking}: install Java 8 or later and pip install 'atp-vlm[eval]', or leave it out")
    return Path(next(iter(found.submodule_search_locations))).joinpath(*parts)


def tokenizer(lines: Sequence[str]) -> list[list[str]]:
    """Lower-case Penn Treebank tokens of lines, one process for all; punctuation is still in.

    Raises:
        BadInput: no Java, no archive, or the program fails.
    """
    jar = archive("mode 'ptb'", TOKENIZER)
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    text = "".join(f"{' '.join(line.split())}\n" for line in lines)
    done = subprocess.run(
        [*command, "-encoding", "UTF-8"], input=text.encode(), capture_output=True, timeout=SECONDS, check=False
    )
    out = done.stdout.decode().split("\n")
    if done.returncode or len(out) < len(lines):
        raise BadInput(f"the Java tokenizer failed (exit {done.returncode}): {done.stderr.decode()[-300:]}; try mode='plain'")
    return [line.split() for line in out[: len(lines)]]


def meteor(said: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> NDArray[np.float64]:
    """METEOR 1.5 of each image, `[N]`, 0 to 1. The program needs up to a minute to start.

    Args:
        said: words of one caption an image.
        references: words of the captions of each image.

    Raises:
        BadInput: no Java, no archive, or the program fails.
    """
    jar = archive("METEOR", METEOR)
    command = ["java", "-jar", "-Xmx2G", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    with subprocess.Popen(
        command, cwd=jar.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        counts = []
        for words, captions in zip(said, references, strict=True):
            parts = ["SCORE", *(" ".join(caption) for caption in captions), " ".join(words)]
            counts.append(_said(process.stdin, process.stdout, " ||| ".join(part.replace("|||", "") for part in parts)))
        first = _said(process.stdin, process.stdout, " ||| ".join(["EVAL", *counts]))
        values = [float(first), *(float(process.stdout.readline()) for _ in counts[1:])]
        process.stdin.close()
        process.stdout.read()  # the score of all
    return np.array(values)


def _said(stdin: IO[str], stdout: IO[str], line: str) -> str:
    try:
        stdin.write(f"{line}\n")
        stdin.flush()
        answer = stdout.readline().strip()
    except BrokenPipeError:
        answer = ""
    if not answer:
        raise BadInput("METEOR's Java program stopped; it needs 2 GB of memory: free some, or leave METEOR out")
    return answer
