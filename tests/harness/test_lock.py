"""Who may write a run: the living, by process on this host and by heartbeat on another, whatever its clock says."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from dreambench import lock
from dreambench.errors import RunError


def stand(run: Path, who: object, age_s: float = 0.0) -> Path:
    """A lock with one process in it, its last beat `age_s` seconds ago."""
    folder = run / "lock"
    folder.mkdir(parents=True)
    (folder / "launch").write_text("theirs")
    file = folder / "rank-00000.json"
    file.write_text(json.dumps(who))
    beat = time.time() - age_s
    os.utime(file, (beat, beat))
    return file


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.1)


ELSEWHERE = {"host": "elsewhere", "pid": 1, "started": "5"}


@pytest.mark.parametrize(
    ("who", "age_s"),
    [
        (ELSEWHERE, 500),
        (ELSEWHERE, -100_000),
        ({"host": socket.gethostname(), "pid": 2**30, "started": "5"}, 0),
        ({"host": socket.gethostname(), "pid": os.getpid(), "started": "not then"}, 0),
        ({"host": "elsewhere"}, 500),
        ([], -100_000),
    ],
)
def test_a_lock_of_the_dead_is_taken_over(tmp_path: Path, who: object, age_s: float) -> None:
    stand(tmp_path, who, age_s)
    with lock.RunLock(tmp_path):
        assert json.loads((tmp_path / "lock" / "rank-00000.json").read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_an_interrupted_takeover_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand(tmp_path, ELSEWHERE, 500)
    holder = lock.RunLock._holder

    def interrupted(self: lock.RunLock, *, watch: bool = True) -> str | None:
        if self.path.name != "lock":  # it was just moved away
            raise KeyboardInterrupt
        return holder(self, watch=watch)

    monkeypatch.setattr(lock.RunLock, "_holder", interrupted)
    with pytest.raises(KeyboardInterrupt), lock.RunLock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_that_a_living_process_took_meanwhile_is_put_back(tmp_path: Path) -> None:
    stand(tmp_path, ELSEWHERE, 10)
    lock.RunLock(tmp_path)._set_aside()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    assert (tmp_path / "lock" / "rank-00000.json").is_file()


def test_a_lock_of_the_living_is_not(tmp_path: Path) -> None:
    stand(tmp_path, ELSEWHERE, 10)
    with pytest.raises(RunError, match="host elsewhere, process 1"), lock.RunLock(tmp_path):
        pass


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" * 100_000,
        "\xff",
        '{"host": 1, "pid": 1, "started": "5"}',
        '{"host": "elsewhere", "pid": "1", "started": 5}',
    ],
)
def test_a_damaged_file_of_a_lock_holds_it_as_long_as_its_heart_beats(tmp_path: Path, text: str) -> None:
    file = stand(tmp_path, None)
    file.write_bytes(text.encode("latin-1"))
    (tmp_path / "lock" / "launch").write_bytes(b"\xff")
    with pytest.raises(RunError, match=r"00000\.json, which is damaged"), lock.RunLock(tmp_path):
        pass
    os.utime(file, (1, 1))
    with lock.RunLock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("age_s", [1000, -1000])
def test_a_heartbeat_by_another_clock_is_seen(tmp_path: Path, age_s: float) -> None:
    file = stand(tmp_path, ELSEWHERE, age_s)
    beat = threading.Timer(0.05, lambda: os.utime(file, (time.time() - age_s + 0.05,) * 2))
    beat.start()
    with pytest.raises(RunError, match="another launch"), lock.RunLock(tmp_path):
        pass
    beat.join()


def test_the_processes_of_one_launch_share_its_name_and_launches_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Across nodes by what the launcher sets alone; on one node also by host and launcher, since two launches may set the same."""

    def name(host: str, launcher: int, run: str = "none", nodes: str = "1", restart: str = "0") -> str:
        settings = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node-0", "MASTER_PORT": "29500"}
        settings |= {"TORCHELASTIC_RUN_ID": run, "GROUP_WORLD_SIZE": nodes, "TORCHELASTIC_RESTART_COUNT": restart}
        with monkeypatch.context() as patch:
            for key, value in settings.items():
                patch.setenv(key, value)
            patch.setattr(socket, "gethostname", lambda: host)
            patch.setattr(os, "getppid", lambda: launcher)
            return lock.launch_id()

    assert name("a", 1, nodes="2") == name("b", 2, nodes="2")
    assert name("a", 1, nodes="2") != name("a", 1, nodes="2", run="other")
    assert name("a", 1, nodes="2") != name("a", 1, nodes="2", restart="1")
    assert name("a", 1) == name("a", 1)
    assert len({name("a", 1), name("a", 2), name("b", 1)}) == 3
    assert lock.launch_id() != lock.launch_id(), "a process alone is a launch of its own"


def test_a_process_that_comes_after_process_0_has_gone_takes_the_lock_of_its_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "PATIENCE_S", 0.1)
    (tmp_path / "run.json").write_text("{}")
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    with lock.RunLock(tmp_path) as late:
        assert (late.path / "launch").read_text() == late.launch
        monkeypatch.setenv("RANK", "0")
        with lock.RunLock(tmp_path) as first:  # a process 0 that comes later still joins
            assert sorted(path.name for path in first.path.glob("rank-*")) == ["rank-00000.json", "rank-00001.json"]
    assert not (tmp_path / "lock").exists()


def test_a_lock_of_its_own_is_held_by_any_process_of_a_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scoring of a run is the turn of one process, whichever it is: none waits for process 0."""
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    with lock.RunLock(tmp_path, name="scoring", alone=True) as turn:
        assert [path.name for path in turn.path.glob("rank-*")] == ["rank-00000.json"]
        with pytest.raises(RunError), lock.RunLock(tmp_path, name="scoring", alone=True):
            pass
