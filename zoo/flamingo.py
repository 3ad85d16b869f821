"""`atp-mini-flamingo`: a true `IdeficsForVisionText2Text` (CLIP tower, perceiver, gated cross-attention), its packed forward."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from backbones import PATCHES, Backbone, behind
from build import BOS, EOS, IMAGE, PAD, PATCH, SIZE, USER, make_tokenizer, vocabulary
from packed import GUIDED_HEADS, apart, causal_mask, gated_mlp, merge_heads, phases, rms_norm, rotate, split_heads, within
from packed import tower as clip
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import IdeficsConfig, IdeficsForVisionText2Text, IdeficsProcessor
from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil

WIDTH, SIDE = 192, 7
LATENTS = SIDE * SIDE
AROUND = "<fake_token_around_image>"  # Idefics' own special token, behind the shared vocabulary
BLIND = 3  # <s> USER: <around> come before the image and see nothing of it
GUIDED_CROSS = 1  # the cross-attention layer whose first heads are guided; words have read their colour by then
TEMPLATE = (  # the processor writes <s> and the tokens around the image
    "{% for m in messages %}{% if m['role'] == 'user' %}USER:"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] if c['type'] == 'image' %}<image>{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endif %}"
    "{% else %}ASSISTANT:{% if m['content'] is string %}{{ m['content'] }}{% else %}{{ m['content'][0]['text'] }}{% endif %}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def make_config(vocab: int) -> IdeficsConfig:
    """6 tower layers, 1 perceiver block with 49 latents, 6 text layers with 3 gated cross-attention layers between, 192 wide."""
    return IdeficsConfig(
        vision_config={
            "embed_dim": WIDTH,
            "intermediate_size": 768,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "image_size": SIZE,
            "patch_size": PATCH,
            "hidden_act": "quick_gelu",
        },
        perceiver_config={
            "use_resampler": True,
            "resampler_n_latents": LATENTS,
            "resampler_depth": 1,
            "resampler_n_heads": 6,
            "resampler_head_dim": 32,
        },
        use_resampler=True,
        vocab_size=vocab,
        hidden_size=WIDTH,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=6,
        cross_layer_interval=2,
        alpha_initializer="ones",  # nothing is pretrained, so nothing has to be kept from the image at first
        max_position_embeddings=256,
        tie_word_embeddings=True,
        freeze_text_layers=False,
        freeze_vision_layers=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )


def perceiver(resampler: Any, features: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Latents `[B,L,D]` from features `[B,1+P,D]`, and where the first heads of each block look `[B,heads,L,P]`."""
    x, looks = resampler.latents.expand(features.shape[0], -1, -1), []
    for a, mlp in resampler.blocks:
        own = a.latents_layer_norm(x)
        both = torch.cat([a.context_layer_norm(features), own], 1)
        q, k, v = (split_heads(part, a.n_heads) for part in (a.q_proj(own) * a.qk_scale, a.k_proj(both), a.v_proj(both)))
        out, w = within(q, k, v)
        looks.append(w.view(-1, a.n_heads, *w.shape[1:])[:, :GUIDED_HEADS, :, 1 : 1 + PATCHES])
        x = a.output_proj(merge_heads(out, a.n_heads)) + x
        x = mlp.c_proj(F.relu(mlp.fc(mlp.ln(x)))) + x
    return resampler.layer_norm(x), looks


def look(layer: Any, x: Tensor, image: Tensor, eps: float, blind: int) -> tuple[Tensor, Tensor]:
    """One gated cross-attention layer `[B,N,D]`, whose first `blind` tokens see nothing; also its weights `[B,heads,N,L]`."""
    a, heads = layer.cross_attn, layer.cross_attn.num_heads
    h = rms_norm(layer.input_layernorm.weight, x, eps)
    out, w = within(
        split_heads(a.q_proj(h) * a.scaling, heads), split_heads(a.k_proj(image), heads), split_heads(a.v_proj(image), heads)
    )
    told = a.o_proj(merge_heads(out, heads))
    told = F.pad(told[:, blind:], (0, 0, blind, 0))
    x = x + torch.tanh(layer.alpha_cross_attn) * told
    x = x + torch.tanh(layer.alpha_dense) * gated_mlp(layer.mlp, rms_norm(layer.post_attention_layernorm.weight, x, eps))
    return x, w.view(-1, heads, *w.shape[1:])


