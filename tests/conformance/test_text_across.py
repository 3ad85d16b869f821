"""Text tokens leave where images are read by cross-attention layers, in every way of calling those families."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.cache_utils import StaticCache

import invariants
from atp.adapters import adapt
from atp.bench.counting import Counted
from atp.budget.cost import Workload, lengths_of
from atp.engine import Run, prune
from atp.errors import AtpError, UnsupportedModel
from atp.plan import Plan, Site, Step
from conformance.across import dead, hidden, own_layers
from conformance.test_families import SERVED, model_of, said
from conformance.test_modes import counted
from families import Inputs
from families.base import VOCAB, WORDS

ACROSS = [name for name, family in SERVED.items() if family.model_type in ("idefics", "mllama")]
TEXTS, TAIL, SHARES = (13, 20, 9), 6, (0.7, 0.45)


def plan_of(method: str, text: tuple[float, float] = SHARES, vision: float = 0.7, bar: float | None = None) -> Plan:
    """Layer 4 of both is where a cross-attention layer stands, layer 2 of Mllama is none."""
    steps = (Step(Site("vision", 1), vision), Step(Site("language", 2), 0.35, bar, text=text[0]))
    return Plan(method, (*steps, Step(Site("language", 4), 0.2, bar, text=text[1])), {"merge": False} if method == "atp" else {})


def pruned(model: Any, family: Any, inputs: Any, plan: Plan, steps: int = 5, **options: Any) -> tuple[Tensor, Tensor, Run]:
    with prune(model, plan=plan, text_tail=TAIL) as run:
        tokens, logits = said(model, family, inputs, steps=steps, **options)
    return tokens, logits, run


def equals_reference(name: str, method: str, side: str, images: tuple[int, ...] | None = None, bar: float | None = None) -> Run:
    family, model = SERVED[name], model_of(name)
    inputs = family.inputs(model, TEXTS, side=side, images=images)
    steps = 5 if side == "left" else 1  # transformers generates from the last place
    with prune(model, plan=plan_of(method, bar=bar), text_tail=TAIL) as run, torch.no_grad():
        _, got = said(model, family, inputs, steps=steps)
        logits = model(**inputs).logits
    with hidden(name, model, inputs, run.trace), torch.no_grad():
        _, want = said(model, family, inputs, steps=steps)
        expected = model(**inputs).logits
    stays = inputs["attention_mask"].bool() & ~dead(inputs, run.trace, 9)
    assert (logits - expected)[stays].abs().max() <= 1e-9, "differs from the masked reference"
    rows = slice(None) if side == "left" else inputs["attention_mask"][:, -1].bool()
    assert (got - want)[rows].abs().max() <= 1e-6, "differs from the masked reference at a decoded token"
    run.trace.texts.clear()
    with hidden(name, model, inputs, run.trace), torch.no_grad():
        assert (model(**inputs).logits - expected)[stays].abs().max() > 1e-5, "the text that left changed nothing"
    return run


@pytest.mark.parametrize("name", ACROSS)
@pytest.mark.parametrize(
    ("method", "side", "images", "bar"),
    [("atp", "left", None, None), ("random", "left", (2, 1, 0), None), ("atp", "right", None, None), ("atp", "left", None, 0.9)],
)
def test_pruned_equals_the_masked_reference(
    name: str, method: str, side: str, images: tuple[int, ...] | None, bar: float | None
) -> None:
    equals_reference(name, method, side, images, bar)


@pytest.mark.parametrize("name", ACROSS)
def test_the_first_the_last_and_special_ones_never_leave(name: str) -> None:
    family, model = SERVED[name], model_of(name)
    inputs = family.inputs(model, TEXTS)
    _, _, run = pruned(model, family, inputs, plan_of("random", (0.7, 0.0)), 1)
    for record, share in zip(run.trace.last("text"), (0.7, 0.0), strict=True):
        assert record.started == inputs["attention_mask"].sum(1).tolist()
        assert record.counts == [len(kept) for kept in record.kept] == run.report().kept["text"][record.layer]
        for ids, real, kept in zip(inputs["input_ids"], inputs["attention_mask"].bool(), record.kept, strict=True):
            own = ids[real]
            special = ((own < WORDS) | (own >= VOCAB)).nonzero().flatten().tolist()  # images, and what is around them
            stay = {0, *range(len(own) - TAIL, len(own)), *special}
            assert stay <= set(kept.tolist())
            assert len(kept) == max(len(stay), round(share * len(own)))
    assert 0 < run.report().equivalent_text < sum(record.started) / 3


@pytest.mark.parametrize("name", ACROSS)
def test_all_kept_is_bit_identical(name: str) -> None:
    family, model = SERVED[name], model_of(name)
    steps = (Step(Site("vision", 1), 1.0), Step(Site("language", 2), 1.0, text=0.5), Step(Site("language", 4), 1.0, text=0.1))
    batch = family.inputs(model, TEXTS)
    for inputs in (batch, family.single(batch, 0)):
        with torch.no_grad():
            want = model(**inputs).logits
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                with prune(model, plan=Plan("atp", steps), text_tail=64, record_all_scores=True) as run:
                    got = model(**inputs).logits
        assert run.dropped == 0
        assert run.trace.last("text")[1].counts == run.trace.last("text")[1].started
        assert torch.equal(got, want)


@pytest.mark.parametrize("name", ACROSS)
def test_scores_are_what_the_last_tokens_pay(name: str) -> None:
    family, model, eager = SERVED[name], model_of(name), SERVED[name].make(attention="eager")
    inputs = family.single(family.inputs(model, TEXTS), 1)
    watched = max(layer for layer in own_layers(name, eager) if layer < 2)
    seen: list[Tensor] = []
    hook = own_layers(name, eager)[watched].self_attn.register_forward_hook(lambda module, args, out: seen.append(out[1]))
    with torch.no_grad():
        eager(**inputs)
    hook.remove()
    _, _, run = pruned(model, family, inputs, plan_of("atp", vision=1.0), 1)
    record = run.trace.last("text")[0]
    assert record.raw_scores is not None
    ids = inputs["input_ids"][0]
    free = (ids >= WORDS) & (ids < VOCAB) & (torch.arange(len(ids)) < len(ids) - TAIL) & (torch.arange(len(ids)) > 0)
    rows = seen[0][0].double().mean(0)[-TAIL:, free]
    want = (rows / rows.mean(1, keepdim=True)).mean(0)
    torch.testing.assert_close(record.raw_scores[0, free].double(), want / want.mean(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ACROSS)
def test_text_that_left_rates_no_key(name: str) -> None:
    """Whatever the rows that left hold, the keys that stay are the same."""
    family, model = SERVED[name], model_of(name)
    inputs, found = family.single(family.inputs(model, TEXTS), 1), []
    steps = (Step(Site("language", 2), 1.0, text=0.3), Step(Site("language", 4), 0.3))
    _, _, run = pruned(model, family, inputs, Plan("atp", steps, {"merge": False}), 1)
    gone = dead(inputs, run.trace, 9)
    for noise in (0.0, 5.0):
        hook = own_layers(name, model)[3 if name == "mllama" else 2].register_forward_hook(
            lambda module, args, out, noise=noise: out + noise * gone.unsqueeze(-1), prepend=False
        )
        try:
            found.append(pruned(model, family, inputs, run.plan, 1)[2].trace.last("language")[-1].raw_scores)
        finally:
            hook.remove()
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ACROSS)
def test_a_batch_equals_its_singles_and_beams_equal_one_beam(name: str) -> None:
    family, model = SERVED[name], model_of(name)
    batch, plan = family.inputs(model, TEXTS), plan_of("atp")
    told = {"max_new_tokens": 3, "num_beams": 2, "do_sample": False}
    _, together, run = pruned(model, family, batch, plan, 3)
    with prune(model, plan=plan, text_tail=TAIL) as wide:
        beams = model.generate(**batch, **told)
    for row in range(len(TEXTS)):
        _, alone, one = pruned(model, family, family.single(batch, row), plan, 3)
        assert (together[row] - alone[0]).abs().max() <= 1e-8
        for stack in ("language", "text"):
            for record, mine, same in zip(*(each.trace.last(stack) for each in (run, one, wide)), strict=True):
                assert record.kept[row].tolist() == mine.kept[0].tolist()
                assert record.kept[row].tolist() == same.kept[2 * row].tolist() == same.kept[2 * row + 1].tolist()
        with prune(model, plan=plan, text_tail=TAIL):
            single = model.generate(**family.single(batch, row), **told)
        assert beams[row, -3:].tolist() == single[0, -3:].tolist()


def turns(name: str, model: Any, inputs: Any, turn: Tensor) -> tuple[Any, Any]:
    """The conversation in one piece, and what a second turn is called with beside its ids."""
    whole, more = Inputs(inputs), {}
    whole["input_ids"] = torch.cat([inputs["input_ids"], turn], 1)
    whole["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(turn)], 1)
    look = "image_attention_mask" if name == "idefics" else "cross_attention_mask"
    last = inputs[look][:, -1:].expand(-1, turn.shape[1], *inputs[look].shape[2:])
    whole[look] = torch.cat([inputs[look], last], 1)
    more[look] = last if name == "idefics" else whole[look]
    return whole, more


@pytest.mark.parametrize("name", ACROSS)
def test_a_second_turn_on_the_cache_is_the_conversation_in_one_piece(name: str) -> None:
    """The text that left does not come back, nor is any of it stored."""
    family, model = SERVED[name], model_of(name)
    inputs = family.inputs(model, TEXTS)
    length, turn = inputs["input_ids"].shape[1], torch.arange(WORDS, WORDS + 5).expand(len(TEXTS), -1)
    whole, more = turns(name, model, inputs, turn)
    with torch.no_grad(), prune(model, plan=plan_of("random"), text_tail=TAIL) as run:
        first = model(**inputs, **counted(family, model, inputs), use_cache=True)
        if name == "idefics":
            more["perceiver_embeddings"] = first.image_hidden_states
        got = model(
            input_ids=turn, attention_mask=whole["attention_mask"], past_key_values=first.past_key_values, use_cache=True,
            **more, **counted(family, model, whole, length),
        )  # fmt: skip
    with torch.no_grad(), hidden(name, model, inputs, run.trace):
        want = model(**whole, **counted(family, model, whole)).logits[:, length:]
    torch.testing.assert_close(got.logits, want, rtol=0, atol=1e-9)
    stored = {layer: got.past_key_values.layers[layer] for layer in own_layers(name, model)}
    kept = run.trace.last("text")
    for layer, held in stored.items():
        rows = [max(record.counts) for record in kept if record.layer <= layer]
        assert held.keys.shape[-2] == (rows[-1] if rows else length) + 5, "keys of text that left are stored"
        assert held.get_seq_length() == length + 5


@pytest.mark.parametrize("name", ACROSS)
def test_every_layer_runs_on_the_text_that_stays(name: str) -> None:
    family, model = SERVED[name], model_of(name)
    inputs, seen = family.inputs(model, TEXTS), {}
    view = adapt(model).language
    across = dict(zip(view.places, view.layers, strict=True))  # type: ignore[attr-defined]
    with prune(model, plan=plan_of("random"), text_tail=TAIL) as run:
        hooks = [
            layer.register_forward_pre_hook(
                lambda module, args, kwargs, at=(kind, place): seen.update({at: args[0].shape[:2]}), with_kwargs=True
            )
            for kind, layers in (("own", own_layers(name, model)), ("across", across))
            for place, layer in layers.items()
        ]
        said(model, family, inputs, steps=1)
    for hook in hooks:
        hook.remove()
    whole = inputs["input_ids"].shape
    for (kind, place), rows in seen.items():
        counts = [record.counts for record in run.trace.last("text") if record.layer <= place]
        padded = (len(TEXTS), max(counts[-1])) if counts else whole
        assert tuple(rows) in (padded, *[(1, sum(counts[-1])) for _ in counts[:1] if kind == "own"])
    assert {kind for (kind, place), rows in seen.items() if rows.numel() < whole.numel()} == {"own", "across"}


@pytest.mark.parametrize("name", ACROSS)
@pytest.mark.parametrize("first", [0, 2])
def test_recorded_states_have_full_length_and_no_cache_says_the_same(name: str, first: int) -> None:
    family, model = SERVED[name], model_of(name)
    inputs = family.inputs(model, TEXTS)
    plan = Plan("random", (Step(Site("language", first), 0.5, text=0.4),))
    with torch.no_grad(), prune(model, plan=plan, text_tail=TAIL) as run:
        got = [model(**inputs, output_hidden_states=True, use_cache=cached) for cached in (True, False)]
    with torch.no_grad(), hidden(name, model, inputs, run.trace):
        want = model(**inputs, output_hidden_states=True)
    stays = inputs["attention_mask"].bool() & ~dead(inputs, run.trace, 9)
    for out in got:
        assert [state.shape for state in out.hidden_states] == [state.shape for state in want.hidden_states]
        for mine, other in zip(out.hidden_states, want.hidden_states, strict=True):
            assert (mine - other)[stays].abs().max() <= 1e-9


@pytest.mark.parametrize("name", ACROSS)
def test_counted_flops_are_exactly_those_of_torch(name: str) -> None:
    family, model = SERVED[name], model_of(name)
    inputs = family.single(family.inputs(model, TEXTS), 1)

    def measure() -> int:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            model.generate(**inputs, max_new_tokens=3, do_sample=False)
        total: int = counter.get_total_flops()
        return total

    with prune(model, plan=plan_of("random"), text_tail=TAIL) as run:
        spent = measure()
    report, whole = run.report(), measure()
    assert report.flops.total - spent == report.flops_unpruned.total - whole, "of the language model all is counted"
    assert abs(report.flops.total - spent) <= (0 if name == "idefics" else 2e-3 * spent)
    shape, plan = adapt(model).shape, plan_of("random")
    left = [lengths_of(shape, Workload(2, 24, 3, protected=10), one).text for one in (plan, Plan("none"))]
    assert left == [(24.0, 24.0, 17.0, 17.0, *[11.0] * (shape.language.layers - 4)), ()]


@pytest.mark.parametrize("name", ACROSS)
@pytest.mark.parametrize("text", [0.4, 0.0])
def test_torch_counts_the_budget(name: str, text: float) -> None:
    family, model = SERVED[name], model_of(name)
    budget = {"idefics": 0.42, "mllama": 0.5}[name] + 0.35 * text
    inputs = family.inputs(model, (120,), (1,))
    work = Workload(1, int(inputs["attention_mask"].sum()), 3, protected=1 + 8 + 3)
    told = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}

    def measure() -> int:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            model.generate(**inputs, **told)
        total: int = counter.get_total_flops()
        return total

    with prune(model, budget=budget, text=text, text_tail=8, workload=work) as run:
        spent = measure()
    assert run.report().ratio == pytest.approx(spent / measure(), rel=2e-3)
    assert 0.95 * budget <= run.report().ratio <= budget * 1.002
    (record,) = run.trace.last("text")
    assert record.counts == [max(round(text * work.text), record.counts[0] if not text else 0)]


@pytest.mark.parametrize("name", ACROSS)
@pytest.mark.parametrize("fail", [False, True])
def test_nothing_is_left_behind(name: str, fail: bool) -> None:
    family, model = SERVED[name], model_of(name)
    invariants.leaves_no_trace(model, family.single(family.inputs(model, TEXTS), 0), plan_of("atp"), fail)


@pytest.mark.parametrize("name", ACROSS)
def test_loss_and_gradients_with_and_without_checkpointing(name: str) -> None:
    family = SERVED[name]
    model = family.make(dtype=torch.float64)
    model.train()
    inputs, found = family.inputs(model, texts=(16, 19), images=(1, 1)), []
    for checkpointing in (False, invariants.HOOKS_RUN_ONCE):  # elsewhere it is refused, see tests/test_generate.py
        model.zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        with prune(model, plan=plan_of("random"), text_tail=TAIL) as run:
            logits = model(**inputs, use_cache=False).logits[:, -TAIL:-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs["input_ids"][:, 1 - TAIL :].flatten())
            loss.backward()
        assert run.trace.last("text")[-1].counts < run.trace.last("text")[-1].started
        found.append((loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-9)
    for key, before in found[0][1].items():
        torch.testing.assert_close(before, found[1][1][key], rtol=0, atol=1e-9)


def test_prompt_lookup_says_what_greedy_says() -> None:
    """Not in Mllama: where a guess is rejected, transformers takes it from the stored keys of images too, and fails."""
    family, model = SERVED["idefics"], model_of("idefics")
    inputs = family.inputs(model, texts=(19,), images=(1,))
    told = {"max_new_tokens": 6, "do_sample": False}
    with prune(model, plan=plan_of("random"), text_tail=TAIL) as run:
        greedy = model.generate(**inputs, **told)
        assisted = model.generate(**inputs, **told, prompt_lookup_num_tokens=3)
    first, second = (record.counts for record in run.trace.texts if record.layer == 2)
    assert first == second
    assert greedy[:, -6:].tolist() == assisted[:, -6:].tolist()


@pytest.mark.parametrize("name", ACROSS)
def test_a_running_plan_may_begin_and_cease_to_spell(name: str) -> None:
    family, model = SERVED[name], model_of(name)
    inputs = family.inputs(model, TEXTS)
    with prune(model, plan=plan_of("random", (1.0, 1.0)), text_tail=TAIL) as run:
        plain = said(model, family, inputs, 2)[1]
        run.plan = plan_of("random")
        less = said(model, family, inputs, 2)[1]
        run.plan = plan_of("random", (1.0, 1.0))
        assert torch.equal(said(model, family, inputs, 2)[1], plain)
    assert torch.equal(less, pruned(model, family, inputs, plan_of("random"), 2)[1])
    assert (less - plain).abs().max() > 1e-6


@pytest.mark.parametrize("name", ACROSS)
def test_text_waits_once_for_the_device_and_eager_attention_says_the_same(name: str) -> None:
    family, model, said_all = SERVED[name], model_of(name), []
    inputs, waits = family.inputs(model, TEXTS), []
    for plan in (plan_of("atp", (1.0, 1.0)), plan_of("atp")):
        with torch.no_grad(), prune(model, plan=plan, text_tail=TAIL), Counted().watching() as counts:
            said_all.append(model(**inputs).logits[:, -1])
        waits.append(counts.waits)
    assert waits[1] == waits[0] + 1
    eager = family.make(attention="eager")
    with torch.no_grad(), prune(eager, plan=plan_of("atp"), text_tail=TAIL):
        torch.testing.assert_close(eager(**inputs).logits[:, -1], said_all[1], rtol=0, atol=1e-5)  # eager softmax is float32


@pytest.mark.parametrize("name", ACROSS)
def test_what_cannot_be_right_is_refused(name: str) -> None:
    family, model = SERVED[name], model_of(name)
    inputs, plan = family.inputs(model, TEXTS), Plan("random", (Step(Site("language", 2), 1.0, text=0.4),))
    with prune(model, plan=plan, text_tail=TAIL), torch.no_grad():
        with pytest.raises(UnsupportedModel, match=r"is a StaticLayer, which cannot store a subset .*leave cache_implementation"):
            model(**inputs, past_key_values=StaticCache(config=model.config.get_text_config(), max_cache_len=99), use_cache=True)
        first = model(**inputs, use_cache=True)
    turn = torch.full((len(TEXTS), 1), WORDS)
    whole, more = turns(name, model, inputs, turn)
    if name == "idefics":
        more["perceiver_embeddings"] = first.image_hidden_states
    with torch.no_grad(), pytest.raises(AtpError, match=r"continue inside the same `with atp.prune"):
        model(input_ids=turn, attention_mask=whole["attention_mask"], past_key_values=first.past_key_values, **more)
