"""Pictures: kept patches untouched, dropped ones dark and tinted, one panel a site."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from atp.explain import Stage, Story, overlay
from atp.explain.overlay import paint, stage_colors

STORY = Story((2, 2), (Stage("vision", 1, (0, 1, 3)), Stage("language", 1, (0, 3)), Stage("language", 3, (3,))))


def test_kept_is_bright_and_dropped_is_dark() -> None:
    image = Image.new("RGB", (40, 40), (200, 180, 160))
    colors = stage_colors(STORY.stages)
    painted = np.asarray(paint(image, STORY.left_at(), colors)).astype(int)
    assert painted[35, 35].tolist() == [200, 180, 160], "number 3 stayed"
    for place in ((5, 5), (5, 35), (35, 5)):
        assert painted[place].mean() < 160
    blue = painted[35, 5]
    assert blue[2] > blue[0], "number 2 left in the tower"
    red = painted[5, 5]
    assert red[0] > red[2], "number 0 left in the language model"


def test_colours_differ_by_site() -> None:
    assert len(set(stage_colors(STORY.stages))) == 3


@pytest.mark.parametrize("size", [(224, 224), (300, 80), (20, 400)])
@pytest.mark.parametrize("stages", [0, 1, 3])
def test_any_shape_and_number_of_sites(size: tuple[int, int], stages: int) -> None:
    drawn = overlay(Image.new("RGB", size), Story((2, 2), STORY.stages[:stages]), title="a " * 300)
    assert drawn.mode == "RGB"
    assert drawn.width == 882


def test_box_cuts_what_the_model_does_not_see() -> None:
    image = Image.new("RGB", (100, 50), (0, 0, 255))
    image.paste((255, 0, 0), (25, 0, 75, 50))
    drawn = np.asarray(overlay(image, Story((2, 2), ()), (25, 0, 75, 50)))
    assert not (drawn == (0, 0, 255)).all(axis=-1).any()
    assert (drawn == (255, 0, 0)).all(axis=-1).any()
