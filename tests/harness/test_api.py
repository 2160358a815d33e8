"""The Python API over the toy task: what is asked, kept, refused, repeated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import dreambench
from dreambench.api import execute, score_run
from dreambench.documents import Text
from dreambench.errors import DataError, ModelError, RunError, UsageError
from dreambench.report.terminal import print_result
from dreambench.requests import Sample
from dreambench.spec import RunSpec
from dreambench.trust import obeying

TOY, PALETTE = "toybench:Toy", "toybench:Palette"


def test_a_task_and_a_model_from_outside_by_name_and_by_class(tmp_path: Path) -> None:
    by_name = dreambench.run("toy", "palette", out=tmp_path / "a")
    by_class = dreambench.run(TOY, PALETTE, out=tmp_path / "b")
    assert by_name.scores[0].value == by_class.scores[0].value
    assert by_name.scores[0].n == 60


def test_a_complete_run_is_printed_not_repeated_and_fresh_asks_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    arguments = {"log": str(log)}
    first = dreambench.run(TOY, "echo", model_arg=arguments, out=tmp_path / "runs")
    again = dreambench.run(TOY, "echo", model_arg=arguments, out=tmp_path / "runs")
    assert again.repeated
    assert not first.repeated
    said = f"{first.folder} is complete (--fresh starts anew)"
    for result in (first, again):
        capsys.readouterr()
        print_result(result)
        assert (said in capsys.readouterr().out) is result.repeated
    assert len(log.read_text().splitlines()) == 60
    dreambench.run(TOY, "echo", model_arg=arguments, out=tmp_path / "runs", fresh=True)
    assert len(log.read_text().splitlines()) == 120


def test_two_samples_of_one_id_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their answers could not be told apart."""
    monkeypatch.setattr("toybench.Toy.samples", lambda self: [Sample("toy-1", (Text(word),)) for word in "ab"])
    with pytest.raises(UsageError, match="two samples have the id toy-1"):
        dreambench.run(TOY, "echo", out=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"limit": 10}, {"ids": ["toy-03"]}, {"generation": ["long"]}, {"generation": ["max_new_tokens=5"]}],
)
def test_what_changes_the_question_changes_the_run(tmp_path: Path, change: dict[str, object]) -> None:
    base = dreambench.run(TOY, "echo", out=tmp_path)
    other = dreambench.run(TOY, "echo", out=tmp_path, **change)  # type: ignore[arg-type]
    assert base.folder != other.folder


def test_a_checkpoint_s_own_settings_are_the_run_s_and_a_repetition_says_where_they_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = dreambench.run(TOY, "echo", out=tmp_path)
    said = {"max_new_tokens": 9, "prompt": "a setting that the task does not leave to it"}
    monkeypatch.setattr("toybench.Toy.left_to_checkpoint", frozenset({"max_new_tokens"}))
    monkeypatch.setattr("dreambench.adapters.echo.Echo.checkpoint_settings", lambda _: said)
    own = dreambench.run(TOY, "echo", out=tmp_path)
    assert own.folder != default.folder
    assert json.loads((own.folder / "run.json").read_text())["system"]["generation"]["max_new_tokens"] == 9
    assert dreambench.run(TOY, "echo", out=tmp_path, generation=["max_new_tokens=9"]).folder == own.folder
    assert dreambench.run(TOY, "echo", out=tmp_path, generation=["default"]).folder == default.folder
    lines: list[str] = []
    spec = RunSpec(task=TOY, model="echo")
    with obeying(default.folder, spec, task=TOY, model=None, judge=None):
        assert execute(spec, tmp_path, say=lines.append).folder == own.folder
    assert lines == [
        f"{default.folder} has max_new_tokens=4, its repetition max_new_tokens=9: the defaults are others now"
    ]


