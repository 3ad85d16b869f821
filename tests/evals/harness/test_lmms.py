"""The model `atp` of lmms-eval, in the real package where that is installed: found by its entry point, answers as atp does."""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from atp.asking import new_tokens
from atp.engine import prune
from atp.errors import BadInput
from atp.evals.harness import lmms
from atp.loading import build_inputs

ROOT = Path(__file__).parents[3]
QUESTIONS = [
    "is there a dog ?",
    "how many cats ?",
    "is there a cat in the image ?",
    "what color is the dog ?",
    "is there no dog ?",
]
COLORS = ["red", "green", "blue", "yellow", "purple"]
LONGEST = 4
YAML = """
dataset_path: {data}
dataset_kwargs:
  load_from_disk: true
task: atp_local
test_split: test
output_type: generate_until
doc_to_visual: !function functions.visual
doc_to_text: !function functions.text
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 4
  temperature: 0
  do_sample: false
process_results: !function functions.results
metric_list:
  - metric: exact
    aggregation: mean
    higher_is_better: true
"""
FUNCTIONS = """
def visual(doc):
    return [doc["image"].convert("RGB")]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def results(doc, results):
    return {"exact": float(results[0].strip() == doc["answer"])}
"""


def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (36, 36), color) for color in COLORS]


@pytest.fixture
def truth(loaded: Any) -> list[str]:
    """What atp answers, one question at a time."""
    model, processor = loaded
    answers = []
    for image, question in zip(pictures(), QUESTIONS, strict=True):
        inputs = build_inputs(processor, [image], [question])
        with prune(model, method="fastv", budget=0.8, processor=processor), torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
        answers.append(processor.batch_decode(new_tokens(inputs, out), skip_special_tokens=True)[0].strip())
    return answers


def request(form: str, number: int, **options: Any) -> SimpleNamespace:
    """A request as lmms-eval 0.7 makes it."""
    text, options = QUESTIONS[number], {"max_new_tokens": LONGEST, "temperature": 0, **options}
    if form == "simple":
        return SimpleNamespace(args=(text, options, lambda doc: [doc["image"]], number, "t", "test"))
    content = [{"type": "image"}, {"type": "text", "text": text}]

    def messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [{**content[0], "url": doc["image"]}, content[1]]}]

    return SimpleNamespace(args=(text, messages, options, number, "t", "test"))


@pytest.fixture(params=["simple", "chat"])
def answerer(request: pytest.FixtureRequest, model_dir: Path) -> tuple[str, lmms.Simple]:
    kind = {"simple": lmms.Simple, "chat": lmms.Chat}[request.param]
    made = kind(str(model_dir), method="fastv", budget=0.8, device="cpu", batch_size=2)
    made.task_dict = {"t": {"test": [{"image": image} for image in pictures()]}}
    return request.param, made


def test_answers_are_those_of_atp_in_the_order_of_the_requests(answerer: tuple[str, lmms.Simple], truth: list[str]) -> None:
    form, model = answerer
    order = [3, 0, 4, 1, 2]
    assert model.generate_until([request(form, n) for n in order]) == [truth[n] for n in order]
    assert model.report.flops.total < model.report.flops_unpruned.total
    stop = next(word for word in truth[0].split())
    assert model.generate_until([request(form, 0, until=[stop])]) == [""]
    assert model.generate_until([]) == []
    assert model.is_simple == (form == "simple") and model.device == torch.device("cpu")


def test_tasks_that_it_does_not_answer(answerer: tuple[str, lmms.Simple]) -> None:
    form, model = answerer
    model.task_dict["t"]["test"][0]["image"] = "video.mp4"
    with pytest.raises(BadInput, match="task 't' shows str; the model atp answers questions about one image"):
        model.generate_until([request(form, 0)])
    with pytest.raises(NotImplementedError, match="output_type: generate_until"):
        model.loglikelihood([])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"model": "x"}, "unknown arguments of the model atp: model; it takes pretrained, method, budget"),
        ({"batch_size": "auto"}, "batch_size is a whole number >= 1, got 'auto'"),
    ],
)
def test_arguments_that_cannot_be(given: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        lmms.Simple(**given)


def test_options_of_generation() -> None:
    assert lmms.generation({}) == {"max_new_tokens": lmms.LONGEST, "num_beams": 1, "do_sample": False}
    drawn = lmms.generation({"temperature": 0.7, "top_p": None, "num_beams": 2})
    assert drawn == {"max_new_tokens": lmms.LONGEST, "num_beams": 2, "do_sample": True, "temperature": 0.7}
    assert not lmms.generation({"temperature": 0.7, "do_sample": False})["do_sample"]
    assert lmms.cut("a, b. c", [",", "."]) == "a" and lmms.cut("a b", ()) == "a b"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("simple", [True, False], ids=["simple", "chat"])
def test_in_the_real_package(
    simple: bool, truth: list[str], model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(
        "lmms_eval", reason="lmms-eval is not installed: pip install 'atp-vlm[lmms]', in an environment of its own"
    )
    datasets = pytest.importorskip("datasets", reason="datasets, which lmms-eval needs, is not installed")
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["lmms_eval.models"]["atp"]
    metadata = tmp_path / "site" / "atp_entry-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: atp-entry\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(f"[lmms_eval.models]\natp = {entry}\n")
    monkeypatch.syspath_prepend(str(metadata.parent))
    from lmms_eval import evaluator, models
    from lmms_eval.tasks import TaskManager

    models.MODEL_REGISTRY_V2.load_entrypoint_manifests(overwrite=True)
    assert models.get_model("atp", force_simple=simple) is (lmms.Simple if simple else lmms.Chat)
    rows = {"image": pictures(), "question": QUESTIONS, "answer": [*truth[:3], "wrong", "wrong"]}
    data = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    datasets.DatasetDict({"test": data}).save_to_disk(tmp_path / "data")
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "functions.py").write_text(FUNCTIONS)
    (tmp_path / "task" / "atp_local.yaml").write_text(YAML.format(data=tmp_path / "data"))
    found = evaluator.simple_evaluate(
        model="atp",
        model_args=f"pretrained={model_dir},method=fastv,budget=0.8",
        tasks=["atp_local"],
        task_manager=TaskManager(include_path=str(tmp_path / "task")),
        batch_size=2,
        device="cpu",
        force_simple=simple,
        bootstrap_iters=0,
    )
    samples = sorted(found["samples"]["atp_local"], key=lambda sample: sample["doc_id"])
    print(found["results"]["atp_local"])
    assert [sample["filtered_resps"][0] for sample in samples] == truth
    assert found["results"]["atp_local"]["exact,none"] == pytest.approx(3 / 5)


def test_without_the_package_the_entry_point_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lmms_eval.models.registry_v2", None)
    with pytest.raises(BadInput, match=r"lmms-eval 0.6 or later: pip install 'lmms-eval>=0.6'"):
        lmms.manifest()