def language(
    core: Any,
    prefix: Tensor,
    image: Tensor,
    text: Tensor,
    visible: Tensor,
    rope_p: tuple[Tensor, Tensor],
    rope_t: tuple[Tensor, Tensor],
    guided: bool = False,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """All text layers over one prefix `[B,P,D]`, K questions of T tokens `[B,K*T,D]` and latents `[B,L,D]`."""
    heads, eps, every = core.config.num_attention_heads, core.config.rms_norm_eps, core.cross_layer_interval
    t, (kt, d), p = visible.shape[0], text.shape[1:], prefix.shape[1]
    count, dh, causal = kt // t, d // heads, causal_mask(p, prefix)
    seen: list[Tensor] = []
    middle = text
    for index, layer in enumerate(core.layers):
        if index % every == 0:
            x, w = look(core.gated_cross_attn_layers[index // every], torch.cat([prefix, text], 1), image, eps, BLIND)
            prefix, text = x[:, :p], x[:, p:]
            if guided and index // every == GUIDED_CROSS:
                seen.append(w[:, :GUIDED_HEADS, p:])
        a = layer.self_attn
        h = rms_norm(layer.input_layernorm.weight, prefix, eps)
        kp, vp = rotate(split_heads(a.k_proj(h), heads), *rope_p), split_heads(a.v_proj(h), heads)
        q = rotate(split_heads(a.q_proj(h) * a.scaling, heads), *rope_p)
        prefix = prefix + a.o_proj(merge_heads(within(q, kp, vp, causal)[0], heads))
        prefix = prefix + gated_mlp(layer.mlp, rms_norm(layer.post_attention_layernorm.weight, prefix, eps))
        h = rms_norm(layer.input_layernorm.weight, text, eps)
        q, k, v = (split_heads(part, heads) for part in (a.q_proj(h) * a.scaling, a.k_proj(h), a.v_proj(h)))
        q, k = (rotate(x.view(-1, count, t, dh), *rope_t) for x in (q, k))
        text = text + a.o_proj(merge_heads(apart(q, k, v, kp, vp, visible)[0], heads))
        text = text + gated_mlp(layer.mlp, rms_norm(layer.post_attention_layernorm.weight, text, eps))
        if index == GUIDED_CROSS * every:
            middle = text
    return rms_norm(core.norm.weight, text, eps), middle, seen


class Flamingo(Backbone):
    """CLIP tower, perceiver resampler, Llama layers with gated cross-attention; no image token enters the text."""

    name, side = "flamingo", SIDE
    tower, language = staticmethod(clip), staticmethod(language)

    def make_model(self) -> nn.Module:
        return IdeficsForVisionText2Text(make_config(len(vocabulary()) + 1))

    def make_processor(self) -> Any:
        pixels = IdeficsImageProcessorPil(image_size=SIZE)
        made = IdeficsProcessor(pixels, make_tokenizer(extra=(AROUND,)), image_size=SIZE)
        made.chat_template = TEMPLATE
        return made

    def head(self) -> list[int]:
        """What comes before the questions: <s> USER: <around> <image> <around>."""
        around = len(vocabulary())
        return [BOS, USER, around, IMAGE, around]

    def vision(self, model: Any) -> Any:
        return model.model.vision_model

    def speaking(self, model: Any) -> Iterable[nn.Parameter]:
        core = model.model
        modules = (core.perceiver_resampler, core.embed_tokens, core.layers, core.gated_cross_attn_layers, core.norm)
        return [p for module in modules for p in module.parameters()]

    def embed(self, model: Any) -> Tensor:
        return model.model.embed_tokens.weight

    def connect(self, model: Any, features: Tensor) -> tuple[Tensor, list[Tensor]]:
        return perceiver(model.model.perceiver_resampler, features)

    def arguments(self, model: Any, image: Tensor, tokens: Tensor, length: int) -> tuple[Any, ...]:
        core, embed, start, place = model.model, self.embed(model), len(self.head()), image.device
        prefix = embed[torch.tensor(self.head(), device=place)].expand(image.shape[0], -1, -1)
        wheel = core.layers[0].self_attn
        rope_p = phases(wheel, torch.arange(start, device=place), prefix.dtype)
        rope_t = phases(wheel, torch.arange(start, start + length, device=place), prefix.dtype)
        return core, prefix, image, F.embedding(tokens, embed), causal_mask(length, prefix), rope_p, rope_t

    def inputs(self, tokens: Tensor, pixels: Tensor) -> dict[str, Tensor]:
        ids = behind(self.head(), tokens)
        sees = torch.ones_like(ids)
        sees[:, :BLIND] = 0
        return {"input_ids": ids, "pixel_values": pixels[:, None], "image_attention_mask": sees[..., None]}

    def split(self, attention: Tensor) -> tuple[Tensor, Tensor | None]:
        return attention, None


BACKBONE = Flamingo()
