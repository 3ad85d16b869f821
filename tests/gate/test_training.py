"""Training: the right patches are found, a killed run goes on bit-equal, the model stays as it was, the file says whose it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import atp
import sample
from atp.cli import app
from atp.errors import BadInput, UnsupportedModel
from atp.gate import training
from atp.gate.command import lines
from atp.gate.hiding import hidden
from atp.gate.parts import extended, lasting
from atp.gate.settings import SHARE, Settings
from atp.gate.trainees import LVTrainee, Trainee, make_gate, make_lvpruning, parameters
from atp.gate.training import Done, Training, prepare, train
from atp.methods import weights as files
from atp.plan import Site
from atp.tokens import Tokens
from conformance.test_families import SCATTERED, SERVED, model_of
from gate import parts

SITE = Site("language", 2)


def problem(seed: int) -> tuple[Tokens, Tensor]:
    """Eight inputs of 36 patches, 6 of them right: their states lean to one direction, which no saliency tells."""
    made = sample.tokens(batch=8, side=6, seed=seed)
    right = torch.rand(8, 36).argsort(1) < 6
    states = made.hidden.clone()
    states[..., 0] += 3.0 * right
    return dataclasses.replace(made, _hidden=lambda: states), right


def found(trainee: Trainee, seeds: range) -> float:
    """Share of the right patches that stay, without noise."""
    trainee.heat, hits = 0.0, []
    for seed in seeds:
        tokens, right = problem(seed)
        with torch.no_grad():
            made = trainee.hide(tokens)
        assert made is not None
        assert ((made > 0.5).sum(1) == 11).all() or trainee.kind != "gate", "a third of 36, by the plan"
        hits.append(float((made > 0.5)[right].float().mean()))
    return sum(hits) / len(hits)


def taught(trainee: Trainee, steps: int) -> None:
    """Train on what the right patches say together: yes by as much as six of them."""
    optimizer = torch.optim.AdamW(trainee.modules.parameters(), lr=1e-2)
    for step in range(steps):
        trainee.heat, trainee.draws = 1.0 - 0.9 * step / steps, torch.Generator().manual_seed(step)
        tokens, right = problem(1000 + step)
        trainee.kept.clear()
        made = trainee.hide(tokens)
        assert made is not None
        evidence = torch.stack([(made * right).sum(1), (right.sum(1) - 3.0)], 1).unsqueeze(1)
        want = torch.stack([right.sum(1) * 1.0, right.sum(1) - 3.0], 1).unsqueeze(1)
        loss = trainee.loss(evidence, want, torch.ones(8, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_a_gate_finds_the_right_patches() -> None:
    torch.manual_seed(0)
    trainee = make_gate([SITE], {"language": 16}, (4, 16), 10**6, 0.5)
    trainee.shares = {str(SITE): 11 / 36}
    before = found(trainee, range(4))
    taught(trainee, 60)
    after = found(trainee, range(4))
    assert before < 0.45 and after > 0.85, f"{before:.2f} -> {after:.2f}"


def test_lvpruning_finds_them_too_and_meets_its_ratio() -> None:
    torch.manual_seed(0)
    trainee = make_lvpruning([SITE], 16, 8)
    trainee.shares = {str(SITE): 11 / 36}
    before = found(trainee, range(4))
    taught(trainee, 80)
    assert found(trainee, range(4)) > max(0.8, before + 0.2)
    tokens, _ = problem(5)
    trainee.heat, trainee.draws = 0.1, torch.Generator().manual_seed(0)
    made = trainee.hide(tokens)
    assert made is not None and abs(float(made.detach().mean()) - 11 / 36) < 0.2


def test_lvpruning_hides_for_good_and_pays_for_its_ratio() -> None:
    """Hard 0 or 1; loss = cross-entropy + 2 x mean over sites of (target - kept share) ** 2."""
    torch.manual_seed(0)
    trainee = LVTrainee(make_lvpruning([SITE], 16, 8).modules, {}, {str(SITE): 0.5}, 1.0, torch.Generator().manual_seed(1))
    tokens, _ = problem(0)
    made = trainee.hide(dataclasses.replace(tokens, alive=torch.arange(36).expand(8, -1) < 20))
    assert made is not None and set(made.detach().round(decimals=5).flatten().tolist()) == {0.0, 1.0}
    assert (made[:, 20:] == 1).all(), "nothing is decided for who is gone"
    share = float((made.detach()[:, :20].sum(1) / 36).mean())
    said = torch.tensor([[[0.0, 0.0]], [[0.0, 0.0]]])
    loss = trainee.loss(said, torch.tensor([[[9.0, 0.0]], [[0.0, 9.0]]]), torch.ones(2, 1))
    assert float(loss.detach()) == pytest.approx(0.6931472 + 2 * (0.5 - share) ** 2, abs=1e-6)


def settings(model_dir: Path, out: Path, **changes: Any) -> Settings:
    """A training of seconds."""
    return Settings(model=str(model_dir), out=out, steps=4, batch=3, width=8, budgets=(0.8,), **changes)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model has few parameters: let a gate have more of them, and measure less."""
    monkeypatch.setattr(training, "SHARE", 0.2)
    monkeypatch.setattr(training, "HELD_OUT", 1)


