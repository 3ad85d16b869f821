"""A budget counts what leaving text saves: by the plan's price, by torch's own count, and on prompts of a shipped model."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import atp
from atp.budget.cost import Workload, count, lengths_of
from atp.budget.solve import solve
from atp.engine import prune
from atp.errors import InvalidPlan, UnreachableBudget
from atp.plan import Plan, Site, Step

from .models import MAKES, build, inputs, shape_of
from .test_cost import LLAVA_7B
from .test_solve import MINI, cost

LONG = Workload(1, 600, 3, protected=40)


@pytest.mark.parametrize("shape", [LLAVA_7B, MINI], ids=["7b", "mini"])
@pytest.mark.parametrize("method", ["atp", "random"])
@pytest.mark.parametrize(("budget", "text"), [(0.6, 0.5), (0.55, 0.3), (0.45, 0.0), (0.8, 0.9)])
def test_what_text_saves_is_spent_on_visual_tokens(shape: object, method: str, budget: float, text: float) -> None:
    plan = solve(shape, budget, method, LONG, text=text)  # type: ignore[arg-type]
    assert budget - 0.005 < cost(shape, plan, LONG) <= budget  # type: ignore[arg-type]
    language = [step for step in plan.steps if step.site.stack == "language"]
    assert [step.text for step in language] == [text, *[1.0] * (len(language) - 1)]
    stays = max(round(text * 600), 40)
    assert lengths_of(shape, LONG, plan).text[-1] == stays  # type: ignore[arg-type]
    try:
        plain = solve(shape, budget, method, LONG)  # type: ignore[arg-type]
    except UnreachableBudget:
        return
    kept = [sum(one.keep for one in some.steps) / max(1, len(some.steps)) for some in (plan, plain)]
    assert kept[0] > kept[1], "what the text saves came to nobody"


@pytest.mark.parametrize("make", sorted(MAKES))
@pytest.mark.parametrize(("budget", "text", "tail"), [(0.6, 0.4, 8), (0.5, 0.0, 20)])
def test_torch_counts_the_budget(make: str, budget: float, text: float, tail: int) -> None:
    model, shape, words = build(make), shape_of(make), 120
    work, batch = Workload(1, words, 3), inputs(shape, words)
    with (
        prune(model, budget=budget, text=text, text_tail=tail, workload=work) as run,
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
        torch.no_grad(),
    ):
        model.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    whole = count(shape, work).total
    assert counter.get_total_flops() / whole == pytest.approx(run.report().ratio, rel=1e-12)
    assert budget * 0.99 <= counter.get_total_flops() / whole <= budget
    assert run.report().kept["text"] == {run.trace.last("text")[0].layer: [max(round(text * words), tail + 1)]}


def test_a_budget_out_of_reach_names_the_lowest_and_the_text() -> None:
    says = (
        r"answer=3; text=0.9 keeps 540 of 600 text tokens\): the lowest reachable is 0\.\d\d.*, or let more text leave, down to "
    )
    with pytest.raises(UnreachableBudget, match=says) as caught:
        solve(MINI, 0.35, "atp", LONG, text=0.9)
    lowest, share = (float(re.search(rf"{name}=([\d.]+)", str(caught.value)[200:])[1]) for name in ("budget", "text"))  # type: ignore[index]
    assert 0.345 < cost(MINI, solve(MINI, 0.35, "atp", LONG, text=share), LONG) <= 0.35, "the error's own advice"
    assert cost(MINI, solve(MINI, lowest, "atp", LONG, text=0.9), LONG) <= lowest
    with pytest.raises(UnreachableBudget, match=f"lowest reachable is {lowest:.2f}"):
        solve(MINI, lowest - 0.011, "atp", LONG, text=0.9)
    with pytest.raises(UnreachableBudget) as caught:
        solve(MINI, 0.1, "atp", LONG, text=0.9)
    assert "let more text leave" not in str(caught.value), "advice that does not help"


def test_text_alone_may_be_enough_and_then_no_visual_token_leaves() -> None:
    plan = solve(MINI, 0.95, "atp", LONG, text=0.1)
    assert plan.steps == (Step(Site("language", 2), 1.0, text=0.1),)
    assert cost(MINI, plan, LONG) < 0.95
    assert solve(MINI, 1.0, "atp", LONG) == Plan("atp", (), {}, 1.0)
    for wrong in (1.5, -0.1, float("nan"), "half"):
        with pytest.raises(InvalidPlan, match="text is a share in"):
            solve(MINI, 0.6, text=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidPlan, match=r"protected is a whole number >= 0, got -1"):
        Workload(protected=-1)


def test_a_workload_is_one() -> None:
    model = build("clip-llama")
    for text in (None, 0.5):
        says = r"workload is an atp\.Workload, got {'text': 9}; e\.g\. atp\.workload_of\(model, processor, inputs\)"
        with pytest.raises(InvalidPlan, match=says):
            prune(model, budget=0.8, text=text, workload={"text": 9}).__enter__()  # type: ignore[arg-type]
    with pytest.raises(InvalidPlan, match=r"a running plan is a Plan, got 0\.5"), prune(model, budget=0.8) as run:
        run.plan = 0.5  # type: ignore[assignment]


def test_a_budget_for_unknown_text_says_so() -> None:
    model = build("clip-llama")
    says = r"give workload=atp.workload_of\(model, processor, inputs\)"
    with pytest.warns(UserWarning, match=says), prune(model, budget=0.8, text=0.5) as run:
        model(**inputs(shape_of("clip-llama"), 40))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with prune(model, plan=run.plan, text=0.5):
            model(**inputs(shape_of("clip-llama"), 40))


def test_real_prompts_of_a_shipped_model_meet_it_with_what_is_protected() -> None:
    model, processor = atp.load("atp-mini-llava")
    question = "a photo of two red cups, no cat and a dog. " * 16 + "How many cups are there?"
    batch = atp.build_inputs(processor, [Image.new("RGB", (64, 64))], [question])
    work = atp.workload_of(model, processor, batch, answer=2)
    ids = batch["input_ids"][0].tolist()
    words = processor.tokenizer.convert_ids_to_tokens(ids)
    text = [place for place, word in enumerate(words) if word != "<image>"]
    meant = [place for place in text if words[place] in ("two", "no", "<s>", "USER:", "ASSISTANT:")]
    assert work.text == len(text)
    assert work.protected == len({text[0], *text[-32:], *meant})
    for share in (0.3, 0.0):
        with torch.inference_mode(), prune(model, budget=0.5, text=share, processor=processor, workload=work) as run:
            model.generate(**batch, max_new_tokens=2, min_new_tokens=2, do_sample=False)
        assert 0.495 <= run.report().ratio <= 0.5
        kept = {text[rank] for rank in run.trace.last("text")[0].kept[0].tolist()}
        assert {text[0], *text[-32:], *meant} <= kept


def test_few_shot_prompts_of_the_shipped_flamingo_meet_it_and_keep_their_pictures() -> None:
    model, processor = atp.load("atp-mini-flamingo")
    pictures = [Image.new("RGB", (64, 64), color) for color in ("red", "blue", "green")]
    asks = ("is the cup to the right of the vase ?", "are there no dogs ?", "what is the color of the highest cat ?")
    turns = [part for ask, picture in zip(asks, pictures, strict=True) for part in ("USER:", picture, f"{ask}ASSISTANT:cat</s>")]
    batch = dict(processor(text=[[*turns[:-1], "how many cups are there ?ASSISTANT:"]], return_tensors="pt"))
    work = atp.workload_of(model, processor, batch, answer=2, text_tail=8)
    words = processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
    meant = {at for at, word in enumerate(words) if word in ("no", "<s>", "</s>", "<image>", "<fake_token_around_image>")}
    assert (work.images, work.text) == (3, len(words))
    assert work.protected is not None
    assert work.protected < len(words) - 12
    for share in (0.7, 0.0):
        with (
            torch.no_grad(),
            prune(model, budget=0.5, text=share, text_tail=8, processor=processor, workload=work) as run,
            FlopCounterMode(display=False) as counter,
            sdpa_kernel(SDPBackend.MATH),
        ):
            model.generate(**batch, max_new_tokens=2, min_new_tokens=2, do_sample=False)
        assert run.report().flops.total == pytest.approx(counter.get_total_flops(), rel=1e-3)
        kept = set(run.trace.last("text")[0].kept[0].tolist())
        assert {0, *range(len(words) - 8, len(words)), *meant} <= kept
        assert len(kept) == max(round(share * len(words)), work.protected)
        assert 0.485 <= run.report().ratio <= 0.5
