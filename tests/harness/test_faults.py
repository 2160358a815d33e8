"""Faults: what dead processes leave, disks that are full, threads that cannot start, folders that vanish, signals."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import dreambench
from dreambench import files
from dreambench.api import execute
from dreambench.cli import main
from dreambench.errors import RunError, refusal
from dreambench.judges.log import JudgementLog
from dreambench.lock import RunLock
from dreambench.spec import RunSpec
from dreamllm import files as dreamllm_files


def of(path: Path, *, pid: int | None = None, host: str | None = None) -> Path:
    """A temporary file for `path` of another process or host."""
    name = files.temporary_name(path).name
    owner = name.split(".")[2]
    host_, pid_, started, unique = owner.split("-")
    changed = f"{host or host_}-{pid or pid_}-{started}-{unique}"
    made = path.with_name(name.replace(owner, changed))
    made.write_text("half")
    return made


@pytest.mark.parametrize("remove", [files.remove_leftovers, dreamllm_files.remove_leftovers])
def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path, remove: object) -> None:
    dead, living = of(tmp_path / "a.json", pid=2**22 + 1), of(tmp_path / "a.json")
    elsewhere, long_ago = of(tmp_path / "b.npz", host="0" * 8), of(tmp_path / "b.npz", host="0" * 8)
    os.utime(long_ago, (time.time() - 90_000,) * 2)
    folder = files.temporary_name(tmp_path / "c")
    folder.mkdir()
    gone = folder.rename(folder.with_name(folder.name.replace(f"-{os.getpid()}-", f"-{2**22 + 1}-")))
    (gone / "x").touch()
    (tmp_path / ".mine.tmp").touch()
    remove(tmp_path)  # type: ignore[operator]
    assert {path.name for path in tmp_path.iterdir()} == {living.name, elsewhere.name, ".mine.tmp"}
    assert not dead.exists()


def test_a_name_of_255_bytes_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 125 + ".json")
    files.write_atomically(path, b"{}")
    assert path.read_bytes() == b"{}"


def test_an_error_names_the_file_that_the_user_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        files.write_atomically(tmp_path / "x.html", b"data")
    assert refusal(caught.value) == f"{tmp_path / 'x.html'}: No space left on device; make room, or name another place"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_lines_are_appended_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path, write = tmp_path / "answers.jsonl", os.write
    files.append_lines(path, ["first\n"])

    def failing(descriptor: int, data: bytes = b"") -> int:
        if len(data) > 4:
            return write(descriptor, data[:4])  # the disk takes a part,
        raise OSError(errno.ENOSPC, "No space left on device")  # and then nothing

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(OSError, match=r"No space.*answers\.jsonl"):
            files.append_lines(path, ["second\n", "third\n"])
    assert path.read_text() == "first\n"
    files.append_lines(path, ["second\n"])
    assert path.read_text() == "first\nsecond\n"


def test_a_batch_that_is_stored_twice_counts_once(tmp_path: Path) -> None:
    result = dreambench.run("toy", "echo", out=tmp_path)
    answers = result.folder / "responses" / "rank-00000.jsonl"
    answers.write_bytes(answers.read_bytes() * 2 + answers.read_bytes().splitlines(keepends=True)[-1])
    again = dreambench.api.score_run(result.folder)
    assert again.metrics == result.metrics


def test_a_judgement_that_is_stored_twice_counts_once(tmp_path: Path) -> None:
    line = {"key": "k", "judge": "j", "id": "x", "run": 0, "score": 1.0, "reason": None, "raw": "", "answered_by": None}
    path = tmp_path / "judgements.jsonl"
    path.write_text("".join(json.dumps(line | {"score": score}) + "\n" for score in (1.0, 0.0)))
    assert [found["score"] for found in JudgementLog(path)._judgements.values()] == [1.0]


def test_a_thread_that_cannot_start_is_one_line_and_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(OSError, match="can't start new thread") as caught, RunLock(tmp_path):
        pass
    assert "ulimit" in refusal(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_tables_are_read_without_threads(tmp_path: Path) -> None:
    """Under ``ulimit -v``, pyarrow waits for ever for a thread that could not start."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": ["a", "b"], "n": [1, 2]}), tmp_path / "x.parquet")
    code = f"""
import threading
from pathlib import Path
from dreambench.files import read_table
import pyarrow.parquet
before = len(list(Path("/proc/self/task").iterdir()))
assert read_table(Path({str(tmp_path / "x.parquet")!r})).num_rows == 2
assert len(list(Path("/proc/self/task").iterdir())) == before
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_that_is_removed_while_it_is_written_is_an_error(tmp_path: Path) -> None:
    def remove(answered: int, total: int) -> None:
        if answered:
            shutil.rmtree(tmp_path / "runs")

    with pytest.raises(RunError, match="was removed or moved while it was being written"):
        execute(RunSpec(task="toy", model="echo", batch_size=4), tmp_path / "runs", progress=remove)
    assert not list((tmp_path / "runs").rglob("*.jsonl"))


def test_a_lock_that_a_kill_left_on_a_complete_run_goes(tmp_path: Path) -> None:
    result = dreambench.run("toy", "echo", out=tmp_path)
    for name in ("lock", "scoring"):
        (result.folder / name).mkdir()
        (result.folder / name / "launch").write_text("dead")
    assert dreambench.run("toy", "echo", out=tmp_path).repeated
    assert not [path for path in result.folder.iterdir() if path.name in ("lock", "scoring") or path.name[0] == "."]


def test_sigterm_is_status_143_one_line_and_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = dreambench.runner.Worker._answer

    def terminated(self: dreambench.runner.Worker, *batch: object) -> None:
        ask(self, *batch)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(dreambench.runner.Worker, "_answer", terminated)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as leaving:
        main(["run", "--task", "toy", "--model", "echo", "--batch-size", "4", "--out", str(tmp_path)])
    assert leaving.value.code == 143
    assert capsys.readouterr().err.splitlines()[-1].startswith("dreambench: interrupted: every stored answer is kept")
    (run,) = tmp_path.iterdir()
    assert not [path for path in run.iterdir() if "lock" in path.name]
    assert signal.getsignal(signal.SIGTERM) is before


def test_output_that_cannot_be_written_is_an_error() -> None:
    command = [sys.executable, "-m", "dreambench", "list", "models"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert (
        done.stderr
        == "dreambench: error: the output or a file: No space left on device; make room, or name another place\n"
    )
