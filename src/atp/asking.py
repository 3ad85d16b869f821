"""From images and questions to a model's inputs, whatever its processor wants. Knows processors; nothing of pruning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from atp.budget.cost import Workload
from atp.budget.shape import ModelShape
from atp.errors import BadInput, told

END_OF_UTTERANCE = "<end_of_utterance>"
AROUND = "<fake_token_around_image>"  # Idefics writes it on both sides of an image


def build_inputs(processor: Any, images: Sequence[Image.Image], questions: Sequence[str]) -> dict[str, Tensor]:
    """Build the inputs of one batch, each prompt one image and one question, padded on the left.

    Args:
        processor: of the model.
        images: RGB, see `load_image`.
        questions: as many as images.

    Returns:
        Keyword arguments for `model.generate`: `input_ids [B, L]`, `attention_mask [B, L]`, `pixel_values`, ...

    Raises:
        BadInput: no processor, no image, no question, an empty one, unequal numbers, or the image placeholder inside a question.
    """
    check_processor(processor)
    images, questions = listed(images), listed(questions)
    for one in images:
        if isinstance(one, str | Path):
            raise BadInput(f"an image is a picture, got the path {str(one)!r}; open it: atp.load_image({str(one)!r})")
        if not isinstance(one, Image.Image) and not hasattr(one, "shape"):  # arrays and tensors have one
            raise BadInput(f"an image is a picture, got {told(one)}; open it: atp.load_image('cat.png')")
    if not images:
        raise BadInput("no image given, expected one for each question; e.g. images=[load_image('cat.png')]")
    if not questions:
        raise BadInput("no question given, expected one for each image; e.g. questions=['How many dogs are there?']")
    if len(images) != len(questions):
        raise BadInput(f"{len(images)} images but {len(questions)} questions, expected one image for each; repeat the image")
    prompts = [prompt_of(processor, question) for question in questions]
    if _interleaves(processor):
        return _interleaved(processor, images, prompts)
    bos = _bos(processor)
    special = not (bos and prompts[0].startswith(bos))  # the template wrote it already
    batch: dict[str, Any] = {"images": [[image] for image in images], "text": prompts, "padding": True, "return_tensors": "pt"}
    if _leads(processor):
        return _led(processor, batch, special)
    return dict(processor(**batch, padding_side="left", add_special_tokens=special))


def listed(given: Any) -> list[Any]:
    """Return the members of what was given, or itself where it is one."""
    return list(given) if isinstance(given, Iterable) and not isinstance(given, str | bytes) else [given]


def check_processor(processor: Any, needed: bool = True) -> None:
    """Refuse what has no tokenizer beside it; None, too, where one is `needed`.

    Raises:
        BadInput: naming what it is.
    """
    if not hasattr(processor, "tokenizer") and (needed or processor is not None):
        raise BadInput(
            f"expected the model's processor, got {type(processor).__name__}; e.g. model, processor = atp.load('atp-mini-llava')"
        )


def _asked(processor: Any, question: Any, what: str, example: str) -> str:
    """Return a question without the blanks around it, or refuse it."""
    if not isinstance(question, str):
        raise BadInput(f"{what} is a text, got {told(question)}; e.g. {example!r}")
    if not question.strip():
        raise BadInput(f"{what} is empty ({question!r}); ask something, e.g. {example!r}")
    token = _image_token(processor)
    if token in question:
        raise BadInput(f"{what} contains {token!r}, which stands for the image itself; leave it out")
    return question.strip()


def prompt_of(processor: Any, question: str) -> str:
    """Render one question about one image through the chat template, or in the family's plain form where there is none.

    BLIP-2 and InstructBLIP processors put the image's tokens in front themselves; their prompts hold none.

    Raises:
        BadInput: an empty question, or one that contains the image placeholder.
    """
    question = _asked(processor, question, "the question", "How many dogs are there?")
    token, template = _image_token(processor), _template(processor)
    if template is None:
        return _plain(processor, token, question)
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = _rendered(processor, template, [{"role": "user", "content": content}])
    return prompt.replace(token, "") if _leads(processor) else prompt


def next_prompt(processor: Any, question: str) -> str:
    """Render what stands between an answer's last word and the next one's first: the end of a turn, and another question.

    Raises:
        BadInput: an empty question; a processor without chat template, or whose template says a conversation in another order.
    """
    question = _asked(processor, question, "the next question", "What color is it?")
    template, mark = _template(processor), "zq"
    if template is None:
        raise BadInput("this processor has no chat template, so a second question has no form; ask it as a first one")
    said = [("user", "a"), ("assistant", mark), ("user", question)]
    talk = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said]
    _, found, rest = _rendered(processor, template, talk).partition(mark)
    if not found or question not in rest:
        raise BadInput("the chat template does not say question, answer and next question in a row; ask it as a first one")
    return rest


def words(processor: Any, question: str) -> int:
    """Return the tokens that the prompt of a question has beside those that stand for the image's visual tokens."""
    prompt, token, bos = prompt_of(processor, question), _image_token(processor), _bos(processor)
    if _interleaves(processor):
        before, _, after = (part.strip(" ") for part in prompt.removeprefix(bos).partition(token))
        prompt = f"{bos}{before}{AROUND}{token}{AROUND}{after}"
    special = not (bos and prompt.startswith(bos))
    count = len(processor.tokenizer(prompt, add_special_tokens=special)["input_ids"])
    return count if _leads(processor) or _interleaves(processor) else count - 1


