"""Processors of the true transformers classes for tiny models: images of any size, one id a word."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    IdeficsImageProcessorPil,
    IdeficsProcessor,
    InternVLProcessor,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
)

from families import flamingos, llavas, packed, shuffled
from families.base import VOCAB, WORDS

SPECIAL = ("<pad>", "<s>", "</s>", "<image>", "<video>", "<begin>", "<end>", "<break>", "USER:", "ASSISTANT:", "<unk>")
"""As `base` numbers them."""
SAID = (
    "is there a an in the image how many what color of dogs dog cats cat red blue green yes no one two three left right ?".split()
)
TEMPLATE = (
    "{% for m in messages %}<s>USER:{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def tokenizer(*extra: str) -> Any:
    """Words are words, special ones the first ids."""
    special = [*SPECIAL, *extra]
    special += [f"<{number}>" for number in range(len(special), WORDS)]
    words = [*SAID, *(f"word{number}" for number in range(VOCAB - len(special) - len(SAID)))]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate([*special, *words])}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, additional_special_tokens=special[3:], **names)


def made(kind: type[ProcessorMixin], pixels: Any, words: Any, image: str, **options: Any) -> Any:
    """Make a processor that takes no videos, whose own processors need torchvision."""

    class Still(kind):  # type: ignore[misc, valid-type]
        def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
            return None if argument is None else super().check_argument_for_proper_class(name, argument)

    return Still(image_processor=pixels, tokenizer=words, chat_template=TEMPLATE.replace("IMAGE", image), **options)


def qwen2_vl() -> Any:
    """Sides that are multiples of two patches, at most 144 of them."""
    size = {"shortest_edge": 4 * packed.PATCH**2, "longest_edge": 144 * packed.PATCH**2}
    pixels = Qwen2VLImageProcessorPil(patch_size=packed.PATCH, merge_size=packed.MERGE, temporal_patch_size=2, size=size)
    words = tokenizer()
    words.image_token, words.video_token = "<image>", "<video>"
    return made(Qwen2VLProcessor, pixels, words, "<begin><image><end>", video_processor=None)


def llava_onevision() -> Any:
    side = {"height": llavas.TILE, "width": llavas.TILE}
    pixels = LlavaOnevisionImageProcessorPil(size=side, image_grid_pinpoints=llavas.GRIDS)
    told = {"num_image_tokens": llavas.SIDE**2, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_2"}
    return made(LlavaOnevisionProcessor, pixels, tokenizer(), "<image>", video_processor=None, **told)


def llava_next() -> Any:
    crop = {"height": llavas.TILE, "width": llavas.TILE}
    pixels = LlavaNextImageProcessorPil(size={"shortest_edge": llavas.TILE}, crop_size=crop, image_grid_pinpoints=llavas.GRIDS)
    told = {"patch_size": llavas.PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return made(LlavaNextProcessor, pixels, tokenizer(), "<image>", **told)


def idefics3() -> Any:
    """At most 4 x 4 tiles and the thumbnail."""
    tile = {"longest_edge": shuffled.TILE}
    pixels = Idefics3ImageProcessorPil(size={"longest_edge": 4 * shuffled.TILE}, max_image_size=tile, return_row_col_info=True)
    words = tokenizer("<fake_token_around_image>", "<end_of_utterance>", "<global-img>")
    return made(Idefics3Processor, pixels, words, "<image>", image_seq_len=shuffled.TOKENS)


def internvl() -> Any:
    """At most four tiles and the thumbnail."""
    size = {"height": shuffled.TILE, "width": shuffled.TILE}
    pixels = GotOcr2ImageProcessorPil(size=size, crop_to_patches=True, min_patches=1, max_patches=4)
    words = tokenizer()
    words.video_token = "<video>"
    for role, token in (("start", "<begin>"), ("end", "<end>"), ("context", "<image>")):
        setattr(words, f"{role}_image_token", token)
        setattr(words, f"{role}_image_token_id", SPECIAL.index(token))
    return made(InternVLProcessor, pixels, words, "<image>", video_processor=None, image_seq_length=shuffled.TOKENS)


def idefics() -> Any:
    words = tokenizer("<fake_token_around_image>", "<end_of_utterance>")
    return made(IdeficsProcessor, IdeficsImageProcessorPil(image_size=flamingos.SIDE), words, "<image>")


PROCESSORS = {one.__name__: one for one in (qwen2_vl, llava_onevision, llava_next, idefics3, internvl, idefics)}
"""By the name of the family in `FAMILIES`."""
