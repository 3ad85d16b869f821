"""CIDEr-D, BLEU, ROUGE-L, METEOR and the tokenizers against the numbers and, where installed, the code of pycocoevalcap."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from atp.errors import BadInput
from atp.evals.tasks import java, ngrams, open_task, words
from atp.scenes import caption, make_scene

ORACLE = pytest.mark.skipif(find_spec("pycocoevalcap") is None, reason="pycocoevalcap is not installed (extra eval)")
JAVA = pytest.mark.skipif(shutil.which("java") is None, reason="no Java")

REFERENCES = [
    [
        "A man riding a wave on top of a surfboard.",
        "The surfer's board isn't red, it's blue!",
        "A person surfs a big wave in the ocean.",
    ],
    ["Two dogs play with a frisbee (yellow) in the park.", "A pair of dogs running on the grass."],
    [
        "A red double-decker bus, parked at 10:30.",
        "The bus is parked next to a building.",
        "a bus",
        "A large red bus on the street - parked.",
    ],
    ["There are 1,000 books on the shelf; nobody's reading.", "Shelves full of old books"],
]
SAID = [
    "A man riding a big wave on a surfboard.",
    "A dog catches a frisbee in the park.",
    "A red bus is parked on the street",
    "a cat",
]

# pycocoevalcap 1.2 (PTBTokenizer, Bleu(4), Rouge, Cider, METEOR 1.5) on the captions above
BLEU = [0.7291283321651065, 0.6737062699256314, 0.504306572727115, 0.2910229509067036]
BLEU_1_IMAGES = [0.9999999997777782, 0.6249999998437503, 0.9999999997500004, 1.1156507996264998e-16]
ROUGE_L = [0.83418803, 0.48259494, 0.87980769, 0.0]
CIDER = [2.17018183, 0.7812799, 2.10491844, 0.0]
METEOR = [0.40856378933588494, 0.21346979526207993, 0.39282391830950103, 0.0]


def split(captions: list[str]) -> list[list[str]]:
    return [words.plain(caption) for caption in captions]


TRUTH = [split(captions) for captions in REFERENCES]


def test_known_scores() -> None:
    corpus, images = ngrams.bleu(split(SAID), TRUTH)
    assert corpus == pytest.approx(BLEU, abs=1e-12)
    assert images[:, 0] == pytest.approx(BLEU_1_IMAGES, abs=1e-12)
    assert ngrams.rouge_l(split(SAID), TRUTH) == pytest.approx(ROUGE_L, abs=1e-8)
    assert ngrams.cider_d(split(SAID), TRUTH) == pytest.approx(CIDER, abs=1e-8)


def test_bleu_takes_the_closest_reference_the_shorter_of_two() -> None:
    corpus, _ = ngrams.bleu([["a"] * 4], [[["a"] * 3, ["b"] * 5]])
    assert corpus[0] == pytest.approx(3 / 4)  # length 3 is as near as 5, so nothing is taken off; clipped to three
    corpus, _ = ngrams.bleu([["a"] * 4], [[["a"] * 6]])
    assert corpus[0] == pytest.approx(np.exp(1 - 6 / 4))


def test_rouge_takes_precision_and_recall_from_different_references() -> None:
    found = ngrams.rouge_l([["a", "b", "c"]], [[["a"], ["a", "b", "c", "d", "e", "f"]]])
    precision, recall, beta = 3 / 3, 1 / 1, 1.2  # all of the caption is in the second; all of the first is in the caption
    assert found[0] == pytest.approx((1 + beta**2) * precision * recall / (recall + beta**2 * precision)) == pytest.approx(1.0)


def test_cider_of_one_image_is_zero_unless_frequencies_are_given() -> None:
    one = [TRUTH[0]]
    assert ngrams.cider_d([TRUTH[0][0]], one).tolist() == [0.0]
    known = ngrams.Frequency.of(TRUTH)
    assert known.images == 4 and known.counts[("a",)] == 3
    alone = ngrams.cider_d([TRUTH[0][0]], one, known)
    together = ngrams.cider_d([truth[0] for truth in TRUTH], TRUTH)
    assert alone[0] == pytest.approx(together[0]) and alone[0] > 1


def test_cider_penalises_length_by_bigrams() -> None:
    known = ngrams.Frequency(10, {})
    truth = [[["x", "y"]]]
    same, longer = (ngrams.cider_d([said], truth, known)[0] for said in (["x", "y"], ["x", "y", "x", "y"]))
    unigram = 2 / (np.sqrt(8) * np.sqrt(2))  # x and y twice each, clipped to once
    bigram = 1 / np.sqrt(2**2 + 1)  # xy twice and yx, against xy
    assert same == pytest.approx(10 * 2 / 4)  # two of four orders exist
    assert longer == pytest.approx(10 * np.exp(-(2**2) / 72) * (unigram + bigram) / 4)


def test_an_empty_caption_is_worth_nothing_and_breaks_nothing() -> None:
    said = [[], *split(SAID)[1:]]
    corpus, images = ngrams.bleu(said, TRUTH)
    assert images[0].max() < 1e-9 and np.isfinite(corpus).all()
    assert ngrams.rouge_l(said, TRUTH)[0] == ngrams.cider_d(said, TRUTH)[0] == 0.0
    assert max(ngrams.bleu([[]] * 4, TRUTH)[0]) == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The surfer's board isn't red; it's BLUE!", "the surfer 's board is n't red it 's blue"),
        ("a red double-decker bus, at 10:30 - or 3.5", "a red double-decker bus at 10:30 or 3.5"),
        ("two dogs (brown)", "two dogs -lrb- brown -rrb-"),  # the official list misses brackets in lower case
        ('1,000 books... "old" ones', "1,000 books old ones"),
        ("don\u2019t \u2013 you cannot", "do n't you can not"),
        ("the 1950's u.s. flag & 50%", "the 1950 's u.s. flag & 50 %"),
        ("line\nbreak", "line break"),
        ("", ""),
    ],
)
def test_plain_words(text: str, expected: str) -> None:
    assert words.plain(text) == expected.split()


@ORACLE
@JAVA
def test_plain_words_are_those_of_the_official_tokenizer() -> None:
    made = [caption(make_scene(seed, "val"), variant) for seed in range(100) for variant in range(5)]
    texts = [*made, *SAID, *(c for captions in REFERENCES for c in captions), "", "two  dogs\n(brown)", 'a "hello" sign 50% off']
    assert words.ptb(texts) == [words.plain(text) for text in texts]
    assert words.ptb([]) == []


@ORACLE
def test_scores_equal_the_official_code_on_random_captions() -> None:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    rng = random.Random(0)
    pool = [words.plain(caption(make_scene(seed), variant)) for seed in range(40) for variant in range(5)]
    for count in (1, 2, 60):
        truth = [[rng.choice(pool) for _ in range(rng.randint(1, 5))] for _ in range(count)]
        said = [[word for word in rng.choice(captions) if rng.random() < 0.8] for captions in truth]
        gold = {i: [" ".join(c) for c in captions] for i, captions in enumerate(truth)}
        result = {i: [" ".join(c)] for i, c in enumerate(said)}
        with contextlib.redirect_stdout(io.StringIO()):
            corpus, images = Bleu(4).compute_score(gold, result)
            _, rouge = Rouge().compute_score(gold, result)
            _, cider = Cider().compute_score(gold, result)
        ours, ours_images = ngrams.bleu(said, truth)
        assert ours == pytest.approx(corpus, abs=1e-12)
        assert np.abs(ours_images.T - np.array(images)).max() < 1e-12
        assert ngrams.rouge_l(said, truth) == pytest.approx(rouge, abs=1e-12)
        assert ngrams.cider_d(said, truth) == pytest.approx(cider, abs=1e-12)


@ORACLE
@JAVA
@pytest.mark.skipif("METEOR" not in os.environ, reason="the jar takes up to a minute to start; run with METEOR=1")
def test_meteor_is_the_official_jar() -> None:
    assert java.meteor(split(SAID), TRUTH) == pytest.approx(METEOR, abs=1e-9)


def test_without_java_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, official: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BadInput, match=r"mode 'ptb' needs java: .* pip install 'atp-vlm\[eval\]', or leave it out"):
        open_task("coco", official, mode="ptb").score({"42": "a dog"})
    with pytest.raises(BadInput, match="METEOR needs java: install"):
        open_task("coco", official, with_meteor=True).score({"42": "a dog"})


def test_a_task_scores_its_images(official: Path) -> None:
    task = open_task("coco", official)
    scores = task.score({"42": "Two dogs on a mat.", "73": "A cat on a chair.", "581929": None})
    assert task.examples[0].references == ("Two dogs on a mat.", "A dog and another dog near a car.")
    assert scores.items["object_F1"].tolist() == [pytest.approx(2 / 3), pytest.approx(1 / 2), 0.0]
    assert scores.items["ROUGE_L"][0] == 1.0 and scores.items["CIDEr"][2] == 0.0
    assert scores.counts["cider_images"] == 3 and "tuple_F1" not in scores.metrics
    assert scores.metrics["words"] == pytest.approx((5 + 5 + 0) / 3)


def test_karpathys_split_chooses_images(official: Path) -> None:
    rows = [{"cocoid": 42, "split": "test", "sentences": []}, {"cocoid": 73, "split": "restval", "sentences": []}]
    (official / "dataset_coco.json").write_text(json.dumps({"images": rows, "dataset": "coco"}))
    assert [example.key for example in open_task("coco", official, karpathy="test", strict=True).examples] == ["42"]
    (official / "dataset_coco.json").unlink()
    with pytest.raises(BadInput, match=r"no Karpathy's split of COCO in .*'dataset_coco.json'"):
        open_task("coco", official, karpathy="test")


def test_fixed_frequencies_make_subsets_comparable(scenes: Path) -> None:
    def first(**options: object) -> float:
        task = open_task("coco", scenes, **options)  # type: ignore[arg-type]
        return float(task.score({e.key: e.references[1] for e in task.examples}).items["CIDEr"][0])

    assert first(corpus_df=True, limit=3) == pytest.approx(first(corpus_df=True))
    assert first(limit=3) != pytest.approx(first())


def test_scenes_captions_name_their_objects_and_colours(scenes: Path) -> None:
    task = open_task("coco", scenes)
    perfect = task.score({e.key: e.references[0] for e in task.examples})
    assert perfect.metrics["object_F1"] == perfect.metrics["tuple_F1"] == 100.0
    grey = task.score({e.key: " ".join(w for w in e.references[0].split() if w not in _colors()) for e in task.examples})
    assert grey.metrics["object_F1"] == 100.0 and grey.metrics["tuple_F1"] < 90


def _colors() -> tuple[str, ...]:
    from atp.scenes.catalog import COLOR_NAMES

    return COLOR_NAMES