def workload(shape: ModelShape, processor: Any, inputs: dict[str, Tensor], answer: int) -> Workload:
    """Describe the mean prompt of a batch, for which plans are solved; a picture in tiles is several images.

    Args:
        shape: of the model.
        processor: of the model.
        inputs: from `build_inputs`.
        answer: tokens generated.

    Raises:
        BadInput, InvalidPlan: no processor, no inputs; no number of tokens.
    """
    said = text_places(shape, processor, inputs)
    if shape.cross is not None:  # images that fill up a prompt's row run too
        images = inputs["pixel_values"].shape[1] if "pixel_values" in inputs else 1
    else:
        images = max(1, round(int((inputs["input_ids"] == _image_id(processor)).sum()) / len(said) / shape.visual))
    return Workload(
        images=images, text=round(int(said.sum()) / len(said)), answer=max(1, answer) if isinstance(answer, int) else answer
    )


def text_places(shape: ModelShape, processor: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Return `[B, L]` bool, True where a prompt has text.

    Raises:
        BadInput: no processor, no inputs.
    """
    check_processor(processor)
    if not isinstance(inputs, Mapping) or "input_ids" not in inputs:
        raise BadInput(f"expected the model's inputs with input_ids, got {told(inputs)}; e.g. atp.build_inputs(processor, ...)")
    ids = inputs["input_ids"]
    live = inputs["attention_mask"].bool() if "attention_mask" in inputs else torch.ones_like(ids, dtype=torch.bool)
    return live if shape.cross is not None else live & (ids != _image_id(processor))


def new_tokens(inputs: dict[str, Tensor], output: Tensor) -> Tensor:
    """Return what was generated, `[B, new]`; a decoder of its own does not repeat the prompt."""
    prompt = inputs["input_ids"]
    repeated = output.shape[1] > prompt.shape[1] and bool((output[:, : prompt.shape[1]] == prompt).all())
    return output[:, prompt.shape[1] :] if repeated else output


def visible_box(processor: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the part of an image that the model sees: (left, top, right, bottom) in pixels of the image.

    Processors that resize the short side and cut the middle out do not see the margins.
    """
    width, height = size
    settings = processor.image_processor
    crop, resized = getattr(settings, "crop_size", None), getattr(settings, "size", None)
    if not getattr(settings, "do_center_crop", False) or not crop or not resized:
        return (0.0, 0.0, float(width), float(height))
    short = resized["shortest_edge"] if resized.get("shortest_edge") else None
    scale_x = short / min(width, height) if short else resized["width"] / width
    scale_y = scale_x if short else resized["height"] / height
    seen_x, seen_y = min(crop["width"] / scale_x, width), min(crop["height"] / scale_y, height)
    left, top = (width - seen_x) / 2, (height - seen_y) / 2
    return (left, top, left + seen_x, top + seen_y)


def _template(processor: Any) -> str | None:
    """Return the chat template, None where there is none, or one that shows no image."""
    template = getattr(processor, "chat_template", None)
    if template:
        return str(template)
    template = getattr(getattr(processor, "tokenizer", None), "chat_template", None)
    return str(template) if template and (_leads(processor) or "image" in str(template)) else None


def _rendered(processor: Any, template: str, talk: list[dict[str, Any]]) -> str:
    return str(processor.apply_chat_template(talk, chat_template=template, tokenize=False, add_generation_prompt=True))


def _interleaves(processor: Any) -> bool:
    """Whether a prompt is a list of words and images: Idefics, whose processor also writes <s> and what is around an image."""
    return any(cls.__name__ == "IdeficsProcessor" for cls in type(processor).__mro__)


def _leads(processor: Any) -> bool:
    """Whether the processor writes the image's tokens in front of the prompt, even before <s>: BLIP-2 and InstructBLIP."""
    return hasattr(processor, "num_query_tokens")


def _image_token(processor: Any) -> str:
    return str(getattr(processor, "image_token", None) or "<image>")  # BLIP-2 keeps an AddedToken


def _image_id(processor: Any) -> int:
    known = getattr(processor, "image_token_id", None)
    return int(processor.tokenizer.convert_tokens_to_ids(_image_token(processor)) if known is None else known)


def _bos(processor: Any) -> str:
    return str(getattr(processor.tokenizer, "bos_token", None) or "")


def _plain(processor: Any, token: str, question: str) -> str:
    """Ask as the families' own examples do, without a chat template."""
    if hasattr(processor, "qformer_tokenizer"):
        return question
    if _leads(processor):
        return f"Question: {question} Answer:"
    if _interleaves(processor):
        end = END_OF_UTTERANCE if getattr(processor, "tokenizer_was_trained_with_end_of_utterance_token", False) else ""
        return f"User:{token}{question}{end}\nAssistant:"
    return f"USER: {token}\n{question} ASSISTANT:"


def _interleaved(processor: Any, images: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, Tensor]:
    token, bos, rows = _image_token(processor), _bos(processor), []
    for image, prompt in zip(images, prompts, strict=True):
        before, found, after = prompt.removeprefix(bos).partition(token)
        rows.append([before, image, after] if found else [image, before])
    return dict(processor(text=rows, padding="longest", padding_side="left", return_tensors="pt"))


def _led(processor: Any, batch: dict[str, Any], special: bool) -> dict[str, Tensor]:
    """Call a processor that pads between image and words, and move that in front; a Q-Former's words keep theirs behind."""
    if not processor.num_query_tokens:
        raise BadInput(
            "the processor does not say how many tokens an image has (num_query_tokens); copy it from the model: "
            "processor.num_query_tokens = model.config.num_query_tokens"
        )
    inputs = dict(processor(**batch, padding_side="right", add_special_tokens=special))
    order = torch.argsort(inputs["attention_mask"], dim=1, stable=True)
    for name in ("input_ids", "attention_mask"):
        inputs[name] = inputs[name].gather(1, order)
    return inputs
