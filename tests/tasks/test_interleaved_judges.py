"""A judge on the task interleaved: nine grades for each document, each asked for once, whatever happens to the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from judges.chat_server import Answer, serving

import dreambench
from dreambench.api import Result, score_run
from dreambench.errors import JudgeError, RunError, UsageError
from dreambench.report.page import page
from dreambench.report.runs import load
from dreambench_tasks import playground
from dreambench_tasks.interleaved.judging import RUBRICS, metric_name
from dreambench_tasks.interleaved.trial import recorded_trial

DOCUMENTS = 5


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return playground.write(tmp_path / "data", n=DOCUMENTS, formats=["documents"])


def run_judged(world: Path, out: Path, url: str, **options: Any) -> Result:
    """The references themselves, graded by the server."""
    judge = f"openai:m@{url},runs=1,concurrency=1,retries=0"
    options = {"protocol": ["free"], "features": "playground-clip", "judge": judge, **options}
    return dreambench.run("interleaved", f"documents:{world}", data=world, out=out, **options)


def test_each_document_is_graded_once_under_each_rubric_also_after_the_server_failed(
    world: Path, tmp_path: Path
) -> None:
    def answer(body: dict[str, Any], number: int) -> Answer:
        if number == 13:
            return Answer("gone", 503)
        return Answer("8" if "Grade only its structure" in str(body) else "ten")

    with serving(answer) as server:
        with pytest.raises(JudgeError, match="503"):
            run_judged(world, tmp_path / "runs", server.url)
        assert len(server.bodies) < 5 * 4 * DOCUMENTS, "nothing is asked after the failure"
        result = run_judged(world, tmp_path / "runs", server.url)
        asked = [str(body["messages"]) for body in server.bodies]
    structure = [message for message in asked if "Grade only its structure" in message]
    assert len(structure) == len(set(structure)) == DOCUMENTS
    scores = {score.metric: score for score in result.scores}
    assert (scores[metric_name("structure")].value, scores[metric_name("structure")].n) == (0.8, DOCUMENTS)
    block = scores[metric_name("block")]
    assert (block.value, block.n, block.unscored) == (None, 0, DOCUMENTS), "no reply was a grade"
    lines = [json.loads(line) for line in (result.folder / "judgements.jsonl").read_text().splitlines()]
    reasons = {line["reason"] for line in lines if "key" in line and line["score"] is None}
    assert reasons == {"the reply is not a grade, after 5 attempts"}


def test_scoring_again_needs_neither_judge_nor_data_and_the_page_has_the_trial(world: Path, tmp_path: Path) -> None:
    with serving(lambda body, number: Answer(str(number % 11))) as server:
        result = run_judged(world, tmp_path / "runs", server.url)
        asked = len(server.bodies)
    assert asked == DOCUMENTS * len(RUBRICS)
    names = [score.metric for score in result.scores if score.group is None]
    assert {metric_name(name) for name in RUBRICS} <= set(names)
    documents = [name for name in names if name in recorded_trial().metrics]
    assert documents[: len(recorded_trial().headlines)] == recorded_trial().headlines
    notes = " ".join(load(result.folder).notes)
    assert "passed their trial on corrupted references: shows_what_is_told" in notes
    assert "image_consistency did not pass its trial" in notes
    assert "no trial is recorded for judge_block" in notes
    text = page([load(result.folder)])
    assert "Trial of the metrics on corrupted references" in text
    assert "does not order all: blind to removed" in text
    before = {name: (result.folder / name).read_bytes() for name in ("metrics.json", "scores.parquet")}
    shutil.rmtree(world)
    score_run(result.folder)
    assert {name: (result.folder / name).read_bytes() for name in before} == before
    (grades,) = result.folder.glob("features/*/grades.json")
    for damaged in (5, "1", True):
        content = json.loads(grades.read_text())
        next(iter(content["grades"].values()))[metric_name("block")] = damaged
        grades.write_text(json.dumps(content))
        with pytest.raises(RunError, match=r"grades\.json is damaged: remove it"):
            score_run(result.folder)


def test_a_judge_has_nothing_to_grade_without_free_documents(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no effect without the protocol free"):
        run_judged(world, tmp_path, "http://127.0.0.1:9/v1", protocol=["teacher-forced"])
