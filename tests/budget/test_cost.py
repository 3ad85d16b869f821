"""cost.py against torch's own counter, and against numbers worked out by hand."""

from __future__ import annotations

import pytest

from atp.budget.cost import (
    Lengths,
    Workload,
    cache_bytes,
    count,
    equivalent_tokens,
    lengths_of,
    rater_count,
    selection_flops,
    unpruned,
    whole,
)
from atp.budget.shape import ModelShape, StackShape
from atp.errors import InvalidPlan
from atp.plan import Plan, Site, Step

from .models import MAKES, build, counted, inputs, shape_of

LLAVA_7B = ModelShape(
    vision=StackShape(24, 1024, 16, 16, 64, 4096, 2),
    patches=576,
    prefix=1,
    patch_inputs=588,
    connector=((1024, 4096), (4096, 4096)),
    visual=576,
    language=StackShape(32, 4096, 32, 32, 128, 11008, 3),
    vocab=32064,
)


def plan(*steps: Step) -> Plan:
    return Plan("atp", steps)


def step(site: str, keep: float, threshold: float | None = None) -> Step:
    return Step(Site.parse(site), keep, threshold)


@pytest.fixture(scope="module", params=sorted(MAKES))
def make(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(("text", "images", "answer"), [(5, 1, 1), (9, 1, 4), (6, 2, 3)])
def test_unpruned_generate_is_exact(make: str, text: int, images: int, answer: int) -> None:
    shape = shape_of(make)
    measured = counted(build(make), inputs(shape, text, images), answer)
    expected = count(shape, Workload(images, text, answer))
    tower = next(name for name in measured if name.endswith("VisionModel"))
    assert measured["Global"] == expected.total
    assert measured[tower] == expected.vision
    assert measured["LlavaMultiModalProjector"] == expected.connector
    head = 2.0 * shape.language.hidden * shape.vocab
    assert measured["LlavaForConditionalGeneration.lm_head"] == head * answer
    assert measured["LlavaForConditionalGeneration"] == expected.prefill + expected.decode


def test_7b_by_hand() -> None:
    flops = count(LLAVA_7B, Workload(1, 64, 1))
    tokens, wide, narrow = 640, 4096, 11008
    layer = 2 * tokens * (4 * wide * wide + 3 * wide * narrow) + 4 * tokens * tokens * wide
    assert flops.prefill == 32 * layer + 2 * wide * 32064
    assert flops.connector == 2 * 576 * (1024 * 4096 + 4096 * 4096)
    assert flops.decode == flops.selection == 0
    assert flops.vision == pytest.approx(381e9, rel=0.01)  # design note: 381 GF


def test_decode_attends_to_what_each_layer_stores() -> None:
    shape = LLAVA_7B
    lengths = lengths_of(shape, Workload(1, 10, 3), plan(step("language:2", 0.25)))
    assert lengths.language == (586.0,) * 2 + (154.0,) * 30
    saved = count(shape, Workload(1, 10, 3)).decode - count(shape, Workload(1, 10, 3), lengths).decode
    assert saved == 2 * 30 * 4 * (586 - 154) * 4096


def test_lengths_over_both_stacks() -> None:
    lengths = lengths_of(
        LLAVA_7B,
        Workload(1, 20, 3),
        plan(step("vision:8", 0.75), step("vision:16", 0.5), step("language:4", 0.6), step("language:8", 0.1)),
    )
    assert lengths.vision == (577.0,) * 8 + (433.0,) * 8 + (289.0,) * 8
    # language starts with the tower's 288 survivors; 0.6 x 576 = 346 is more than is alive
    assert lengths.language == (308.0,) * 8 + (78.0,) * 24
    assert equivalent_tokens(lengths, Workload(1, 20, 3)) == (8 * 288 + 24 * 58) / 32


def test_two_images_share_the_prompt() -> None:
    lengths = lengths_of(LLAVA_7B, Workload(2, 20, 1), plan(step("vision:8", 0.5), step("language:4", 0.25)))
    assert lengths.vision[-1] == 289
    assert lengths.language[0] == 2 * 288 + 20
    assert lengths.language[-1] == 2 * 144 + 20


def test_adaptive_steps_count_as_their_mean_and_keeps_override() -> None:
    steps = plan(step("vision:8", 0.333, threshold=1.0), step("language:4", 0.1))
    assert lengths_of(LLAVA_7B, Workload(1, 0, 1), steps).vision[-1] == pytest.approx(0.333 * 576 + 1)
    measured = {Site("vision", 8): 0.41, Site("language", 4): 0.0555}
    lengths = lengths_of(LLAVA_7B, Workload(1, 0, 1), steps, measured)
    assert lengths.vision[-1] == pytest.approx(0.41 * 576 + 1)
    assert lengths.language[-1] == pytest.approx(0.0555 * 576)


def test_prefix_that_is_a_visual_token_stays() -> None:
    shape = shape_of("clip-full-mistral")
    assert shape.visual == shape.patches + 1
    assert lengths_of(shape, Workload(1, 3, 1), plan(step("vision:1", 0.5))).language[0] == 8 + 1 + 3


def test_selection_counts_raters_times_captured_keys() -> None:
    work = Workload(1, 20, 3)
    steps = plan(step("vision:8", 0.5), step("language:4", 0.25), step("language:8", 0.1))
    vision = 2 * 1 * 577 * 64 * 16
    language = 2 * 12 * (308 + 164) * 128 * 32
    assert selection_flops(LLAVA_7B, work, steps, {"vision": 1, "language": 12}) == vision + language
    assert selection_flops(LLAVA_7B, work, steps, {}) == 0
    assert selection_flops(LLAVA_7B, work, plan(step("language:0", 0.5)), {"language": 12}) == 0
    flops = count(LLAVA_7B, work, lengths_of(LLAVA_7B, work, steps), 123.0)
    assert flops.total == flops.vision + flops.connector + flops.prefill + flops.decode + 123.0
    assert flops.to_dict()["selection"] == 123.0
    assert flops.to_dict()["total"] == flops.total


def test_rater_count() -> None:
    work = Workload(1, 20, 3)
    assert rater_count(("question",), LLAVA_7B, work) == 20
    assert rater_count(("class", "visual"), LLAVA_7B, work) == 33
    assert rater_count(("class",), shape_of("siglip-qwen2"), work, "vision") == 16  # no class token: the visual tokens rate
    assert rater_count((), LLAVA_7B, work) == 0
    with pytest.raises(InvalidPlan, match="unknown raters 'cls'; expected some of question, last, class, visual"):
        rater_count(("cls",), LLAVA_7B, work)


def test_cache_bytes() -> None:
    work = Workload(1, 64, 1)
    assert cache_bytes(LLAVA_7B, work) == 640 * 32 * 2 * 4096 * 2
    half = lengths_of(LLAVA_7B, work, plan(step("vision:8", 0.5)))
    assert cache_bytes(LLAVA_7B, work, half) == (288 + 64) * 32 * 2 * 4096 * 2


@pytest.mark.parametrize(("keep", "started", "kept"), [(0.5, 9, 4), (0.5, 11, 6), (0.0, 5, 1), (0.0, 0, 0), (1.0, 7, 7)])
def test_whole(keep: float, started: int, kept: int) -> None:
    assert whole(keep, started) == kept


def test_bad_input() -> None:
    with pytest.raises(InvalidPlan, match="answer is a whole number >= 1, got 0"):
        Workload(answer=0)
    with pytest.raises(InvalidPlan, match=r"text is a whole number >= 0, got 3.5"):
        Workload(text=3.5)  # type: ignore[arg-type]
    with pytest.raises(
        InvalidPlan, match="step at language:32, but the model's language stack has layers 0 to 31; use 'language:31'"
    ):
        lengths_of(LLAVA_7B, Workload(), plan(step("language:32", 0.5)))
    with pytest.raises(InvalidPlan, match="lengths of the vision stack: expected one a layer, 24, got 1"):
        count(LLAVA_7B, Workload(), Lengths((577.0,), unpruned(LLAVA_7B, Workload()).language))


def test_raters_are_capped() -> None:
    shape = shape_of("clip-full-mistral")
    assert [rater_count(("visual",), shape, work, "language") for work in (Workload(1), Workload(2))] == [17, 32]
    assert rater_count(("visual",), shape, Workload(2), "vision") == 16
    assert rater_count(("question", "last"), LLAVA_7B, Workload(1, 500, 1)) == 65
