"""The invariants of pruning, each a function that raises AssertionError where it does not hold. Tests run them over the
registry x tiny models, and show once that each fails on a planted fault."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_layers import GradientCheckpointingLayer

import reference
import tiny
from atp.engine import Run, prune
from atp.plan import Plan

HOOKS_RUN_ONCE = "__call__" not in vars(GradientCheckpointingLayer)
"""Whether checkpointed layers keep hooks out of what runs again: since transformers 5.23."""

Inputs = dict[str, Tensor]


@torch.no_grad()
def decode(model: Any, inputs: Inputs, steps: int) -> tuple[Tensor, Tensor, Any]:
    """Prefill and greedy steps by hand, in the model's own precision: logits `[B, T + steps, V]`, tokens, cache."""
    real = inputs["attention_mask"]
    out = model(**inputs, position_ids=(real.cumsum(1) - 1).clamp(min=0), use_cache=True)
    found, tokens, mask, rows = [out.logits], [], real, torch.arange(len(real))
    logits = out.logits[rows, (real * torch.arange(1, real.shape[1] + 1)).argmax(1)]
    for step in range(steps):
        logits = logits.clone()
        logits[:, tiny.IMAGE] = -torch.inf
        token = logits.argmax(-1, keepdim=True)
        tokens.append(token)
        mask = torch.cat([mask, torch.ones_like(token)], 1)
        out = model(
            input_ids=token, attention_mask=mask, position_ids=real.sum(1, keepdim=True) + step,
            past_key_values=out.past_key_values, use_cache=True,
        )  # fmt: skip
        found.append(out.logits)
        logits = out.logits[:, -1]
    answer = torch.cat(tokens, 1) if tokens else real.new_zeros(len(real), 0)
    return torch.cat(found, 1), answer, out.past_key_values


def readable(inputs: Inputs, answer: Tensor) -> Tensor:
    """Places whose logits mean something whatever was pruned: text and answer, no padding."""
    ids = torch.cat([inputs["input_ids"], answer], 1)
    return torch.cat([inputs["attention_mask"], torch.ones_like(answer)], 1).bool() & (ids != tiny.IMAGE)


def equals_reference(model: Any, inputs: Inputs, plan: Plan, tolerance: float = 1e-9, steps: int = 10, **options: Any) -> Run:
    """Pruned = slow masked reference, at prefill and at every decode step."""
    with prune(model, plan=plan, **options) as run:
        got, answer, _ = decode(model, inputs, steps)
    want = reference.logits(model, inputs, run.trace, answer)
    error = (got - want)[readable(inputs, answer)].abs().max()
    assert error <= tolerance, f"differs from the masked reference by {error:.2e}"
    return run


