"""The commands, through the same entry as the shell's: what they print, where, and with which exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

import atp
from atp.cli import main
from atp.compare import compare
from atp.errors import BadInput
from atp.loading import build_inputs


class Shell:
    """Runs a command in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        """Return exit code, stdout and stderr."""
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in arguments])
        out, err = self.capsys.readouterr()
        return int(left.value.code or 0), out, err


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A terminal of 200 columns without colours."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    return Shell(capsys)


@pytest.fixture
def ask(image_file: Path, model_dir: Path) -> list[str]:
    """Arguments of a good run."""
    asked = ["--image", str(image_file), "--question", "how many dogs ?"]
    return ["run", *asked, "--model", str(model_dir), "--max-new-tokens", "3", "--device", "cpu"]


def test_version(shell: Shell) -> None:
    assert shell("--version") == (0, f"atp {atp.__version__}\n", "")


def test_methods_and_models_are_all_listed(shell: Shell) -> None:
    code, out, _ = shell("methods")
    assert code == 0
    assert all(name in out for name in atp.list_methods())
    code, out, _ = shell("models")
    assert code == 0
    assert all(name in out for name in [*atp.list_models(), "generic", "atp-mini-llava"])
    table = out[: out.index("Sites are")].splitlines()
    rows = {line.split()[0]: number for number, line in enumerate(table) if line[:1].strip()}
    llava, generic = (" ".join(table[rows[kind] : rows[kind] + 3]) for kind in ("llava", "generic"))
    assert all(word in llava for word in ("vision", "language", "pixels", "live patches", "qwen2"))
    assert "vision" not in generic and "language" in generic
    assert "generic: checks itself first" in out


def test_run_puts_both_side_by_side(shell: Shell, ask: list[str], tmp_path: Path) -> None:
    code, out, _ = shell(*ask, "--overlay", tmp_path / "kept.png")
    assert code == 0
    for words in (
        "all tokens",
        "pruned",
        "vision FLOPs",
        "selection FLOPs",
        "total FLOPs",
        "time",
        "kept at language layer",
        " ms",
    ):
        assert words in out
    with Image.open(tmp_path / "kept.png") as picture:
        assert picture.width == 882


def test_json_is_one_object_and_nothing_else(shell: Shell, ask: list[str]) -> None:
    code, out, _ = shell(*ask, "--json", "--budget", "0.7", "--method", "random")
    assert code == 0
    assert out.count("\n") == 1
    result = json.loads(out)
    parts = {"vision", "connector", "prefill", "decode", "selection", "total"}
    assert {"answer", "answer_unpruned", "flops_ratio", "flops", "flops_unpruned", "kept", "seconds"} <= set(result)
    assert set(result["flops"]) == set(result["flops_unpruned"]) == parts
    assert result["flops_ratio"] == pytest.approx(result["flops"]["total"] / result["flops_unpruned"]["total"])
    assert 0.5 < result["flops_ratio"] <= 0.71
    assert {"unpruned", "pruned"} <= set(result["seconds"])
    assert all(0 < kept <= 36 for layers in result["kept"].values() for kept in layers.values())


def test_a_plan_decides_instead_of_a_budget(shell: Shell, ask: list[str], tmp_path: Path) -> None:
    plan = atp.Plan("uniform", (atp.Step(atp.Site("vision", 2), 0.5), atp.Step(atp.Site("language", 2), 0.25)))
    plan.save(tmp_path / "plan.yaml")
    code, out, _ = shell(*ask, "--json", "--plan", tmp_path / "plan.yaml")
    assert code == 0
    kept = json.loads(out)["kept"]
    assert kept["vision"]["2"] == 18
    assert kept["language"]["2"] == 9


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--budget", "0"], "budget"),
        (["--budget", "1.5"], "budget"),
        (["--budget", "-1"], "budget"),
        (["--budget", "nan"], "budget"),
        (["--budget", "0.001"], "lowest"),
        (["--method", "fastvv"], "Did you mean 'fastv'?"),
        (["--model", "atp-mini-lava"], "Did you mean 'atp-mini-llava'?"),
        (["--plan", "nowhere.yaml"], "nowhere.yaml"),
        (["--image", "nowhere.png"], "no such image"),
        (["--question", "  "], "no question given"),
        (["--max-new-tokens", "0"], "at least 1"),
        (["--device", "gpux"], "cannot use the device"),
        (["--overlay", "/nowhere/at/all.png"], "cannot write the picture"),
        (["--overlay", "kept.xyz"], "cannot write the picture"),
    ],
)
def test_errors_are_one_line_and_code_2(shell: Shell, ask: list[str], change: list[str], says: str) -> None:
    code, out, err = shell(*ask, *change)
    assert code == 2
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert says in last
    assert "Traceback" not in err


