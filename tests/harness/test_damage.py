"""What a user's machine may do to a run, an option file or a destination: one line that says what to do, never a guess."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import dreambench
from dreambench.api import Result, choose, score_run
from dreambench.documents import Text
from dreambench.errors import DataError, RunError, UsageError
from dreambench.files import (
    files_below,
    not_led_out,
    plain_or_gzip,
    read_bytes,
    read_json,
    read_json_lines,
    read_text,
)
from dreambench.registry import load_task
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
    ids.write_bytes("one\n".encode("utf-16-le"))
    with pytest.raises(UsageError, match=r"--ids .*ids: it holds null characters"):
        RunSpec(task=TOY, ids=ids)
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


def test_a_file_that_fills_the_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: bytes) -> bytes:
        raise MemoryError

    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b"{}"))
    monkeypatch.setattr("dreambench.files.gzip.decompress", full)
    for read in (read_bytes, read_text, read_json, lambda path: list(read_json_lines(path))):
        with pytest.raises(DataError, match=r"bomb\.jsonl\.gz: out of memory"):
            read(path)


def test_a_folder_with_the_name_of_a_file_is_no_missing_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    (tmp_path / "questions.json.gz").mkdir()
    with pytest.raises(DataError, match=r"a\.png is a folder with the name of a file"):
        list(files_below(tmp_path, lambda name: name.endswith(".png")))
    with pytest.raises(DataError, match=r"questions\.json\.gz is no file"):
        plain_or_gzip(tmp_path / "questions.json")
    (tmp_path / "annotations.json").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"annotations\.json is no file"):
        plain_or_gzip(tmp_path / "annotations.json")
    with pytest.raises(DataError, match="is a link out of"):
        not_led_out(tmp_path, tmp_path / "a\0b")


def test_options_of_a_run_s_file_that_make_no_sense_name_the_file(tmp_path: Path) -> None:
    folder = dreambench.run("mmvet", "echo", judge="rule", limit=1, out=tmp_path).folder
    file = folder / "run.json"
    begun = json.loads(file.read_text())
    file.write_text(json.dumps({**begun, "spec": {**begun["spec"], "protocol": "mine"}}))
    for again in (score_run, dreambench.api.rerun):
        with pytest.raises(RunError, match=r"run\.json: --protocol mine: mmvet has"):
            again(folder)


def test_a_repetition_on_other_data_says_so(tmp_path: Path) -> None:
    from dreambench.api import execute
    from dreambench.trust import obeying

    folder = run(tmp_path).folder
    said: list[str] = []
    spec = RunSpec(task=TOY, model="echo", batch_size=8, limit=3)
    with obeying(folder, spec, task=TOY, model=None, judge=None):
        execute(spec, tmp_path / "again", say=said.append)
    assert "the data or the version are others now" in said[0]


def test_answers_that_belong_to_no_sample_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = next(iter(load_task(RunSpec(task="mmvet")).samples())).id
    (tmp_path / "answers.json").write_text(json.dumps({known: "x", "stranger": "x"}))
    spec: dict[str, Any] = {"task": "mmvet", "model": f"responses:{tmp_path / 'answers.json'}", "judge": "rule"}
    dreambench.api.plan(RunSpec(**spec), tmp_path)
    said = capsys.readouterr().err
    assert "answers.json: 1 answer belongs to no sample of these data, the first to stranger" in said
    dreambench.api.plan(RunSpec(**spec, limit=1), tmp_path)
    assert "belongs" not in capsys.readouterr().err
