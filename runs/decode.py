"""What a decoded token costs besides arithmetic, and a fixed plan under `torch.compile`: `bash runs/decode.sh`.

Counts need no quiet machine: operators sent to the device, values that the host waits for, calls of Python functions.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor

import atp
from atp.bench.counting import Counted
from atp.bench.execute import machine, prepare
from atp.bench.summary import spread
from atp.evals.items import scene_items

OURS = str(Path(atp.__file__).parent)
BACKENDS = ("eager", "inductor")


def inputs_of(processor: Any, batch: int) -> dict[str, Tensor]:
    """One question about as many scenes."""
    items = list(scene_items(batch, per_scene=1))
    return atp.build_inputs(processor, [item.image for item in items], [items[0].question] * batch)


@contextlib.contextmanager
def calls() -> Iterator[Counter[str]]:
    """Count calls of Python functions, those of this package's files and all."""
    found: Counter[str] = Counter(ours=0, all=0)

    def note(frame: Any, event: str, arg: Any) -> None:
        if event == "call":
            found["all"] += 1
            found["ours"] += frame.f_code.co_filename.startswith(OURS)

    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(None)


def step(model: Any, inputs: dict[str, Tensor], block: Any) -> dict[str, Any]:
    """Count what the third decode step does inside a block."""
    mask, counted, called = inputs["attention_mask"], Counted(), Counter[str]()
    with torch.no_grad(), block:
        cache = model(**inputs, use_cache=True).past_key_values
        for number in range(4):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            given = {"input_ids": mask.new_full((len(mask), 1), 9), "attention_mask": mask, "past_key_values": cache}
            if number == 2:
                with counted.watching():
                    model(**given)
            else:
                with calls() as called:
                    model(**given)
    told = {"operators": sum(counted.operators.values()), "waits": counted.waits}
    return {**told, "calls": called["all"], "own_calls": called["ours"]}


def counts(model: Any, processor: Any, budget: float) -> list[dict[str, Any]]:
    """Count a step of the unhooked model, of fixed counts, and of prompts of two lengths."""
    found = []
    for batch in (1, 4):
        inputs = inputs_of(processor, batch)
        blocks: tuple[tuple[str, Any], ...] = (
            ("unpruned", contextlib.nullcontext()),
            (f"atp {budget:g}", atp.prune(model, budget)),
            (f"atp {budget:g}, proportional=False", atp.prune(model, budget, proportional=False)),
        )
        for name, block in blocks:
            found.append({"batch": batch, "side": name, **step(model, inputs, block)})
    return found


def logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """One prefill."""
    made: Tensor = model(**inputs, use_cache=False).logits
    return made


def timed(run: Callable[[], Tensor], rounds: int) -> list[float]:
    """Seconds of each call."""
    took = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        took.append(time.perf_counter() - begin)
    return took


def compiled(model: Any, processor: Any, budget: float, batch: int, rounds: int, say: Callable[[str], Any] = print) -> list[Any]:
    """Time one prefill, whole and pruned, as it is and compiled into one graph, in turn; the first call compiles."""
    inputs, found = inputs_of(processor, batch), []
    for name in ("unpruned", f"atp {budget:g}"):
        block: Any = contextlib.nullcontext() if name == "unpruned" else atp.prune(model, budget)
        with torch.no_grad(), block:
            plain = functools.partial(logits, model, inputs)
            want = plain()
            for backend in BACKENDS:
                torch._dynamo.reset()
                say(f"{name}: compiling with {backend}")
                begin = time.perf_counter()
                graph = functools.partial(logits, torch.compile(model, fullgraph=True, backend=backend), inputs)
                got = graph()
                first = time.perf_counter() - begin
                apart, same = float((got - want).abs().max()), bool((got[:, -1].argmax(-1) == want[:, -1].argmax(-1)).all())
                took, beside = timed(graph, rounds), timed(plain, rounds)
                found.append({
                    "side": name, "backend": backend, "batch": batch, "first_seconds": first, "apart": apart,
                    "same_answer": same, "seconds": asdict(spread(took)), "plain_seconds": asdict(spread(beside)),
                })  # fmt: skip
    return found


def main(
    out: Path = Path("docs/results/performance/decode-shipped"),
    budget: float = 0.6,
    batch: int = 4,
    rounds: int = 9,
    threads: int = 2,
    compiles: bool = typer.Option(True, "--compile/--no-compile", help="Inductor takes minutes."),
) -> None:
    """Measure, print, and write steps.json."""
    torch.set_num_threads(threads)
    prepare(out)
    model, processor = atp.load("atp-mini-llava")
    result: dict[str, Any] = {
        "schema": 1, "subject": "atp-mini-llava", "machine": machine(), "unfinished": compiles,
        "steps": [] if compiles else counts(model, processor, budget), "compiled": [],
    }  # fmt: skip
    write(out, result)
    if compiles:
        result |= {"compiled": compiled(model, processor, budget, batch, rounds), "unfinished": False}
        write(out, result)


def write(out: Path, result: dict[str, Any]) -> None:
    """Write what is known so far, and print it."""
    (out / "steps.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    for row in (*result["steps"], *result["compiled"]):
        print(row)


if __name__ == "__main__":
    typer.run(main)
