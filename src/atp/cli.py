"""The command line: one function a command, no logic. Errors are one red line on stderr and exit code 2.

Only the result goes to stdout; progress, notices and errors go to stderr.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.text import Text

import atp
from atp.bench.command import bench
from atp.errors import AtpError, BadInput
from atp.evals.certify.command import calibrate
from atp.evals.fit_command import fit_counts
from atp.evals.harness import command
from atp.gate.command import train_gate
from atp.printing import bar, empty_table, notice, print_comparison, print_talks, save
from atp.refusing import applied, check, refuse, told

app = typer.Typer(
    help="Prune tokens inside unmodified vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ModelOption = Annotated[str, typer.Option(help="A shipped model (see `atp models`), a directory, or a hub id.")]
BudgetOption = Annotated[
    str | None, typer.Option(help="Share of the unpruned FLOPs in (0, 1], or '64 tokens', '250 ms', '24 MB'. [default: 0.6]")
]
CalibrationOption = Annotated[
    str | None, typer.Option(help="File of `atp fit-counts` or `atp calibrate`; adaptive: counts per input, beside the weights.")
]
MethodOption = Annotated[str | None, typer.Option(help="See `atp methods`. [default: atp]")]
DtypeOption = Annotated[str | None, typer.Option(help="Of the weights. [default: float32 on a CPU, else the checkpoint's]")]
DeviceOption = Annotated[str | None, typer.Option(help="E.g. cpu or cuda:0. [default: a GPU if there is one]")]
LengthOption = Annotated[int, typer.Option("--max-new-tokens", help="Longest answer.")]


USAGE: Any = typer.BadParameter.__mro__[2]
"""`ClickException`, of the click that typer itself uses."""
CONNECTS = {"rows": "live patches", "grid": "all patches", "keys": "live patches, as keys"}
"""What `Adapter.connects` means."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"atp {atp.__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Prune tokens inside unmodified vision-language models."""


@app.command()
def run(
    image: Annotated[str | None, typer.Option(help="JPEG, PNG, WebP, BMP, TIFF or GIF file.")] = None,
    question: Annotated[str | None, typer.Option(help="What to ask about it.")] = None,
    then: Annotated[list[str] | None, typer.Option(help="The next question of the same chat; can be repeated.")] = None,
    model: ModelOption = "atp-mini-llava",
    budget: BudgetOption = None,
    method: MethodOption = None,
    plan: Annotated[str | None, typer.Option(help="YAML or JSON file of a plan, instead of a budget.")] = None,
    calibration: CalibrationOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    overlay: Annotated[str | None, typer.Option(help="Write a picture of what was kept to this file.")] = None,
    max_new_tokens: LengthOption = 16,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
) -> None:
    """Answer a question about an image with and without pruning, side by side."""
    from atp.images import load_image

    if image is None:
        raise BadInput("no image given; expected e.g. --image cat.png")
    if question is None or not question.strip():
        raise BadInput('no question given; expected e.g. --question "How many dogs are there?"')
    if then and overlay is not None:
        raise BadInput("--overlay shows one question, a chat has several; leave --overlay or --then away")
    seen = load_image(image)
    given = check(budget, method, max_new_tokens, plan, overlay, calibration, model)
    with bar(4 if then else 3) as step:
        step("loading the model")
        from atp.chat import talks
        from atp.compare import compare

        loaded, processor = atp.load(model, dtype=dtype, device=device)
        method, table = applied(given, loaded, method)
        if then:
            asked, pruning = [question, *then], {"budget": budget, "method": method, "plan": plan, "calibration": table}
            found = talks(loaded, processor, seen, asked, max_new_tokens, step, **pruning)
        else:
            result = compare(loaded, processor, seen, question, budget, method, plan, max_new_tokens, step, table)
    if then:
        print_talks(asked, found, as_json)
        return
    if overlay is not None:
        from atp.demo import picture

        save(picture(seen, result), overlay)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), ensure_ascii=False, allow_nan=False))
        return
    print_comparison(result)
    if overlay is not None:
        Console().print(Text(f"picture of what was kept: {overlay}"), soft_wrap=True)


@app.command()
def methods() -> None:
    """List the pruning methods."""
    from atp.methods import METHODS

    table = empty_table("method", "prunes in", "what it keeps", "paper")
    for name in atp.list_methods():
        cls = METHODS.get(name)
        table.add_row(name, ", ".join(cls.stacks), (cls.__doc__ or "").strip().splitlines()[0], cls.url or cls.paper)
    Console().print(table)


SITES = "Sites are at any layer of vision and language, and at pixels:0."


@app.command()
def models() -> None:
    """List the model types that can be pruned, where, and what is not possible; any of their checkpoints is a --model."""
    from atp.adapters import ADAPTERS, GENERIC, adapter_class
    from atp.loading import SHIPPED

    table = empty_table("model type", "sites", "connector takes", "towers", "language models")
    limits, graphs = [], []
    for kind in [*sorted(ADAPTERS), *GENERIC]:
        family = adapter_class(kind)
        sites = [*family.stacks, *["pixels"] * family.resizable]
        tried = [", ".join(names) or "any" for names in (family.towers, family.texts)]
        takes = CONNECTS[family.connects] if "vision" in family.stacks else "-"
        table.add_row(kind, "\n".join(sites), takes, *(names.replace(", ", "\n") for names in tried))
        limits += [f"{kind}: {limit}" for limit in family.limits]
        graphs += [kind] * family.graphs
    Console().print(table)
    Console().print(
        Text(
            "\n".join([SITES, f"With fixed counts one graph for torch.compile and torch.export: {', '.join(graphs)}.", *limits])
        ),
        soft_wrap=True,
    )
    shipped = f"Shipped: {', '.join(SHIPPED)}; e.g. atp run --model {SHIPPED[0]} --image cat.png --question ..."
    Console().print(Text(shipped), soft_wrap=True)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for index.html and the pictures.")] = Path("out"),
    model: ModelOption = "atp-mini-llava",
    budget: BudgetOption = None,
    method: MethodOption = None,
    calibration: CalibrationOption = None,
    max_new_tokens: LengthOption = 16,
) -> None:
    """Answer a dozen committed questions with and without pruning; write pictures and one HTML page."""
    from atp.demo import answer_all, questions, together, totals, writable, write_page

    given = check(budget, method, max_new_tokens, calibration=calibration, model=model)
    writable(out)
    answers = []
    with bar(len(questions()) + 2) as step:
        step("loading the model")
        loaded, processor = atp.load(model)
        method, table = applied(given, loaded, method)
        for answer in answer_all(loaded, processor, out, budget, method, max_new_tokens, calibration=table):
            step(answer.question)
            answers.append(answer)
        step("all questions as one batch")
        batch = together(loaded, processor, budget, method, max_new_tokens, calibration=table)
    shown = empty_table("question", "truth", "all tokens", "pruned", "FLOPs", "kept")
    for answer in answers:
        result = answer.result
        both = [
            Text(given or "-", style="green" if right else "red")
            for given, right in zip((result.answer_unpruned, result.answer), answer.right, strict=True)
        ]
        shown.add_row(answer.question, answer.truth, *both, f"{result.flops_ratio:.1%}", result.kept_in_words)
    Console().print(shown)
    written = write_page(answers, out, model, batch)
    Console().print(Text(f"{totals(answers)} {batch}\nopen {written}"), soft_wrap=True)


app.command("eval")(command.evaluate)
app.command()(command.report)
app.command()(bench)
app.command()(calibrate)
app.command("train-gate")(train_gate)
app.command("fit-counts")(fit_counts)


def main(arguments: list[str] | None = None, stderr: TextIO | None = None) -> None:
    """Run the command line and leave with its exit code: 0, or 2 where the input cannot be used."""
    with warnings.catch_warnings():
        warnings.simplefilter("once", UserWarning)
        warnings.showwarning = notice
        try:
            code = app(arguments, standalone_mode=False)
        except USAGE as error:
            if getattr(error, "ctx", None) is not None and error.message == error.ctx.get_help():  # asked for nothing: help
                error.show()
                raise SystemExit(error.exit_code) from None
            refuse(told(error, sys.argv[1:] if arguments is None else arguments), stderr)
        except typer.Abort:
            refuse("aborted", stderr, 1)
        except AtpError as error:
            refuse(str(error), stderr)
        raise SystemExit(code if isinstance(code, int) else 0)
