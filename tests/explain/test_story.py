"""Stories read from a hand-made trace."""

from __future__ import annotations

import pytest
import torch

from atp.errors import BadInput
from atp.explain import Stage, Story, story
from atp.trace import Record, Trace


def record(
    stack: str, layer: int, keep: list[list[int]], forward: int = 0, size: int = 6, rows: list[int] | None = None
) -> Record:
    """A record in which each row keeps the given numbers."""
    mask = torch.zeros(len(keep), size, dtype=torch.bool)
    for row, numbers in enumerate(keep):
        mask[row, numbers] = True
    index = rows if rows is not None else list(range(len(keep)))
    return Record(forward, stack, layer, index, [size] * len(keep), [len(k) for k in keep], mask, None, torch.ones_like(mask))


def test_one_image_through_both_stacks() -> None:
    trace = Trace([record("vision", 2, [[0, 1, 2, 4]]), record("language", 1, [[1, 4]])], [(2, 3)], [0])
    told = story(trace)
    assert told == Story((2, 3), (Stage("vision", 2, (0, 1, 2, 4)), Stage("language", 1, (1, 4))))
    assert told.left_at().tolist() == [[1, -1, 1], [0, -1, 0]]
    assert [stage.label for stage in told.stages] == ["tower layer 2", "language layer 1"]


def test_only_the_last_forward_counts() -> None:
    trace = Trace([record("vision", 2, [[0]]), record("vision", 2, [[5]], forward=1)], [(2, 3)], [0])
    assert [stage.kept for stage in story(trace).stages] == [(5,)]


def test_second_image_of_a_prompt_starts_behind_the_first() -> None:
    trace = Trace([record("language", 1, [[0, 5, 7, 11]], size=12)], [(2, 3), (2, 3)], [0, 0])
    assert story(trace, 0).stages[0].kept == (0, 5)
    assert story(trace, 1).stages[0].kept == (1, 5)


def test_images_of_two_prompts_have_their_own_rows() -> None:
    trace = Trace([record("vision", 1, [[0], [1]]), record("language", 1, [[2], [3]])], [(2, 3), (2, 3)], [0, 1])
    assert [stage.kept for stage in story(trace, 1).stages] == [(1,), (3,)]


def test_nothing_pruned_is_a_story_without_stages() -> None:
    assert (story(Trace([], [(2, 3)], [0])).left_at() == -1).all()


@pytest.mark.parametrize("image", [-1, 1])
def test_no_such_image(image: int) -> None:
    with pytest.raises(BadInput, match="has seen 1 images"):
        story(Trace([], [(2, 3)], [0]), image)


def test_no_forward_yet() -> None:
    with pytest.raises(BadInput, match=r"has seen 0 images.*model\.generate inside"):
        story(Trace())
