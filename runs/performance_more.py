"""More tables of `docs/performance.md`: queues, decoding, profiles, break-even. Plain values in, rows of text out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from performance_tables import Result, Rows, each, longest, prompt, seconds, size, times

QUEUE = (
    "model",
    "dtype",
    "at equal",
    "side",
    "batch",
    "padding: tower",
    "language",
    "answers/s",
    "against unpruned",
    "peak",
    "KV",
    "",
)


def throughput(results: Sequence[Result]) -> Rows:
    """Answers a second of every side, at equal batch and at equal memory."""
    for result in results:
        for kind in ("batch", "memory"):
            for number, row in enumerate(result.get(f"equal_{kind}", {}).get("sides", ())):
                padding = [f"{row['padding'][stack]:.0%}" if row["padding"] else "" for stack in ("vision", "language")]
                yield [
                    *([result["subject"], result["dtype"], kind] if not number else [""] * 3),
                    row["side"], str(row["batch"]), *padding, f"{row['answers_per_second']:.3g}",
                    f"x{row['gain']['median']:.2f}" if number else "", size(row["peak_bytes"]), size(row["kv_bytes"]),
                    row["verdict"],
                ]  # fmt: skip


STEP = ("model", "batch", "visual tokens", "side", "a step", "speed-up of it", "hooks in it", "KV", "prompt and answer")


def decode(results: Sequence[Result]) -> Rows:
    """What a decoded token takes after long prompts."""
    for result, case in each([one for one in results if "cases" in one]):
        steps = max(1, case["answer"] - 1)
        whole = case["sides"][0]["seconds"]["decode"]["median"]
        for number, side in enumerate(case["sides"]):
            own = side["seconds"]["decode"]["median"]
            gain = times(side["gains"]["end to end"]) if number else ""
            yield [
                *([result["subject"], str(case["batch"]), str(case["visual"])] if not number else [""] * 3),
                side["side"], seconds(own / steps), f"x{whole / own:.2f}" if number else "",
                f"{1e6 * side['hooks']['step_seconds']:.0f} us" if number else "", size(side["kv_bytes"]), gain,
            ]  # fmt: skip


COUNTED = ("batch", "side", "operators in a step", "waits for a value", "Python calls", "of them ours")


def counted(results: Sequence[Result]) -> Rows:
    """What one decode step does, counted."""
    for result in results:
        for row in result["steps"]:
            yield [str(row["batch"]), row["side"], *(str(row[name]) for name in ("operators", "waits", "calls", "own_calls"))]


COMPILED = (
    "batch",
    "side",
    "compiled",
    "first call",
    "a prefill",
    "against unpruned",
    "quartiles",
    "against unpruned, not compiled",
    "largest change of a logit",
    "same answer",
    "",
)


def compiled(results: Sequence[Result]) -> Rows:
    """A prefill as one graph."""
    for result in results:
        plain = {
            row["batch"]: row["seconds"]["median"]
            for row in result["compiled"]
            if row["side"] == "unpruned" and not row["compiled"]
        }
        for row in sorted(result["compiled"], key=lambda row: (row["batch"], row["compiled"])):
            own, gain, whole = row["seconds"]["median"], row["gain"], row["side"] == "unpruned"
            changed = f"{row['apart']:.1e}", "yes" if row["same_answer"] else "**no**"
            yield [
                str(row["batch"]), row["side"], "yes" if row["compiled"] else "no",
                seconds(row["first_seconds"]) if row["compiled"] else "", seconds(own),
                "" if whole else f"**x{gain['median']:.2f}**", "" if whole else f"{gain['low']:.2f} - {gain['high']:.2f}",
                f"x{plain[row['batch']] / own:.2f}", *(changed if row["compiled"] else ("", "")), row["verdict"],
            ]  # fmt: skip


TRACE = ("model", "side", "hooks", "of the prefill", "in them without an operator", "most in", "waits: model", "ours", "sites")


def traces(results: Sequence[Result]) -> Rows:
    """What profiles of one pruned prefill tell of our hooks."""
    for result in results:
        own = result.get("profile", {})
        if "idle_seconds" in own:
            yield [
                result["subject"], own["side"], str(own["hooks"]), f"{own['own_share']:.1%}",
                f"{own['idle_seconds'] / own['seconds']:.1%}",
                own["most_idle"], str(own["waits_unpruned"]), str(own["waits"]), str(own["sites"]),
            ]  # fmt: skip


GRID = ("visual tokens", "words", "side", "first token", "whole answer", "", "x1.1 up to", "x1.25 up to")


def grid(results: Sequence[Result]) -> Rows:
    """Speed-ups by visual tokens and words, and how long an answer may be."""
    for _, case in each(results):
        base = case["sides"][0]
        for side in case["sides"][1:]:
            reach = [longest(base, side, case["answer"], worth) for worth in (1.1, 1.25)]
            told = ["any length" if n == float("inf") else f"{n:.0f} tokens" if n >= 1 else "never" for n in reach]
            gain = side["gains"]["end to end"]
            first = f"x{prompt(base) / prompt(side):.2f}"
            yield [str(case["visual"]), str(case["text"]), side["side"], first, times(gain), side["verdict"], *told]
    for result in results:
        for one in result.get("refused", ()):
            yield [str(one["visual"]), str(one["text"]), "nothing to gain", "", "", "", "", ""]


def least(results: Sequence[Result]) -> Iterator[str]:
    """Say for every length of prompt from how many visual tokens on pruning was surely faster."""
    cases = [case for _, case in each(results)]
    for text in sorted({case["text"] for case in cases}):
        own = sorted((case for case in cases if case["text"] == text), key=lambda case: case["visual"])
        slow = [case["visual"] for case in own if case["sides"][1]["verdict"] != "faster"]
        later = [case["visual"] for case in own if case["visual"] > max(slow, default=0)]
        answer = own[0]["answer"]
        if later:
            yield f"- {text} words and answers of {answer}: pruning is faster from {later[0]} visual tokens on."
        else:
            yield f"- {text} words and answers of {answer}: pruning is not surely faster at any measured number of visual tokens."


def break_even_words(results: Sequence[Result]) -> str:
    """The measured break-even, in sentences."""
    return "\n".join(least(results))


SITES = ("model", "threads", "side", "FLOPs", "batch 1", "4", "16", "right", "minus unpruned", "sites")


def sites(results: Sequence[Result]) -> Rows:
    """Speed-ups of plans with fewer sites, and what they lose; the last two tables of a model are of its questions."""
    for result in [one for one in results if "cases" in one]:
        asked = {
            f"{row['name']} {one['budget']:g}": row
            for one in results
            if one.get("model") == result["subject"]
            for row in one["rows"]
        }
        gains = [{side["side"]: side for side in case["sides"]} for case in result["cases"]]
        for number, name in enumerate(list(gains[0])[1:]):
            row = asked.get(name, {})
            timed = [
                times(case[name]["gains"]["end to end"]) + ("?" if "noisy" in case[name]["verdict"] else "") for case in gains
            ]
            timed += [""] * (3 - len(timed))
            own = row.get("against_unpruned")
            lost = f"{own['mean']:+.2f} [{own['low']:+.2f}, {own['high']:+.2f}]" if own else ""
            places = ", ".join(step["site"] for step in row.get("plan", {}).get("steps", ()))
            right = f"{row['accuracy']:.2f}" if row else ""
            yield [
                *([result["subject"], str(result["machine"]["threads"])] if not number else [""] * 2),
                name.replace("atp:sites=", ""), f"{gains[0][name]['flops_share']:.3f}", *timed, right, lost, places,
            ]  # fmt: skip


MORE: dict[str, tuple[tuple[str, ...], Callable[[Sequence[Result]], Rows]]] = {
    "throughput": (QUEUE, throughput), "decode": (STEP, decode), "steps": (COUNTED, counted), "compiled": (COMPILED, compiled),
    "traces": (TRACE, traces), "grid": (GRID, grid), "sites": (SITES, sites),
}  # fmt: skip
