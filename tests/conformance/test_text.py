"""Text tokens leave: over all families whose visual tokens are rows of the language model, in every way of calling it.

The others: test_text_across.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tiny
from atp.adapters import adapt
from atp.budget.cost import Workload
from atp.engine import Run, book, prune
from atp.errors import InvalidPlan, UnsupportedModel
from atp.methods.tokendrop import blank, save
from atp.plan import Plan, Site, Step
from conformance.hiding import hiding
from conformance.test_families import SCATTERED, SERVED, model_of, said
from conformance.test_modes import counted
from families import Inputs
from families.base import WORDS

TEXTS, TAIL, SHARES = (13, 20, 9), 6, (0.7, 0.45)


def plan_of(model: Any, method: str = "atp", vision: float = 0.7, shares: tuple[float, float] = SHARES) -> Plan:
    """A site in the tower, two in the language model where visual and text tokens leave."""
    adapter = adapt(model)
    layers = adapter.shape.language.layers
    first = next(layer for layer in range(1, layers) if adapter.language.before(layer) is not None)
    steps = [Step(Site("vision", 1), vision)] if "vision" in adapter.stacks else []
    steps += [Step(Site("language", first), 0.35, text=shares[0]), Step(Site("language", layers - 2), 0.2, text=shares[1])]
    return Plan(method, tuple(steps), {"merge": False} if method == "atp" else {})  # merged states have no masked reference


def words_of(family: Any, inputs: Any) -> Tensor:
    """Text of the prompts, `[B, T]` bool."""
    return inputs["attention_mask"].bool() & (inputs["input_ids"] != family.image_token_id)


def pruned(model: Any, family: Any, inputs: Any, plan: Plan, steps: int = 6, **options: Any) -> tuple[Tensor, Tensor, Run]:
    with prune(model, plan=plan, text_tail=TAIL) as run:
        tokens, logits = said(model, family, inputs, steps=steps, **options)
    return tokens, logits, run


@pytest.mark.parametrize("name", SCATTERED)
@pytest.mark.parametrize(("method", "side"), [("atp", "left"), ("random", "right")])
def test_pruned_equals_the_masked_reference(name: str, method: str, side: str) -> None:
    family, model = SERVED[name], model_of(name)
    inputs = family.inputs(model, TEXTS, side=side)
    steps = 6 if side == "left" else 1  # transformers generates from the last place
    _, got, run = pruned(model, family, inputs, plan_of(model, method), steps)
    words = words_of(family, inputs)
    counts = words.sum(1).tolist()
    for record, share in zip(run.trace.last("text"), SHARES, strict=True):
        assert record.started == counts
        assert record.counts == [len(kept) for kept in record.kept] == run.trace.kept("text")[record.layer]
        assert all(n >= round(share * m) for n, m in zip(record.counts, counts, strict=True))
        for kept, count in zip(record.kept, counts, strict=True):  # the first and the last never leave
            assert {0, *range(count - TAIL, count)} <= set(kept.tolist())
    assert sum(run.trace.last("text")[1].counts) < sum(run.trace.last("text")[0].counts) < sum(counts)
    visual = inputs["input_ids"] == family.image_token_id
    with hiding(model, adapt(model), run.trace, visual, inputs.get("image_sizes")) as state:
        state.words = words
        _, want = said(model, family, inputs, steps=steps)
    rows = slice(None) if side == "left" else inputs["attention_mask"][:, -1].bool()
    assert (got - want)[rows].abs().max() <= 1e-9
    with hiding(model, adapt(model), run.trace, visual, inputs.get("image_sizes")):
        _, whole = said(model, family, inputs, steps=1)
    assert (whole - want[:, :1])[rows].abs().max() > 1e-5, "the text that left changed nothing"


@pytest.mark.parametrize("name", SCATTERED)
def test_a_batch_equals_its_singles_and_beams_equal_one_beam(name: str) -> None:
    family, model = SERVED[name], model_of(name)
    batch, plan = family.inputs(model, TEXTS), plan_of(model)
    _, together, run = pruned(model, family, batch, plan, 3)
    with prune(model, plan=plan, text_tail=TAIL) as wide:
        model.generate(**batch, max_new_tokens=3, num_beams=2, do_sample=False)
    for row in range(len(TEXTS)):
        _, alone, one = pruned(model, family, family.single(batch, row), plan, 3)
        assert (together[row] - alone[0]).abs().max() <= 1e-8
        for stack in ("language", "text"):
            for record, mine, beams in zip(*(each.trace.last(stack) for each in (run, one, wide)), strict=True):
                assert record.kept[row].tolist() == mine.kept[0].tolist()
                assert record.kept[row].tolist() == beams.kept[2 * row].tolist() == beams.kept[2 * row + 1].tolist()


@pytest.mark.parametrize("name", SCATTERED)
def test_a_second_turn_on_the_cache_is_the_conversation_in_one_piece(name: str) -> None:
    """The text that left does not come back: the same choice, given to the whole conversation, says the same."""
    family, model = SERVED[name], model_of(name)
    inputs, plan = family.inputs(model, TEXTS), plan_of(model, "random")
    length, turn = inputs["input_ids"].shape[1], torch.arange(WORDS, WORDS + 5).expand(len(TEXTS), -1)
    whole = Inputs(inputs)
    whole["input_ids"] = torch.cat([inputs["input_ids"], turn], 1)
    whole["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(turn)], 1)
    for kind in ("token_type_ids", "mm_token_type_ids"):
        if kind in inputs:  # in PaliGemma, 1 is the suffix, which is causal
            suffix = torch.full_like(turn, int(family.model_type == "paligemma"), dtype=inputs[kind].dtype)
            whole[kind] = torch.cat([inputs[kind], suffix], 1)
    with torch.no_grad(), prune(model, plan=plan, text_tail=TAIL) as run:
        first = model(**inputs, **counted(family, model, inputs), use_cache=True)
        if not hasattr(first, "past_key_values"):
            pytest.skip("its forward gives no cache")
        got = model(
            input_ids=turn, attention_mask=whole["attention_mask"], past_key_values=first.past_key_values,
            **counted(family, model, whole, length),
        )  # fmt: skip
    visual = whole["input_ids"] == family.image_token_id
    words = words_of(family, whole)
    words[:, length:] = False
    with torch.no_grad(), hiding(model, adapt(model), run.trace, visual, inputs.get("image_sizes")) as state:
        state.words = words
        want = model(**whole, **counted(family, model, whole)).logits[:, length:]
    torch.testing.assert_close(got.logits, want, rtol=0, atol=1e-9)
    last = run.trace.last("text")[-1]
    kept = max(a + b for a, b in zip(run.trace.last("language")[-1].counts, last.counts, strict=True))
    layer = got.past_key_values.layers[-1]
    assert layer.keys.shape[-2] == kept + 5 or layer.is_sliding, "keys of text that left are stored"
    assert layer.get_seq_length() == length + 5


@pytest.mark.parametrize("name", SERVED)
def test_text_that_stays_changes_no_bit(name: str) -> None:
    family, model = SERVED[name], model_of(name)
    inputs = family.inputs(model)
    said_all = []
    for shares in ((1.0, 1.0), (0.5, 0.5)):  # with the usual tail everything is protected
        with prune(model, plan=plan_of(model, shares=shares)) as run:
            said_all.append(said(model, family, inputs, steps=3)[1])
        assert len(run.trace.last("text")) == (0 if shares[0] == 1 else 2)
    assert torch.equal(*said_all)


@pytest.mark.parametrize("name", SERVED)
def test_counted_flops_are_those_of_torch(name: str) -> None:
    family, model = SERVED[name], model_of(name)
    inputs = family.single(family.inputs(model, TEXTS), 0)

    def measure() -> int:
        model.requires_grad_(False)  # the counter stumbles over views of a parameter that are a module's input
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model.generate(**inputs, max_new_tokens=3, do_sample=False)
        model.requires_grad_(True)
        total: int = counter.get_total_flops()
        return total

    with prune(model, plan=plan_of(model), text_tail=TAIL) as run:
        spent = measure()
    report = run.report()
    assert report.flops.total == pytest.approx(spent, rel=0.01)
    assert report.flops_unpruned.total == pytest.approx(measure(), rel=0.01)
    assert 0 < report.equivalent_text < run.trace.last("text")[0].started[0]


def test_tokendrop_keeps_the_ids_that_are_hard_to_predict(tmp_path: Path) -> None:
    model = tiny.model()
    inputs = tiny.prompts(model, (30, 24))
    table = blank(tiny.VOCAB)
    easy = inputs["input_ids"][0, inputs["attention_mask"][0].bool()][-20:-10]  # not the first, not the last six
    table[easy] = 0.0
    save(table, tmp_path / "t.safetensors")
    with prune(model, method="tokendrop", table=str(tmp_path / "t.safetensors"), text=0.5, text_tail=6) as run:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    (record,) = run.trace.last("text")
    assert record.counts == [16, 13]
    words = [inputs["input_ids"][row, words_of(SERVED["llava-clip-llama"], inputs)[row]] for row in range(2)]
    for ids, kept in zip(words, record.kept, strict=True):
        gone = set(range(1, len(ids) - 6)) - set(kept.tolist())
        soft = {place for place in range(1, len(ids) - 6) if ids[place] in easy}
        assert gone <= soft or soft <= gone
    assert "text kept at language:" in str(run.report())
    plan = Plan("tokendrop", (Step(Site("language", 2), 0.5),), {"table": str(tmp_path / "t.safetensors")})
    for given, says in (
        ({"method": "tokendrop", **plan.options}, "makes text tokens leave only, .*, e.g. text=0.5"),
        (
            {"method": "tokendrop", **plan.options, "text": 0.5, "budget": 0.6, "workload": Workload()},
            "text=0.5 says how much; leave budget=0.6 away",
        ),
        ({"plan": plan}, "makes text tokens leave only, got keep=0.5; use keep=1.0 and text=0.5"),
    ):
        with pytest.raises(InvalidPlan, match=says), prune(model, **given):
            pass


class Words:
    """A processor that is its own tokenizer, of whole words and of pieces as vocabularies spell them."""

    @property
    def tokenizer(self) -> Words:
        return self

    all_special_ids = (0, 1, 2)
    vocab = (
        "<pad>",
        "<s>",
        "</s>",
        "<image>",
        "\u2581not",
        "\u0120No",
        "n't",
        "'t",
        "\u2581without",
        "12",
        "\u2581seven",
        "<0x33>",
    )
    other = ("<0x0A>", "\u2581note", "knot", "none-such", "note", "USER", ":", "\u2581cat", "often")

    def get_vocab(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.vocab + self.other)}


def test_numbers_and_negations_stay_where_a_processor_tells_them() -> None:
    model = tiny.model()
    inputs = tiny.prompts(model, (30, 24), seed=3)
    inputs["input_ids"][inputs["input_ids"] == 20] = 21
    words = words_of(SERVED["llava-clip-llama"], inputs)
    place = [int(row.nonzero()[-10 - number]) for number, row in enumerate(words)]
    kept = {}
    for number in range(4, len(Words.vocab) + len(Words.other)):
        for row, at in enumerate(place):
            inputs["input_ids"][row, at] = number
        with prune(
            model, plan=Plan("random", (Step(Site("language", 2), 1.0, text=0.0),)), processor=Words(), text_tail=2
        ) as run:
            model(**inputs)
        record = run.trace.last("text")[0]
        ranks = [int(words[row, : at + 1].sum()) - 1 for row, at in enumerate(place)]
        kept[number] = [rank in record.kept[row].tolist() for row, rank in enumerate(ranks)]
    assert all(kept[number] == [True, True] for number in range(4, len(Words.vocab)))
    assert all(kept[number] == [False, False] for number in range(len(Words.vocab), len(Words.vocab) + len(Words.other)))
    assert "numbers and negations stayed" in str(run.report())


def test_a_graph_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    monkeypatch.setattr(book, "traced", lambda: True)
    with (
        prune(model, plan=plan_of(model), text_tail=TAIL),
        pytest.raises(UnsupportedModel, match="protected depends on the prompt"),
    ):
        model(**tiny.prompts(model, (20,)))
