"""`atp-mini-blip2`: a true `Blip2ForConditionalGeneration` (its own ViT, Q-Former, OPT) and its packed training forward."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from backbones import Backbone, behind
from build import BOS, EOS, IMAGE, PAD, PATCH, SIZE, make_tokenizer, vocabulary
from data import PREFIX
from packed import GUIDED_HEADS, GUIDED_LAYERS, apart, causal_mask, merge_heads, split_heads, within
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessorPil,
    OPTConfig,
)

WIDTH, SIDE = 192, 7
LATENTS = SIDE * SIDE
TEMPLATE = (  # the processor writes the image's tokens in front of <s>
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}USER:"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endif %}"
    "{% else %}ASSISTANT:{% if m['content'] is string %}{{ m['content'] }}{% else %}{{ m['content'][0]['text'] }}{% endif %}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def make_config(vocab: int) -> Blip2Config:
    """6 tower layers, 2 Q-Former layers, 6 OPT layers, all 192 wide; 49 queries."""
    vision = Blip2VisionConfig(
        hidden_size=WIDTH,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=6,
        image_size=SIZE,
        patch_size=PATCH,
        hidden_act="quick_gelu",
        initializer_range=0.02,
    )
    reader = Blip2QFormerConfig(
        vocab_size=vocab,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=6,
        intermediate_size=384,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        cross_attention_frequency=1,
    )
    text = OPTConfig(
        vocab_size=vocab,
        hidden_size=WIDTH,
        num_hidden_layers=6,
        ffn_dim=512,
        num_attention_heads=6,
        max_position_embeddings=256,
        dropout=0.0,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return Blip2Config(
        vision_config=vision, qformer_config=reader, text_config=text, num_query_tokens=LATENTS, image_token_index=IMAGE
    )


def tower(vision: Any, pixels: Tensor) -> Tensor:
    """All tower layers and the final norm, pixels `[B,3,S,S]` -> `[B,1+P,D]`."""
    heads = vision.config.num_attention_heads
    x = vision.embeddings(pixels)
    for layer in vision.encoder.layers:
        a = layer.self_attn
        q, k, v = (split_heads(part, heads) for part in a.qkv(layer.layer_norm1(x)).chunk(3, -1))
        x = x + a.projection(merge_heads(within(q * a.scale, k, v)[0], heads))
        h = layer.mlp.fc1(layer.layer_norm2(x))
        x = x + layer.mlp.fc2(h * torch.sigmoid(1.702 * h))
    return vision.post_layernorm(x)


def attend(block: Any, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """One attention of the Q-Former with its residual and norm; also its weights `[B,heads,L,M]`."""
    a, heads = block.attention, block.attention.num_attention_heads
    q, k, v = (split_heads(part, heads) for part in (a.query(x) * a.scaling, a.key(other), a.value(other)))
    out, w = within(q, k, v)
    return block.output.LayerNorm(block.output.dense(merge_heads(out, heads)) + x), w.view(-1, heads, *w.shape[1:])


def qformer(former: Any, queries: Tensor, features: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Queries `[B,L,D]` read features `[B,1+P,D]`: their final states, and where the first heads look `[B,heads,L,P]`."""
    x, looks = former.layernorm(queries), []
    for layer in former.encoder.layer:
        x, _ = attend(layer.attention, x, x)
        x, w = attend(layer.crossattention, x, features)
        looks.append(w[:, :GUIDED_HEADS, :, 1:])
        out = layer.output_query
        x = out.LayerNorm(out.dense(F.gelu(layer.intermediate_query.dense(x))) + x)
    return x, looks


def _feed(layer: Any, x: Tensor) -> Tensor:
    return x + layer.fc2(F.relu(layer.fc1(layer.final_layer_norm(x))))


