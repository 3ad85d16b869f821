"""What a family of tiny models is, and the helpers that its modules share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PAD, BOS, EOS, IMAGE, VIDEO, BEGIN, END, BREAK = range(8)
WORDS, VOCAB = 16, 96
"""Ids below WORDS are special; words are WORDS .. VOCAB - 1."""

TEXT = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "max_position_embeddings": 512,
    "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "tie_word_embeddings": False,
}  # fmt: skip
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}

Take = Callable[["Inputs", int], Tensor]


class Inputs(dict[str, Tensor]):
    """A model's inputs, with the number of images (or videos) of every prompt: `model(**inputs)`."""

    images: tuple[int, ...] = ()


@dataclass(frozen=True)
class Family:
    """One family: how to make a model of it and inputs as its processor makes them.

    Attributes:
        name: of this entry; a family may have several.
        model_type: of the model's config.
        make: `make(dtype=, attention=, layers=, seed=)`, an eval model with random weights.
        inputs: `inputs(model, texts=, images=, side=, seed=)`, a padded batch; `images` None is the family's default.
        single: `single(inputs, row)`, one prompt of a batch without its padding.
        image_token_id: stands at visual tokens in `input_ids`; None where the text holds none (cross-attention).
        several: whether a prompt may have any number of images, none included.
        seq2seq: whether the text model is an encoder with a decoder; its forward needs `decoder_input_ids`.
        videos: like `inputs`, with videos; `image_token_id` does not stand at their tokens, `video_token_id` does.
    """

    name: str
    model_type: str
    make: Callable[..., Any]
    inputs: Callable[..., Inputs]
    single: Callable[[Inputs, int], Inputs]
    image_token_id: int | None = IMAGE
    several: bool = True
    seq2seq: bool = False
    videos: Callable[..., Inputs] | None = None
    video_token_id: int | None = None


def build(model_class: Any, config: Any, dtype: torch.dtype, attention: str | dict[str, str], seed: int) -> Any:
    """Build a model with random weights whose attention is far from uniform; answers have the length that is asked for."""
    config._attn_implementation = attention
    torch.manual_seed(seed)
    model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _fill(name, parameter)
    for part in (model, getattr(model, "language_model", None)):  # BLIP-2 lets its text model generate
        if hasattr(part, "generation_config"):
            generation = part.generation_config
            generation.pad_token_id, generation.bos_token_id, generation.eos_token_id = PAD, BOS, None
    model = model.to(dtype).eval()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert not tensor.is_floating_point() or bool(tensor.isfinite().all()), f"{name} is not finite"
    return model


def _fill(name: str, parameter: nn.Parameter) -> None:
    """Draw one parameter: norms near their own start, gates open, matrices by fan-in, queries and keys larger."""
    leaf = (name.split(".")[-2] if "." in name else name).lower()
    if leaf in ("q_norm", "k_norm", "q_layer_norm", "k_layer_norm"):  # larger, or normalised queries see all keys alike
        parameter.add_(float(name.endswith("weight")) + 0.1 * torch.randn_like(parameter))
    elif "gate" in name.rsplit(".", 1)[-1] or "alpha" in name:
        parameter.copy_(0.8 + 0.1 * torch.randn_like(parameter))
    elif "norm" in leaf or leaf.startswith("ln") or "lambda" in name:
        parameter.add_(0.1 * torch.randn_like(parameter))
        if "lambda" in name:
            parameter.add_(1.0 - parameter.mean())
    elif parameter.dim() < 2:
        parameter.normal_(std=0.2)
    else:
        fan = parameter[0].numel() if parameter.dim() > 3 else parameter.shape[-1]
        parameter.normal_(std=(1.0 if "embed" in name else 1.2) * fan**-0.5)
        if leaf in ("q_proj", "k_proj", "query", "key"):
            parameter.mul_(2.0)
        elif leaf in ("q", "k"):  # T5 does not divide by the root of the head's size
            parameter.mul_(1.2)
        elif leaf in ("qkv", "query_key_value"):
            parameter[: 2 * len(parameter) // 3].mul_(2.0)


def sizes(texts: Sequence[int], images: Sequence[int] | None, default: Sequence[int] = (1, 2, 1)) -> tuple[int, ...]:
    """Images of every prompt: what was asked, or the default repeated over the batch."""
    return tuple(images) if images is not None else tuple(default[row % len(default)] for row in range(len(texts)))


def spread(images: Sequence[int], blocks: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """Hand the blocks out to the prompts, in order."""
    left = iter(blocks)
    return [[next(left) for _ in range(count)] for count in images]


def prompts(
    texts: Sequence[int], blocks: Sequence[Sequence[Sequence[int]]], side: str, generator: torch.Generator, lead: int = 2
) -> Inputs:
    """Pad prompts: `lead` words, the ids of each of its images, and the given number of words after them."""
    rows = []
    for length, own in zip(texts, blocks, strict=True):
        words = torch.randint(WORDS, VOCAB, (length + lead,), generator=generator)
        rows.append(torch.cat([words[:lead], *[torch.tensor(block) for block in own], words[lead:]]))
    longest = max(len(row) for row in rows)
    ids, mask = torch.full((len(rows), longest), PAD), torch.zeros(len(rows), longest, dtype=torch.int64)
    for index, row in enumerate(rows):
        place = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[index, place], mask[index, place] = row, 1
    inputs = Inputs(input_ids=ids, attention_mask=mask)
    inputs.images = tuple(len(own) for own in blocks)
    return inputs


def noise(generator: torch.Generator, model: Any, *shape: int) -> Tensor:
    """Pixels: normal noise in the model's dtype."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(model.dtype)


def tokens(key: str) -> Take:
    """The prompt's row of `[B, T, ...]`, without padding."""
    return lambda inputs, row: inputs[key][row : row + 1, inputs["attention_mask"][row].bool()]


def rows(key: str) -> Take:
    """The prompt's row of `[B, ...]`."""
    return lambda inputs, row: inputs[key][row : row + 1]


def pictures(key: str) -> Take:
    """The prompt's images of `[I, ...]`."""

    def take(inputs: Inputs, row: int) -> Tensor:
        first = sum(inputs.images[:row])
        return inputs[key][first : first + inputs.images[row]]

    return take


def single(**takes: Take) -> Callable[[Inputs, int], Inputs]:
    """Make a family's `single` from what it does with every key beside ids and mask."""
    known = {"input_ids": tokens("input_ids"), "attention_mask": tokens("attention_mask"), **takes}

    def one(inputs: Inputs, row: int) -> Inputs:
        found = Inputs({key: known[key](inputs, row) for key in inputs})
        if any(len(tensor) == 0 for tensor in found.values()):  # a prompt without images: only what goes with its tokens
            found = Inputs({key: tensor for key, tensor in found.items() if tensor.shape[:2] == found["input_ids"].shape})
        found.images = (inputs.images[row],)
        return found

    return one
