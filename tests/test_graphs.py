"""A model that is pruned by a plan of fixed counts is one graph: `torch.compile(fullgraph=True)` and `torch.export`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

import tiny
from atp.adapters import ADAPTERS, adapter_class
from atp.engine import prune
from atp.errors import UnsupportedModel
from atp.methods.base import largest
from atp.plan import Plan
from conformance.test_families import plan_of
from families import FAMILIES


@pytest.fixture(autouse=True)
def _one_compilation() -> Iterator[None]:
    """A second compilation of the same graph is an error."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


@cache
def model_of(name: str) -> Any:
    return tiny.make(dtype=torch.float32) if name == "llava" else FAMILIES[name].make(dtype=torch.float32)


def inputs_of(name: str, prompts: int, seed: int) -> Any:
    """Prompts of equal length: a graph has one shape."""
    model, texts = model_of(name), (6,) * prompts
    if name == "llava":
        return tiny.prompts(model, texts, seed=seed)
    return FAMILIES[name].inputs(model, texts=texts, images=(1,) * prompts, seed=seed)


def plan(name: str, method: str) -> Plan:
    return tiny.plan(method) if name == "llava" else plan_of(model_of(name), method)


def compiled(model: Any, fullgraph: bool = True) -> Any:
    return torch.compile(model, fullgraph=fullgraph, backend="eager")


ABLE = [
    name
    for name, family in FAMILIES.items()
    if family.model_type in ADAPTERS and adapter_class(family.model_type).graphs and "pixtral" not in name
]
"""Families whose adapters say that a call is one graph."""


@pytest.mark.parametrize(
    ("name", "method", "prompts"), [("llava", "atp", 1), ("llava", "fastv", 2), *((name, "atp", 2) for name in ABLE)]
)
def test_one_graph_computes_what_the_hooks_compute(name: str, method: str, prompts: int) -> None:
    """On other inputs of the same shape too, and nothing of them is remembered."""
    model, batches = model_of(name), [inputs_of(name, prompts, seed) for seed in (1, 2)]
    with torch.no_grad():
        whole = model(**batches[0]).logits
        with prune(model, plan=plan(name, method), strict=True) as run:
            graph = compiled(model)
            got = [graph(**inputs, use_cache=False).logits for inputs in batches]
            assert (run.forwards, run.dropped, run.trace.records, run.report().prompts) == (0, 0, [], 0)
        with prune(model, plan=plan(name, method), strict=True):
            want = [model(**inputs, use_cache=False).logits for inputs in batches]
    for mine, theirs in zip(got, want, strict=True):
        assert torch.equal(mine, theirs)
    assert (got[0] - whole).abs().max() > 1e-4, "pruning changed nothing"


def test_a_graph_fills_a_cache_that_decoding_goes_on_with() -> None:
    model, inputs, token = model_of("llava"), inputs_of("llava", 1, 1), torch.tensor([[9]])
    with torch.no_grad(), prune(model, plan=tiny.plan("atp")):
        got = compiled(model)(**inputs, use_cache=True)
        want = model(**inputs, use_cache=True)
        assert got.past_key_values.get_seq_length() == inputs["input_ids"].shape[1]
        assert got.past_key_values.layers[-1].keys.shape == want.past_key_values.layers[-1].keys.shape
        steps = [model(input_ids=token, past_key_values=out.past_key_values).logits for out in (got, want)]
    assert torch.equal(*steps)


@pytest.mark.parametrize(("name", "prompts"), [("llava", 1), ("paligemma", 2)])
def test_an_exported_program_outlives_the_block(name: str, prompts: int) -> None:
    model, batches = model_of(name), [inputs_of(name, prompts, seed) for seed in (1, 2)]
    with torch.no_grad(), prune(model, plan=plan(name, "atp")) as run:
        want = [model(**inputs, use_cache=False).logits for inputs in batches]
        remembered = len(run.trace.records)
        program = torch.export.export(model, (), {**batches[0], "use_cache": False})
        assert len(run.trace.records) == remembered
    with torch.no_grad():
        for inputs, logits in zip(batches, want, strict=True):
            assert torch.equal(program.module()(**inputs, use_cache=False).logits, logits)


def test_a_graph_takes_no_padding_and_no_other_share_of_images() -> None:
    """Both would need another shape; the graph says so instead of computing something else."""
    model = model_of("llava")
    batch = tiny.prompts(model, (6, 6))
    ids, size = batch["input_ids"], tiny.PATCHES
    uneven, padded = {**batch, "input_ids": ids.clone()}, {**batch, "attention_mask": batch["attention_mask"].clone()}
    uneven["input_ids"][0, 2], uneven["input_ids"][1, 2 + size] = 9, tiny.IMAGE
    padded["attention_mask"][0, 0] = 0
    with torch.no_grad(), prune(model, plan=tiny.plan("uniform")):
        graph = compiled(model)
        graph(**batch, use_cache=False)
        for bad in (uneven, padded):
            with pytest.raises(RuntimeError, match=r"without padding that have equally many visual tokens each; call it on one"):
                graph(**bad, use_cache=False)


def test_counts_by_threshold_are_no_graph() -> None:
    model, inputs, match = model_of("llava"), inputs_of("llava", 1, 1), "use a plan without thresholds"
    with torch.no_grad(), prune(model, plan=tiny.plan("atp", adaptive=True)):
        with pytest.raises(torch._dynamo.exc.Unsupported, match=match):
            compiled(model)(**inputs, use_cache=False)
        torch._dynamo.reset()
        with pytest.raises(UnsupportedModel, match=match):
            compiled(model, fullgraph=False)(**inputs, use_cache=False)
        with pytest.raises(UnsupportedModel, match=match):
            torch.export.export(model, (), {**inputs, "use_cache": False})
        assert model(**inputs).logits.isfinite().all()


def test_a_greedy_loop_is_no_graph() -> None:
    counts, match = torch.tensor([3, 5]), "chooses in a loop .* use method='atp'"
    with pytest.raises(torch._dynamo.exc.Unsupported, match=match):
        compiled(largest)(counts)
    torch._dynamo.reset()
    with pytest.raises(UnsupportedModel, match=match):
        compiled(largest, fullgraph=False)(counts)
    assert largest(counts) == 5


@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_family_whose_sizes_are_read_on_the_host_is_no_graph(fullgraph: bool) -> None:
    family = FAMILIES["qwen2_vl"]
    model = family.make(dtype=torch.float32)
    inputs = family.single(family.inputs(model), 0)
    error: Any = torch._dynamo.exc.Unsupported if fullgraph else UnsupportedModel
    with torch.no_grad(), prune(model, plan=plan_of(model, "atp")):
        with pytest.raises(error, match=r"reads the sizes of images on the host.* call it without torch\.compile"):
            compiled(model, fullgraph)(**inputs, use_cache=False)
        assert model(**inputs).logits.isfinite().all()
