"""Long prompts, pruned by visual tokens only and by text too: `python runs/text.py measure OUT.json`, then `page`; see text.sh.

What stands before the question is made of other scenes (split train, seeds from 900,000,000 on): questions with answers,
questions, captions, or pictures with question and answer.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from pages import table
from PIL import Image
from rich.progress import track
from text_tables import PROMPTS, TAIL, form_of, place, right, section, verdicts

from atp.adapters import adapt
from atp.engine import prune, workload_of
from atp.errors import InvalidPlan, UnreachableBudget
from atp.evals.harness import header
from atp.evals.items import Item, scene_items
from atp.loading import load
from atp.plan import Plan
from atp.scenes import ask, make_scene, render
from atp.scenes.captions import caption

OTHERS, LONGEST, BATCH, PER_SCENE = 900_000_000, 4, 10, 5
SHARES = (1.0, 0.7, 0.0)  # of the text that stay; at 0 only what is protected
ENGLISH = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
    "answers to the human's questions. "
)
SPECIAL = "<s>|</s>|<unk>|<image>|<fake_token_around_image>|USER:|ASSISTANT:"
MEANT = re.compile(r"\d+|no|not|one|two|three|four|five|six|seven|eight|nine|##?\d|" + SPECIAL)
app = typer.Typer(add_completion=False)


def others(count: int, number: int) -> Iterator[tuple[Any, str, str]]:
    """Yield (scene, question, answer) that stand before question `number`."""
    for seed in range(OTHERS + 50 * number, OTHERS + 50 * number + count):
        scene = make_scene(seed, "train")
        one = ask(scene, 20)[0]
        yield scene, one.text, one.answer


def prompt(kind: str, count: int, number: int, item: Item) -> tuple[str, list[Image.Image]]:
    """Write the prompt of an item in the shipped models' form, and list its pictures."""
    before = list(others(count, number))
    if kind == "shots":
        turns = "".join(f"USER:<image>{question}ASSISTANT:{answer}</s>" for _, question, answer in before)
        pictures = [Image.fromarray(render(scene, 224)[0]) for scene, *_ in before]
        return f"<s>{turns}USER:<image>{item.question}ASSISTANT:", [*pictures, item.image]
    lead, inside = "", ""
    if kind == "examples":
        lead = "".join(f"USER:{question}ASSISTANT:{answer}</s>" for _, question, answer in before)
    elif kind == "questions":
        inside = " ".join(question for _, question, _ in before)
    elif kind == "captions":
        inside = " ".join(caption(scene) for scene, *_ in before)
    elif kind == "english":
        lead = ENGLISH * count
    return f"<s>{lead}USER:{inside}<image>{item.question}ASSISTANT:", [item.image]


def inputs_of(model: Any, processor: Any, made: Sequence[tuple[str, list[Image.Image]]]) -> dict[str, torch.Tensor]:
    """Tokenize prompts, padded on the left."""
    if adapt(model).shape.cross is None:
        text, images = [one[0] for one in made], [one[1] for one in made]
        batch = processor(
            text=text, images=images, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt"
        )
        return dict(batch)
    rows = []
    for text, images in made:  # Idefics: words and pictures in a row, <s> is its processor's
        parts = text.removeprefix("<s>").split("<image>")
        rows.append([part for pair in zip(parts, [*images, ""], strict=True) for part in pair if part])
    return dict(processor(text=rows, padding="longest", padding_side="left", return_tensors="pt"))


def protected(processor: Any, ids: Sequence[int], image: int, tail: int = TAIL) -> set[int]:
    """Ranks among a prompt's text of what must stay, found by spelling, independently of the package; `image` is no text."""
    text = [token for token in ids if token not in (image, processor.tokenizer.pad_token_id)]
    words = processor.tokenizer.convert_ids_to_tokens(text)
    return {0, *range(max(0, len(text) - tail), len(text)), *(rank for rank, word in enumerate(words) if MEANT.fullmatch(word))}


def asked(model: Any, processor: Any, batches: Sequence[Any], count: int, pruning: dict[str, Any], image: int) -> dict[str, Any]:
    """Answer all items in one block; return answers, FLOPs and what was kept. `image` is the id of visual tokens."""
    tail = pruning.get("text_tail", TAIL)
    answers, gone, guarded = [""] * count, 0, 0
    texts: list[tuple[int, int]] = []
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.filterwarnings("ignore", "the plan .* removed no token", UserWarning)
        with prune(model, processor=processor, **pruning) as run:
            for numbers, inputs in batches:
                out = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
                said = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
                for number, answer in zip(numbers, said, strict=True):
                    answers[number] = answer.strip().lower()
                for record in run.trace.last("text") if run.plan.spells else ():
                    texts += list(zip(record.started, record.counts, strict=True))
                    for ids, kept in zip(inputs["input_ids"].tolist(), record.kept, strict=True):
                        stay = protected(processor, ids, image, tail)
                        gone, guarded = gone + len(stay - set(kept.tolist())), guarded + len(stay)
    report = run.report()
    told = {"answers": answers, "ratio": report.ratio, "visual": report.equivalent_tokens, "plan": report.plan.to_dict()}
    if texts:
        told["text"] = {"started": float(np.mean([a for a, _ in texts])), "kept": float(np.mean([b for _, b in texts]))}
        told["text"] |= {"protected": guarded, "protected_gone": gone}
    return told