def test_no_image_and_no_question(shell: Shell, image_file: Path) -> None:
    code, _, err = shell("run", "--question", "how many ?")
    assert (code, err) == (2, "error: no image given; expected e.g. --image cat.png\n")
    code, _, err = shell("run", "--image", image_file)
    assert code == 2
    assert err.startswith("error: no question given")


def test_plan_for_layers_the_model_does_not_have(shell: Shell, ask: list[str], tmp_path: Path) -> None:
    atp.Plan("random", (atp.Step(atp.Site("language", 40), 0.5),)).save(tmp_path / "plan.json")
    code, _, err = shell(*ask, "--plan", tmp_path / "plan.json")
    assert code == 2
    assert "language:40" in err


def test_budget_of_one_says_that_nothing_was_pruned(shell: Shell, ask: list[str]) -> None:
    code, out, err = shell(*ask, "--json", "--budget", "1")
    assert code == 0
    assert json.loads(out)["flops_ratio"] >= 0.99
    assert "note: the plan" in err
    assert "removed no token" in err


def test_demo_writes_pictures_and_a_page(
    shell: Shell, model_dir: Path, image_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import atp.demo

    few = [{"image": image_file.name, "question": q, "answer": "2"} for q in ("how many dogs ?", "is there a cat <b> ?")]
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "questions.json").write_text(json.dumps(few))
    monkeypatch.setattr(atp.demo.answer_all, "__defaults__", (16, tmp_path / "list" / "questions.json"))
    monkeypatch.setattr(atp.demo.questions, "__defaults__", (tmp_path / "list" / "questions.json",))
    monkeypatch.setattr(atp.demo.together, "__defaults__", (16, tmp_path / "list" / "questions.json"))
    out = tmp_path / "out"
    code, printed, _ = shell("demo", "--out", out, "--model", model_dir, "--max-new-tokens", "2")
    assert code == 0
    assert sorted(p.name for p in out.iterdir()) == ["01.png", "02.png", "index.html"]
    assert "2 questions: right" in printed
    assert re.search(r"ms one by one; as one batch of 2: right 0 with all tokens, 0 pruned; \d+ ms -> \d+ ms \(x\d", printed)
    text = (out / "index.html").read_text()
    assert "is there a cat &lt;b&gt; ?" in text
    assert "as fast as one batch of 2" in text
    assert text.count("data:image/jpeg;base64,") == 2


def test_a_batch_is_timed_in_turn_and_the_first_round_warms_up(
    model_dir: Path, image_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import atp.demo
    from atp.loading import load

    (tmp_path / "list").mkdir()
    asked = [{"image": image_file.name, "question": "how many dogs ?", "answer": "2"}] * 3
    (tmp_path / "list" / "questions.json").write_text(json.dumps(asked))
    took, real = iter([9.0, 8.0] + [4.0, 2.0] * 2 + [400.0, 1.0] + [4.0, 2.0] * 2), atp.demo.timed
    monkeypatch.setattr(atp.demo, "timed", lambda *given: (real(*given)[0], next(took)))
    found = atp.demo.together(*load(str(model_dir)), 0.6, None, 2, tmp_path / "list" / "questions.json")
    assert (found.count, found.seconds_unpruned, found.seconds, found.speedup) == (3, 4.0, 2.0, 2.0)
    assert not list(took)


def test_demo_cannot_write(shell: Shell, model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = shell("demo", "--out", tmp_path / "file", "--model", model_dir)
    assert code == 2
    assert "choose another folder with --out" in err


def test_the_committed_questions_are_about_images_that_exist() -> None:
    from atp.demo import SCENES, questions

    entries = questions()
    assert 10 <= len(entries) <= 16
    assert all((SCENES / entry["image"]).is_file() for entry in entries)


def test_broken_list_of_questions(tmp_path: Path) -> None:
    from atp.demo import questions

    (tmp_path / "q.json").write_text('[{"image": "a.png"}]')
    with pytest.raises(BadInput, match="cannot read the demonstration's questions"):
        questions(tmp_path / "q.json")


def hooks(model: Any) -> list[tuple[int, int]]:
    """How many hooks each module has; transformers puts one of its own on the tower's layers in the first forward."""
    return [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]


def test_compare_leaves_the_model_as_it_was(loaded: tuple[Any, Any], drawing: Image.Image) -> None:
    model, processor = loaded
    first = compare(model, processor, drawing, "how many dogs ?", max_new_tokens=3)
    model.generate(**build_inputs(processor, [drawing], ["dog ?"]), max_new_tokens=1)
    before = hooks(model)
    again = compare(model, processor, drawing, "how many dogs ?", max_new_tokens=3)
    assert first.answer_unpruned == again.answer_unpruned
    assert first.answer == again.answer
    assert hooks(model) == before
    assert not any("atp" in hook.__module__ for module in model.modules() for hook in module._forward_hooks.values())
    assert first.kept_in_words.startswith("tower ")


def test_python_dash_m(image_file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "atp", "run", "--image", str(image_file)],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[1] / "src"), "PATH": ""},
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: no question given")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--model", "nope"], "unknown model 'nope'"),
        (["--method", "nope"], "unknown method 'nope'"),
        (["--out", "/proc/no/certificate.json"], "cannot write the certificate '/proc/no/certificate.json'"),
    ],
)
def test_calibrate_refuses_before_it_draws_a_scene(shell: Shell, tmp_path: Path, given: list[str], said: str) -> None:
    records = tmp_path / "records"
    place = [] if "--out" in given else ["--out", tmp_path / "certificate.json"]
    code, _, err = shell("calibrate", "--max-drop", "0.1", "--records", records, *place, *given)
    assert (code, said in err, len(err.strip().splitlines())) == (2, True, 1)
    assert not records.exists() and not (tmp_path / "certificate.json").exists()


