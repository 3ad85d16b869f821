"""The packed training forward of every backbone computes what the true transformers class computes on each question alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def test_packed_questions_equal_single_questions(name: str) -> None:
    import backbones
    import build

    torch.manual_seed(0)
    backbone = backbones.get(name)
    model = backbone.make_model().double().eval()
    pixels = torch.randn(2, 3, build.SIZE, build.SIZE, dtype=torch.float64)
    questions, length = 3, 7
    tokens = torch.randint(len(build.SPECIAL), len(build.vocabulary()), (2, questions * length))
    with torch.no_grad():
        image, _ = backbone.connect(model, backbone.tower(backbone.vision(model), pixels))
        hidden, _, _ = backbone.language(*backbone.arguments(model, image, tokens, length))
        logits = (hidden @ backbone.embed(model).T).view(2, questions, length, -1)
        for k in range(questions):
            expected = model(**backbone.inputs(tokens.view(2, questions, length)[:, k], pixels)).logits[:, -length:]
            # transformers keeps some rotary phases and norms in fp32: the bound is fp32's
            torch.testing.assert_close(logits[:, k], expected, atol=2e-5, rtol=1e-4)


def test_guided_attention_is_part_of_a_distribution_and_asking_for_it_changes_nothing(name: str) -> None:
    import backbones
    import build

    torch.manual_seed(0)
    backbone = backbones.get(name)
    model = backbone.make_model().eval()
    tokens = torch.randint(len(build.SPECIAL), len(build.vocabulary()), (2, 14))
    with torch.no_grad():
        image, looks = backbone.connect(model, backbone.tower(backbone.vision(model), torch.randn(2, 3, build.SIZE, build.SIZE)))
        plain, _, none = backbone.language(*backbone.arguments(model, image, tokens, 7))
        hidden, middle, seen = backbone.language(*backbone.arguments(model, image, tokens, 7), True)
    assert torch.equal(plain, hidden) and not none and middle.shape == hidden.shape
    assert seen and bool(looks) == backbone.resampled
    for attention in seen:
        to_image, to_start = backbone.split(attention)
        total = to_image.sum(-1) + (0 if to_start is None else to_start)
        assert to_image.shape[-1] == backbone.side**2 and bool((total <= 1 + 1e-5).all()) and bool((to_image > 0).all())
    for look in looks:
        assert look.shape[-2:] == (backbone.side**2, backbones.PATCHES) and bool((look.sum(-1) <= 1 + 1e-5).all())


def test_processor_lays_a_question_out_as_in_training(name: str, ask_one: Callable[[Any, str], dict[str, Any]]) -> None:
    import backbones
    import build

    backbone = backbones.get(name)
    vocab = {piece: i for i, piece in enumerate(build.vocabulary())}
    question = "Is the red car left of the boats?"
    found = ask_one(backbone.make_processor(), question)
    tokens = torch.tensor([[*build.tokens_of(question, vocab), build.ASSISTANT]])
    expected = backbone.inputs(tokens, found["pixel_values"].view(1, 3, build.SIZE, build.SIZE))
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_fast_tokenizing_equals_the_shipped_tokenizer() -> None:
    import build

    from atp.scenes import ask, caption
    from atp.scenes.world import make_scene

    tokenizer = build.make_tokenizer()
    vocab = tokenizer.get_vocab()
    for seed in range(40):
        scene = make_scene(seed)
        for sentence in [q.text for q in ask(scene, 20)] + [caption(scene, v) for v in range(5)]:
            assert build.tokens_of(sentence, vocab) == tokenizer(sentence)["input_ids"]
            assert "<unk>" not in tokenizer.tokenize(sentence)
