"""The page: self-contained, escaped, complete."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from atp.explain import Card, page
from atp.explain.page import same

EVIL = "<script>alert('x')</script>\"&"


def card(question: str, truth: str | None = "2") -> Card:
    """A card with a small picture."""
    return Card(question, truth, "2", "3", 0.6, "tower 1/2", (0.2, 0.1), Image.new("RGB", (8, 8)))


def test_self_contained_and_escaped() -> None:
    text = page(EVIL, EVIL, [(EVIL, EVIL)], [card(EVIL), card("How many?", None)])
    assert "<script" not in text
    assert all(target.startswith(("data:", "#")) for target in re.findall(r'(?:src|href)="([^"]*)', text))
    assert "url(" not in text
    assert "@import" not in text
    assert text.count("data:image/jpeg;base64,") == 2


def test_tags_are_closed() -> None:
    open_tags: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag not in ("meta", "img", "br"):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Reader().feed(page("title", "lead", [("1", "what")], [card("How many?")]))
    assert open_tags == []


def test_right_and_wrong_are_marked() -> None:
    text = page("t", "l", [], [card("How many?")])
    assert '<span class="right">2</span>' in text
    assert '<span class="wrong">3</span>' in text


@pytest.mark.parametrize(
    ("answer", "truth", "agree"), [("Yes.", "yes", True), (" two ", "two", True), ("3", "2", False), ("", "no", False)]
)
def test_same(answer: str, truth: str, agree: bool) -> None:
    assert same(answer, truth) is agree
