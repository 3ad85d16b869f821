"""What tests share: one thread, no network, and a tiny random LLaVA with its own processor, on disk like any checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from PIL import Image, ImageDraw

if not torch.cuda.is_available():  # before anything imports triton: tests/kernels go through its interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")

WORDS = (
    "is there a an in the image how many what color of dogs dog cats cat red blue green yes no one two three left right".split()
)
TEMPLATE = (
    "<s>{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def pytest_configure(config: pytest.Config) -> None:
    """Tiny tensors run fastest on one thread."""
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is none."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, torch sees none")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


def save_tiny_llava(folder: Path, template: str | None = TEMPLATE) -> Path:
    """Write a random LLaVA (CLIP tower and Llama, 4 layers each, 6 x 6 patches) with tokenizer and processor."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    special = ["<pad>", "<unk>", "<s>", "</s>", "<image>", "USER:", "ASSISTANT:"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, "?", ".", *WORDS])}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, additional_special_tokens=special[4:], **names)
    square = {"height": 36, "width": 36}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=square, crop_size=square, do_center_crop=False),
        tokenizer=tokenizer,
        patch_size=6,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
        image_token="<image>",
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=24, intermediate_size=40, num_attention_heads=3, num_hidden_layers=5, image_size=36, patch_size=6
        ),
        text_config=LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=len(core.get_vocab()),
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
        ),
        image_token_index=4,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embed" not in name:
                weight.mul_(6.0)  # at the usual scale all tokens look the same, and nothing depends on what leaves
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the tiny random LLaVA. Read only: it is shared by all tests."""
    return save_tiny_llava(tmp_path_factory.mktemp("tiny-llava"))


@pytest.fixture(scope="session")
def loaded(model_dir: Path) -> tuple[Any, Any]:
    """The tiny model and its processor."""
    from atp.loading import load

    return load(model_dir, device="cpu")


@pytest.fixture(scope="session")
def drawing() -> Image.Image:
    """A picture with something in it: a red disc and a blue box on a gradient."""
    image = Image.linear_gradient("L").resize((120, 90)).convert("RGB")
    pen = ImageDraw.Draw(image)
    pen.ellipse((10, 20, 50, 60), fill=(220, 40, 40))
    pen.rectangle((70, 30, 110, 80), fill=(40, 60, 220))
    return image


@pytest.fixture
def image_file(tmp_path: Path, drawing: Image.Image) -> Path:
    """The picture as a PNG file."""
    drawing.save(tmp_path / "drawing.png")
    return tmp_path / "drawing.png"


@pytest.fixture(scope="session")
def fitted(loaded: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Counts per input of the tiny model for budgets from 0.6 to 0.8, fitted to pictures of more and more boxes. Read only."""
    from atp.fitting import fit_counts

    pictures = [Image.new("RGB", (36, 36), "grey") for _ in range(10)]
    for count, picture in enumerate(pictures):
        for place in range(4 * count):
            x, y = 6 * (place % 6), 6 * (place // 6)
            ImageDraw.Draw(picture).rectangle((x, y, x + 5, y + 5), fill=(25 * (place % 9), 250 - 20 * (place % 7), 90))
    path = tmp_path_factory.mktemp("fitted") / "mine.json"
    fit_counts(*loaded, pictures, ["how many dogs ?"] * 10, (0.8, 0.6)).save(path)
    return path