@pytest.mark.parametrize("kind", ["gate", "lvpruning"])
def test_a_killed_training_goes_on(
    kind: str, model_dir: Path, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Training, "measured", lambda self, state, modules: {"a": 1.0 / (1 + self.progress.step)})
    whole = settings(model_dir, tmp_path / "whole.safetensors", kind=kind)
    done = train(whole)
    cut = dataclasses.replace(whole, out=tmp_path / "cut.safetensors")

    def kill(self: Training, state: Any) -> float:
        if self.progress.step == 2:
            raise KeyboardInterrupt
        return step(self, state)

    step = Training.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "step", kill)
        with pytest.raises(KeyboardInterrupt):
            train(cut)
    assert cut.resume.is_file()
    with pytest.raises(BadInput, match=r"unfinished training with other settings .*remove the file, or choose another --out"):
        train(dataclasses.replace(cut, seed=1))
    again = train(cut)
    with pytest.raises(BadInput, match=r"cut.safetensors' is there already, and no unfinished training beside it; remove it"):
        train(cut)
    assert again.resumed == 2 and again.steps == 4 and not cut.resume.exists()
    assert again.before == done.before and again.after == done.after
    first, second = (files.load(one.out, kind)[1] for one in (whole, cut))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    fresh = {name: value for name, value in first.items() if name.endswith(("out.weight", "head.weight"))}
    assert fresh and all(value.abs().max() > 0 for value in fresh.values()), "nothing was learnt"


