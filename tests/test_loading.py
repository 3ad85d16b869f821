"""Loading by directory, name and hub id; every way in which it cannot work; the inputs that are built."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from atp import loading, prune, workload_of
from atp.errors import BadInput, InvalidPlan, UnsupportedModel
from atp.loading import build_inputs, load, visible_box
from conftest import save_tiny_llava


@pytest.fixture
def copy(model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may break."""
    return Path(shutil.copytree(model_dir, tmp_path / "model"))


def test_directory_loads_true_classes_ready_to_generate(loaded: tuple[Any, Any], model_dir: Path) -> None:
    model, processor = loaded
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert type(processor).__name__ == "LlavaProcessor"
    assert not model.training
    assert model.dtype == torch.float32
    assert model.config._name_or_path == str(model_dir)


def test_shipped_name_is_the_packages_folder(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.move(copy, tmp_path / loading.DEFAULT)
    monkeypatch.setattr(loading, "PACKAGED", tmp_path)
    assert loading.resolve("atp-mini-llava") == str(tmp_path / "atp-mini-llava")
    load("atp-mini-llava", device="cpu")
    (tmp_path / "atp-mini-blip2").mkdir()
    with pytest.raises(BadInput, match=r"model 'atp-mini-blip2' is not in this installation .* has: atp-mini-llava\).*reinstall"):
        load("atp-mini-blip2", device="cpu")


def test_hub_id_passes_through_and_home_is_expanded(monkeypatch: pytest.MonkeyPatch, copy: Path) -> None:
    assert loading.resolve("llava-hf/llava-1.5-7b-hf") == "llava-hf/llava-1.5-7b-hf"
    monkeypatch.setenv("HOME", str(copy.parent))
    assert loading.resolve("~/model") == str(copy)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("atp-mini-lava", r"unknown model 'atp-mini-lava'\. Did you mean 'atp-mini-llava'\?"),
        ("./nowhere", r"no such model directory: './nowhere'"),
        ("/no/such/dir", r"no such model directory"),
        ("", r"no such model directory: ''"),
        ("a/b/c", r"expected 'atp-mini-llava', .*, a directory, or a hub id"),
    ],
)
def test_names_that_are_nothing(name: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        load(name, device="cpu")


def test_a_file_is_not_a_directory(model_dir: Path) -> None:
    with pytest.raises(BadInput, match=r"is a file; give the directory"):
        load(model_dir / "config.json", device="cpu")


def test_hub_not_reachable() -> None:
    with pytest.raises(BadInput, match=r"no directory 'no-such/model', and the hub cannot be reached.*hf download no-such/model"):
        load("no-such/model", device="cpu")


@pytest.mark.parametrize(
    ("remove", "says"),
    [
        (["config.json"], "no config.json in"),
        (["model.safetensors"], "no weights"),
        (["processor_config.json"], r"no processor in .*AutoProcessor\.from_pretrained\("),
        (["tokenizer.json", "tokenizer_config.json"], r"no tokenizer in .*save_pretrained\("),
    ],
)
def test_directory_with_parts_missing(copy: Path, remove: list[str], says: str) -> None:
    for file in remove:
        (copy / file).unlink()
    with pytest.raises(BadInput, match=says):
        load(copy, device="cpu")


def test_parent_of_a_model_directory_names_the_child(copy: Path) -> None:
    with pytest.raises(BadInput, match=r"did you mean '.*model'\?"):
        load(copy.parent, device="cpu")


@pytest.mark.parametrize(
    ("kind", "says"),
    [("lava", r"'lava', which atp cannot prune\. Did you mean 'llava'\? Supported: .*llava"), (None, "no model_type"), (7, "7")],
)
def test_unknown_model_type(copy: Path, kind: Any, says: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["model_type"] = kind
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match=says):
        load(copy, device="cpu")


@pytest.mark.parametrize(
    ("file", "text", "what"),
    [
        ("config.json", '{"model_type":', "configuration"),
        ("processor_config.json", "{", "processor"),
        ("model.safetensors", "xx", "weights"),
    ],
)
def test_damaged_files(copy: Path, file: str, text: str, what: str) -> None:
    (copy / file).write_text(text)
    with pytest.raises(BadInput, match=rf"cannot read the {what} in"):
        load(copy, device="cpu")


def test_checkpoint_without_some_weights_is_refused(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    gone = next(name for name in weights if "projector" in name)
    save_file({k: v for k, v in weights.items() if k != gone}, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"no weights for 1 tensors, e\.g\. '.*projector"):
        load(copy, device="cpu")


def test_dtypes(model_dir: Path) -> None:
    assert load(model_dir, dtype="bfloat16", device="cpu")[0].dtype == torch.bfloat16
    assert load(model_dir, dtype=torch.float64, device="cpu")[0].dtype == torch.float64
    with pytest.raises(BadInput, match=r"unknown dtype 'bfloat'\. Did you mean 'bfloat16'\?"):
        load(model_dir, dtype="bfloat", device="cpu")
    with pytest.raises(BadInput, match="unknown dtype 'int8'"):
        load(model_dir, dtype=torch.int8, device="cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_device_that_is_not_there(model_dir: Path, device: str) -> None:
    with pytest.raises(BadInput, match=rf"cannot use the device '{device}'.*'cpu' or 'cuda:0'"):
        load(model_dir, device=device)


def test_inputs_use_the_chat_template_once(loaded: tuple[Any, Any], drawing: Image.Image) -> None:
    _, processor = loaded
    inputs = build_inputs(processor, [drawing], ["how many dogs ?"])
    ids = inputs["input_ids"][0].tolist()
    assert ids.count(2) == 1, "one <s>"
    assert ids.count(4) == 36, "6 x 6 visual tokens"
    assert processor.tokenizer.decode(ids[-4:]).endswith("dogs ? ASSISTANT:")
    assert inputs["pixel_values"].shape == (1, 3, 36, 36)


def test_batches_are_padded_on_the_left(loaded: tuple[Any, Any], drawing: Image.Image) -> None:
    inputs = build_inputs(loaded[1], [drawing, drawing], ["dog ?", "how many dogs in the image ?"])
    assert inputs["attention_mask"][0, 0] == 0
    assert inputs["attention_mask"][:, -1].tolist() == [1, 1]
    alone = build_inputs(loaded[1], drawing, "dog ?")  # type: ignore[arg-type]
    assert inputs["input_ids"][0][inputs["attention_mask"][0].bool()].tolist() == alone["input_ids"][0].tolist()


def test_plain_prompt_without_a_chat_template(tmp_path: Path) -> None:
    _, processor = load(save_tiny_llava(tmp_path, template=None), device="cpu")
    assert loading.prompt_of(processor, " how many dogs ? ") == "USER: <image>\nhow many dogs ? ASSISTANT:"


def test_bad_questions_and_images(loaded: tuple[Any, Any], drawing: Image.Image) -> None:
    processor = loaded[1]
    for images, questions, says in [
        ([], ["dog ?"], "no image given"),
        ([drawing], [], "no question given"),
        ([drawing], ["  \n"], "the question is empty"),
        ([drawing], [None], r"the question is a text, got None \(NoneType\)"),
        ([drawing], [5], r"the question is a text, got 5 \(int\); e\.g\. 'How many dogs"),
        (None, ["dog ?"], r"an image is a picture, got None \(NoneType\); open it: atp\.load_image\('cat\.png'\)"),
        ([[drawing]], ["dog ?"], r"an image is a picture, got .* \(list\)"),
        ([b"png"], ["dog ?"], r"an image is a picture, got b'png' \(bytes\)"),
        (drawing, None, "the question is a text, got None"),
        ([drawing, drawing], ["dog ?"], "2 images but 1 questions"),
        ([drawing], ["what is <image> ?"], "contains '<image>'"),
    ]:
        with pytest.raises(BadInput, match=says):
            build_inputs(processor, images, questions)  # type: ignore[arg-type]


def test_arrays_and_tensors_are_images(loaded: tuple[Any, Any], drawing: Image.Image) -> None:
    array, ask = np.asarray(drawing), ["dog ?"]
    want = build_inputs(loaded[1], [drawing], ask)["pixel_values"]
    for given in ([array], torch.tensor(array).permute(2, 0, 1)[None]):
        assert torch.equal(build_inputs(loaded[1], given, ask)["pixel_values"], want)  # type: ignore[arg-type]


def test_what_is_no_processor(loaded: tuple[Any, Any], drawing: Image.Image) -> None:
    model, processor = loaded
    inputs = build_inputs(processor, [drawing], ["dog ?"])
    for wrong in ("x", processor.tokenizer, processor.image_processor, model, (model, processor)):
        says = rf"expected the model's processor, got {type(wrong).__name__}; e\.g\. model, processor = atp\.load"
        with pytest.raises(BadInput, match=says):
            build_inputs(wrong, [drawing], ["dog ?"])
        with pytest.raises(BadInput, match=says):
            workload_of(model, wrong, inputs)
        with pytest.raises(BadInput, match=says):
            prune(model, 0.9, processor=wrong).__enter__()
    with pytest.raises(BadInput, match="expected the model's processor, got NoneType"):
        workload_of(model, None, inputs)
    for none in (None, {}, [1]):
        with pytest.raises(BadInput, match=r"expected the model's inputs with input_ids, got .*atp\.build_inputs\("):
            workload_of(model, processor, none)
    with pytest.raises(InvalidPlan, match="a workload's answer is a whole number >= 1, got '3'"):
        workload_of(model, processor, inputs, answer="3")  # type: ignore[arg-type]
    with prune(model, 0.9, processor=SimpleNamespace(tokenizer=processor.tokenizer)):  # families without a chat template
        pass


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"size": {"height": 60, "width": 60}, "do_center_crop": False}, (200, 90)),
        ({"size": {"shortest_edge": 60}, "crop_size": {"height": 60, "width": 60}, "do_center_crop": True}, (200, 90)),
        ({"size": {"shortest_edge": 60}, "crop_size": {"height": 60, "width": 60}, "do_center_crop": True}, (90, 210)),
        ({"size": {"shortest_edge": 80}, "crop_size": {"height": 60, "width": 60}, "do_center_crop": True}, (120, 120)),
    ],
)
def test_visible_box_is_what_the_processor_cuts_out(options: dict[str, Any], size: tuple[int, int]) -> None:
    from transformers import CLIPImageProcessorPil

    class Processor:
        image_processor = CLIPImageProcessorPil(**options, do_normalize=False)

    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    image = Image.fromarray(np.stack([x * 255 // size[0], y * 255 // size[1], x * 0], -1).astype(np.uint8))
    seen = Processor.image_processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0) * 255
    ours = np.asarray(image.resize((60, 60), Image.Resampling.BICUBIC, box=visible_box(Processor, size)), dtype=float)
    assert np.abs(seen - ours).max() < 6


def test_the_shipped_model_is_complete() -> None:
    model, processor = load(device="cpu")
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert loading.prompt_of(processor, "how many dogs ?")
    weights = loading.PACKAGED / loading.DEFAULT / "model.safetensors"
    assert weights.stat().st_size <= 12_000_000
