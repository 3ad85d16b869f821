"""The packed training forward computes what transformers' LLaVA computes on each question alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

ZOO = Path(__file__).parents[2] / "zoo"


@pytest.fixture(autouse=True)
def _zoo_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ZOO))


def test_packed_questions_equal_single_questions() -> None:
    import build
    import packed
    from data import PREFIX

    torch.manual_seed(0)
    model = build.make_model().double().eval()
    vocab = model.config.text_config.vocab_size
    core = model.model
    tower, text = getattr(core.vision_tower, "vision_model", core.vision_tower), core.language_model
    pixels = torch.randn(2, 3, build.SIZE, build.SIZE, dtype=torch.float64)
    questions, length = 3, 7
    tokens = torch.randint(len(build.SPECIAL), vocab, (2, questions * length))
    start = packed.TEXT_START + 196
    with torch.no_grad():
        image = core.multi_modal_projector(packed.tower(tower, pixels)[:, 1:])
        embed = text.embed_tokens.weight
        prefix = torch.cat([embed[torch.tensor(PREFIX)].expand(2, -1, -1), image], 1)
        visible = torch.full((length, length), float("-inf"), dtype=torch.float64).triu(1)
        hidden, _, _ = packed.language(
            text,
            prefix,
            embed[tokens],
            visible,
            packed.phases(text, torch.arange(start), torch.float64),
            packed.phases(text, torch.arange(start, start + length), torch.float64),
        )
        logits = (hidden @ embed.T).view(2, questions, length, vocab)
        for k in range(questions):
            one = tokens.view(2, questions, length)[:, k]
            head = torch.tensor([[*PREFIX, *[build.IMAGE] * 196]]).expand(2, -1)
            ids = torch.cat([head, one], 1)
            expected = model(input_ids=ids, pixel_values=pixels).logits[:, start:]
            # transformers keeps rotary phases and norms in fp32: the bound is fp32's
            torch.testing.assert_close(logits[:, k], expected, atol=2e-5, rtol=1e-4)


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
