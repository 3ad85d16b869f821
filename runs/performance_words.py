"""The words of `docs/performance.md`; its numbers come from `runs/performance.py`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """One chapter.

    Attributes:
        title, text: before its tables.
        kind: of the results that it shows.
        script: that measures them.
        tables: names of tables of `performance.py`.
        after: words behind them.
        losses: whether the cases that did not pay are listed.
        beside: more kinds of results that its tables read.
    """

    title: str
    text: str
    kind: str
    script: str
    tables: tuple[str, ...]
    after: str = ""
    losses: bool = False
    beside: tuple[str, ...] = ()


ABSENT = "Not measured yet: `bash {script}`."

INTRO = """# Performance

Written by `python runs/performance.py` from `docs/results/performance/`; no number here was typed.

Both sides run in one process, in turn (A B C, A B C, ...), after a warm-up; a speed-up is the median of the rounds' ratios, with
quartiles. Sizes are those of the real models; weights are random where no checkpoint is named, as time does not depend on them.
Image encoding is always included, entering the block of `atp.prune` is not. *Ideal* is unpruned over pruned FLOPs, selection
counted; *realised* is measured over ideal. `resize` is the control that gives the model a smaller image of the same FLOPs: where
it is faster and as accurate, use it (accuracy at equal FLOPs: README). A case whose unpruned runs spread by more than a tenth
concludes nothing, and says so.

```
atp bench --arch llava-onevision-0.5b --tiles 2 --budget 0.6,0.4 --batch 1,4,16 --answer-tokens 1,16,128 --dtype bf16
atp bench --model atp-mini-llava --quant int8 --keep-all --trace trace.json
```"""

SPEED = """`bash runs/speed.sh`. Three answer tokens are a VQA answer, twenty a caption. *tiles 0.5*: half of the image's tiles
leave before the tower runs, of Qwen's half of its windows but for a token each; patches of what stays leave in it."""

SPLIT = """Of the same runs, medians of each part. Pruning shortens tower and prefill; decoding reads all weights once a token,
whatever was pruned, and only the keys and values get fewer."""

WHEN_NOT = """Answers become long, and decoding takes the time that pruning cannot shorten. From the measured medians: how many
times faster the first token comes, and up to which length of answer the whole generation stays so many times faster."""

NOT_WORTH = """Besides: a prompt whose image is already few tokens (32 of a Q-Former) has little to prune in the language model; a
fast GPU at batch 1 waits for launches, not for arithmetic; and a second question about the same image prunes anew, as what is
kept depends on the question. Of the measured cases, these did not pay, or a smaller image of the same FLOPs was faster:"""

OVERHEAD = """`bash runs/overhead.sh`. *Selecting* is scoring and choosing, *hooks* all else in our hooks (gathers, scatters,
masks, Python): host time before the first token. `keep-all` runs every site and leaves one token out at each: what it loses to
its ideal of x1.00 is the whole cost of the machinery. `/32` has its counts rounded down so that layers run on multiples of 32
rows."""

EVEN = """`bash runs/growth.sh even`: the model of the growth curve with few visual tokens and long prompts, 0.6 of the FLOPs or
as little as can be had. How many times faster the first token and the whole answer come, and up to which length of
answer that stays worth it."""

PROFILE = """The second table reads the profile of one pruned prefill (`--trace`): the share of its time inside our hooks, the
share in them while no operator ran (Python: on a GPU the gap that is ours, if the device has nothing queued), and how often
the host waits for a value, counted without the profiler. Where the visual tokens of a prompt stand is read at most
once; a site with a fixed count never waits, one with a threshold waits once (`tests/bench/test_counting.py`)."""

FEW = """`bash runs/sites.sh`. A site costs its operators whatever it saves, so in a small model two sites are faster than
six at the same FLOPs; but what leaves early is chosen with less knowledge. The shipped calibrations have two from 0.57 on, where
they answer as well, and four or six at 0.5 and 0.4; on a model of your own:
`atp.prune(model, budget=0.6, sites="vision:0/vision:3")`, `--method atp:sites=vision:0/vision:3`. One answer token; accuracy on
2,000 held-out questions, intervals from a paired bootstrap over scenes; `?`: too noisy to conclude."""

QUEUES = """`bash runs/throughput.sh`. Fixed counts pad nothing. Counts per input pad every input to the one of its batch that
keeps most, in attention only: elsewhere the rows of all inputs stand one after the other; `run.report()` tells the share.
*Alike*: `atp.batches(images, size)` puts pictures of like detail into a batch, read from pixels before anything runs.
*Capped*: no input keeps more than 1.1 of the mean (`Step.ceiling`). Equal memory: the largest batch whose peak beyond the
weights stays within that of the unpruned model. Where weights are random, counts are drawn with the spread that the shipped
model's have, and *alike* knows them: a bound."""

ADVICE = """With a queue use fixed counts, which are the default; with counts per input use `atp.batches`, or a ceiling."""

DECODE = """`bash runs/decode.sh`. A step reads all weights whatever was pruned, and keys and values of what was kept. The first
table is of long prompts; the second counts what a step of the shipped model does (no timing); the third is a prefill of the
shipped model, image included, as it is and as one graph of fixed counts (Inductor; the first call compiles), all sides in turn;
"against unpruned" compares compiled with compiled, plain with plain."""

GRAPHS = """Where attention has no mask, a step sends no operator of ours to the device (tested); merged patches that weigh more
than one need a mask, made once for all layers between two sites."""

GROWTH = """`bash runs/growth.sh`: one answer token, one image of 196 to 10,000 visual tokens, a LLaVA with 6 layers of
Qwen2-0.5B's width. Attention grows with the square of the tokens."""

PLOT = "![time against visual tokens](results/performance/growth/growth.svg)"

QUANT = """`bash runs/quant.sh`, `pip install 'atp-vlm[quant]'`. Weight-only, by torchao: int8 for all linear layers;
int4 for those of the language model, a scale for 32 weights (the tower multiplies many rows at once, which int4 only slows
down). Quantise first, then prune. Tested: the classes stay those of the model, and what is pruned equals the masked reference
of the quantised model. int4 shortens decoding, which reads all weights, and lengthens the prompt, which pruning shortens: the
two fit together where answers are long."""

SECTIONS = (
    Section("Speed", SPEED, "speed", "runs/speed.sh", ("speed",)),
    Section("Where the time goes", SPLIT, "speed", "runs/speed.sh", ("split",)),
    Section("When not to use this", WHEN_NOT, "speed", "runs/speed.sh", ("even",), NOT_WORTH, True),
    Section("From where on it pays", EVEN, "even", "runs/growth.sh even", ("grid",)),
    Section("What our part costs", OVERHEAD, "overhead", "runs/overhead.sh", ("overhead", "traces"), PROFILE),
    Section("Few sites", FEW, "sites", "runs/sites.sh", ("sites",)),
    Section("Queues", QUEUES, "throughput", "runs/throughput.sh", ("throughput",), ADVICE),
    Section("Decoding", DECODE, "decode", "runs/decode.sh", ("decode", "steps", "compiled"), GRAPHS, beside=("steps",)),
    Section("Growth", GROWTH, "growth", "runs/growth.sh", ("growth",), PLOT),
    Section("With weights in int8 or int4", QUANT, "quant", "runs/quant.sh", ("quant", "accuracy")),
)

AFTER = """## Profile

`atp bench ... --trace trace.json` writes a profile of one pruned prefill for `chrome://tracing` or ui.perfetto.dev; our
hooks carry names that begin with `atp: `, so a gap that is ours shows as such; `bench.json` has what the table of
profiles above shows."""
