"""Chats: the second question on the cache is the conversation in one piece; what has no second turn says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import atp
from atp.asking import next_prompt
from atp.chat import Chat, talk, talks
from atp.errors import BadInput
from atp.plan import Plan, Site, Step

PICTURE = Path(atp.__file__).parent / "scenes" / "demo" / "01.jpg"
QUESTIONS = ["Is there a bottle in the image?", "How many cups are there?", "What is the leftmost object?"]


@pytest.fixture(scope="module")
def mini():  # type: ignore[no-untyped-def]
    return atp.load("atp-mini-llava")


def test_a_turn_on_the_cache_says_what_the_whole_conversation_says(mini) -> None:  # type: ignore[no-untyped-def]
    model, processor = mini
    chat = Chat(model, processor, atp.load_image(PICTURE), 4)
    for number, question in enumerate(QUESTIONS):
        whole = None if number == 0 else chat.whole(question)
        answer = chat.ask(question)
        if whole is not None:
            with torch.inference_mode():
                want = model.generate(**whole, max_new_tokens=4, do_sample=False)
            assert torch.equal(chat.ids, want)
        assert answer
    said = processor.tokenizer.decode(chat.ids[0]).replace(" ", "").replace("<image>", "").lower()
    assert said.startswith("<s>user:isthereabottleintheimage?assistant:")
    assert said.count("</s>user:") == 2, "every turn ends once"


def test_turns_chosen_anew_cost_more_than_the_cache_and_less_than_a_prompt(mini) -> None:  # type: ignore[no-untyped-def]
    model, processor = mini
    found = talks(model, processor, atp.load_image(PICTURE), QUESTIONS[:2], 4, budget=0.5)
    assert list(found) == ["all tokens", "pruned", "pruned, chosen anew"]
    whole, keep, anew = found.values()
    assert keep.answers[0] == anew.answers[0] and keep.flops[0] == pytest.approx(anew.flops[0])
    assert keep.flops[0] == pytest.approx(0.5 * whole.flops[0], rel=0.02)
    assert keep.flops[1] < whole.flops[1] < anew.flops[1] < keep.flops[0], "the tower does not run again"
    anything = Plan("atp", (Step(Site("language", 2), 1.0),))
    with pytest.warns(UserWarning, match="removed no token"):
        same = talk(model, processor, atp.load_image(PICTURE), QUESTIONS[:2], 4, plan=anything, second_turn="reselect")
    assert same.answers == whole.answers and torch.equal(same.ids[-1], whole.ids[-1])


def test_what_has_no_second_turn_says_so(mini) -> None:  # type: ignore[no-untyped-def]
    model, processor = mini
    picture = Image.new("RGB", (64, 64))
    for name in ("atp-mini-blip2", "atp-mini-flamingo"):
        with pytest.raises(BadInput, match="ask each question as a first one"):
            Chat(*atp.load(name), picture)
    with pytest.raises(BadInput, match="no question given"):
        talk(model, processor, picture, [])
    with pytest.raises(BadInput, match="max_new_tokens is a whole number >= 1, got 0"):
        Chat(model, processor, picture, 0)
    for longest in ("16", 1.5, True):
        with pytest.raises(BadInput, match="max_new_tokens is a whole number >= 1, got"):
            Chat(model, processor, picture, longest)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"an image is a picture, got None \(NoneType\)"):
        Chat(model, processor, None).ask("How many?")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"nothing was asked yet.*chat\.ask\("):
        Chat(model, processor, picture).whole("How many?")
    with pytest.raises(BadInput, match=r"the next question is a text, got 5 \(int\)"):
        next_prompt(processor, 5)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="the next question contains '<image>'"):
        next_prompt(processor, "And <image> here?")
    with pytest.raises(BadInput, match="the next question is empty"):
        next_prompt(processor, "  ")
    kept = processor.chat_template
    try:
        processor.chat_template = "{{ messages[0]['content'][0]['text'] }} image"
        with pytest.raises(BadInput, match="does not say question, answer and next question in a row"):
            next_prompt(processor, "How many?")
    finally:
        processor.chat_template = kept


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    from atp.cli import main

    asked = ["run", "--image", str(PICTURE), "--question", QUESTIONS[0], "--then", QUESTIONS[1], "--max-new-tokens", "4"]
    with pytest.raises(SystemExit) as left:
        main([*asked, "--json"])
    assert left.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert told["questions"] == QUESTIONS[:2]
    assert {len(one["answers"]) for one in told["talks"].values()} == {2}
    with pytest.raises(SystemExit) as left:
        main([*asked, "--overlay", "x.png"])
    assert left.value.code == 2
    assert "leave --overlay or --then away" in " ".join(capsys.readouterr().err.split())