def test_a_training_that_only_harms_leaves_atp(
    model_dir: Path, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file holds the weights that were best on held-out questions; the untrained ones, whose correction is zero, are one."""
    monkeypatch.setattr(Training, "measured", lambda self, state, modules: {"a": 1.0 + self.progress.step})
    chosen = settings(model_dir, tmp_path / "w.safetensors")
    done = train(chosen)
    header, tensors = files.load(chosen.out, "gate")
    assert done.steps == header.notes["steps"] > header.notes["best step"] == 0 and done.after == done.before == {"a": 1.0}
    assert all(not value.any() for name, value in tensors.items() if ".out." in name)
    assert all(site.startswith("language") for site in header.sites), "the tower merges, as in atp"


def test_the_model_is_frozen_and_untouched(model_dir: Path, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = atp.load(model_dir)
    model.train()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    monkeypatch.setattr(training, "load", lambda *args: (model, processor))
    train(settings(model_dir, tmp_path / "gate.safetensors"))
    assert model.training and all(one.requires_grad and one.grad is None for one in model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    hooks = [
        hook for part in model.modules() for found in (part._forward_pre_hooks, part._forward_hooks) for hook in found.values()
    ]
    assert not [hook for hook in hooks if getattr(hook, "__module__", type(hook).__module__).startswith("atp")]


def test_the_file_is_used_at_equal_counts(model_dir: Path, tmp_path: Path, small: None) -> None:
    runner, out = CliRunner(), tmp_path / "gate.safetensors"
    made = runner.invoke(
        app, ["train-gate", "--model", str(model_dir), "--out", str(out), "--steps", "2", "--batch", "2", "--width", "8",
              "--budget", "0.8"],
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    assert "2 steps" in made.output and "divergence" in made.output and f"weights={str(out)!r}" in made.output
    model, processor = atp.load(model_dir)
    pictures = [atp.load_image(image) for image in _pictures(tmp_path, 2)]
    inputs = atp.build_inputs(processor, pictures, ["is there a dog", "how many red cats are there in the image"])
    with atp.prune(model, budget=0.8, processor=processor) as run:
        model.generate(**inputs, max_new_tokens=2)
    plan = dataclasses.replace(run.plan, method="gate", options={"weights": str(out)})
    with atp.prune(model, plan=plan, processor=processor) as gated:
        model.generate(**inputs, max_new_tokens=2)
    assert [record.counts for record in gated.trace.records] == [record.counts for record in run.trace.records]
    assert gated.dropped == run.dropped > 0
    for ours, theirs in zip(run.trace.records, gated.trace.records, strict=True):
        if theirs.stack == "vision":
            assert torch.equal(ours.keep, theirs.keep), "merged as by atp"
    with atp.prune(model, budget=0.8, method="gate", weights=str(out)) as solved:
        assert [str(step.site) for step in solved.plan.steps] == [str(step.site) for step in run.plan.steps]


def _pictures(folder: Path, count: int) -> list[str]:
    from PIL import Image

    paths = [str(folder / f"{number}.png") for number in range(count)]
    for number, path in enumerate(paths):
        Image.effect_noise((36, 36), 40 + 60 * number).convert("RGB").save(path)
    return paths


def test_a_gate_is_small_beside_the_shipped_model() -> None:
    model, _ = atp.load()
    total = sum(one.numel() for one in model.parameters())
    trainee, plans = prepare(Settings(), model)
    own = sum(one.numel() for one in trainee.modules.parameters())
    assert 0 < own <= 0.005 * total and SHARE == 0.005
    assert set(plans) == {"budget 0.6", "budget 0.4"}
    steered = {site for shares in plans.values() for site in shares if site.startswith("language")}
    assert set(trainee.modules) == steered and steered
    for name, shares in plans.items():  # also where ATP's own plan leaves in the tower only: there is something to train
        assert steered <= set(shares), name
    assert set(prepare(Settings(budgets=(0.6,)), model)[0].modules) == steered
    with pytest.raises(BadInput, match=r"more than 0.5 % of the model's .*--rank 2 --width 8"):
        prepare(Settings(rank=64), model)
    assert parameters(trainee.modules) == own


ONE_BY_ONE = ("paligemma", "paligemma2", "mistral3-ministral3")
"""Their prompt's tokens all see each other, also those of an answer; or positions count padding."""


@pytest.mark.parametrize("name", SCATTERED)
def test_the_student_is_asked_where_the_teacher_was(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing hidden, the logits of each answer token in one call are those of generate, step by step."""
    model, family = model_of(name), SERVED[name]
    special = [one for one in (family.image_token_id, family.video_token_id) if one is not None]
    monkeypatch.setattr(model.generation_config, "suppress_tokens", special)
    path = parts.written(tmp_path / "gate.safetensors", "gate", model, [SITE])
    trainee = make_gate([SITE], {"language": 32}, (4, 8), 10**6, 0.5)
    asked: Any = None
    student = Training(Settings(answer=3), model, None, trainee, {}, asked, lambda words, done: None)
    with hidden(model, None, "gate", str(path), [SITE], trainee.hide) as state:
        said, taught, weight = student.answers(state, family.inputs(model))
        if name in ONE_BY_ONE:
            with pytest.raises(UnsupportedModel, match=r"something else than it generates .*use --answer 1, or --batch 1"):
                student.verify(state, family.inputs(model))
            return
        student.verify(state, family.inputs(model))
    assert said.shape == taught.shape and said.shape[1] == 3 and weight.all()
    assert (taught[:, 0] - taught[:, 1]).abs().max() > 1e-2
    torch.testing.assert_close(said.to(taught.dtype), taught, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("family", "sites", "says"),
    [
        ("idefics", ("vision:2",), "cannot be trained for this idefics model: .*method='atp'"),
        ("blip-2-opt", ("vision:2",), "looks at patches as keys; train sites of the language model only: --sites language"),
        ("internvl", ("vision:2",), "its layers take no mask"),
    ],
)
def test_what_cannot_be_trained_is_refused(family: str, sites: tuple[str, ...], says: str) -> None:
    model = model_of(family)
    with pytest.raises(UnsupportedModel, match=says):
        prepare(Settings(budgets=(0.9,), sites=tuple(map(Site.parse, sites)), kind="gate"), model)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kind": "gates"}, "unknown --kind 'gates'. Did you mean 'gate'"),
        ({"budgets": (1.0,)}, r"in \(0, 1\), got .*--budget 0.6,0.4"),
        ({"minutes": 0.0}, "nothing would be trained in 0 minutes"),
        ({"batch": 0}, "--batch is at least 1"),
        ({"kind": "lvpruning", "width": 12}, "multiple of its 8 heads"),
        ({"data": "folder", "task": "vqa"}, "unknown --task 'vqa'. Did you mean 'vqav2'"),
        ({"rate": -1.0}, "rate > 0"),
    ],
)
def test_settings_are_refused_in_words(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        Settings(**changes)


def test_a_gate_that_got_worse_is_called_so() -> None:
    header = files.Header("gate", files.Mark("", ()), ("language:2",), {}, {}, {"share of the model's parameters": 0.004})
    done = Done(header, {"budget 0.6": 0.2, "budget 0.4": 0.3}, {"budget 0.6": 0.1, "budget 0.4": 0.4}, 7, 30.0)
    said = lines(done, Settings())
    assert "budget 0.6: divergence from the unpruned answers on held-out questions, untrained 0.2000, trained 0.1000" in said
    assert "not worth using: no nearer to the unpruned answers than untrained at budget 0.4" in said
    better = dataclasses.replace(done, after={"budget 0.6": 0.1, "budget 0.4": 0.2})
    assert not any("not worth" in line for line in lines(better, Settings()))


def test_answers_end_where_they_end() -> None:
    answer = torch.tensor([[5, 3, 7], [5, 6, 3], [3, 3, 3]])
    assert lasting(answer, [3]).int().tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    ids, mask = torch.tensor([[1, 2]]), torch.tensor([[0, 1]])
    assert extended("input_ids", ids, answer[:1], 2).tolist() == [[1, 2, 5, 3, 7]]
    assert extended("attention_mask", mask, answer[:1], 2).tolist() == [[0, 1, 1, 1, 1]]
    assert extended("token_type_ids", mask, answer[:1], 2).tolist() == [[0, 1, 0, 0, 0]]
    pixels = torch.zeros(1, 3, 4, 4)
    assert extended("pixel_values", pixels, answer[:1], 2) is pixels
