"""The subset store by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atp.cache import Columns, SubsetStore
from atp.errors import AtpError


def states(count: int, start: int = 0, batch: int = 2) -> Tensor:
    """Keys whose values are their numbers."""
    return torch.arange(start, start + count, dtype=torch.float32).view(1, 1, count, 1).expand(batch, 1, count, 1)


def filled() -> SubsetStore:
    """Six tokens of which the second row lacks one more; then two more whole ones."""
    store = SubsetStore()
    columns = Columns(torch.tensor([[0, 2, 3, 5], [1, 2, 3, 5]]), torch.tensor([[True] * 4, [False, True, True, True]]))
    store.announce(6, columns)
    store.update(states(4), states(4))
    store.announce(2)
    store.update(states(2, 10), states(2, 10))
    return store


def test_lengths_are_logical() -> None:
    store = filled()
    assert (store.get_seq_length(), store.stored, store.get_mask_sizes(3)) == (8, 6, (11, 0))
    columns = store.columns(2, torch.device("cpu"))
    assert columns.positions.tolist() == [[0, 2, 3, 5, 6, 7], [1, 2, 3, 5, 6, 7]]
    assert columns.valid is not None
    assert columns.valid.tolist() == [[True] * 6, [False] + [True] * 5]


def test_a_plain_store_is_a_dynamic_layer() -> None:
    store = SubsetStore()
    store.update(states(3), states(3))
    keys, _ = store.update(states(1, 3), states(1, 3))
    assert keys.flatten(1)[0].tolist() == [0, 1, 2, 3]
    assert store.columns(2, torch.device("cpu")).positions.tolist() == [[0, 1, 2, 3]] * 2


def test_an_unannounced_update_is_refused() -> None:
    with pytest.raises(AtpError, match=r"continue inside the same `with atp\.prune"):
        filled().update(states(1), states(1))


def test_an_update_of_another_size_is_refused() -> None:
    store = filled()
    store.announce(2)
    with pytest.raises(AtpError, match="expected 2 new columns and got 3"):
        store.update(states(3), states(3))


def test_crop_of_the_tail_and_into_the_subset() -> None:
    store = filled()
    store.crop(-1)
    assert (store.seen, store.stored) == (7, 5)
    store.crop(-3)  # logical tokens 4, 5, 6 go: column 5 of both rows, and the tail
    assert (store.seen, store.stored) == (4, 3)
    columns = store.columns(2, torch.device("cpu"))
    assert columns.positions.tolist() == [[0, 2, 3], [1, 2, 3]]
    store.crop(-2)  # row 0 keeps column 0, row 1 only its masked padding
    assert store.columns(2, torch.device("cpu")).positions.tolist() == [[0], [1]]
    assert store.columns(2, torch.device("cpu")).valid.tolist() == [[True], [False]]  # type: ignore[union-attr]
    store.crop(-9)
    assert (store.seen, store.stored, store.base) == (0, 0, None)
    with pytest.raises(ValueError, match="use -2"):
        store.crop(2)


def test_rows_of_the_batch_move_together() -> None:
    store = filled()
    store.reorder_cache(torch.tensor([1, 0]))
    assert store.columns(2, torch.device("cpu")).positions[0].tolist() == [1, 2, 3, 5, 6, 7]
    store.batch_repeat_interleave(2)
    assert store.columns(4, torch.device("cpu")).positions[:, 0].tolist() == [1, 1, 0, 0]
    assert store.keys is not None
    assert store.keys.shape[0] == 4
    store.batch_select_indices(torch.tensor([0, 3]))
    assert store.columns(2, torch.device("cpu")).valid[:, 0].tolist() == [False, True]  # type: ignore[index]


def test_columns_are_shared_by_layers() -> None:
    columns = Columns(torch.tensor([[0, 2], [1, 2]]), None)
    index = torch.tensor([1, 0])
    assert columns.select(index) is columns.select(index)
    assert columns.extend(4, 2) is columns.extend(4, 2)
    assert columns.extend(4, 3).positions.tolist() == [[0, 2, 4, 5, 6], [1, 2, 4, 5, 6]]


def test_reset_starts_anew() -> None:
    store = filled()
    store.reset()
    store.update(states(2), states(2))
    assert (store.seen, store.stored) == (2, 2)
