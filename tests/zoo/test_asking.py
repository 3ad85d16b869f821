"""Each untrained backbone asked through `build_inputs`: what its own processor makes of it, batches like singles, pruned too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import atp
from atp.adapters import adapt
from atp.asking import build_inputs, new_tokens, prompt_of, words, workload

QUESTIONS = ["Is the red car left of the boats?", "How many dogs?"]
IMAGES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (150, 200, 3), dtype=np.uint8)) for seed in range(len(QUESTIONS))
]


def by_hand(processor: Any, image: Image.Image, question: str) -> dict[str, Any]:
    """The processor called as its own documentation says."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], chat_template=processor.chat_template, tokenize=False, add_generation_prompt=True
    )
    if type(processor).__name__ == "IdeficsProcessor":
        before, after = prompt.split("<image>")
        return dict(processor(text=[[before, image, after]], return_tensors="pt"))
    return dict(processor(images=[[image]], text=[prompt], add_special_tokens=False, return_tensors="pt"))


def double(inputs: dict[str, Any]) -> dict[str, Any]:
    return {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}


def test_one_question_is_what_the_processor_itself_makes(name: str) -> None:
    import backbones

    processor = backbones.get(name).make_processor()
    expected = by_hand(processor, IMAGES[0], QUESTIONS[0])
    for _ in range(2):  # a chat template may lie on either
        found = build_inputs(processor, IMAGES[:1], QUESTIONS[:1])
        assert set(found) == set(expected)
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        processor.tokenizer.chat_template, processor.chat_template = processor.chat_template, None


def test_a_batch_is_padded_in_front_and_equals_its_singles_pruned_or_not(name: str) -> None:
    import backbones

    torch.manual_seed(0)
    backbone = backbones.get(name)
    model, processor = backbone.make_model().double().eval(), backbone.make_processor()
    model.generation_config.eos_token_id = None
    batch = double(build_inputs(processor, IMAGES, QUESTIONS))
    mask = batch["attention_mask"]
    assert mask[1].tolist() == sorted(mask[1].tolist()) and mask[1, 0] == 0
    shape = adapt(model).shape
    with torch.inference_mode(), atp.prune(model, budget=0.6, processor=processor) as run:
        together = new_tokens(batch, model.generate(**batch, max_new_tokens=3, do_sample=False))
    assert run.report().ratio < 0.62
    assert {record.stack for record in run.trace.records} == {"vision", "language"}
    for row in range(2):
        alone = double(build_inputs(processor, IMAGES[row], QUESTIONS[row]))
        assert alone["attention_mask"].all()
        rows = alone["input_ids"].shape[1]
        assert workload(shape, processor, alone, 2).text == words(processor, QUESTIONS[row])
        assert words(processor, QUESTIONS[row]) == rows - (0 if shape.cross else shape.visual)
        with torch.inference_mode():
            whole, one = model(**batch).logits[row, -1], model(**alone).logits[0, -1]
            torch.testing.assert_close(whole, one, atol=1e-6, rtol=0)  # rotary angles are fp32
            with atp.prune(model, budget=0.6, processor=processor):
                assert new_tokens(alone, model.generate(**alone, max_new_tokens=3, do_sample=False))[0].equal(together[row])


@pytest.mark.parametrize("backbone", ["blip2", "flamingo"])
def test_hub_processors_without_a_chat_template_are_asked_in_their_plain_form(backbone: str) -> None:
    import backbones

    processor = backbones.get(backbone).make_processor()
    processor.chat_template = None
    question = QUESTIONS[1]
    expected = {"blip2": "Question: How many dogs? Answer:", "flamingo": "User:<image>How many dogs?\nAssistant:"}[backbone]
    assert prompt_of(processor, f" {question} ") == expected
    found = build_inputs(processor, IMAGES[:1], [question])
    if backbone == "blip2":
        by_its_own = processor(images=IMAGES[0], text=expected, return_tensors="pt")
        processor.num_query_tokens = None
        with pytest.raises(atp.AtpError, match=r"processor\.num_query_tokens = model\.config\.num_query_tokens"):
            build_inputs(processor, IMAGES[:1], [question])
    else:
        by_its_own = processor(text=["User:", IMAGES[0], f"{question}\nAssistant:"], return_tensors="pt")
        processor.tokenizer_was_trained_with_end_of_utterance_token = True
        assert "dogs?<end_of_utterance>\nAssistant:" in prompt_of(processor, question)
    assert all(torch.equal(found[key], by_its_own[key]) for key in by_its_own)


def test_instructblip_reads_the_question_twice_and_pads_each_reader_on_its_side() -> None:
    import backbones
    from build import make_tokenizer
    from transformers import InstructBlipProcessor

    led = backbones.get("blip2").make_processor()
    processor = InstructBlipProcessor(led.image_processor, make_tokenizer(), make_tokenizer(), num_query_tokens=49)
    found = build_inputs(processor, IMAGES, QUESTIONS)
    for row, question in enumerate(QUESTIONS):
        alone = processor(images=IMAGES[row], text=question, return_tensors="pt")
        words_ = alone["qformer_input_ids"].shape[1]
        assert found["qformer_input_ids"][row, :words_].equal(alone["qformer_input_ids"][0])
        assert not found["qformer_attention_mask"][row, words_:].any()
        assert found["input_ids"][row, -alone["input_ids"].shape[1] :].equal(alone["input_ids"][0])
        assert not found["attention_mask"][row, : -alone["input_ids"].shape[1]].any()
    with pytest.raises(atp.AtpError, match="contains '<image>'"):
        build_inputs(processor, IMAGES[:1], ["what is <image> ?"])
