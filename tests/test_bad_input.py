"""Inputs and models that are not as expected: exact nevertheless, or a clear error, and the next call is right."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import invariants
import tiny
from atp.engine import prune
from atp.errors import AlreadyPruned, AtpError, BadInput, UnsupportedModel
from atp.methods.controls import Uniform
from atp.plan import Plan, Site, Step

PLAN = tiny.plan("atp")


def logits(model: Any, inputs: dict[str, Tensor], plan: Plan = PLAN) -> Tensor:
    with torch.no_grad(), prune(model, plan=plan):
        found: Tensor = model(**inputs).logits
    return found


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_a_batch_of_text_only_is_exact_and_warns_once() -> None:
    model: Any = tiny.model()
    inputs = tiny.prompts(model, (6, 12), (0, 0))
    greedy = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    want = model.generate(**inputs, **greedy)
    with warnings.catch_warnings(record=True) as said, prune(model, plan=PLAN) as run:
        warnings.simplefilter("always")
        for _ in range(2):
            got = model.generate(**inputs, **greedy)
    assert torch.equal(torch.stack(got.logits), torch.stack(want.logits))
    assert [str(one.message) for one in said] == ["the prompt has no image, so nothing is pruned in it"]
    assert run.report().ratio == 1


@pytest.mark.parametrize("method", ["atp", "fastv"])
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(("texts", "images"), [((6, 0, 9), (1, 1, 1)), ((6, 12, 9), (1, 0, 2)), ((5, 12, 0), (0, 0, 1))])
def test_prompts_without_question_and_without_image(
    method: str, adaptive: bool, texts: tuple[int, ...], images: tuple[int, ...]
) -> None:
    """Among others in a batch, and as they are alone."""
    model, plan = tiny.model(), tiny.plan(method, adaptive)
    inputs = tiny.prompts(model, texts, images)
    invariants.equals_reference(model, inputs, plan, steps=3)
    if 0 not in images:
        invariants.batch_equals_singles(model, inputs, plan, images)


@pytest.mark.parametrize("cut", [3, 10])
def test_a_prompt_that_was_truncated_within_its_image(cut: int) -> None:
    """The model itself refuses it, before and after the image was encoded; the run goes on."""
    model: Any = tiny.model()
    whole = tiny.prompts(model, (6,))
    cropped = {name: value[:, :cut] if value.dim() == 2 else value for name, value in whole.items()}
    want = logits(model, whole)
    with torch.no_grad(), prune(model, plan=PLAN) as run:
        for call in (model, lambda **inputs: model.generate(**inputs, max_new_tokens=2)):
            with pytest.raises(ValueError, match="Image features and image tokens do not match"):
                call(**cropped)
        assert torch.equal(model(**whole).logits, want)
    assert run.forwards == 1


def test_an_empty_batch_is_called_so() -> None:
    model: Any = tiny.model()
    inputs = tiny.prompts(model)
    with torch.no_grad(), prune(model, plan=PLAN) as run:
        with pytest.raises(BadInput, match=r"the batch is empty: .*\[0, \d+\], expected at least one prompt"):
            model(**{name: value[:0] for name, value in inputs.items()})
        model(**inputs)
    assert run.forwards == 1


# --- scores that mean nothing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_model_that_overflows_in_half_precision(adaptive: bool) -> None:
    """Fixed counts wait for no device, so their scores are looked at when the block ends."""
    model: Any = tiny.make(dtype=torch.float16)
    with torch.no_grad():
        model.model.language_model.layers[0].mlp.down_proj.weight.mul_(3e4)
    match = r"language:3.* NaN or infinite, expected finite numbers.*dtype=torch\.bfloat16"
    with pytest.raises(AtpError, match=match):
        logits(model, tiny.prompts(model, (6, 9)), tiny.plan("atp", adaptive))


def test_infinite_scores_of_dead_tokens_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny.model()
    inputs = tiny.prompts(model)
    want = logits(model, inputs, tiny.plan("uniform"))
    own = Uniform.score

    def score(self: Any, tokens: Any) -> Tensor:
        return own(self, tokens).masked_fill(~tokens.alive, torch.inf)

    monkeypatch.setattr(Uniform, "score", score)
    assert torch.equal(logits(model, inputs, tiny.plan("uniform")), want)


def test_an_error_in_the_block_is_not_hidden_by_odd_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny.model()
    monkeypatch.setattr(Uniform, "score", lambda self, tokens: torch.full_like(tokens.alive, torch.nan, dtype=torch.float32))

    def fails() -> None:
        with prune(model, plan=tiny.plan("uniform")):
            model(**tiny.prompts(model))
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fails()


# --- models that change -----------------------------------------------------------------------------------------------


def test_a_model_that_changes_its_precision_in_the_block() -> None:
    model: Any = tiny.make(dtype=torch.float32)
    inputs = tiny.prompts(model, (6, 9))
    wide = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.no_grad(), prune(model, plan=PLAN) as run:
        model(**inputs)
        model.double()
        got = model(**wide).logits
    assert run.forwards == 2
    assert torch.equal(got, logits(model, wide))


def tensors_in(value: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """Tensors that an object holds, without those of modules."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, nn.Module):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from tensors_in(one, seen)
    elif isinstance(value, list | tuple | set | frozenset):
        for one in value:
            yield from tensors_in(one, seen)
    elif type(value).__module__.startswith("atp.") or isinstance(value, SimpleNamespace):
        yield from tensors_in(vars(value), seen)


