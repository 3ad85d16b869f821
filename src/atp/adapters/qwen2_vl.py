"""Qwen2-VL: images and videos of any size in one packed sequence; a merger of 2 x 2 patches ends the tower.

What Qwen2.5-VL and Qwen3-VL share with it lives here too. A frame of a video (two frames of the camera) attends to itself only
in the tower, so each counts as an image; the number of a token's image is its place in time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from atp.adapters.base import Args, Images, Kwargs, LayerCall, named
from atp.adapters.scattered import Scattered, text_shape
from atp.adapters.tiled import Windowed
from atp.adapters.views import Decoder, Stack
from atp.budget.shape import ModelShape, StackShape

NOMINAL = 32
"""Our choice of a nominal image: 32 x 32 visual tokens (896 x 896 pixels for patches of 14)."""


class PackedTower(Stack):
    """Blocks over `[T, D]`, the images one after the other, with a fused projection of queries, keys and values."""

    name, causal, prefix, attention = "vision", False, 0, "attn"

    def __init__(self, config: Any, layers: Sequence[nn.Module], sizes: StackShape) -> None:
        super().__init__(config, layers, sizes)
        self._phases: tuple[Any, Any] = (None, None)

    def read(self, args: Args, kwargs: Kwargs) -> LayerCall:
        phases = kwargs["position_embeddings"]
        if self._phases[0] is not phases:  # one object a forward: the engine cuts it once, and knows it by its identity
            self._phases = (phases, tuple(one.unsqueeze(0) for one in phases))
        hidden: Tensor = named(kwargs, args, "hidden_states", 0)
        return LayerCall(hidden.unsqueeze(0), None, self._phases[1], segments=named(kwargs, args, "cu_seqlens", 1))

    def write(self, args: Args, kwargs: Kwargs, call: LayerCall) -> tuple[Args, Kwargs]:
        assert call.phases is not None
        phases = tuple(one[0] for one in call.phases)
        rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        return (call.hidden[0],), dict(rest, cu_seqlens=call.segments, position_embeddings=phases)

    def projections(self, layer: int) -> tuple[nn.Module, nn.Module]:
        attention: Any = self.layers[layer].attn
        return attention.qkv, attention.qkv

    def projected(self, which: str, output: Tensor) -> Tensor:
        queries, keys, _ = output.unsqueeze(0).chunk(3, dim=-1)
        return queries if which == "queries" else keys

    def states(self, output: Any) -> Tensor:
        return super().states(output).unsqueeze(0)

    def restated(self, output: Any, states: Tensor) -> Any:
        return super().restated(output, states[0])


class Qwen2VL(Windowed, Scattered):
    """`Qwen2VLForConditionalGeneration`."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    parts: ClassVar[tuple[str, str | None, str]] = ("visual", None, "language_model")
    mask_place: ClassVar[int] = 1
    towers: ClassVar[tuple[str, ...]] = ("qwen2_vl_vision",)
    texts: ClassVar[tuple[str, ...]] = ("qwen2_vl_text",)
    pixel_place: ClassVar[int] = 6
    limits: ClassVar[tuple[str, ...]] = (f"a budget is met for images of {NOMINAL**2} visual tokens",)

    def build(self) -> None:
        tower: Any = self.tower
        text: Any = self.text
        self.shape = self.sizes(tower.config)
        self.grid = (NOMINAL, NOMINAL)
        self.vision = PackedTower(tower.config, tower.blocks, self.shape.vision)
        self.language = Decoder(text.config, text.layers, self.shape.language)

    def sizes(self, tower: Any) -> ModelShape:
        """Read the sizes off the configuration."""
        wide = int(tower.embed_dim * tower.mlp_ratio)
        return packed_shape(self.config, tower.embed_dim, wide, 2, tower.hidden_size)

    def given(self, args: Args, kwargs: Kwargs) -> dict[str, Any]:
        encoded = kwargs.get("mm_encoder_outputs") or {}
        pixels = {"image": "pixel_values", "video": "pixel_values_videos"}
        places = {"image": self.pixel_place, "video": self.pixel_place + 1}
        return {
            kind: encoded.get(kind)
            for kind, name in pixels.items()
            if encoded.get(kind) is not None or named(kwargs, args, name, places[kind]) is not None
        }

    def tokens_of(self, ids: Tensor, modality: str) -> Tensor:
        token: int = getattr(self.config, f"{modality}_token_id")
        return ids == token

    def template_ids(self, processor: Any) -> frozenset[int]:
        config = self.config
        own = {config.video_token_id, config.vision_start_token_id, config.vision_end_token_id}
        return super().template_ids(processor) | own

    def images(self, args: Args, kwargs: Kwargs) -> Images:
        patches: Tensor = named(kwargs, args, "hidden_states", 0)
        grids: Tensor = named(kwargs, args, "grid_thw", 1)
        merge = self.config.vision_config.spatial_merge_size
        frames = tuple((high // merge, wide // merge) for time, high, wide in grids.tolist() for _ in range(time))
        counts = tuple(high * wide for high, wide in frames)
        places = self.order(len(patches), grids, kwargs).view(-1, merge**2)
        where = pad_sequence(list(torch.split(places, list(counts))), batch_first=True)
        others = torch.zeros(1, len(patches), dtype=torch.bool, device=patches.device)
        return Images(where.to(patches.device), counts, others, 0, frames, packed=True)

    def contents(self, args: Args, kwargs: Kwargs) -> tuple[Tensor, list[bool]]:
        patches: Tensor = named(kwargs, args, "hidden_states", 0)
        grids: Tensor = named(kwargs, args, "grid_thw", 1)
        config = self.config.vision_config
        pixels = patches.view(-1, config.spatial_merge_size**2, config.in_channels, patches.shape[1] // config.in_channels)
        return pixels.transpose(1, 2).flatten(2), [frame > 0 for time in grids[:, 0].tolist() for frame in range(time)]

    def order(self, count: int, grids: Tensor, kwargs: Kwargs) -> Tensor:
        """Where each patch of the tower's call stands in the sequence that its blocks see, `[count]`."""
        return torch.arange(count, device=grids.device)

    def map_states(self, output: Any, change: Callable[[Tensor], Tensor]) -> Any:
        def packed(state: Tensor) -> Tensor:
            return change(state) if state.dim() == 3 else change(state.unsqueeze(0))[0]

        return super().map_states(output, packed)


def packed_shape(config: Any, hidden: int, intermediate: int, matrices: int, out: int, mergers: int = 1) -> ModelShape:
    """Sizes of a model with such a tower: its widths, the matrices of its MLP, and how many mergers of the same size it has."""
    tower, text = config.vision_config, config.text_config
    group = tower.spatial_merge_size**2
    stack = StackShape(
        layers=tower.depth,
        hidden=hidden,
        heads=tower.num_heads,
        kv_heads=tower.num_heads,
        head_dim=hidden // tower.num_heads,
        intermediate=intermediate,
        mlp_matrices=matrices,
    )
    return ModelShape(
        vision=stack,
        patches=NOMINAL**2 * group,
        prefix=0,
        patch_inputs=tower.in_channels * tower.temporal_patch_size * tower.patch_size**2,
        connector=((hidden * group, hidden * group), (hidden * group, out)) * mergers,
        visual=NOMINAL**2,
        language=text_shape(text),
        vocab=text.vocab_size,
        group=group,
        connects="grid",
    )
