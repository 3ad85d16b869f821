"""The training-time forward of the mini LLaVA: the same weights as transformers' own modules, many questions per image at once.

The image is read once; each question sees the image and itself (a block-diagonal mask without the mask). `tests/zoo` checks that
logits equal `LlavaForConditionalGeneration`'s on the same question alone. The other backbones build theirs from the same pieces.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TEXT_START = 2  # <s> USER: come before the image
GUIDED_LAYERS, GUIDED_HEADS = (1, 2), 3  # whose attention `train.Guide` teaches at first


def split_heads(x: Tensor, heads: int) -> Tensor:  # [B,N,D] -> [B*H,N,d]
    b, n, d = x.shape
    return x.view(b, n, heads, d // heads).transpose(1, 2).reshape(b * heads, n, d // heads)


def merge_heads(x: Tensor, heads: int) -> Tensor:  # [B*H,N,d] -> [B,N,D]
    bh, n, d = x.shape
    return x.view(bh // heads, heads, n, d).transpose(1, 2).reshape(bh // heads, n, heads * d)


def tower_layer(layer: nn.Module, x: Tensor, heads: int) -> Tensor:
    """One CLIP encoder layer, `[B,N,D]` -> `[B,N,D]`."""
    a: Any = layer.self_attn
    h = layer.layer_norm1(x)
    q, k, v = split_heads(a.q_proj(h) * a.scale, heads), split_heads(a.k_proj(h), heads), split_heads(a.v_proj(h), heads)
    p = torch.bmm(q, k.transpose(1, 2)).softmax(-1)
    x = x + a.out_proj(merge_heads(torch.bmm(p, v), heads))
    h = layer.mlp.fc1(layer.layer_norm2(x))
    return x + layer.mlp.fc2(h * torch.sigmoid(1.702 * h))


def tower(vision: nn.Module, pixels: Tensor) -> Tensor:
    """All tower layers, pixels `[B,3,S,S]` -> `[B,1+P,D]` before the final norm (LLaVA's feature layer -1)."""
    x = vision.pre_layrnorm(vision.embeddings(pixels))
    for layer in vision.encoder.layers:
        x = tower_layer(layer, x, vision.config.num_attention_heads)
    return x


def rms_norm(weight: Tensor, x: Tensor, eps: float) -> Tensor:
    y = x.float()
    return weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # x [...,n,d], cos/sin [n,d]
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def phases(text_model: nn.Module, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rotary cos and sin of logical positions, each `[n, head_dim]`."""
    cos, sin = text_model.rotary_emb(torch.zeros(1, dtype=dtype, device=positions.device), positions[None])
    return cos[0], sin[0]


def apart(q: Tensor, k: Tensor, v: Tensor, kp: Tensor, vp: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of K questions to the prefix and each to itself.

    Args:
        q, k: of the questions `[B*H,K,T,d]`.
        v: of the questions `[B*H,K*T,d]`.
        kp, vp: of the prefix `[B*H,P,d]`.
        visible: additive causal mask within one question `[T,T]`.

    Returns:
        `[B*H,K*T,d]`, and the weights `[B*H,K,T,P+T]`.
    """
    count, t, dh = q.shape[1:]
    kt, p = count * t, kp.shape[1]
    own = torch.matmul(q, k.transpose(-1, -2)) + visible  # [BH,K,T,T]
    far = torch.bmm(q.reshape(-1, kt, dh), kp.transpose(1, 2)).view(-1, count, t, p)
    w = torch.cat((far, own), -1).softmax(-1)
    out = torch.bmm(w[..., :p].reshape(-1, kt, p), vp)
    return out + torch.matmul(w[..., p:], v.view(-1, count, t, dh)).view(-1, kt, dh), w


def within(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Plain attention `[B*H,N,d]` over `[B*H,M,d]`: what it reads, and its weights `[B*H,N,M]`."""
    w = torch.bmm(q, k.transpose(1, 2))
    w = (w if mask is None else w + mask).softmax(-1)
    return torch.bmm(w, v), w


def causal_mask(n: int, like: Tensor) -> Tensor:
    """Additive, `[n,n]`."""
    return torch.full((n, n), float("-inf"), dtype=like.dtype, device=like.device).triu(1)


def language(
    text_model: nn.Module,
    prefix: Tensor,
    text: Tensor,
    visible: Tensor,
    rope_p: tuple[Tensor, Tensor],
    rope_t: tuple[Tensor, Tensor],
    guided: bool = False,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """All language layers over one image prefix and K questions of T tokens each.

    Args:
        prefix: `[B,P,D]` embeddings of <s> USER: and the image.
        text: `[B,K*T,D]` embeddings of the questions, laid end to end.
        visible: additive causal mask within one question `[T,T]`.
        rope_p, rope_t: phases of the prefix `[P,d]` and of one question `[T,d]`.
        guided: also return attention.

    Returns:
        The questions' final hidden states `[B,K*T,D]`; those after the last guided layer; if guided, per guided layer the
        attention of the first heads to the prefix `[B,heads,K*T,P]`.
    """
    config = text_model.config
    heads, eps = config.num_attention_heads, config.rms_norm_eps
    t = visible.shape[0]
    kt, d = text.shape[1:]
    k_questions, p, dh = kt // t, prefix.shape[1], d // heads
    causal = causal_mask(p, prefix)
    scale = dh**-0.5
    last = len(text_model.layers) - 1
    seen: list[Tensor] = []
    middle = text
    for index, layer in enumerate(text_model.layers):
        a: Any = layer.self_attn
        h = rms_norm(layer.input_layernorm.weight, prefix, eps)
        kp, vp = rotate(split_heads(a.k_proj(h), heads), *rope_p), split_heads(a.v_proj(h), heads)
        if index < last:  # nobody reads the prefix after the last layer
            q = rotate(split_heads(a.q_proj(h) * scale, heads), *rope_p)
            prefix = prefix + a.o_proj(merge_heads(within(q, kp, vp, causal)[0], heads))
            prefix = prefix + gated_mlp(layer.mlp, rms_norm(layer.post_attention_layernorm.weight, prefix, eps))
        h = rms_norm(layer.input_layernorm.weight, text, eps)
        q, k, v = split_heads(a.q_proj(h) * scale, heads), split_heads(a.k_proj(h), heads), split_heads(a.v_proj(h), heads)
        q = rotate(q.view(-1, k_questions, t, dh), *rope_t)
        k = rotate(k.view(-1, k_questions, t, dh), *rope_t)
        out, w = apart(q, k, v, kp, vp, visible)
        if guided and index in GUIDED_LAYERS:
            seen.append(w.view(-1, heads, kt, p + t)[:, :GUIDED_HEADS, :, :p])
        text = text + a.o_proj(merge_heads(out, heads))
        text = text + gated_mlp(layer.mlp, rms_norm(layer.post_attention_layernorm.weight, text, eps))
        if index == GUIDED_LAYERS[-1]:
            middle = text
    return rms_norm(text_model.norm.weight, text, eps), middle, seen


def gated_mlp(mlp: nn.Module, h: Tensor) -> Tensor:
    return mlp.down_proj(F.silu(mlp.gate_proj(h)) * mlp.up_proj(h))