def test_a_run_holds_no_tensor_so_the_model_may_move_to_another_device() -> None:
    model: Any = tiny.model()
    with torch.no_grad(), prune(model, plan=PLAN) as run:
        assert list(tensors_in(run)) == []
        model(**tiny.prompts(model))
        assert list(tensors_in(run.trace)) != []
        run.trace.clear()
        run.chooser.finite.found.clear()  # the last scores of each site
        assert list(tensors_in(run)) == []


def test_attention_that_is_switched_in_the_block() -> None:
    model: Any = tiny.make()
    inputs = tiny.prompts(model)
    with torch.no_grad(), prune(model, plan=PLAN):
        model(**inputs)
        model.set_attn_implementation("eager")
        model(**inputs)
        for name in ("flex_attention", "paged|sdpa"):
            model.config.text_config._attn_implementation = name
            with pytest.raises(UnsupportedModel, match=r"of the language model is not .*set_attn_implementation\('sdpa'\)"):
                model(**inputs)


# --- hooks of others --------------------------------------------------------------------------------------------------


@contextmanager
def hooked(module: nn.Module, hook: Any) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def louder(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 1.5


def louder_in_place(module: nn.Module, args: Any, output: Tensor) -> None:
    output.mul_(1.5)


@pytest.mark.parametrize("hook", [louder, louder_in_place])
@pytest.mark.parametrize("texts", [(6,), (6, 9)])
@pytest.mark.parametrize("inference", [False, True])
def test_hooks_of_the_user_count_whenever_they_were_registered(hook: Any, texts: tuple[int, ...], inference: bool) -> None:
    """Their module gives the full length; what they change, in place or not, is what the next layer gets."""
    model: Any = tiny.make()
    inputs, layer = tiny.prompts(model, texts), model.model.language_model.layers[3]
    plain = logits(model, inputs)
    with hooked(layer, louder):
        run = invariants.equals_reference(model, inputs, PLAN, steps=2)
    assert run.dropped
    with hooked(layer, louder):
        want = logits(model, inputs)
    with torch.inference_mode(inference):
        with hooked(layer, hook), prune(model, plan=PLAN):
            before = model(**inputs).logits
        with prune(model, plan=PLAN), hooked(layer, hook):
            after = model(**inputs).logits
    assert (want - plain).abs().max() > 1e-3
    assert torch.equal(before, want)
    assert torch.equal(after, want)


# --- PEFT -------------------------------------------------------------------------------------------------------------


class Low(nn.Module):
    """A linear layer with a low-rank addition, as LoRA puts in the place of one."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        torch.manual_seed(5)
        self.low = nn.Parameter(torch.randn(base_layer.out_features, base_layer.in_features, dtype=base_layer.weight.dtype) * 0.3)

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.base_layer(states) + states @ self.low.t()
        return out


def adapted(model: Any, wrap: bool) -> None:
    """Replace the projections that scores read, or add the same to their weights."""
    for layer in model.model.language_model.layers:
        for name in ("q_proj", "k_proj"):
            low = Low(getattr(layer.self_attn, name))
            if wrap:
                setattr(layer.self_attn, name, low)
            else:
                low.base_layer.weight.data += low.low.data


def test_a_model_wrapped_before_the_block_is_pruned_as_it_is() -> None:
    model: Any = tiny.make()
    inputs, merged = tiny.prompts(model), copy.deepcopy(model)
    adapted(merged, wrap=False)
    adapted(model, wrap=True)
    wrapper: Any = SimpleNamespace(config=model.config, lm_head=model.lm_head, get_base_model=lambda: model)
    want = logits(merged, inputs)
    with torch.no_grad(), prune(wrapper, plan=PLAN) as run:
        got = model(**inputs).logits
    assert run.dropped
    assert (got - want).abs().max() < 1e-9


def test_a_model_wrapped_within_the_block_is_refused() -> None:
    """Scores would be read from the layers that were replaced."""
    model: Any = tiny.make()
    inputs = tiny.prompts(model)
    with torch.no_grad(), prune(model, plan=PLAN):
        model(**inputs)
        adapted(model, wrap=True)
        with pytest.raises(UnsupportedModel, match=r"layer 0 of the language model was replaced .* first, then atp\.prune"):
            model(**inputs)
    with torch.no_grad(), prune(model, plan=Plan("uniform", (Step(Site("language", 1), 0.5),))) as run:
        model(**inputs)
    assert run.dropped


def test_peft_itself() -> None:
    peft = pytest.importorskip("peft")
    model: Any = tiny.make()
    inputs = tiny.prompts(model)
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "k_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, settings).eval()
    with torch.no_grad(), prune(wrapped, plan=PLAN) as run:
        got, said = wrapped(**inputs).logits, wrapped.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert run.forwards == 2
    merged = wrapped.merge_and_unload()
    assert (got - logits(merged, inputs)).abs().max() < 1e-9
    with prune(merged, plan=PLAN):
        assert torch.equal(merged.generate(**inputs, max_new_tokens=3, do_sample=False), said)


# --- threads and copies -----------------------------------------------------------------------------------------------

ONE = r"two threads are inside this model at once.*a lock around"


def in_thread(work: Any) -> Any:
    """What a call gives in a thread of its own, or what it raised there."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    return found[0]


@pytest.mark.parametrize("where", ["tower", "layer"])
def test_a_second_thread_in_a_running_forward_is_refused_and_the_first_is_right(where: str) -> None:
    """Whatever part of the model it calls, and whoever waits for whom."""
    model: Any = tiny.make()
    inputs, other = tiny.prompts(model), tiny.prompts(model, (5,), seed=3)
    want, told = logits(model, inputs), []
    calls = [
        lambda: model(**other),
        lambda: model.model(**other),
        lambda: model.generate(**other, max_new_tokens=2),
        lambda: model.get_image_features(pixel_values=other["pixel_values"]),
        lambda: model.model.language_model(input_ids=torch.tensor([[9, 8]])),
    ]

    def meanwhile(module: nn.Module, args: Any, output: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            told.extend(in_thread(call) for call in calls)

    module = model.model.vision_tower if where == "tower" else model.model.language_model.layers[2]
    with torch.no_grad(), prune(model, plan=PLAN) as run, hooked(module, meanwhile):
        assert torch.equal(model(**inputs).logits, want)
    assert run.forwards == 1
    assert [type(error) for error in told] == [AtpError] * len(calls)
    with pytest.raises(AtpError, match=ONE):
        raise told[0]


def test_a_second_thread_between_tower_and_connector_is_noticed() -> None:
    """`generate` calls both before the model, so nobody is inside for a moment."""
    model: Any = tiny.make()
    inputs, other = tiny.prompts(model), tiny.prompts(model, (5,), seed=3)
    want, told = logits(model, other), []

    def meanwhile(module: nn.Module, args: Any, output: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            told.append(in_thread(torch.no_grad()(lambda: model(**other).logits)))

    with hooked(model.model.vision_tower, meanwhile), prune(model, plan=PLAN), pytest.raises(AtpError, match=ONE):
        model.generate(**inputs, max_new_tokens=2)
    assert torch.equal(told[0], want)


def test_a_lock_around_generate_serves_many_threads_in_one_block() -> None:
    model: Any = tiny.model()
    inputs = [tiny.prompts(model, (length,), seed=length) for length in (3, 5, 7, 9)]
    want, lock = [generated(model, one) for one in inputs], threading.Lock()
    found: dict[int, Tensor] = {}

    def work(number: int) -> None:
        with lock:
            found[number] = model.generate(**inputs[number], max_new_tokens=4, do_sample=False)

    with prune(model, plan=PLAN):
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert all(torch.equal(found[number], want[number]) for number in range(4))


def generated(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """An answer alone in a block."""
    with prune(model, plan=PLAN):
        found: Tensor = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    return found


def test_a_thread_may_go_on_after_an_error_and_after_the_thread_before_it() -> None:
    model: Any = tiny.model()
    inputs = tiny.prompts(model)
    want = logits(model, inputs)
    with torch.no_grad(), prune(model, plan=PLAN):
        with pytest.raises(ValueError, match="do not match"):
            model(**{name: value[:, :3] if value.dim() == 2 else value for name, value in inputs.items()})
        for _ in range(2):
            assert torch.equal(in_thread(torch.no_grad()(lambda: model(**inputs).logits)), want)
        assert torch.equal(torch.nn.DataParallel(model)(**inputs).logits, want)


@pytest.mark.parametrize("turn", ["keep", "reselect"])
def test_conversations_whose_forwards_alternate_are_told_apart_by_their_caches(turn: str) -> None:
    model: Any = tiny.model()
    both = [tiny.prompts(model, (length,), seed=length) for length in (4, 9)]
    want = [logits_by_steps(model, [one], turn)[0] for one in both]
    assert all(torch.equal(got, own) for got, own in zip(logits_by_steps(model, both, turn), want, strict=True))


def logits_by_steps(model: Any, prompts: list[dict[str, Tensor]], turn: str) -> list[Tensor]:
    """Prefill each prompt, then a token of each in turn, three times."""
    with torch.no_grad(), prune(model, plan=PLAN, second_turn=turn):
        outs = [[model(**one, use_cache=True)] for one in prompts]
        for _ in range(3):
            for said in outs:
                said.append(model(input_ids=said[-1].logits[:, -1:].argmax(-1), past_key_values=said[-1].past_key_values))
    return [torch.cat([out.logits[:, -1] for out in said]) for said in outs]


def test_of_two_threads_that_open_a_block_at_once_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have found the model free before either hooked it."""
    from atp.engine import block

    model, both, prepare = tiny.make(), threading.Barrier(2), block._prepare
    left = threading.Event()

    def slow(*given: Any) -> Any:
        made = prepare(*given)
        both.wait(30)
        return made

    def opened() -> int:
        try:
            with prune(model, plan=PLAN) as run, torch.no_grad():
                model(**tiny.prompts(model))
                left.wait(30)
                return run.forwards
        finally:
            left.set()

    monkeypatch.setattr(block, "_prepare", slow)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(in_thread(opened))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(type(one).__name__ for one in found) == [AlreadyPruned.__name__, "int"]


def test_a_model_is_copied_before_or_after_the_block() -> None:
    model: Any = tiny.make()
    said = r"a model inside a `with atp\.prune\(\.\.\.\)` block cannot be copied.*copy it before or after the block"
    with prune(model, plan=PLAN) as run:
        for part in (model, model.model, model.model.vision_tower, run):
            for copied in (copy.deepcopy, pickle.dumps):
                with pytest.raises(AtpError, match=said):
                    copied(part)
        with torch.no_grad():
            model(**tiny.prompts(model))
        assert pickle.loads(pickle.dumps(run.report())) == run.report()
    assert torch.equal(logits(copy.deepcopy(model), tiny.prompts(model)), logits(model, tiny.prompts(model)))
