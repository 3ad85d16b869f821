"""Two-turn chats, pruned and not: `python runs/turns.py measure OUT.jsonl`, then `page OUT.jsonl ...`. `runs/turns.sh` does both.

A pair is two questions about different objects of one held-out scene. Both are answered in one chat, the second on the cache of
the first, or by a fresh prefill of the same conversation.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from pages import NOTHING, table
from PIL import Image
from rich.progress import track

from atp.chat import Chat, talk
from atp.engine import prune
from atp.evals.harness import header
from atp.evals.stats import paired_bootstrap
from atp.loading import load
from atp.plan import Plan, Site, Step
from atp.scenes import ask, make_scene, render

PER_SCENE, LONGEST = 3, 4
FIRST, ALL, KEEP, ANEW, FRESH = "first", "all tokens", "keep", "reselect", "fresh prefill"
ALONE, ALONE_ALL = "asked alone", "asked alone, all tokens"
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


def fresh(model: Any, processor: Any, pair: dict[str, Any], said: torch.Tensor, **pruning: Any) -> tuple[str, float]:
    """Answer the second question by one pruned prefill of the conversation `said` and it; return the answer and its FLOPs."""
    chat = Chat(model, processor, pair["image"], LONGEST)
    chat.ids = said
    inputs = chat.whole(pair["questions"][1])
    with torch.inference_mode(), prune(model, processor=processor, **pruning) as run:
        out = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
    answer = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
    return answer.strip(), run.report().flops.total


def given(budget: str) -> dict[str, Any]:
    """Return arguments of `prune`: a budget, or a plan of one step, `site=keep`."""
    site, found, keep = budget.partition("=")
    return {"plan": Plan("atp", (Step(Site.parse(site), float(keep)),))} if found else {"budget": float(budget)}


def pruned(model: Any, processor: Any, pair: dict[str, Any], pruning: dict[str, Any]) -> dict[str, tuple[str, float]]:
    """Answer one pair, pruned, in every way: answers and FLOPs of the second turn, and of the first one."""
    (first, second), asked = pair["questions"], (model, processor, pair["image"])
    keep, anew = (talk(*asked, (first, second), LONGEST, second_turn=how, **pruning) for how in ("keep", "reselect"))
    assert keep.answers[0] == anew.answers[0], "one first turn, two answers"
    alone = talk(*asked, (second,), LONGEST, **pruning)
    found = {
        FIRST: (keep.answers[0], keep.flops[0]),
        KEEP: (keep.answers[1], keep.flops[1]),
        ANEW: (anew.answers[1], anew.flops[1]),
    }
    return found | {FRESH: fresh(model, processor, pair, keep.ids[0], **pruning), ALONE: (alone.answers[0], alone.flops[0])}


def whole(model: Any, processor: Any, pair: dict[str, Any]) -> dict[str, tuple[str, float]]:
    """Answer one pair with all tokens."""
    chat, alone = (talk(model, processor, pair["image"], some, LONGEST) for some in (pair["questions"], pair["questions"][1:]))
    return {
        FIRST: (chat.answers[0], chat.flops[0]),
        ALL: (chat.answers[1], chat.flops[1]),
        ALONE_ALL: (alone.answers[0], alone.flops[0]),
    }


@app.command()
def measure(
    out: Annotated[Path, typer.Argument(help="JSON lines to write, or to go on with")],
    model: Annotated[str, typer.Option(help="shipped name or folder")] = "atp-mini-llava",
    budgets: Annotated[
        str, typer.Option(help="shares of the FLOPs, or steps such as language:2=0.1; comma-separated")
    ] = "0.6,0.4",
    count: Annotated[int, typer.Option("--pairs", min=2, help="pairs of questions")] = 150,
    split: Annotated[str, typer.Option(help="of the scenes")] = "val",
) -> None:
    """Answer the pairs that are not answered yet, a line each; the first line says with what."""
    loaded, processor = load(model)
    shares = budgets.split(",")
    facts = {"model": model, "budgets": shares, "split": split, "dtype": str(loaded.dtype).removeprefix("torch.")}
    facts |= {"versions": header.versions(), "commit": header.commit()}
    out.parent.mkdir(parents=True, exist_ok=True)
    there = out.read_text(encoding="utf-8").splitlines() if out.is_file() else []
    with out.open("a", encoding="utf-8") as file:
        if not there:
            file.write(json.dumps(facts) + "\n")
        done = max(0, len(there) - 1)
        for pair in track(list(pairs(count, split))[done:], description=model, transient=True):
            said = {"all": whole(loaded, processor, pair)}
            said |= {share: pruned(loaded, processor, pair, given(share)) for share in shares}
            told = {name: pair[name] for name in ("scene", "questions", "truth")}
            file.write(json.dumps(told | {"said": said}) + "\n")
            file.flush()


def section(facts: dict[str, Any], rows: list[dict[str, Any]], budget: str) -> list[str]:
    """Tables of one budget or step."""
    scenes, key = np.array([one["scene"] for one in rows]), budget
    both = [one["said"]["all"] | one["said"][key] for one in rows]
    said = {name: [one[name][0].lower() for one in both] for name in TOLD}
    right = {name: np.array([a == one["truth"][1] for a, one in zip(said[name], rows, strict=True)], float) for name in TOLD}
    firsts = (np.mean([one["said"][place][FIRST][0].lower() == one["truth"][0] for one in rows]) for place in ("all", key))

    def agree(name: str, other: str) -> Any:
        return np.array([a == b for a, b in zip(said[name], said[other], strict=True)], float)

    def against(name: str, other: str) -> str:
        return NOTHING if name == other else str(paired_bootstrap(right[name], right[other], scenes))

    body = [
        (
            name,
            f"{100 * right[name].mean():.1f}",
            *(against(name, other) for other in (ALL, FRESH)),
            *(f"{100 * agree(name, other).mean():.1f}" for other in (ALL, FRESH)),
            f"{np.mean([one[name][1] for one in both]) / 1e9:.3f}",
        )
        for name in TOLD
    ]
    head = ("second question", "right, %", "minus all tokens", "minus fresh prefill", "= all tokens, %", "= fresh, %", "GFLOPs")
    gaps = [paired_bootstrap(right[ANEW], right[KEEP], scenes)]
    gaps += [paired_bootstrap(agree(ANEW, other), agree(KEEP, other), scenes) for other in (FRESH, ALL)]
    first = "First questions: {:.1f} % right with all tokens, {:.1f} % pruned.".format(*(100 * share for share in firsts))
    return [
        "",
        f"## `{facts['model']}` at {budget}",
        "",
        first,
        *table(head, body),
        f"Reselect minus keep, in points: right {gaps[0]}, same answer as the fresh prefill {gaps[1]}, as all tokens {gaps[2]}.",
    ]


@app.command()
def page(
    files: Annotated[list[Path], typer.Argument(help="from `measure`")],
    docs: Annotated[Path, typer.Option(help="folder of the pages")] = Path("docs/results"),
) -> None:
    """Write turns.md."""
    lines = ["# The second turn of a pruned chat", "", "`bash runs/turns.sh` writes this page and what it rests on.", ""]
    lines += [
        "Pairs of questions about different objects of one generated scene; the second is asked on the cache of the first, in "
        "the model's own chat template. The shipped models were trained on first questions only, so the chat with all tokens "
        "is the measure, not the second question asked alone. Differences in points, with 95 % intervals from a paired "
        "bootstrap over scenes; GFLOPs of the second turn. The same from the shell: `atp run --image cat.png --question ... "
        "--then ...`.",
        "",
    ]
    lines += [f"- {name}: {words}." for name, words in TOLD.items()]
    for path in files:
        facts, *rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
        versions = ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
        pictures = len({one["scene"] for one in rows})
        lines += ["", f"`{facts['model']}`: {len(rows)} pairs, {pictures} scenes of split {facts['split']}; {facts['dtype']}; "]
        lines[-1] += f"{versions}; commit {facts['commit'] or 'unknown'}."
        for budget in map(str, facts["budgets"]):
            lines += section(facts, rows, budget)
    docs.mkdir(parents=True, exist_ok=True)
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"
    (docs / "turns.md").write_text(text, encoding="utf-8")
    typer.echo(f"wrote {docs / 'turns.md'}")


if __name__ == "__main__":
    app()