def settings(budgets: str, tail: int) -> list[tuple[str, dict[str, Any]]]:
    """Name every setting and say what `prune` is given; `alpha` is its default, so plans are solved and not read from a file."""
    rows: list[tuple[str, dict[str, Any]]] = [("all tokens", {"plan": Plan("none")})]
    for budget in (float(one) for one in budgets.split(",") if one):
        for share in SHARES:
            name = "visual only" if share == 1 else f"visual and text, text={share:g}"
            text = {} if share == 1 else {"text": share, "text_tail": tail}
            rows.append((f"{budget:g} {name}", {"budget": budget, "method": "atp", "alpha": 0.5, **text}))
    return rows


@app.command()
def measure(
    out: Annotated[Path, typer.Argument(help="JSON file to write")],
    model: Annotated[str, typer.Option(help="shipped name or folder")] = "atp-mini-llava",
    form: Annotated[
        str, typer.Option("--prompt", help=f"{', '.join(PROMPTS)}, how many, last tokens that stay: shots:2:12")
    ] = "examples:8",
    items: Annotated[int, typer.Option(min=2, help="questions")] = 200,
    budgets: Annotated[str, typer.Option(help="shares of the FLOPs, comma-separated; '' = unpruned only")] = "0.6,0.4",
    split: Annotated[str, typer.Option(help="of the scenes")] = "val",
) -> None:
    """Ask all questions behind one kind of prompt."""
    kind, number, tail = form_of(form)
    loaded, processor = load(model)
    across = adapt(loaded).shape.cross is not None  # then an image's token is text like any other
    image = -1 if across else getattr(processor, "image_token_id", None) or processor.tokenizer.convert_tokens_to_ids("<image>")
    given = list(scene_items(items, split, per_scene=PER_SCENE))
    made = [prompt(kind, number or 1, place, item) for place, item in enumerate(given)]
    order = sorted(range(len(made)), key=lambda place: len(made[place][0]))
    groups = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    batches = [(group, inputs_of(loaded, processor, [made[place] for place in group])) for group in groups]
    works = [workload_of(loaded, processor, inputs, 2, tail) for _, inputs in batches]
    mean = {
        name: round(float(np.mean([getattr(work, name) for work in works]))) for name in ("images", "text", "answer", "protected")
    }
    mean["images"] = len(made[0][1])
    facts = {
        "model": model,
        "prompt": form,
        "split": split,
        "scenes": [int(item.key.split(":")[1]) for item in given],
        "work": mean,
    }
    facts |= {"dtype": str(loaded.dtype).removeprefix("torch."), "truth": [item.answer for item in given]}
    facts |= {"versions": header.versions(), "commit": header.commit(), "rows": {}, "refused": {}}
    for name, pruning in track(settings(budgets, tail), description=form, transient=True):
        work = {} if "plan" in pruning else {"workload": type(works[0])(**mean)}
        try:
            facts["rows"][name] = asked(loaded, processor, batches, len(given), pruning | work, image)
        except UnreachableBudget as error:
            facts["refused"][name] = f"lowest {error.lowest:.2f}"
        except InvalidPlan as error:
            facts["refused"][name] = str(error)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


@app.command()
def page(
    files: Annotated[list[Path], typer.Argument(help="from `measure`")],
    docs: Annotated[Path, typer.Option(help="folder of the pages")] = Path("docs/results"),
) -> None:
    """Write text.md."""
    told = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    lines = ["# Long prompts: text leaves too", "", "`bash runs/text.sh` writes this page and what it rests on.", ""]
    lines += [
        "The shipped models were trained on a picture and one short question. So first: what do they do behind long prompts, "
        "with all tokens? Then, at equal counted FLOPs: visual tokens leave only, or text too (`text=0.7` keeps so much of "
        "it, `text=0` what is protected: first, special and last 32 tokens (unless another number is named), numbers, "
        "negations). Plans are solved for each prompt's mean length. `protected gone` counts by spelling, apart from the "
        "package, what should have stayed and did not. Intervals: 95 %, paired bootstrap over scenes.",
    ]
    lines += ["", verdicts(told)]
    for model in dict.fromkeys(one["model"] for one in told):
        mine = sorted((one for one in told if one["model"] == model), key=place)
        versions = ", ".join(f"{name} {value}" for name, value in mine[0]["versions"].items())
        lines += [
            "",
            f"## `{model}`",
            "",
            f"Split {mine[0]['split']}; {mine[0]['dtype']}; {versions}; commit {mine[0]['commit']}.",
            "",
        ]
        body = []
        for one in mine:
            kind, count, tail = form_of(one["prompt"])
            if tail != TAIL:
                continue  # the same prompts
            row, work = one["rows"]["all tokens"], one["work"]
            score = f"{100 * right(one, 'all tokens').mean():.1f}"
            body.append(
                (kind if kind == "plain" else f"{count} x {kind}", PROMPTS[kind], str(work["images"]), str(work["text"]), score)
            )
            assert row["ratio"] <= 1.001
        lines += ["**All tokens**", *table(("before the question", "what", "pictures", "text tokens", "right, %"), body)]
        for one in mine:
            if len(one["rows"]) + len(one["refused"]) > 1:
                lines += section(one)
    docs.mkdir(parents=True, exist_ok=True)
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"
    (docs / "text.md").write_text(text, encoding="utf-8")
    typer.echo(f"wrote {docs / 'text.md'}")


if __name__ == "__main__":
    app()
