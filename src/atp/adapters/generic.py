"""Any model whose visual tokens stand among the text tokens of one Llama-like decoder: its language model only, on request.

Nobody has tried the family, so parts are found by their usual names, whatever is unusual is refused, and the engine compares the
first call with the unhooked model.
"""

from __future__ import annotations

import sys
from typing import Any, ClassVar

import torch
from torch import nn

from atp.adapters.base import Args, Images, Kwargs, named
from atp.adapters.scattered import Scattered, check_attention, check_devices, text_shape
from atp.adapters.views import Decoder
from atp.budget.shape import ModelShape, StackShape
from atp.errors import UnsupportedModel

TEXTS = ("language_model", "text_model", "llm")
INNER = ("", "model", "decoder", "model.decoder")
IMAGE_IDS = ("image_token_id", "image_token_index")
NOMINAL = 256
"""Visual tokens of an image where the configuration does not say; chosen."""


class Usual(Decoder):
    """Decoder layers of a family that nobody has tried."""

    def projections(self, layer: int) -> tuple[nn.Module, nn.Module]:
        module = sys.modules[type(self.layers[layer]).__module__]
        half, probe = getattr(module, "rotate_half", None), torch.arange(8.0)
        if half is None or not torch.equal(half(probe), torch.cat([-probe[4:], probe[:4]])):
            raise UnsupportedModel(
                f"{type(self.layers[layer]).__name__} turns its phases in a way that the generic adapter does not know, so "
                "nothing can be scored by its attention; use method='uniform' or method='random'"
            )
        return super().projections(layer)

    def mixer(self, layer: int) -> nn.Module | None:
        return None  # what else mixes rows nobody knows


class Generic(Scattered):
    """A model of a type without an adapter of its own."""

    stacks: ClassVar[tuple[str, ...]] = ("language",)
    checks: ClassVar[bool] = True
    limits: ClassVar[tuple[str, ...]] = (
        "Llama-like layers only",
        "no videos",
        "FLOPs are those of the language model",
        "checks itself first: the first prompt runs four more times",
    )

    def __init__(self, model: nn.Module) -> None:
        owner: Any = model
        self.model = self.top = model
        self.config = owner.config
        self.base, self.text = find(model)
        check_attention(self.text.config, self.text.config)
        check_devices(model)
        self.build()

    def build(self) -> None:
        text: Any = self.text
        sizes = language_shape(text)
        visual = getattr(self.config, "image_seq_length", None) or NOMINAL
        nothing = StackShape(0, 0, 0, 0, 0, 0, 0)
        self.shape = ModelShape(
            vision=nothing,
            patches=0,
            prefix=0,
            patch_inputs=0,
            connector=(),
            visual=visual,
            language=sizes,
            vocab=text.config.vocab_size,
        )
        self.grid = (1, visual)
        self.image_ids()
        self.language = Usual(text.config, text.layers, sizes)

    def image_ids(self) -> tuple[int, ...]:
        for name in IMAGE_IDS:
            if isinstance(getattr(self.config, name, None), int):
                return (getattr(self.config, name),)
        raise self.unusual(f"its configuration has no {' and no '.join(IMAGE_IDS)}")

    def has_pixels(self, args: Args, kwargs: Kwargs) -> bool:
        if kwargs.get("pixel_values_videos") is not None or (kwargs.get("mm_encoder_outputs") or {}).get("video") is not None:
            raise UnsupportedModel("got a video; the generic adapter prunes images only: pass pixel_values, or leave the block")
        return named(kwargs, args, "pixel_values", 1) is not None

    def images(self, args: Args, kwargs: Kwargs) -> Images:
        raise AssertionError("the tower is not watched")

    def unusual(self, why: str) -> UnsupportedModel:
        """Say why this model cannot be pruned."""
        return unusual(self.config.model_type, why)


def unusual(kind: str, why: str) -> UnsupportedModel:
    """Say why a model cannot be pruned."""
    return UnsupportedModel(
        f"the generic adapter cannot prune a {kind} model: {why}; expected visual tokens among the text tokens of one Llama-like "
        "decoder. Use one of the types that `atp models` lists"
    )


def find(model: Any) -> tuple[nn.Module, Any]:
    """Return the module that joins images and text, and in it the one that owns the decoder layers."""
    for base in (getattr(model, "model", None), model):
        for name in TEXTS:
            for path in INNER:
                part = getattr(base, name, None)
                for step in filter(None, path.split(".")):
                    part = getattr(part, step, None)
                if base is not None and isinstance(getattr(part, "layers", None), nn.ModuleList):
                    return base, part
    raise unusual(model.config.model_type, f"no decoder layers found in its {', '.join(TEXTS)}")


def language_shape(text: Any) -> StackShape:
    """Read the sizes off the configuration, and refuse layers whose matrices are not those of a Llama of that size."""
    kind = text.config.model_type
    try:
        sizes = text_shape(text.config)
    except AttributeError as error:
        raise unusual(kind, f"the configuration of its language model lacks a size ({error})") from None
    wide, narrow = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    expected = sizes.hidden * (2 * wide + 2 * narrow + 3 * sizes.intermediate)
    for number, layer in enumerate(text.layers):
        for part in ("q_proj", "k_proj"):
            if not hasattr(getattr(layer, "self_attn", None), part):
                raise unusual(kind, f"layer {number} of its language model has no self_attn.{part}")
        found = sum(parameter.numel() for parameter in layer.parameters() if parameter.dim() > 1)
        if found != expected:
            raise unusual(
                kind, f"the matrices of layer {number} of its language model have {found} weights, a Llama's {expected}"
            )
    return sizes
