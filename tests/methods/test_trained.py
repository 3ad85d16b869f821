"""The gate, LVPruning and token dropping: scores from weights, and what they say without."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import sample
import tiny
from atp.engine import prune
from atp.errors import InvalidPlan
from atp.methods import METHODS, Method
from atp.methods import weights as files
from atp.methods.gate import Gate
from atp.methods.lvpruning import Block, LVPruning, Scorer
from atp.methods.tokendrop import TokenDrop, blank, save, update
from atp.plan import Plan, Site, Step
from gate import parts


def test_a_scorer_has_two_blocks_of_cross_attention() -> None:
    """The paper's formulas: O = softmax(Q K / sqrt(d)) U + Q, then norm, linear to 2C, SiLU, linear to C, norm; logits [N, 2]."""
    torch.manual_seed(0)
    block = Block(16, 16, 24).double()
    vision, text = torch.randn(1, 9, 16).double(), torch.randn(1, 5, 16).double()
    valid = torch.tensor([[True, True, False, True, False]])
    query, heads = vision[0] @ block.query.weight.T, []
    key, value = (text[0, valid[0]] @ part.weight.T for part in (block.key, block.value))
    for head in range(8):
        part = slice(3 * head, 3 * head + 3)
        heads.append((query[:, part] @ key[:, part].T / 3**0.5).softmax(1) @ value[:, part])
    norm, up, act, down, last = block.feed
    want = last(down(act(up(norm(torch.cat(heads, 1) + query)))))
    torch.testing.assert_close(block(vision, text, valid)[0], want)
    scorer = Scorer(16, 24)
    assert scorer(vision.float(), text.float(), valid).shape == (1, 9, 2)
    feed = 24 * 48 * 2 + 48 + 24 + 4 * 24
    assert sum(p.numel() for p in scorer.parameters()) == 3 * 16 * 24 + feed + (24 * 24 + 2 * 16 * 24) + feed + 48


MARK = files.Mark("a", (0.5, -1.0))
WIDTHS = {"vision": 16, "language": 16}
SITE = Site("language", 2)


def test_lvpruning_keeps_by_probability_and_needs_the_site(tmp_path: Path) -> None:
    path = parts.write(tmp_path / "w.safetensors", "lvpruning", [SITE], WIDTHS, MARK)
    made, scorer = sample.tokens(), parts.modules_of("lvpruning", [SITE], WIDTHS)[str(SITE)]
    want = scorer(made.hidden.float(), made.text.hidden.float(), made.text.valid).softmax(2)[..., 0]
    torch.testing.assert_close(LVPruning(str(path)).score(made), want)
    with pytest.raises(InvalidPlan, match="no module for language:3; use sites among language:2"):
        LVPruning(str(path)).score(sample.tokens(layer=3))


@pytest.mark.parametrize("method", [Gate, LVPruning])
@pytest.mark.parametrize("content", [None, b"nothing", {"a": torch.ones(1)}, "tokendrop", "cut"])
def test_it_says_what_weights_it_wants(method: type[Method], tmp_path: Path, content: object) -> None:
    path = tmp_path / "other.safetensors"
    if isinstance(content, dict):
        save_file(content, str(path))
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "cut":
        files.save(
            path, files.Header(method.name, MARK, ("language:2",), {"rank": 3, "width": 8}), {"language:2.x": torch.ones(1)}
        )
    elif content:
        files.save(path, files.Header("tokendrop", MARK, (), {}), {})
    says = r"needs weights=|holds no modules of '(gate|lvpruning)'|is damaged"
    with pytest.raises(InvalidPlan, match=rf"({says}).*atp train-gate"):
        method(weights=str(path))  # type: ignore[call-arg]


