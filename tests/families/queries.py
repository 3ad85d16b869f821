"""Images read by a fixed number of queries: BLIP-2 (OPT, T5) and InstructBLIP (Llama, T5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    LlamaConfig,
    OPTConfig,
    T5Config,
)

from families.base import (
    BOS,
    EOS,
    IMAGE,
    PAD,
    TEXT,
    TOWER,
    VOCAB,
    WORDS,
    Family,
    Inputs,
    build,
    noise,
    pictures,
    prompts,
    single,
    sizes,
    spread,
)  # fmt: skip

PATCH, SIDE, QUERIES = 4, 16, 16
QUESTIONS = (5, 3, 7)
"""Words of the questions that InstructBLIP's Q-Former reads."""


def _opt(layers: int) -> OPTConfig:
    common = {key: value for key, value in TEXT.items() if key != "intermediate_size"}
    return OPTConfig(num_hidden_layers=layers, ffn_dim=48, word_embed_proj_dim=32, dropout=0.0, **common)


def _llama(layers: int) -> LlamaConfig:
    return LlamaConfig(num_hidden_layers=layers, num_key_value_heads=4, **TEXT)


def _t5(layers: int) -> T5Config:
    return T5Config(
        vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=48, num_layers=layers, num_decoder_layers=2, num_heads=4, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, decoder_start_token_id=PAD,
        tie_word_embeddings=False,
    )  # fmt: skip


def _maker(model_class: Any, config_class: Any, text: Callable[[int], Any]) -> Callable[..., Any]:
    def make(dtype: torch.dtype = torch.float64, attention: str = "sdpa", layers: int = 5, seed: int = 0) -> Any:
        reader = {
            **TOWER, "num_hidden_layers": 4, "vocab_size": VOCAB, "cross_attention_frequency": 2, "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 64,
        }  # fmt: skip
        config = config_class(
            vision_config={**TOWER, "num_hidden_layers": layers, "image_size": SIDE, "patch_size": PATCH},
            qformer_config=reader, text_config=text(layers), num_query_tokens=QUERIES, image_token_index=IMAGE,
        )  # fmt: skip
        return build(model_class, config, dtype, attention, seed)

    return make


def _one_image(
    model: Any,
    texts: Sequence[int] = (6, 9, 4),
    images: Sequence[int] | None = None,
    side: str = "left",
    seed: int = 1,
    question: bool = False,
) -> Inputs:
    """One image a prompt, first; `question`: the Q-Former reads words too, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    images = sizes(texts, images, default=(1,))
    inputs = prompts(texts, spread(images, [[IMAGE] * QUERIES] * sum(images)), side, generator, lead=0)
    inputs["pixel_values"] = noise(generator, model, sum(images), 3, SIDE, SIDE)
    if question:
        lengths = [QUESTIONS[row % len(QUESTIONS)] for row in range(len(texts))]
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        words = torch.randint(WORDS, VOCAB, mask.shape, generator=generator)
        inputs["qformer_input_ids"], inputs["qformer_attention_mask"] = words * mask, mask
    return inputs


def _with_question(
    model: Any,
    texts: Sequence[int] = (6, 9, 4),
    images: Sequence[int] | None = None,
    side: str = "left",
    seed: int = 1,
) -> Inputs:
    return _one_image(model, texts, images, side, seed, question=True)


def _own_question(key: str) -> Callable[[Inputs, int], Tensor]:
    return lambda inputs, row: inputs[key][row : row + 1, inputs["qformer_attention_mask"][row].bool()]


_plain = single(pixel_values=pictures("pixel_values"))
_asked = single(
    pixel_values=pictures("pixel_values"),
    qformer_input_ids=_own_question("qformer_input_ids"),
    qformer_attention_mask=_own_question("qformer_attention_mask"),
)
_BLIP = (Blip2ForConditionalGeneration, Blip2Config)
_INSTRUCT = (InstructBlipForConditionalGeneration, InstructBlipConfig)

FAMILIES = (
    Family("blip-2-opt", "blip-2", _maker(*_BLIP, _opt), _one_image, _plain, several=False),
    Family("blip-2-t5", "blip-2", _maker(*_BLIP, _t5), _one_image, _plain, several=False, seq2seq=True),
    Family("instructblip-llama", "instructblip", _maker(*_INSTRUCT, _llama), _with_question, _asked, several=False),
    Family("instructblip-t5", "instructblip", _maker(*_INSTRUCT, _t5), _with_question, _asked, several=False, seq2seq=True),
)
