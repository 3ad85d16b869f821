"""Sizes by name: ids that the checkpoints publish, and fewer layers of the same widths."""

from __future__ import annotations

import pytest

from atp.adapters import adapt
from atp.adapters.architectures import configuration, skeleton
from atp.errors import BadInput


@pytest.mark.parametrize("name", ["smolvlm-256m", "smolvlm-2.2b"])
def test_image_id_of_smolvlm(name: str) -> None:
    """`<image>` is 49190 in SmolVLM-256M/500M and SmolVLM2: 49152 words, <global-img>, 36 tile names, the fake token (49189)."""
    made = configuration(name)
    assert made.image_token_id == 49152 + 1 + 36 + 1
    assert made.text_config.vocab_size == 49280


def test_parameters_are_those_of_the_name() -> None:
    """256 million, its head not tied; 893 for what is called 0.5b after its language model."""
    assert sum(weight.numel() for weight in skeleton("smolvlm-256m").parameters()) == 256_484_928
    assert sum(weight.numel() for weight in skeleton("llava-onevision-0.5b").parameters()) == 893_675_552


def test_half_depth_has_half_of_the_layers() -> None:
    full, half = (adapt(skeleton("blip2-opt-2.7b", depth=depth)).shape for depth in (1.0, 0.5))
    assert (full.vision.layers, full.language.layers) == (39, 32)
    assert (half.vision.layers, half.language.layers) == (20, 16)
    assert half.vision.hidden == full.vision.hidden and half.visual == full.visual
    qwen = skeleton("llava-onevision-0.5b", depth=0.5)
    assert len(qwen.config.text_config.layer_types) == adapt(qwen).shape.language.layers == 12


@pytest.mark.parametrize(
    ("name", "depth", "says"),
    [
        ("blip2-opt-2.7b", 0.0, "share of the layers in"),
        ("qwen2.5-vl-7b", 0.5, "names layers up to 31 that --depth 0.5 leaves out; use --depth 1"),
        ("llama-3.2-11b-vision", 0.9, "names layers up to 30"),
    ],
)
def test_a_depth_that_cannot_be(name: str, depth: float, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        configuration(name, depth)
