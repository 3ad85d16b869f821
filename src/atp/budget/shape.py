"""The sizes of a model that decide its FLOPs. Plain numbers: adapters fill them in, `budget` counts with them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StackShape:
    """One list of equal transformer layers.

    Attributes:
        layers: how many layers run.
        hidden: width D of the residual stream.
        heads, kv_heads, head_dim: attention; q is heads*head_dim wide, k and v kv_heads*head_dim.
        intermediate: width of the MLP.
        mlp_matrices: 2 (CLIP, SigLIP) or 3 (gated: Llama, Qwen2, Mistral).
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    mlp_matrices: int


@dataclass(frozen=True)
class ModelShape:
    """All that the FLOPs of one forward depend on, besides the lengths.

    Attributes:
        vision: the tower.
        patches: patch tokens of one image in the tower.
        prefix: tokens of the tower that never leave (class token): 1 or 0.
        patch_inputs: values of one patch, channels * patch_size**2.
        connector: (in, out) of each matrix that every patch passes between tower and language model.
        visual: visual tokens of one image in the prompt.
        language: the language model.
        vocab: rows of the output matrix.
        pooling_head: the tower ends in an attention-pooling head (SigLIP with `vision_use_head`) which runs on every
            forward although a VLM never reads its output; it sees the whole grid, dead patches too.
    """

    vision: StackShape
    patches: int
    prefix: int
    patch_inputs: int
    connector: tuple[tuple[int, int], ...]
    visual: int
    language: StackShape
    vocab: int
    pooling_head: bool = False
