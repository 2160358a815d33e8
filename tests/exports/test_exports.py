"""Runs in the forms of others hold the run's own numbers; what a form cannot say is refused or named."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from exports.conftest import dated
from huggingface_hub import ModelCard, parse_eval_result_entries
from report.made_runs import HOSTILE, image_run, score, text_run

from dreambench.documents import document_text
from dreambench.errors import DreambenchError, RunError, UsageError
from dreambench.exports import FORMS, export
from dreambench.report.runs import CompleteRun, load
from dreambench.scores import Cells
from dreambench_tasks.mmbench.data import read_predictions
from dreambench_tasks.mmvet.data import read_answers
from dreambench_tasks.vqav2.data import read_results

Runs = dict[str, CompleteRun]


def everything(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def aggregate_and_samples(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    (aggregate,) = out.glob("data/*/*/*/*[!s].json")
    (samples,) = out.glob("data/*/*/*/*_samples.jsonl")
    return json.loads(aggregate.read_text()), [json.loads(line) for line in samples.read_text().splitlines()]


@pytest.mark.parametrize("task", ["vqav2", "mmbench", "mmvet"])
def test_every_eval_ever_has_each_score_with_its_interval_n_and_protocol(runs: Runs, task: str, tmp_path: Path) -> None:
    run = runs[task]
    export([run], "every-eval-ever", tmp_path / "a", {"model": "org/name"})
    aggregate, samples = aggregate_and_samples(tmp_path / "a")
    assert aggregate["evaluation_timestamp"] == run.date
    assert run.name in aggregate["evaluation_id"]
    found = {result["evaluation_result_id"]: result for result in aggregate["evaluation_results"]}
    assert len(found) == len([one for one in run.scores if one.value is not None])
    for one in run.scores:
        if one.value is None:
            continue
        result = found["/".join(filter(None, (one.protocol, one.metric, one.group)))]["score_details"]
        assert result["score"] == one.value
        assert result["details"]["unscored"] == str(one.unscored)
        assert result["uncertainty"]["num_samples"] == one.n
        if one.interval is not None:
            interval = result["uncertainty"]["confidence_interval"]
            assert (interval["lower"], interval["upper"]) == one.interval
    assert {line["evaluation_id"] for line in samples} == {aggregate["evaluation_id"]}
    details = aggregate["detailed_evaluation_results"]
    assert sha256((tmp_path / "a" / details["file_path"]).read_bytes()).hexdigest() == details["checksum"]
    headline = run.scores[0]
    mine = [line for line in samples if line["evaluation_result_id"].endswith(f"/{headline.metric}")]
    assert headline.value == pytest.approx(100 * sum(line["evaluation"]["score"] for line in mine) / headline.n)
    assert all(line["input"]["reference"] and line["input"]["raw"] for line in mine)

    export([run], "every-eval-ever", tmp_path / "b", {"model": "org/name"})
    assert everything(tmp_path / "a") == everything(tmp_path / "b")


def test_every_eval_ever_names_what_it_has_no_place_for(tmp_path: Path) -> None:
    scores = [
        score(better="lower", metric="fd[x]", unit=""),
        score(metric="fd[x]-real-vs-real", unit=""),
        score(value=None, interval=None, better="higher"),
    ]
    made = dated(text_run(tmp_path / "run", ["a", "b"], scores))
    lines = export([made], "every-eval-ever", tmp_path / "out", {})
    assert any("fd[x]-real-vs-real" in line for line in lines)
    assert any("1 score without a value" in line for line in lines)
    (file,) = (tmp_path / "out").rglob("*.json")
    (result,) = json.loads(file.read_text())["evaluation_results"]
    assert result["metric_config"]["lower_is_better"] is True
    assert not list((tmp_path / "out").rglob("*.jsonl"))
    export([made], "model-card", tmp_path / "card.md", {})
    (kept,) = ModelCard.load(tmp_path / "card.md").data.eval_results or []
    assert kept.metric_type == "fd[x]"


def test_hostile_answers_stay_one_line_each(tmp_path: Path) -> None:
    cells = Cells("accuracy")
    made = dated(
        text_run(tmp_path / "run", HOSTILE, [score(better="higher", cells=cells)], model="a/../..@evil\u2028x")
    )
    export([made], "every-eval-ever", tmp_path / "out", {})
    _, samples = aggregate_and_samples(tmp_path / "out")
    assert [line["output"]["raw"][0] for line in samples] == HOSTILE
    export([made], "model-card", tmp_path / "card.md", {})
    assert ModelCard.load(tmp_path / "card.md", ignore_metadata_errors=False).data.eval_results


def test_folders_of_this_machine_stay_here(tmp_path: Path) -> None:
    made = dated(
        text_run(tmp_path / "run", ["a"], [score(better="higher")], model="transformers:/home/somebody/secret/model-7b")
    )
    for form in ("every-eval-ever", "model-card"):
        export([made], form, tmp_path / form, {})
    written = everything(tmp_path / "every-eval-ever") | {"card": (tmp_path / "model-card").read_bytes()}
    assert all(b"somebody" not in data for data in written.values())
    assert any("local/model-7b" in name for name in written)


def test_a_model_card_is_read_back_by_the_hub_s_own_reader(runs: Runs, tmp_path: Path) -> None:
    card_file = tmp_path / "README.md"
    export(list(runs.values()), "model-card", card_file, {"model": "name", "dataset": "org/data"})
    results = ModelCard.load(card_file).data.eval_results
    assert results is not None
    expected = {(run.name, one.metric): one for run in runs.values() for one in run.scores if one.group is None}
    assert len(results) == len(expected)
    for result in results:
        assert result.metric_args is not None
        one = expected[result.metric_args["run"], result.metric_type]
        assert result.metric_value == one.value
        assert result.metric_args["n"] == one.n
        assert result.metric_args["protocol"] == one.protocol
        assert tuple(result.metric_args["interval"]) == one.interval
        assert result.metric_args["date"].startswith("20")
        assert result.task_type == "image-text-to-text"


def test_an_entry_for_the_hub_s_leaderboards(runs: Runs, tmp_path: Path) -> None:
    run, file = runs["vqav2"], tmp_path / "vqa.yaml"
    export([run], "eval-results", file, {"dataset": "org/vqa", "task_id": "val", "source": "https://example.org/run"})
    (entry,) = parse_eval_result_entries(yaml.safe_load(file.read_text()))
    assert (entry.dataset_id, entry.task_id, entry.date) == ("org/vqa", "val", run.date)
    assert entry.value == pytest.approx(run.scores[0].value, abs=0.005)
    assert run.scores[0].protocol in str(entry.notes)
    assert run.name in str(entry.notes)


def test_submissions_are_what_each_benchmark_reads(runs: Runs, tmp_path: Path) -> None:
    for task, suffix, read in (
        ("vqav2", "json", read_results),
        ("mmbench", "tsv", read_predictions),
        ("mmbench", "xlsx", read_predictions),
        ("mmvet", "json", read_answers),
    ):
        run, file = runs[task], tmp_path / f"{task}.{suffix}"
        lines = export([run], "submission", file, {})
        assert read(file) == {id_: document_text(answer.document) for id_, answer in run.responses.items()}
        assert "whole splits" in lines[1]
    entries = json.loads((tmp_path / "vqav2.json").read_text())
    assert all(set(entry) == {"question_id", "answer"} and type(entry["question_id"]) is int for entry in entries)
    assert next(iter(json.loads((tmp_path / "mmvet.json").read_text()))).startswith("v1_")


@pytest.mark.parametrize("task", ["vqav2", "mmbench", "mmvet"])
def test_a_submission_with_a_missing_answer_is_refused(
    runs: Runs, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, answers = runs[task], dict(runs[task].responses)
    first = next(iter(answers))
    answers[first] = answers[first].failed(first, "no-answer", "none")
    monkeypatch.setattr(run.run, "responses", lambda: answers)
    with pytest.raises(RunError, match=f"1 of .* no answer, the first {first}"):
        export([run], "submission", tmp_path / "out.json".replace("json", "tsv" if task == "mmbench" else "json"), {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("form", "settings", "words"),
    [
        ("nothing", {}, "the forms are every-eval-ever"),
        ("every-eval-ever", {"models": "a/b"}, "no such key"),
        ("every-eval-ever", {"model": "a"}, "model=a: write ORGANISATION/NAME"),
        ("every-eval-ever", {"model": "../.."}, "model"),
        ("every-eval-ever", {"weights": "some"}, "weights"),
        ("eval-results", {}, "--set dataset="),
        ("eval-results", {"dataset": "a/b", "task_id": "x", "source": "https://user:secret@example.org"}, "source"),
        ("eval-results", {"dataset": "a/b", "task_id": ""}, "task_id=: write"),
        ("submission", {"key": "x"}, "--set key"),
        ("submission", {}, r"\*.json"),
        ("mlflow", {"project": "../x"}, "project"),
    ],
)
def test_what_the_user_has_to_do_is_one_line(
    runs: Runs, form: str, settings: dict[str, str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(DreambenchError, match=words) as error:
        export([runs["vqav2"]], form, tmp_path / "out.csv", settings)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_refusals_of_runs(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = image_run(tmp_path / "images", ["a", "b"])
    with pytest.raises(RunError, match="does not note its date"):
        export([load(made)], "every-eval-ever", tmp_path, {})
    with pytest.raises(UsageError, match="one run, not 2 runs"):
        export(list(runs.values())[:2], "submission", tmp_path / "x.json", {})
    with pytest.raises(UsageError, match="a card is of one model"):
        export([dated(made), runs["vqav2"]], "model-card", tmp_path / "x.md", {})
    monkeypatch.setenv("SOME_API_KEY", "sk-1234567890")
    monkeypatch.setattr("dreambench.safety._known", lambda: {"sk-1234567890"})
    leaking = CompleteRun(runs["vqav2"].run, {**runs["vqav2"].metrics, "notes": ["key sk-1234567890"]})
    for form in FORMS:
        with pytest.raises(RunError, match="secret environment variable"):
            export([leaking], form, tmp_path / "x", {})
