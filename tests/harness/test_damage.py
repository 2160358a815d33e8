"""What a user's machine may do to a run, an option file or a destination: one line that says what to do, never a guess."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import dreambench
from dreambench.api import Result, choose, score_run
from dreambench.documents import Text
from dreambench.errors import DataError, RunError, UsageError
from dreambench.report.runs import load
from dreambench.requests import Sample
from dreambench.spec import RunSpec
from dreambench.store import FORMAT

TOY = "toybench:Toy"


def run(out: Path, **options: object) -> Result:
    return dreambench.run(TOY, "echo", out=out, batch_size=8, **options)  # type: ignore[arg-type]


def replace(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: void((folder / name).write_text(content))


def void(_: object) -> None:
    return


def cut(name: str, length: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, length)


def break_line(content: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "responses" / "rank-00000.jsonl"
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*lines[:4], content, *lines[5:]]) + "\n")

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut("run.json", 300), r"run\.json is damaged .* --fresh"),
        (replace("run.json", ""), r"run\.json is damaged"),
        (replace("run.json", "[]"), r"run\.json is damaged"),
        (replace("run.json", '{"format": 2}'), r"run\.json is damaged"),
        (replace("run.json", '{"format": 99}'), r"layout 99"),
        (cut("samples.parquet", 200), r"samples\.parquet is missing or damaged"),
        (break_line("garbage"), r"rank-00000\.jsonl, line 5 is damaged"),
        (break_line("{}"), r"rank-00000\.jsonl, line 5 is damaged"),
        (break_line('"word"'), r"rank-00000\.jsonl, line 5 is damaged"),
    ],
)
def test_a_damaged_run_is_refused_by_name_and_fresh_helps(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = run(tmp_path).folder
    whole = (folder / "metrics.json").read_bytes()
    (folder / "metrics.json").unlink()
    damage(folder)
    for attempt in (lambda: run(tmp_path), lambda: score_run(folder, task=TOY)):
        with pytest.raises(RunError, match=message):
            attempt()
    assert not (folder / "metrics.json").exists()
    run(tmp_path, fresh=True)
    assert (folder / "metrics.json").read_bytes() == whole


@pytest.mark.parametrize("n", [None, 0, 59])
def test_a_complete_run_without_all_of_its_samples_is_not_scored_again(tmp_path: Path, n: int | None) -> None:
    folder = run(tmp_path).folder
    whole = (folder / "metrics.json").read_bytes()
    path = folder / "samples.parquet"
    if n is None:
        path.unlink()
    else:
        pq.write_table(pq.read_table(path).slice(0, n), path)
    message = r"samples\.parquet is missing" if n is None else rf"samples\.parquet has {n} samples, the run's plan 60"
    for read in (lambda: score_run(folder, task=TOY), lambda: load(folder).samples):
        with pytest.raises(RunError, match=message):
            read()
    assert (folder / "metrics.json").read_bytes() == whole


def test_the_report_of_a_run_with_a_line_twice_among_its_answers_names_what_is_missing(tmp_path: Path) -> None:
    """The batch is not complete then, and none of its answers counts."""
    folder = run(tmp_path).folder
    path = folder / "responses" / "rank-00000.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], *lines[1:]]))
    with pytest.raises(RunError, match=r"responses: the answer to .* is missing or damaged: start again with --fresh"):
        load(folder).responses[json.loads(lines[1])["id"]]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"scores": ['])
def test_damaged_scores_are_not_printed_and_scoring_writes_them_anew(tmp_path: Path, content: str) -> None:
    folder = run(tmp_path).folder
    whole = (folder / "metrics.json").read_bytes()
    (folder / "metrics.json").write_text(content)
    with pytest.raises(RunError, match=r"metrics\.json is damaged .*dreambench score"):
        run(tmp_path)
    score_run(folder, task=TOY)
    assert (folder / "metrics.json").read_bytes() == whole


def test_a_destination_that_cannot_be_written_is_one_line(tmp_path: Path, outside_environment: dict[str, str]) -> None:
    (tmp_path / "file").write_text("")
    line = [sys.executable, "-m", "dreambench", "run", "--task", "toy", "--model", "echo", "--out"]
    done = subprocess.run([*line, str(tmp_path / "file")], capture_output=True, text=True, env=outside_environment)
    assert done.returncode == 2
    assert "Not a directory" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_file_of_ids_may_begin_with_a_byte_order_mark_and_lists_each_once(tmp_path: Path) -> None:
    ids = tmp_path / "ids"
    ids.write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\r\n")
    assert RunSpec(task=TOY, ids=ids).ids == ("one", "two")
    ids.write_text("one\ntwo\none\n")
    with pytest.raises(UsageError, match=r"--ids .*ids: one is listed 2 times"):
        RunSpec(task=TOY, ids=ids)


@pytest.mark.parametrize("sample", [Sample("a", (Text("\ud800"),)), Sample("a", (), {"share": float("nan")})])
def test_what_no_file_can_hold_is_refused_by_sample(sample: Sample) -> None:
    with pytest.raises(DataError, match="sample 'a'"):
        choose([sample], None)


def test_a_dtype_means_nothing_to_a_model_without_weights(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--dtype float16 has no effect"):
        run(tmp_path, dtype="float16")


def test_scored_is_said_only_of_what_was_scored(tmp_path: Path) -> None:
    from dreambench.api import execute

    folder = run(tmp_path).folder
    (folder / "metrics.json").unlink()
    os.truncate(folder / "samples.parquet", 10)
    said: list[str] = []
    with pytest.raises(RunError):
        execute(RunSpec(task=TOY, model="echo", batch_size=8), tmp_path, say=said.append)
    assert "scored" not in said
    assert json.loads((folder / "run.json").read_text())["format"] == FORMAT
