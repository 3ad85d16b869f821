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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor

import atp
from atp.bench.counting import Counted
from atp.bench.execute import machine, prepare
from atp.bench.summary import noise, spread, verdict
from atp.evals.items import scene_items

OURS = str(Path(atp.__file__).parent)


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


@dataclass(frozen=True)
class Way:
    """One way to run a prefill: a model of its own, inside a block or not, compiled or not."""

    side: str
    compiled: bool
    run: Callable[[], Tensor]
    first: float
    apart: float
    same: bool


def ways(stack: contextlib.ExitStack, budgets: Sequence[float], batch: int, say: Callable[[str], Any]) -> Iterator[Way]:
    """Yield them, called once already; each side keeps a model, as graphs know whose hooks they hold by the model."""
    torch._dynamo.reset()
    for budget in (1.0, *budgets):
        side = "unpruned" if budget == 1 else f"atp {budget:g}"
        model, processor = atp.load("atp-mini-llava")
        inputs = inputs_of(processor, batch)
        if budget < 1:
            stack.enter_context(atp.prune(model, budget))
        plain = functools.partial(logits, model, inputs)
        want = plain()
        yield Way(side, False, plain, 0.0, 0.0, True)
        say(f"batch {batch}, {side}: compiling")
        begin = time.perf_counter()
        graph = functools.partial(logits, torch.compile(model, fullgraph=True, dynamic=False), inputs)
        got = graph()
        took, apart = time.perf_counter() - begin, float((got - want).abs().max())
        yield Way(side, True, graph, took, apart, bool((got[:, -1].argmax(-1) == want[:, -1].argmax(-1)).all()))


def compiled(
    budgets: Sequence[float], batches: Sequence[int], rounds: int, say: Callable[[str], Any] = print
) -> list[dict[str, Any]]:
    """Time one prefill, whole and pruned, as it is and compiled into one graph, all in turn; the first call compiles."""
    found = []
    for batch in batches:
        with torch.no_grad(), contextlib.ExitStack() as stack:
            sides = list(ways(stack, budgets, batch, say))
            took = rounds_of(sides, rounds)
        for way in sides:
            own, base = took[way.side, way.compiled], took["unpruned", way.compiled]
            gain, unrest = spread([whole / one for whole, one in zip(base, own, strict=True)]), noise(base)
            found.append({
                "batch": batch, "side": way.side, "compiled": way.compiled, "first_seconds": way.first, "apart": way.apart,
                "same_answer": way.same, "seconds": asdict(spread(own)), "gain": asdict(gain), "noise": unrest,
                "verdict": "" if way.side == "unpruned" else verdict(rounds, unrest, gain.median),
            })  # fmt: skip
    return found


def rounds_of(sides: Sequence[Way], rounds: int) -> dict[tuple[str, bool], list[float]]:
    """Seconds of each call, all sides in turn."""
    took: dict[tuple[str, bool], list[float]] = {(way.side, way.compiled): [] for way in sides}
    for number in range(rounds + 2):
        for way in sides:
            begin = time.perf_counter()
            way.run()
            if number >= 2:  # warm
                took[way.side, way.compiled].append(time.perf_counter() - begin)
    return took


def main(
    out: Path = Path("docs/results/performance/decode-shipped"),
    budget: float = 0.6,
    rounds: int = 25,
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
        result |= {
            "compiled": compiled((budget, 0.4), (1, 4, 16), rounds),
            "unfinished": False,
        }
        write(out, result)


def write(out: Path, result: dict[str, Any]) -> None:
    """Write what is known so far, and print it."""
    (out / "steps.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    for row in (*result["steps"], *result["compiled"]):
        print(row)


if __name__ == "__main__":
    typer.run(main)
