"""Contrast questions under the plans of a run: `python runs/contrast.py FOLDER` adds `contrast.json` to a folder of `atp eval`.

A contrast question differs by one word or two and has another true answer, so who answers from habit fails in pairs.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from PIL import Image

from atp.evals.harness import header
from atp.evals.harness.answering import Asker
from atp.evals.harness.asking import batches, lengths, plain
from atp.evals.harness.settings import Settings
from atp.evals.robustness.contrast import contrasts
from atp.evals.robustness.probes import contrast_scores
from atp.loading import build_inputs, load
from atp.plan import Plan
from atp.scenes import ask, make_scene, render

PER_SCENE, LONGEST = 20, 4


def main(folder: Path) -> None:
    """Ask and write, unless it is written already."""
    out = folder / "contrast.json"
    if out.is_file():
        return
    head = header.load(folder)
    settings = Settings.from_dict(head["settings"])
    pairs, pictures, seed = [], [], 0
    while len(pairs) < (settings.limit or 500):
        scene = make_scene(seed, settings.split)
        image = Image.fromarray(render(scene, 224)[0])
        for pair in contrasts(scene, ask(scene, PER_SCENE), settings.seed):
            pairs.append(pair)
            pictures.append(image)
        seed += 1
    pairs, pictures = pairs[: settings.limit or 500], pictures[: settings.limit or 500]
    model, processor = load(settings.model, dtype=settings.dtype, device=settings.device)
    asker = Asker(model, processor)
    prompt = "{question}" if plain(settings) else "{question}\nAnswer the question using a single word or phrase."
    texts = [prompt.format(question=one.text) for pair in pairs for one in (pair.original, pair.changed)]
    truths = [(pair.original.answer, pair.changed.answer) for pair in pairs]
    cells = next(iter(head["cells"].values()))
    told = {"pairs": len(pairs), "scores": {}}
    for label, cell in cells.items():
        if "refused" in cell:
            continue
        said = [""] * len(texts)
        for numbers in batches(lengths(processor, texts), settings.batch):
            inputs = build_inputs(processor, [pictures[n // 2] for n in numbers], [texts[n] for n in numbers])
            answers = asker.answer(asker.placed(inputs), Plan.from_dict(cell["plan"]), LONGEST).answers
            for number, answer in zip(numbers, answers, strict=True):
                said[number] = answer.lower()
        scores = contrast_scores(list(zip(said[::2], said[1::2], strict=True)), truths)
        told["scores"][label] = dataclasses.asdict(scores)
    out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