def test_report_of_a_file_says_what_a_folder_holds(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    code, _, err = shell("report", tmp_path / "file")
    assert code == 2 and "expected a folder that `atp eval --out` wrote" in err


@pytest.mark.parametrize(
    ("command", "options"),
    [("eval", ("method", "budget")), ("bench", ("method", "budget")), ("calibrate", ("budget",)), ("train-gate", ("budget",))],
)
def test_lists_go_by_singular_and_plural(shell: Shell, command: str, options: tuple[str, ...]) -> None:
    code, out, _ = shell(command, "--help")
    assert code == 0
    for option in options:
        assert f"--{option} " in out.replace(",", " ") and f"--{option}s" in out


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["run", "--bugdet", "1"], "No such option: --bugdet. Did you mean --budget?"),
        (["run", "--budget"], "Option '--budget' requires an argument"),
        (["runn"], "No such command 'runn'. Did you mean 'run'?"),
        (["run", "--max-new-tokens", "x"], "got 'x'. Expected --max-new-tokens: Longest answer. See `"),
        (["calibrate"], "Missing option '--max-drop'. Expected --max-drop: Most accuracy that may be lost"),
        (["run", "extra"], "unexpected extra argument"),
        (["report"], "Missing argument 'folders'"),
        (["--nope"], "No such option: --nope."),
    ],
)
def test_usage_errors_are_one_line_and_code_2(shell: Shell, given: list[str], says: str) -> None:
    code, out, err = shell(*given)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ") and says in err and "--help`" in err


def test_no_arguments_show_the_help_and_keys_and_exits_keep_their_codes(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = shell()
    assert code == 2 and "Usage: " in out + err and "error" not in out + err
    code, out, _ = shell("run", "--help")
    assert code == 0 and "--budget" in out
    for raised, expected in ((KeyboardInterrupt(), 130), (typer.Exit(1), 1), (typer.Exit(0), 0), (typer.Abort(), 1)):

        def stop(raised: BaseException = raised) -> None:
            raise raised

        monkeypatch.setattr(atp, "list_methods", stop)
        assert shell("methods")[0] == expected


@pytest.mark.parametrize(
    "change",
    [
        ["--budget", "1.5"],
        ["--budget", "much"],
        ["--method", "fastvv"],
        ["--max-new-tokens", "0"],
        ["--plan", "nowhere.yaml"],
        ["--overlay", "/nowhere/at/all.png"],
        ["--overlay", "kept.xyz"],
    ],
)
@pytest.mark.parametrize("command", ["run", "demo"])
def test_refused_before_the_model_is_loaded(
    shell: Shell, ask: list[str], command: str, change: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command == "demo" and change[0] in ("--plan", "--overlay"):
        change = ["--out", str(tmp_path / "file" / "below")]
        (tmp_path / "file").write_text("")
    monkeypatch.setattr("atp.loading.load", never)
    code, out, err = shell(*(ask if command == "run" else ["demo", "--out", str(tmp_path / "out")]), *change)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("error: ")


@pytest.mark.parametrize("change", [["--method", "nope"], ["--compare", "nope"], ["--budget", "1.5"], ["--answer-tokens", "0"]])
def test_bench_refuses_before_the_model_is_loaded(
    shell: Shell, change: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atp.bench.execute.open_subject", never)
    code, out, err = shell("bench", "--out", tmp_path / "out", *change)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("error: ")


def never(*given: Any, **more: Any) -> None:
    raise AssertionError("the model was loaded")
