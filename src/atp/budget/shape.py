"""The sizes of a model that decide its FLOPs. Plain numbers: adapters fill them in, `budget` counts with them."""

from __future__ import annotations

from dataclasses import dataclass, replace


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
class CrossShape:
    """Cross-attention layers of a language model whose visual tokens are no rows of its sequence, but keys.

    Attributes:
        places: language layers at whose input they stand.
        stack: their sizes; `layers` is how many there are.
        key_width: width of the visual tokens that keys and values are projected from.
        instead: whether such a layer stands in the place of a plain one, not before it.
        cached: whether keys and values are projected at the prefill only, not at every decoded token.
    """

    places: tuple[int, ...]
    stack: StackShape
    key_width: int
    instead: bool = False
    cached: bool = False


@dataclass(frozen=True)
class ModelShape:
    """All that the FLOPs of one forward depend on, besides the lengths.

    Attributes:
        vision: the tower.
        patches: patch tokens of one image in the tower (of a nominal one where images differ in size).
        prefix: tokens of the tower that never leave (class token): 1 or 0.
        patch_inputs: values of one patch, channels * patch_size**2.
        connector: (in, out) of each matrix that every patch passes between tower and language model.
        visual: visual tokens of one image in the prompt.
        language: the language model.
        vocab: rows of the output matrix.
        pooling_head: the tower ends in an attention-pooling head (SigLIP with `vision_use_head`) which runs on every
            forward although a VLM never reads its output; it sees the whole grid, dead patches too.
        group: patches of the tower that leave as one, because they become one visual token.
        connects: what patches are to the connector, see `atp.adapters.base.Adapter`: `rows` (dead ones stay out), `grid` (it
            gets all) or `keys` (queries of its own look at the live ones, so its output never shrinks).
        key_flops: with `keys`, FLOPs of the connector for each live patch.
        query_flops: with `keys`, FLOPs of the connector for an image, whatever is alive.
        windows: per tower layer, the patches that one patch sees at most; () = all in every layer.
        decoder: the decoder that answers, where the language model is an encoder whose rows it looks at; else None.
        cross: the cross-attention layers where visual tokens are their keys; None = they are rows of the language model.
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
    group: int = 1
    connects: str = "rows"
    key_flops: float = 0.0
    query_flops: float = 0.0
    windows: tuple[float, ...] = ()
    decoder: StackShape | None = None
    cross: CrossShape | None = None

    def of_size(self, patches: int) -> ModelShape:
        """Return the same model with an image of another number of patches."""
        if patches == self.patches:
            return self
        visual = self.visual if self.connects == "keys" else round(self.visual * patches / self.patches)
        return replace(self, patches=patches, visual=visual)
