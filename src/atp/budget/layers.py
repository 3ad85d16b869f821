"""FLOPs of single layers and of the language model made of them: plain decoders, and those that look at images across."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from atp.budget.shape import CrossShape, ModelShape, StackShape


def layer_flops(stack: StackShape, tokens: float, keys: float) -> float:
    """FLOPs of one layer in which `tokens` rows run and attend to `keys` keys."""
    wide, narrow = stack.heads * stack.head_dim, stack.kv_heads * stack.head_dim
    projections = 2.0 * tokens * stack.hidden * (2 * wide + 2 * narrow)
    return projections + mlp_flops(stack, tokens) + attention_flops(stack, tokens, keys)


def mlp_flops(stack: StackShape, tokens: float) -> float:
    """FLOPs of a layer's MLP over `tokens` rows."""
    return 2.0 * tokens * stack.hidden * stack.intermediate * stack.mlp_matrices


def attention_flops(stack: StackShape, tokens: float, keys: float) -> float:
    """FLOPs of scores and weighted values: both matrix products, every head, full square."""
    return 4.0 * tokens * keys * stack.heads * stack.head_dim


def cross_flops(cross: CrossShape, tokens: float, keys: float, projected: float) -> float:
    """FLOPs of one cross-attention layer: `tokens` rows of text, `keys` visual tokens of which `projected` are projected now."""
    stack = cross.stack
    wide, narrow = stack.heads * stack.head_dim, stack.kv_heads * stack.head_dim
    projections = 4.0 * tokens * stack.hidden * wide + 4.0 * projected * cross.key_width * narrow
    return projections + mlp_flops(stack, tokens) + attention_flops(stack, tokens, keys)


def decoder_flops(stack: StackShape, tokens: float, keys: float) -> float:
    """FLOPs of a decoder over `tokens` tokens, one by one, each looking at those before it and at `keys` rows of an encoder."""
    wide = stack.heads * stack.head_dim
    looks = cross_flops(CrossShape((), replace(stack, intermediate=0), stack.hidden), tokens, keys, keys)
    own = tokens * layer_flops(stack, 1, 0) + 4.0 * wide * tokens * (tokens + 1) / 2
    return stack.layers * (own + looks)


def language_flops(
    shape: ModelShape, texts: Sequence[float], lengths: Sequence[float], steps: float, recalled: float = 0.0
) -> tuple[float, float]:
    """FLOPs of the prefill and of `steps` decoded tokens, without the output matrix.

    Args:
        shape: sizes of the model.
        texts: text tokens at each layer.
        lengths: visual and text tokens at each layer.
        steps: decoded tokens.
        recalled: share of the keys that decoded tokens need not project again.
    """
    stack, cross = shape.language, shape.cross
    if shape.decoder is not None:
        encoded = sum(layer_flops(stack, ran, ran) for ran in lengths)
        first = decoder_flops(shape.decoder, 1, lengths[-1])
        return encoded + first, decoder_flops(shape.decoder, steps + 1, lengths[-1]) - first
    later = steps * (steps + 1) / 2  # sum of the decoded tokens that step 1, 2, ... sees, itself included
    prefill = decode = 0.0
    for layer, (ran, text) in enumerate(zip(lengths, texts, strict=True)):
        rows = ran if cross is None else text
        if cross is not None and layer in cross.places:
            keys = ran - text
            if cross.instead and not keys:
                continue  # without images such a layer is left out
            prefill += cross_flops(cross, text, keys, keys)
            decode += steps * cross_flops(cross, 1, keys, 0 if cross.cached else keys * (1 - recalled))
            if cross.instead:
                continue
        prefill += layer_flops(stack, rows, rows)
        decode += steps * layer_flops(stack, 1, 0) + attention_flops(stack, 1, steps * rows + later)
    return prefill, decode


def stored_rows(shape: ModelShape, texts: Sequence[float], lengths: Sequence[float], steps: float) -> float:
    """Keys stored after `steps` decoded tokens, summed over the layers, in keys of a plain layer."""
    cross, total = shape.cross, 0.0
    if shape.decoder is not None:
        return shape.decoder.layers * (lengths[-1] + steps + 1)
    for layer, (ran, text) in enumerate(zip(lengths, texts, strict=True)):
        if cross is None:
            total += ran + steps
            continue
        looks = layer in cross.places
        total += (ran - text) * (looks and cross.cached) + (text + steps) * (not (looks and cross.instead))
    return total
