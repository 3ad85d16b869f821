"""Two-turn chats, pruned and not: `python runs/turns.py measure OUT.json`, then `page OUT.json ...`. `runs/turns.sh` does both.

A pair is two questions about different objects of one held-out scene. Both are answered in one chat, the second on the cache of
the first, or by a fresh prefill of the same conversation.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from pages import table
from PIL import Image
from rich.progress import track

from atp.chat import Chat, Talk, talk
from atp.engine import prune
from atp.evals.harness import header
from atp.evals.stats import paired_bootstrap
from atp.loading import load
from atp.scenes import ask, make_scene, render

PER_SCENE, LONGEST = 3, 4
ALL, KEEP, ANEW, FRESH, ALONE, ALONE_ALL = (
    "all tokens",
    "keep",
    "reselect",
    "fresh prefill",
    "asked alone",
    "asked alone, all tokens",
)
TOLD = {
    ALL: "the chat with all tokens",
    KEEP: '`second_turn="keep"`: what the first question chose',
    ANEW: '`second_turn="reselect"`: chosen anew for the second question, tower not run again',
    FRESH: "the pruned chat's conversation in one pruned prefill, tower included",
    ALONE: "the second question as a first one, pruned",
    ALONE_ALL: "the second question as a first one, all tokens",
}
app = typer.Typer(add_completion=False)


def pairs(count: int, split: str) -> Iterator[dict[str, Any]]:
    """Yield pairs of questions that rest on different visible objects, at most three a scene."""
    made, seed = 0, 0
    while made < count:
        scene = make_scene(seed, split)
        image = Image.fromarray(render(scene, 224)[0])
        asked = [question for question in ask(scene, 20) if question.about]
        apart = [(a, b) for a, b in itertools.combinations(asked, 2) if not set(a.about) & set(b.about)]
        free: set[int] = set()
        for first, second in apart:
            if len(free) == 2 * PER_SCENE or made == count:
                break
            if not free & {id(first), id(second)}:
                free |= {id(first), id(second)}
                yield {
                    "scene": seed,
                    "image": image,
                    "questions": (first.text, second.text),
                    "truth": (first.answer, second.answer),
                }
                made += 1
        seed += 1


def fresh(model: Any, processor: Any, image: Image.Image, said: Talk, question: str, **pruning: Any) -> tuple[str, float]:
    """Answer the last question of a conversation by one pruned prefill; return the answer and its FLOPs."""
    chat = Chat(model, processor, image, LONGEST)
    chat.ids = said.ids
    inputs = chat.whole(question)
    with torch.inference_mode(), prune(model, processor=processor, **pruning) as run:
        out = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
    answer = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
    return answer.strip(), run.report().flops.total


def row(model: Any, processor: Any, pair: dict[str, Any], budget: float) -> dict[str, Any]:
    """Answer one pair in every way."""
    image, (first, second) = pair["image"], pair["questions"]
    asked = (model, processor, image)
    whole = talk(*asked, (first, second), LONGEST)
    keep, anew = (talk(*asked, (first, second), LONGEST, budget=budget, second_turn=how) for how in ("keep", "reselect"))
    begun = talk(*asked, (first,), LONGEST, budget=budget)
    assert keep.answers[0] == anew.answers[0] == begun.answers[0], "one first turn, three answers"
    again, cost = fresh(*asked, begun, second, budget=budget)
    alone, alone_all = talk(*asked, (second,), LONGEST, budget=budget), talk(*asked, (second,), LONGEST)
    answers = {ALL: whole.answers[1], KEEP: keep.answers[1], ANEW: anew.answers[1], FRESH: again}
    answers |= {ALONE: alone.answers[0], ALONE_ALL: alone_all.answers[0]}
    flops = {ALL: whole.flops[1], KEEP: keep.flops[1], ANEW: anew.flops[1], FRESH: cost}
    flops |= {ALONE: alone.flops[0], ALONE_ALL: alone_all.flops[0]}
    firsts = {ALL: whole.answers[0], KEEP: keep.answers[0]}
    return {
        "scene": pair["scene"],
        "questions": (first, second),
        "truth": pair["truth"],
        "first": firsts,
        "first_flops": {ALL: whole.flops[0], KEEP: keep.flops[0]},
        "answers": {name: answer.lower() for name, answer in answers.items()},
        "flops": flops,
    }


@app.command()
def measure(
    out: Annotated[Path, typer.Argument(help="JSON file to write")],
    model: Annotated[str, typer.Option(help="shipped name or folder")] = "atp-mini-llava",
    budget: Annotated[float, typer.Option(help="share of the FLOPs")] = 0.4,
    pairs_: Annotated[int, typer.Option("--pairs", min=2, help="pairs of questions")] = 150,
    split: Annotated[str, typer.Option(help="of the scenes")] = "val",
) -> None:
    """Answer all pairs and write the records."""
    loaded, processor = load(model)
    wanted = track(list(pairs(pairs_, split)), description=f"{budget:g}", transient=True)
    rows = [row(loaded, processor, pair, budget) for pair in wanted]
    facts = {"model": model, "budget": budget, "split": split, "dtype": str(loaded.dtype).removeprefix("torch.")}
    facts |= {"versions": header.versions(), "commit": header.commit()}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


def section(told: dict[str, Any]) -> list[str]:
    """Tables of one budget."""
    rows, scenes = told["rows"], np.array([one["scene"] for one in told["rows"]])
    said = {name: [one["answers"][name] for one in rows] for name in TOLD}
    right = {name: np.array([a == one["truth"][1] for a, one in zip(said[name], rows, strict=True)], float) for name in TOLD}

    def agree(name: str, other: str) -> Any:
        return np.array([a == b for a, b in zip(said[name], said[other], strict=True)], float)

    def against(name: str, other: str) -> str:
        return "" if name == other else str(paired_bootstrap(right[name], right[other], scenes))

    lines = ["", f"## `{told['model']}` at {told['budget']:g}", ""]
    first = [np.mean([one["first"][name].lower() == one["truth"][0] for one in rows]) for name in (ALL, KEEP)]
    lines += [f"First questions: {100 * first[0]:.1f} % right with all tokens, {100 * first[1]:.1f} % pruned.", ""]
    body = [
        (
            name,
            f"{100 * right[name].mean():.1f}",
            against(name, ALL),
            against(name, FRESH),
            *(f"{100 * agree(name, other).mean():.1f}" for other in (FRESH, ALL)),
            f"{np.mean([one['flops'][name] for one in rows]) / 1e9:.3f}",
        )
        for name in TOLD
    ]
    head = ("second question", "right, %", "minus all tokens", "minus fresh prefill", "= fresh, %", "= all tokens, %", "GFLOPs")
    lines += table(head, body)
    gap = paired_bootstrap(right[ANEW], right[KEEP], scenes)
    lines += [f"Reselect minus keep: {gap} points right; same answer as the fresh prefill "]
    lines[-1] += f"{paired_bootstrap(agree(ANEW, FRESH), agree(KEEP, FRESH), scenes)}, as all tokens "
    lines[-1] += f"{paired_bootstrap(agree(ANEW, ALL), agree(KEEP, ALL), scenes)}."
    return lines


@app.command()
def page(
    files: Annotated[list[Path], typer.Argument(help="from `measure`")],
    docs: Annotated[Path, typer.Option(help="folder of the pages")] = Path("docs/results"),
) -> None:
    """Write turns.md."""
    all_told = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    lines = ["# The second turn of a pruned chat", "", "`bash runs/turns.sh` writes this page and what it rests on.", ""]
    for told in all_told[:1]:
        versions = ", ".join(f"{name} {value}" for name, value in told["versions"].items())
        scenes = len({one["scene"] for one in told["rows"]})
        lines += [
            f"{len(told['rows'])} pairs of questions about different objects of {scenes} generated scenes, split {told['split']}; "
            f"{told['dtype']}; {versions}; commit {told['commit'] or 'unknown'}. The second question is asked on the cache of the "
            "first, in the model's own chat template. The shipped models were trained on first questions only. Differences in "
            "points, with 95 % intervals from a paired bootstrap over scenes; GFLOPs of the second turn. Same question from the shell: "
            "`atp run --image cat.png --question ... --then ...`.",
            "",
        ]
    lines += [f"- {name}: {words}." for name, words in TOLD.items()]
    for told in all_told:
        lines += section(told)
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "turns.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    typer.echo(f"wrote {docs / 'turns.md'}")


if __name__ == "__main__":
    app()
