"""What the two other backbones take over from the shipped one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.mark.parametrize(("kind", "alike"), [("flamingo", 1 - 1e-6), ("blip2", 0.95)])
def test_a_borrowed_tower_sees_what_the_donor_sees(kind: str, alike: float) -> None:
    """Idefics' tower is the donor's; Blip2's has a norm folded into its embeddings, which random towers fail by far."""
    from backbones import get
    from build import vocabulary
    from data import make_batch
    from transformers import LlavaForConditionalGeneration
    from warm import DONOR, borrow

    donor = LlavaForConditionalGeneration.from_pretrained(DONOR, dtype=torch.float32).eval()
    pixels = make_batch([900, 901], {piece: i for i, piece in enumerate(vocabulary())}, 0, 0).pixels
    llava, other = get("llava"), get(kind)
    with torch.no_grad():
        wanted = llava.tower(llava.vision(donor), pixels)[:, 1:]
        found = other.tower(other.vision(borrow(kind)), pixels)[:, 1:]
        fresh = other.tower(other.vision(other.make_model()), pixels)[:, 1:]
    assert torch.cosine_similarity(found, wanted, dim=-1).mean() > alike
    assert torch.cosine_similarity(fresh, wanted, dim=-1).mean() < 0.5


def test_the_stage_begins_with_what_was_borrowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import train
    import warm

    monkeypatch.setattr(train, "RUNS", tmp_path)
    monkeypatch.setattr("sys.argv", ["warm.py", "blip2", "--to", str(tmp_path / "blip2-vision.pt")])
    warm.main()
    leg = train.Stage(train.Job("vision", 1.0, "blip2", batch=2, compiled=False))
    wanted = warm.borrow("blip2").vision_model.encoder.layers[0].self_attn.qkv.weight
    assert leg.step == 0
    assert torch.equal(leg.model.vision_model.encoder.layers[0].self_attn.qkv.weight, wanted.bfloat16())


def test_captions_are_asked_for_where_the_recipe_says() -> None:
    from feed import Recipe

    language = Recipe("language", 2, captions_every=3)
    assert [language.captions(step, 0.5) for step in range(6)] == [False, False, True] * 2
    assert not any(language.captions(step, 0.05) for step in range(6))  # words mean nothing yet
    assert not any(Recipe("language", 2, captions_every=0).captions(step, 0.5) for step in range(6))
    assert not any(Recipe("vision", 2, captions_every=1).captions(step, 0.5) for step in range(6))