def test_scoring_again_needs_only_the_folder(tmp_path: Path) -> None:
    result = dreambench.run(TOY, "echo", out=tmp_path / "runs")
    moved = tmp_path / "moved"
    result.folder.rename(moved)
    before = {name: (moved / name).read_bytes() for name in ("scores.parquet", "metrics.json")}
    for name in before:
        (moved / name).unlink()
    score_run(moved, task=TOY)
    assert {name: (moved / name).read_bytes() for name in before} == before


def test_memory_that_runs_out_halves_batches_and_the_plan_remembers(tmp_path: Path) -> None:
    asked = RunSpec(task=TOY, model=PALETTE, model_arg={"memory": "3"}, batch_size=8)
    result = execute(asked, tmp_path)
    assert result.scores[0].n == 60
    lines = [json.loads(line) for line in (result.folder / "responses" / "rank-00000.jsonl").read_text().splitlines()]
    assert max(line["of"] for line in lines) <= 3
    assert len(lines) == 60
    splits = (result.folder / "responses" / "splits-00000.jsonl").read_text().splitlines()
    assert '"0"' in splits
    assert '"0.0"' in splits


def test_one_request_too_large_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="toy-"):
        execute(RunSpec(task=TOY, model=PALETTE, model_arg={"memory": "0"}, batch_size=2), tmp_path)


def test_another_batch_size_on_a_begun_run_is_refused(tmp_path: Path) -> None:
    result = dreambench.run(TOY, "echo", out=tmp_path, batch_size=8)
    (result.folder / "metrics.json").unlink()
    with pytest.raises(RunError, match="--batch-size 8"):
        dreambench.run(TOY, "echo", out=tmp_path, batch_size=4)


@pytest.mark.parametrize(
    ("task", "model", "options", "message"),
    [
        ("tory", "echo", {}, "did you mean toy"),
        ("toy", "ecko", {}, "did you mean echo"),
        ("toy", "echo:there", {}, "no location"),
        ("no.such:Thing", "echo", {}, "no module"),
        ("toybench:Nothing", "echo", {}, "has no Nothing"),
        ("toybench:Palette", "echo", {}, "is not a"),
        ("toy", "echo", {"protocol": ["best"]}, "--protocol best"),
        ("toy", "echo", {"features": "inception"}, "--features has no effect"),
        ("toy", "echo", {"generation": ["wild"]}, "--generation wild"),
        ("toy", "echo", {"generation": ["max_new_tokens=many"]}, "is not a int"),
        ("toy", "echo", {"model_arg": {"speed": "9"}}, "--model-arg speed"),
        ("toy", "echo", {"ids": ["toy-99"]}, "toy-99"),
    ],
)
def test_what_is_not_understood_is_one_clear_line(
    tmp_path: Path, task: str, model: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        dreambench.run(task, model, out=tmp_path, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_answers_from_a_file(tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    comprehension = [f"toy-{i:02d}" for i in range(60) if i % 3 != 2]
    answers.write_text("".join(json.dumps({"id": id_, "text": "red"}) + "\n" for id_ in comprehension[:-1]))
    result = dreambench.run(TOY, f"responses:{answers}", out=tmp_path / "runs", ids=comprehension)
    assert result.errors == 1, "toy-58 has no answer: counted and named"
    assert result.metrics is not None
    assert result.metrics["errors"]["types"]["no-answer"]["ids"] == ["toy-58"]


@pytest.mark.parametrize(
    "line", ["{", '{"id": "a"}', '["a"]', '{"id": "a", "text": 3}', '{"id": "a", "text": ""}\n{"id": "a", "text": ""}']
)
def test_a_broken_line_of_answers_is_named(tmp_path: Path, line: str) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.write_text(line + "\n")
    with pytest.raises(DataError, match=r"answers\.jsonl, line [12]"):
        dreambench.run(TOY, f"responses:{answers}", out=tmp_path / "runs", ids=["toy-00"])


def test_all_public_names_are_there() -> None:
    for name in dreambench.__all__:
        assert getattr(dreambench, name) is not None
    with pytest.raises(AttributeError):
        _ = dreambench.nothing