def language(
    decoder: Any, prefix: Tensor, text: Tensor, visible: Tensor, guided: bool = False
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """All OPT layers over one prefix `[B,P,D]` and K questions of T tokens `[B,K*T,D]`, as `packed.language`."""
    heads, t, kt = decoder.config.num_attention_heads, visible.shape[0], text.shape[1]
    p, dh = prefix.shape[1], prefix.shape[2] // heads
    causal = causal_mask(p, prefix)
    seen: list[Tensor] = []
    middle = text
    for index, layer in enumerate(decoder.layers):
        a = layer.self_attn
        h = layer.self_attn_layer_norm(prefix)
        kp, vp = split_heads(a.k_proj(h), heads), split_heads(a.v_proj(h), heads)
        if index < len(decoder.layers) - 1:  # nobody reads the prefix after the last layer
            out, _ = within(split_heads(a.q_proj(h) * a.scaling, heads), kp, vp, causal)
            prefix = _feed(layer, prefix + a.out_proj(merge_heads(out, heads)))
        h = layer.self_attn_layer_norm(text)
        q, k, v = (split_heads(part, heads) for part in (a.q_proj(h) * a.scaling, a.k_proj(h), a.v_proj(h)))
        out, w = apart(q.view(-1, kt // t, t, dh), k.view(-1, kt // t, t, dh), v, kp, vp, visible)
        if guided and index in GUIDED_LAYERS:
            seen.append(w.view(-1, heads, kt, p + t)[:, :GUIDED_HEADS, :, :p])
        text = _feed(layer, text + a.out_proj(merge_heads(out, heads)))
        if index == GUIDED_LAYERS[-1]:
            middle = text
    return decoder.final_layer_norm(text), middle, seen


class Blip2(Backbone):
    """ViT, Q-Former, OPT; the image's 49 tokens come before <s>."""

    name, side = "blip2", SIDE
    tower, language = staticmethod(tower), staticmethod(language)

    def make_model(self) -> nn.Module:
        model: Any = Blip2ForConditionalGeneration(make_config(len(vocabulary())))
        nn.init.normal_(model.query_tokens)  # transformers makes them all 0, so all alike, and they would stay alike
        return model

    def make_processor(self) -> Any:
        pixels = BlipImageProcessorPil(
            size={"height": SIZE, "width": SIZE},
            image_mean=[0.48145466, 0.4578275, 0.40821073],
            image_std=[0.26862954, 0.26130258, 0.27577711],
        )
        made = Blip2Processor(pixels, make_tokenizer(), num_query_tokens=LATENTS)
        made.chat_template = TEMPLATE
        return made

    def vision(self, model: Any) -> Any:
        return model.vision_model

    def speaking(self, model: Any) -> Iterable[nn.Parameter]:
        modules = (model.qformer, model.language_projection, model.language_model)
        return [model.query_tokens, *(p for module in modules for p in module.parameters())]

    def embed(self, model: Any) -> Tensor:
        return model.language_model.model.decoder.embed_tokens.weight

    def connect(self, model: Any, features: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, looks = qformer(model.qformer, model.query_tokens.expand(features.shape[0], -1, -1), features)
        return model.language_projection(x), looks

    def arguments(self, model: Any, image: Tensor, tokens: Tensor, length: int) -> tuple[Any, ...]:
        decoder, embed = model.language_model.model.decoder, self.embed(model)
        head = embed[torch.tensor(PREFIX, device=image.device)].expand(image.shape[0], -1, -1)
        places, start = decoder.embed_positions.weight[decoder.embed_positions.offset :], LATENTS + len(PREFIX)
        prefix = torch.cat([image, head], 1) + places[:start]
        text = F.embedding(tokens, embed) + places[start : start + length].repeat(tokens.shape[1] // length, 1)
        return decoder, prefix, text, causal_mask(length, prefix)

    def inputs(self, tokens: Tensor, pixels: Tensor) -> dict[str, Tensor]:
        return {"input_ids": behind([*[IMAGE] * LATENTS, *PREFIX], tokens), "pixel_values": pixels}

    def split(self, attention: Tensor) -> tuple[Tensor, Tensor | None]:
        return attention[..., :LATENTS], attention[..., LATENTS]


BACKBONE = Blip2()
