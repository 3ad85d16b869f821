"""Build the untrained `atp-mini-llava`: tokenizer, processor, configuration, random weights. True transformers classes."""

from __future__ import annotations

import re

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from atp.scenes.captions import words

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<image>", "USER:", "ASSISTANT:")
PAD, UNK, BOS, EOS, IMAGE, USER, ASSISTANT = range(len(SPECIAL))
SIZE, PATCH = 112, 8
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}USER:"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] if c['type'] == 'image' %}<image>{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endif %}"
    "{% else %}ASSISTANT:{% if m['content'] is string %}{{ m['content'] }}{% else %}{{ m['content'][0]['text'] }}{% endif %}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def vocabulary() -> list[str]:
    """Special tokens, punctuation, digits, the world's words (regular plurals are word + ##s), letters as a fallback."""
    every = set(words())
    plain = [w for w in sorted(every) if not (w.endswith("es") and w[:-2] in every) and not (w.endswith("s") and w[:-1] in every)]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = [*SPECIAL, "?", ",", ".", "!", "'", "-", *"0123456789", "##s", "##es", *plain]
    pieces += [c for c in letters if c not in pieces] + [f"##{c}" for c in letters if f"##{c}" not in pieces]
    return list(dict.fromkeys(pieces))


def make_tokenizer(extra: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """WordPiece over the closed vocabulary, lower case, `<s>` written by the chat template and not by the tokenizer.

    `extra` are special tokens behind the vocabulary.
    """
    vocab = {piece: index for index, piece in enumerate([*vocabulary(), *extra])}
    core = Tokenizer(models.WordPiece(vocab, unk_token="<unk>", max_input_chars_per_word=40))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(prefix="##")
    core.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>", "USER:", "ASSISTANT:", *extra],
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def make_processor() -> LlavaProcessor:
    """The processor that is shipped: resize to 112 px, 8 px patches, one `<image>` expands to 196 tokens."""
    image_processor = CLIPImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, crop_size={"height": SIZE, "width": SIZE}, do_center_crop=False
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=make_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
        image_token="<image>",
    )


def make_config(vocab: int) -> LlavaConfig:
    """6 tower layers and 6 language layers, both 192 wide: about 5.5 million parameters."""
    vision = CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=6,
        image_size=SIZE,
        patch_size=PATCH,
        hidden_act="quick_gelu",
        projection_dim=192,
    )
    text = LlamaConfig(
        vocab_size=vocab,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(SIZE // PATCH) ** 2,
        tie_word_embeddings=True,
        pad_token_id=PAD,
    )


def make_model() -> LlavaForConditionalGeneration:
    """Random weights in fp32."""
    return LlavaForConditionalGeneration(make_config(len(vocabulary())))


def tokens_of(text: str, vocab: dict[str, int]) -> list[int]:
    """Tokenize without transformers' overhead; equals `make_tokenizer` on the grammar's sentences (tested)."""
    out: list[int] = []
    for word in re.findall(r"[a-z0-9]+|[^\sa-z0-9]", text.lower()):
        if word in vocab:
            out.append(vocab[word])
        elif word.endswith("es") and word[:-2] in vocab and word[:-1] not in vocab:
            out += [vocab[word[:-2]], vocab["##es"]]
        else:
            out += [vocab[word[:-1]], vocab["##s"]]
    return out