def keep_all_is_identical(model: Any, inputs: Inputs, plan: Plan, steps: int = 5) -> None:
    """A plan that keeps everything changes no bit of prefill, decode steps and generated tokens."""
    want, said, _ = decode(model, inputs, steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with prune(model, plan=plan, record_all_scores=True) as run:
            got, answer, _ = decode(model, inputs, steps)
            written = model.generate(**inputs, max_new_tokens=steps, do_sample=False)
    assert run.dropped == 0
    assert torch.equal(got, want), "logits changed"
    assert torch.equal(answer, said), "tokens changed"
    assert torch.equal(written, model.generate(**inputs, max_new_tokens=steps, do_sample=False)), "generate changed"


def batch_equals_singles(model: Any, inputs: Inputs, plan: Plan, images: tuple[int, ...], tolerance: float = 1e-9) -> None:
    """Every prompt of a batch keeps, says and answers what it does alone."""
    with prune(model, plan=plan) as run:
        logits, answer, _ = decode(model, inputs, 4)
        together = run.trace.last("language")
        towers = run.trace.last("vision")
    rows = readable(inputs, answer)
    first = 0
    for row, count in enumerate(images):
        one = tiny.single(inputs, row, images)
        with prune(model, plan=plan) as run:
            alone, said, _ = decode(model, one, 4)
        for batch, single in zip(together, run.trace.last("language"), strict=True):
            assert torch.equal(batch.kept[row], single.kept[0]), f"prompt {row} keeps others alone at language:{batch.layer}"
        for batch, single in zip(towers, run.trace.last("vision"), strict=True):
            for image in range(count):
                assert torch.equal(batch.kept[first + image], single.kept[image]), f"image {first + image} keeps others alone"
        assert torch.equal(answer[row], said[0]), f"prompt {row} answers otherwise alone"
        error = (logits[row][rows[row]] - alone[0][readable(one, said)[0]]).abs().max()
        assert error <= tolerance, f"prompt {row} differs alone by {error:.2e}"
        first += count


def cache_keeps_its_lengths(model: Any, inputs: Inputs, plan: Plan, steps: int = 10) -> None:
    """Physical length = largest kept + n, logical = T + n; crop, reorder and repeat keep both."""
    length = inputs["input_ids"].shape[1]
    text = (inputs["attention_mask"].bool() & (inputs["input_ids"] != tiny.IMAGE)).sum(1)
    with prune(model, plan=plan) as run:
        _, _, cache = decode(model, inputs, steps)
    started = (inputs["input_ids"] == tiny.IMAGE).sum(1)
    now = torch.tensor([len(one) for one in reference.arrived(model, run.trace, started.tolist())])
    kept = run.trace.kept("language")
    expected = []
    for layer in range(len(cache.layers)):
        now = torch.tensor(kept.get(layer, now.tolist()))
        whole = layer < min([*kept, len(cache.layers)]) and torch.equal(now, started)
        expected.append(length if whole else int((now + text).max()))

    def check(extra: int, batch: int) -> None:
        for index, layer in enumerate(cache.layers):
            assert layer.keys.shape[0] == layer.values.shape[0] == batch, f"layer {index} has another batch"
            assert layer.keys.shape[-2] == expected[index] + extra, f"layer {index} stores {layer.keys.shape[-2]}"
            assert layer.get_seq_length() == length + extra, f"layer {index} says {layer.get_seq_length()}"

    batch = len(started)
    check(steps, batch)
    cache.crop(-3)
    check(steps - 3, batch)
    cache.reorder_cache(torch.arange(batch - 1, -1, -1))
    check(steps - 3, batch)
    cache.batch_repeat_interleave(2)
    check(steps - 3, 2 * batch)
    cache.batch_select_indices(torch.tensor([0]))
    check(steps - 3, 1)
    cache.reset()
    assert all(layer.get_seq_length() == 0 for layer in cache.layers)


def counted_flops_are_true(model: Any, inputs: Inputs, plan: Plan, answer: int = 3, tolerance: float = 0.01) -> None:
    """FLOPs of the report = those that torch counts under the MATH backend."""

    def measure() -> int:
        learned = [one for one in model.parameters() if one.requires_grad]
        model.requires_grad_(False)  # the counter stumbles over views of a parameter that are a module's input
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model.generate(**inputs, max_new_tokens=answer, do_sample=False)
        for one in learned:
            one.requires_grad_(True)
        total: int = counter.get_total_flops()
        return total

    full = measure()
    with prune(model, plan=plan) as run:
        pruned = measure()
    report = run.report()
    for name, counted, true in (("unpruned", report.flops_unpruned.total, full), ("pruned", report.flops.total, pruned)):
        assert abs(counted / true - 1) <= tolerance, f"{name}: counted {counted:.4g}, torch says {true:.4g}"


def fingerprint(model: Any) -> dict[str, Any]:
    """Everything about a model that pruning might leave behind."""
    hooks = {
        name: tuple(
            tuple(map(id, getattr(module, kind).values()))
            for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_always_called")
            if hasattr(getattr(module, kind), "values")
        )
        for name, module in model.named_modules()
    }
    return {
        "hooks": hooks,
        "always": {name: len(module._forward_hooks_always_called) for name, module in model.named_modules()},
        "config": model.config.to_dict(),
        "state": {name: value.data_ptr() for name, value in model.state_dict().items()},
        "classes": {name: (type(module), "forward" in vars(module)) for name, module in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
    }


def leaves_no_trace(model: Any, inputs: Inputs, plan: Plan, fail: bool = False) -> None:
    """After exit, by the end or by an exception, the model is what it was and computes the same bits."""
    want = model.generate(**inputs, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True)
    before = fingerprint(model)
    try:
        with prune(model, plan=plan):
            model.generate(**inputs, max_new_tokens=3, do_sample=False)
            if fail:
                raise KeyError("planned")
    except KeyError:
        assert fail
    after = fingerprint(model)
    for key, value in before.items():
        assert after[key] == value, f"{key} changed"
    got = model.generate(**inputs, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True)
    assert torch.equal(torch.stack(got.logits), torch.stack(want.logits)), "logits changed"