def test_a_gate_corrects_the_saliency_of_atp(tmp_path: Path) -> None:
    """The formula written out: log saliency + perceptron of states, their mean, the question, saliencies and place; mean 1."""
    path = parts.write(tmp_path / "w.safetensors", "gate", [SITE], WIDTHS, MARK)
    made, module = sample.tokens("dead"), parts.modules_of("gate", [SITE], WIDTHS)[str(SITE)]
    scores = Gate(str(path)).score(made)
    row, alive = 1, made.alive[1]

    def norm(states: torch.Tensor) -> torch.Tensor:
        wide = states.float()
        return (wide - wide.mean(-1, keepdim=True)) / (wide.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()

    atp = METHODS.get("atp")()
    inter = atp.score(dataclasses.replace(made, rows={"question": made.rows["question"]}))[row]
    both = torch.stack([inter, 2 * atp.score(made)[row] - inter], 1).clamp(min=1e-4).log().float()
    states = norm(made.hidden[row]) @ module.token.weight.T
    asked = norm(made.text.hidden[row][made.text.asks[row]]).mean(0) @ module.question.weight.T
    place = (2 * made.position[row] + 1) / 6 - 1
    features = torch.cat([states, states[alive].mean(0).expand(36, -1), asked.expand(36, -1), states * asked, both, place], 1)
    found = (
        torch.nn.functional.gelu(features @ module.inner.weight.T + module.inner.bias) @ module.out.weight[0] + module.out.bias
    )
    want = (atp.score(made)[row].clamp(min=1e-4).log() + found)[alive].softmax(0) * alive.sum()
    torch.testing.assert_close(scores[row][alive].double(), want, rtol=1e-4, atol=1e-6)


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    modules = parts.modules_of("gate", [SITE, Site("vision", 1)], WIDTHS)
    notes = {"steps": 3, "held-out": {"budget 0.6": 0.1}}
    header = files.Header("gate", MARK, ("vision:1", "language:2"), {"rank": 3, "width": 8}, {"torch": "2"}, notes)
    files.save(tmp_path / "a.safetensors", header, modules.state_dict())
    again, tensors = files.load(tmp_path / "a.safetensors", "gate")
    assert again == header
    assert tensors.keys() == modules.state_dict().keys()
    assert all(torch.equal(tensors[name], value) for name, value in modules.state_dict().items())
    files.save(tmp_path / "b.safetensors", again, tensors)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize("method", ["gate", "lvpruning"])
def test_weights_of_another_model_are_refused(method: str, tmp_path: Path) -> None:
    own = tiny.model()
    path = str(parts.written(tmp_path / "w.safetensors", method, own, [SITE]))
    with prune(own, method=method, budget=0.9, weights=path) as run:
        assert [str(step.site) for step in run.plan.steps if step.site.stack == "language"] == ["language:2"]
    with prune(own, plan=Plan(method, (Step(SITE, 0.5),), {"weights": path})):
        pass
    for other, says in ((tiny.model(seed=1), "the same sizes but other weights"), (tiny.model(layers=4), "other sizes")):
        plan = Plan(method, (Step(SITE, 0.5),), {"weights": path})
        with (
            pytest.raises(InvalidPlan, match=f"another model: this one has {says}.*atp train-gate --kind {method}"),
            prune(other, plan=plan),
        ):
            pass


@pytest.mark.parametrize("coverage", [-0.1, 1.5, True])
def test_coverage_is_a_share(coverage: float) -> None:
    with pytest.raises(InvalidPlan, match=r"coverage is a share in \[0, 1\]"):
        Gate("none", coverage)


def test_importance_is_a_running_mean_of_losses() -> None:
    """I <- .995 I + .005 x mean loss where an id occurs; from 10; special ids stay at 1e4 (the authors' constants)."""
    table = blank(6, special=[0])
    found = update(table, torch.tensor([[1, 1, 3], [0, 3, 3]]), torch.tensor([[2.0, 4.0, 1.0], [9.0, 2.0, 3.0]]))
    torch.testing.assert_close(found, torch.tensor([1e4, 0.995 * 10 + 0.005 * 3, 10.0, 0.995 * 10 + 0.005 * 2, 10.0, 10.0]))


def test_tokendrop_ranks_ids_and_keeps_special_ones(tmp_path: Path) -> None:
    table = update(blank(50, special=[7]), torch.arange(50), torch.arange(50.0))
    save(table, tmp_path / "table.safetensors")
    method = TokenDrop(str(tmp_path / "table.safetensors"))
    made = sample.tokens(ids=torch.tensor([[1, 7, 40, 3], [49, 48, 2, 7]]), alive=torch.ones(2, 4, dtype=torch.bool))
    keep = method.select(method.score(made), made, torch.tensor([2, 2]))
    assert keep.int().tolist() == [[0, 1, 1, 0], [1, 0, 0, 1]]


def test_tokendrop_says_what_it_wants(tmp_path: Path) -> None:
    with pytest.raises(InvalidPlan, match=r"needs table=.*blank\(vocab\)"):
        TokenDrop()
    (tmp_path / "bad").write_bytes(b"x")
    with pytest.raises(InvalidPlan, match="no table of importances"):
        TokenDrop(str(tmp_path / "bad")).score(sample.tokens())
    save(blank(3), tmp_path / "small")
    small = TokenDrop(str(tmp_path / "small"))
    with pytest.raises(InvalidPlan, match="has 3 ids, the prompt has id 9"):
        small.score(sample.tokens(ids=torch.full((3, 36), 9)))
    with pytest.raises(InvalidPlan, match=r"use Step\(site, keep=1.0, text=0.5\)"):
        small.score(sample.tokens(ids=None))
