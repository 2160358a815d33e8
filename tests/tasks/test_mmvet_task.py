"""MM-Vet from mm-vet.json to scores: who grades, what that is called, what is kept, and what a failed grade does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from judges.chat_server import Answer, serving, wait_for_judgements
from PIL import Image as PILImage

import dreambench
from dreambench.api import Result, plan, score_run
from dreambench.documents import Image, Text
from dreambench.errors import DataError, JudgeError, UsageError
from dreambench.judges import calibration_requests
from dreambench.spec import RunSpec
from dreambench_tasks.mmvet.data import read_grades
from dreambench_tasks.mmvet.task import MMVetTask

COUNT = 12
CAPABILITIES = [["rec"], ["rec", "ocr"], ["math", "ocr"]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    PILImage.new("RGB", (4, 4)).save(data / "images" / "one.png")
    questions = {
        f"v1_{number}": {
            "imagename": "one.png",
            "question": f"What is number {number}?",
            "answer": f"thing {number}<OR>{number}",
            "imagesource": "here",
            "capability": CAPABILITIES[number % 3],
        }
        for number in range(COUNT)
    }
    (data / "mm-vet.json").write_text(json.dumps(questions))
    return data


def answers(path: Path, count: int = COUNT) -> str:
    path.write_text(json.dumps({f"v1_{number}": f"It is thing {number}." for number in range(count)}))
    return f"responses:{path}"


def grade(body: dict[str, Any], number: int) -> Answer:
    """Half a point to every third question, a full one to the others; nothing sensible to question 7."""
    text = body["messages"][-1]["content"]
    asked = next((n for n in range(COUNT) if f"What is number {n}?" in text), None)
    if asked == 7:
        return Answer("good")
    return Answer("0.5" if asked is not None and asked % 3 == 0 else "1.0")


def scores(result: Result) -> dict[tuple[str, str | None], dreambench.Score]:
    return {(score.metric, score.group): score for score in result.scores}


def test_the_prompts(folder: Path) -> None:
    task = MMVetTask(RunSpec(task="mmvet", data=folder))
    sample = task.samples()[0]
    image, text = task.request(sample).document
    assert isinstance(image, Image)
    assert text == Text("What is number 0?")
    assert task.request(sample).settings == {"num_beams": 1, "max_new_tokens": 512}
    request = MMVetTask(RunSpec(task="mmvet", data=folder, generation=("dreamllm",))).request(sample)
    assert request.settings == {"num_beams": 5, "max_new_tokens": 1024}  # as DreamLLM's scripts decode
    published = request.document
    assert published[0] == Text("This is an exam, please answer according to the image and question.")
    assert published[2] == Text("What is number 0?Please provide an accurate, detailed and comprehensive answer.")


def test_real_data_have_no_default_judge(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--judge openai:MODEL@URL.*grades:FILE.*rule"):
        dreambench.run("mmvet", answers(tmp_path / "a"), data=folder, out=tmp_path / "runs")


@pytest.mark.parametrize("protocol", ["official", "grades"])
def test_a_protocol_is_what_its_judge_makes_it(folder: Path, tmp_path: Path, protocol: str) -> None:
    with pytest.raises(UsageError, match=f"--protocol {protocol} is --judge .*; this judge's is rule"):
        dreambench.run("mmvet", answers(tmp_path / "a"), data=folder, judge="rule", protocol=[protocol], out=tmp_path)


def test_groups_and_an_answer_that_is_missing(folder: Path, tmp_path: Path) -> None:
    result = dreambench.run("mmvet", answers(tmp_path / "a", 11), data=folder, judge="rule", out=tmp_path / "runs")
    found = scores(result)
    total = found["score", None]
    assert result.scores[0] == total
    assert (total.value, total.n, total.unscored) == (100, 11, 1)
    assert total.bounds == pytest.approx((1100 / 12, 100))
    assert total.protocol.startswith("rule@")
    assert ("score_std", None) not in found, "a single grading run has no spread"
    assert found["score", "capability=ocr"].n == 7
    assert found["score", "integration=ocr_rec"].n == 4
    assert pd.read_parquet(result.folder / "scores.parquet").set_index("id").loc["v1_11", "reason"] == "no answer"


def test_a_served_judge_is_calibrated_kept_and_not_asked_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(grade) as server:
        judge = f"openai:m@{server.url},runs=2"
        result = dreambench.run("mmvet", answers(tmp_path / "a"), data=folder, judge=judge, out=tmp_path / "runs")
        asked = len(server.bodies)
        (result.folder / "metrics.json").unlink()
        again = score_run(result.folder)
        assert len(server.bodies) == asked
    assert again.scores == result.scores
    assert "calibration: the judge agrees with" in capsys.readouterr().err
    assert result.metrics is not None
    assert any(note.startswith("calibration:") for note in result.metrics["notes"])
    total, spread = scores(result)["score", None], scores(result)["score_std", None]
    assert total.protocol.startswith("dreambench-grader@")
    # Four of twelve have half a point and one has no grade in either run.
    assert total.value == pytest.approx(100 * (4 * 0.5 + 7) / 11)
    assert (total.n, total.unscored, spread.value) == (11, 2, 0)
    assert total.bounds == pytest.approx((100 * 9 / 12, 100 * 10 / 12))
    grades = read_grades(result.folder / "grades.json")
    assert [one.score for one in grades["v1_0"]] == [0.5, 0.5]
    assert [one.score for one in grades["v1_7"]] == [None, None]


def test_a_log_replays_and_a_grade_file_counts_without_the_judge(folder: Path, tmp_path: Path) -> None:
    model = answers(tmp_path / "a")
    with serving(grade) as server:
        first = dreambench.run("mmvet", model, data=folder, judge=f"openai:m@{server.url},runs=2", out=tmp_path / "1")
    replay = f"replay:{first.folder / 'judgements.jsonl'}"
    second = dreambench.run("mmvet", model, data=folder, judge=replay, out=tmp_path / "2")
    assert second.scores == first.scores
    third = dreambench.run(
        "mmvet", model, data=folder, judge=f"grades:{first.folder / 'grades.json'}", out=tmp_path / "3"
    )
    assert {score.protocol.partition("@")[0] for score in third.scores} == {"grades"}
    assert [score.value for score in third.scores] == [score.value for score in first.scores]
    (third.folder / "metrics.json").unlink()
    assert score_run(third.folder).scores == third.scores


def test_a_grade_file_of_other_questions_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "grades.json").write_text(json.dumps({"v2_0": {"score": [1.0]}}))
    judge = f"grades:{tmp_path / 'grades.json'}"
    with pytest.raises(DataError, match="it grades none of the 12 questions"):
        dreambench.run("mmvet", answers(tmp_path / "a"), data=folder, judge=judge, out=tmp_path / "runs")


def test_a_dry_run_tells_calls_tokens_and_cost(folder: Path, tmp_path: Path) -> None:
    judge = "openai:m@http://127.0.0.1:9/v1,runs=5,price_in=2,price_out=8"
    asked = RunSpec(task="mmvet", model=answers(tmp_path / "a"), data=folder, judge=judge)
    prepared = plan(asked, tmp_path / "runs")
    calls, cost = prepared.task.estimate(prepared.samples)
    assert f" {5 * COUNT + len(calibration_requests())} calls" in calls
    assert "tokens" in calls
    assert "cost: about" in cost
    assert not (tmp_path / "runs").exists()


def test_a_judge_that_is_gone_stops_the_run_and_the_next_start_goes_on(folder: Path, tmp_path: Path) -> None:
    model = answers(tmp_path / "a")

    def leaving(body: dict[str, Any], number: int) -> Answer:
        return Answer("x", status=500) if server.gone else grade(body, number)

    with serving(leaving) as server:
        server.gone = True  # type: ignore[attr-defined]
        judge = f"openai:m@{server.url},runs=1,retries=0,concurrency=1"
        with pytest.raises(JudgeError, match="to resume"):
            dreambench.run("mmvet", model, data=folder, judge=judge, out=tmp_path / "runs")
        server.gone = False  # type: ignore[attr-defined]
        result = dreambench.run("mmvet", model, data=folder, judge=judge, out=tmp_path / "runs")
    assert scores(result)["score", None].unscored == 1


def test_killed_half_way_and_resumed_nothing_that_was_answered_is_asked_again(folder: Path, tmp_path: Path) -> None:
    """The whole command as a process of its own, ended by SIGKILL while the judge holds a request."""
    log, calibration = tmp_path / "requests.txt", len(calibration_requests())
    answered: Counter[str] = Counter()
    held: list[str] = []
    process: list[subprocess.Popen[bytes]] = []

    def judge(body: dict[str, Any], number: int) -> Answer:
        prompt = body["messages"][-1]["content"]
        if number == calibration + COUNT and not held:
            wait_for_judgements(tmp_path / "runs", number - 1)
            held.append(prompt)
            os.kill(process[0].pid, signal.SIGKILL)
            return Answer(hang_up=True)
        answered[f"{body['seed']} {prompt}"] += 1
        return Answer("1.0" if number % 2 else "0.5")

    with serving(judge) as server:
        command = [sys.executable, "-m", "dreambench", "run", "--task", "mmvet", "--model", "echo"]
        command += ["--model-arg", f"log={log}", "--data", str(folder), "--out", str(tmp_path / "runs")]
        command += ["--judge", f"openai:m@{server.url},runs=2,concurrency=1"]
        process.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        process[0].communicate(timeout=900)
        assert process[0].returncode == -signal.SIGKILL
        assert held
        (run,) = (tmp_path / "runs").iterdir()
        assert not (run / "metrics.json").exists()
        assert 0 < len((run / "judgements.jsonl").read_bytes().splitlines()) < calibration + 2 * COUNT
        done = subprocess.run(command, capture_output=True, timeout=900, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert set(answered.values()) == {1}
    assert len(answered) == calibration + 2 * COUNT
    assert Counter(line.split()[-1] for line in log.read_text().splitlines()) == {f"v1_{n}": 1 for n in range(COUNT)}
    metrics = json.loads((run / "metrics.json").read_text())
    assert (metrics["scores"][0]["n"], metrics["scores"][0]["unscored"]) == (COUNT, 0)
