"""LVPruning and token dropping: scores from weights, and what they say without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import sample
from atp.errors import InvalidPlan
from atp.methods.lvpruning import Block, LVPruning, Scorer
from atp.methods.tokendrop import TokenDrop, blank, save, update


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


def test_lvpruning_keeps_by_probability_and_needs_the_site(tmp_path: Path) -> None:
    path = tmp_path / "scorer.safetensors"
    scorer = Scorer(16, 8)
    save_file({f"2.{name}": value for name, value in scorer.state_dict().items()}, str(path))
    made = sample.tokens()
    want = scorer(made.hidden.float(), made.text.hidden.float(), made.text.valid).softmax(2)[..., 0]
    torch.testing.assert_close(LVPruning(str(path)).score(made), want)
    with pytest.raises(InvalidPlan, match="no module for language:3; use sites among language:2"):
        LVPruning(str(path)).score(sample.tokens(layer=3))


@pytest.mark.parametrize("content", [None, b"nothing", {"a": torch.ones(1)}, {"2.head.weight": torch.ones(2, 8)}])
def test_lvpruning_says_what_weights_it_wants(tmp_path: Path, content: object) -> None:
    path = tmp_path / "other.safetensors"
    if isinstance(content, dict):
        save_file(content, str(path))
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(InvalidPlan, match=r"needs weights=|holds no modules of 'lvpruning'"):
        LVPruning(str(path)).score(sample.tokens())


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
    with pytest.raises(InvalidPlan, match=r"use Step\(kinds=\('text',\)\)"):
        small.score(sample.tokens(ids=None))
