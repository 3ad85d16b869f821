"""Draw the demo's dozen pictures: scenes never trained on, one question each, kinds in turn; nothing is picked by its result."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from atp.scenes import ask, make_scene, render
from atp.scenes.questions import KINDS

OUT = Path(__file__).parents[1] / "src/atp/scenes/demo"
FIRST, COUNT, SIZE = 700_000, 12, 448


def main() -> None:
    OUT.mkdir(exist_ok=True)
    rows = []
    for number in range(COUNT):
        scene = make_scene(FIRST + number, "val")
        kind = KINDS[number % len(KINDS)]
        question = next(iter(ask(scene, 1, kinds=(kind,))), None) or ask(scene, 1)[0]
        name = f"{number + 1:02d}.jpg"
        Image.fromarray(render(scene, SIZE)[0]).save(OUT / name, quality=88)
        rows.append({"image": f"demo/{name}", "question": question.text, "answer": question.answer})
    (OUT / "questions.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
