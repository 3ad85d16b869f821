"""Pages of long prompts and second turns from records written by hand; what stands before questions, and what must stay of it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from atp.evals.items import Item
from atp.scenes import ask, make_scene

RUNS = Path(__file__).parents[2] / "runs"
HEAD = {"model": "m", "split": "val", "dtype": "float32", "versions": {"torch": "2"}, "commit": "abc"}


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(RUNS))
    spec = importlib.util.spec_from_file_location(f"runs_{name}", RUNS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, f"runs_{name}", found)
    spec.loader.exec_module(found)
    return found


def test_the_page_of_long_prompts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = module("text", monkeypatch)

    def row(right: int, **more: Any) -> dict[str, Any]:
        return {"answers": ["yes"] * right + ["no"] * (4 - right), "ratio": 0.6, "visual": 90.0, "plan": {}, **more}

    work = {"images": 1, "text": 100, "answer": 2, "protected": 40}
    told = HEAD | {"prompt": "examples:8", "scenes": [0, 1, 2, 3], "truth": ["yes"] * 4, "work": work}
    kept = {"started": 101.2, "kept": 55.4, "protected": 160, "protected_gone": 3}
    told |= {
        "rows": {"all tokens": row(4) | {"ratio": 1.0}, "0.6 visual only": row(2)},
        "refused": {"0.4 visual only": "lowest 0.45"},
    }
    told["rows"]["0.6 visual and text, text=0.7"] = row(3, text=kept)
    whole = HEAD | {"prompt": "plain:0", "scenes": [0, 0], "truth": ["no", "no"], "work": work, "refused": {}}
    whole |= {"rows": {"all tokens": {"answers": ["no", "yes"], "ratio": 1.0, "visual": 196.0, "plan": {}}}}
    for name, one in (("a", told), ("b", whole)):
        (tmp_path / f"{name}.json").write_text(json.dumps(one))
    text.page([tmp_path / "a.json", tmp_path / "b.json"], tmp_path)
    page = (tmp_path / "text.md").read_text()
    assert "| plain | nothing | 1 | 100 | 50.0 |" in page
    assert page.count("\n### ") == 1, "only the unpruned answers of the second one are known"
    assert "| 0.6 visual only | 0.600 | 50.0 | -50.00 [-100.00, +0.00] | - | 90.0 | all 100 | - |" in page
    assert "| 0.6 visual and text, text=0.7 | 0.600 | 75.0 | -25.00 [-75.00, +0.00] | +25.00 [" in page
    assert "| 90.0 | 55 of 101 | 3 of 160 |" in page
    assert "1 comparisons: 0 wins (interval above 0), 1 ties, 0 losses." in page
    assert page.index("| plain |") < page.index("| 8 x examples |")
    assert "Not possible: 0.4 visual only: lowest 0.45." in page


def test_prompts_hold_what_they_say_and_never_the_question_s_own_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    text = module("text", monkeypatch)
    item = Item("val:0:0", "picture", "Is it red?", "yes", "color")  # type: ignore[arg-type]
    for kind in text.PROMPTS:
        said, pictures = text.prompt(kind, 3, 7, item)
        assert said.count("<image>") == len(pictures) == (4 if kind == "shots" else 1)
        assert pictures[-1] == "picture" and said.startswith("<s>") and said.endswith("<image>Is it red?ASSISTANT:")
        assert said.count("ASSISTANT:") == (4 if kind in ("examples", "shots") else 1)
        assert (said == text.prompt(kind, 3, 8, item)[0]) == (kind in ("plain", "english")), "each has others before it"
    for scene, question, answer in text.others(2, 7):
        assert (
            scene.split == "train"
            and scene.seed >= 900_000_000
            and (question, answer) in {(q.text, q.answer) for q in ask(scene, 20)}
        )


def test_protected_tokens_are_found_by_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    text = module("text", monkeypatch)
    words = ["<s>", "a", "two", "cat", "no", "USER:", "not", "7", "##7", "note", "</s>", *["dog"] * 40]
    tokenizer = SimpleNamespace(pad_token_id=99, convert_ids_to_tokens=lambda ids: [words[number] for number in ids])
    ids = [99, 99, *range(3), 98, 98, *range(3, len(words))]  # padding, then a picture inside
    stay = text.protected(SimpleNamespace(tokenizer=tokenizer), ids, 98)
    assert stay == {0, 2, 4, 5, 6, 7, 8, 10, *range(len(words) - 32, len(words))}


def test_pairs_rest_on_different_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    turns, seen = module("turns", monkeypatch), set()
    for pair in turns.pairs(7, "val"):
        asked = {question.text: question for question in ask(make_scene(pair["scene"], "val"), 20)}
        first, second = (asked[text] for text in pair["questions"])
        assert first.about and second.about and not set(first.about) & set(second.about)
        assert pair["truth"] == (first.answer, second.answer)
        seen.add((pair["scene"], *pair["questions"]))
    assert len(seen) == 7


def test_the_page_of_second_turns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    turns = module("turns", monkeypatch)
    rows = []
    for number in range(4):  # keep is right in one of four, reselect and the others in all but the last
        good = number < 3
        first = {"first": ["yes", 2e9]}
        whole = first | {"all tokens": ["Red", 1e8], "asked alone, all tokens": ["red", 2e9]}
        pruned = first | {"keep": ["red" if number == 0 else "blue", 5e7], "reselect": ["red" if good else "blue", 4e8]}
        pruned |= {"fresh prefill": ["red" if good else "green", 1e9], "asked alone": ["red", 1e9]}
        told = {"scene": number, "questions": ("a?", "b?"), "truth": ("yes", "red"), "said": {"all": whole, "0.4": pruned}}
        rows.append(told)
    lines = [HEAD | {"budgets": [0.4]}, *rows]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    turns.page([tmp_path / "m.jsonl"], tmp_path)
    page = (tmp_path / "turns.md").read_text()
    assert "`m`: 4 pairs, 4 scenes of split val; float32; torch 2; commit abc." in page
    assert "First questions: 100.0 % right with all tokens, 100.0 % pruned." in page
    assert "| all tokens | 100.0 | - |" in page
    assert "| keep | 25.0 | -75.00 [-100.00, -25.00] | -50.00 [" in page
    row = next(line for line in page.splitlines() if line.startswith("| reselect |"))
    assert "| 75.0 | -25.00 [" in row and row.endswith("| 75.0 | 75.0 | 0.400 |")
    assert "Reselect minus keep, in points: right +50.00 [" in page
