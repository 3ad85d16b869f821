"""Time against visual tokens, words and answers, unpruned and pruned, in turn in one process: `bash runs/growth.sh`.

A LLaVA of the true class with a small tower and 6 layers of Qwen2-0.5B's width; one image.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, Qwen2Config

from atp.adapters import adapt
from atp.bench.execute import case, machine, prepare
from atp.bench.settings import Settings, dtype, numbers, shares
from atp.bench.subject import Subject
from atp.bench.summary import RULE
from atp.bench.table import lines
from atp.errors import UnreachableBudget

PATCH, TEXT = 14, 32
TOWER = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6}
LANGUAGE = {
    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 6, "num_attention_heads": 14, "num_key_value_heads": 2,
    "vocab_size": 32000, "max_position_embeddings": 32768,
}  # fmt: skip
NAME = "a LLaVA of 6 + 6 layers"


def model(side: int, kind: torch.dtype, tower: Mapping[str, int], language: Mapping[str, int]) -> Any:
    """Build the model whose image is `side` x `side` patches."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(**tower, image_size=PATCH * side, patch_size=PATCH)
    config = LlavaConfig(vision_config=vision, text_config=Qwen2Config(**language), image_token_id=language["vocab_size"] - 1)
    return LlavaForConditionalGeneration(config).to(kind).eval()


def measure(
    settings: Settings,
    sides: tuple[int, ...],
    tower: Mapping[str, int] = TOWER,
    language: Mapping[str, int] = LANGUAGE,
    texts: tuple[int, ...] = (TEXT,),
    on_case: Callable[[dict[str, Any]], Any] = lambda result: None,
) -> dict[str, Any]:
    """Time every size with every length of prompt; the result is that of `atp bench`, one case each."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    cases: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    result = {
        "schema": 1, "subject": NAME, "settings": settings.to_dict(), "machine": machine(), "rule": RULE, "cases": cases,
        "wanted": len(sides) * len(texts), "refused": refused,
    }  # fmt: skip
    for side in sides:
        own = model(side, getattr(torch, settings.dtype or "bfloat16"), tower, language)
        for text in texts:
            found = one(own, replace(settings, text=text))
            (refused if "refused" in found else cases).append(found)
            on_case(result)
    return result


def one(own: Any, settings: Settings) -> dict[str, Any]:
    """Time one size; where so few visual tokens stand beside so many words that a budget cannot be met, at the least there is."""
    subject = Subject(NAME, adapt(own), None, settings)
    say = functools.partial(print, f"{subject.adapter.shape.visual} visual tokens, {settings.text} words:")
    try:
        return case(subject, settings.batches[0], settings.answers[0], say)
    except UnreachableBudget as error:
        if error.lowest >= 0.99:
            return {"visual": subject.adapter.shape.visual, "text": settings.text, "refused": str(error)}
        return one(own, replace(settings, budgets=(math.ceil(100 * error.lowest) / 100,)))


def plot(result: Mapping[str, Any]) -> str:
    """Draw seconds against visual tokens, both logarithmic."""
    figures, base = importlib.import_module("matplotlib.figure"), importlib.import_module("matplotlib")
    with base.rc_context({"svg.hashsalt": "atp", "svg.fonttype": "none", "font.size": 9}):
        figure = figures.Figure(figsize=(6.5, 4.2), layout="constrained")
        place = figure.subplots()
        tokens = [case["visual"] for case in result["cases"]]
        for number, name in enumerate(side["side"] for side in result["cases"][0]["sides"]):
            own = [case["sides"][number]["seconds"]["total"]["median"] for case in result["cases"]]
            place.plot(tokens, own, marker="o", markersize=3, label=name)
        place.set(xscale="log", yscale="log", xlabel="visual tokens", ylabel="seconds to the first token, medians")
        place.set_xticks(tokens, [str(n) for n in tokens], minor=False)
        place.set_xticks([], minor=True)
        place.grid(alpha=0.3)
        place.legend(frameon=False)
        place.set_title(f"{result['subject']}, {result['cases'][0]['dtype']}", loc="left", fontsize=10)
        made = importlib.import_module("io").StringIO()
        figure.savefig(made, format="svg", metadata={"Date": None})
    text = str(made.getvalue())
    return text[text.index("<svg") :]


def main(
    out: Path = Path("docs/results/performance/growth"),
    sides: Annotated[str, typer.Option(help="Patches along an image's side.")] = "14,24,36,50,70,100",
    text: Annotated[str, typer.Option(help="Words of a prompt.")] = str(TEXT),
    answer: int = 1,
    batch: int = 1,
    budget: str = "0.6,0.4",
    rounds: int = 3,
    threads: int = 2,
    dtype_: Annotated[str, typer.Option("--dtype")] = "bf16",
    heads: Annotated[int, typer.Option(help="Of keys and values, of 14.")] = 2,
) -> None:
    """Measure, print, and write bench.json, and growth.svg where sizes alone grow."""
    prepare(out)
    asked = Settings(
        arch="growth", budgets=shares("--budget", budget), rounds=rounds, threads=threads, dtype=dtype(dtype_), answers=(answer,),
        batches=(batch,),
    )  # fmt: skip
    texts = numbers("--text", text, "16,256")

    def write(result: Mapping[str, Any]) -> None:
        (out / "bench.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    language = {**LANGUAGE, "num_key_value_heads": heads}
    result = measure(asked, numbers("--sides", sides, "14,24"), language=language, texts=texts, on_case=write)
    if len(texts) == 1 and answer == 1:
        (out / "growth.svg").write_text(plot(result), encoding="utf-8")
    print("\n".join(lines(result)))


if __name__ == "__main__":
    typer.run(main)
