"""One launch at a time on a run.

The lock is a folder, made by exclusive creation, which works on network file systems where flock does not. It names the launch and holds
one file per process with host, process id and a heartbeat. Process 0 of a launch takes the lock and the others join it. A lock whose
processes are all gone is taken over: on this host the process table says so, on another host a heartbeat older than two minutes that does
not change while it is watched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType

from pydantic import BaseModel, ConfigDict, ValidationError

from dreambench.errors import RunError
from dreambench.files import process_started, temporary, write_atomically

__all__ = ["HEARTBEAT_S", "STALE_S", "RunLock", "launch_id", "rank_and_world"]

HEARTBEAT_S = 15.0
STALE_S = 120.0
PATIENCE_S = 10.0
"""Seconds after which process k takes the lock of a run that has begun and that nobody holds."""
JOIN_S = 120.0
"""Seconds that process k waits for process 0 to take the lock."""


class _Process(BaseModel):
    """What a file of the lock says about its process."""

    model_config = ConfigDict(strict=True, frozen=True)

    host: str
    pid: int
    started: str | None
    """By the kernel; None where it does not tell."""


def rank_and_world() -> tuple[int, int]:
    """This process's number and the number of processes, as `torchrun` and `accelerate launch` set them; (0, 1) alone."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def launch_id() -> str:
    """A name that the processes of one launch share."""
    _, world = rank_and_world()
    if world == 1:
        return uuid.uuid4().hex
    parts = [
        os.environ.get(name, "")
        for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
    ]
    # Two launches on one host may have all of these in common, but not their launcher, the parent of local processes.
    local = [] if os.environ.get("GROUP_WORLD_SIZE", "1") != "1" else [socket.gethostname(), str(os.getppid())]
    return "-".join([*parts, *local]).strip("-") or f"parent-{os.getppid()}"


def _alive(file: Path, watch: bool) -> str | None:
    """The process of a lock's file, for a message; None if it is dead. One that the file does not name has at least a heartbeat."""
    try:
        process = _Process.model_validate_json(file.read_bytes())
    except (ValidationError, IsADirectoryError):
        return f"{file.name}, which is damaged" if _beats(file, watch) else None
    if process.host == socket.gethostname() and process.started:
        alive = process.started == process_started(process.pid)
    else:
        alive = _beats(file, watch)
    return f"host {process.host}, process {process.pid}" if alive else None


def _beats(file: Path, watch: bool) -> bool:
    """Whether the process of this file is alive, by its heartbeat alone.

    Clocks of hosts differ: with `watch`, a heartbeat that looks old, or lies in the future, is watched for two beats before the process
    is considered dead.
    """
    last = file.stat().st_mtime
    if abs(time.time() - last) < STALE_S:
        return True
    until = time.monotonic() + (2 * HEARTBEAT_S if watch else 0)
    while time.monotonic() < until:
        time.sleep(HEARTBEAT_S / 50)
        if file.stat().st_mtime != last:
            return True
    return False


class RunLock:
    """``with RunLock(folder):`` raises `RunError` while another launch writes there."""

    def __init__(self, folder: Path, *, name: str = "lock", alone: bool = False) -> None:
        """With `alone`, every process counts as a launch of its own."""
        self.path = folder / name
        self.rank = 0 if alone else rank_and_world()[0]
        self.launch = uuid.uuid4().hex if alone else launch_id()
        self._own = self.path / f"rank-{self.rank:05d}.json"
        self._stop = threading.Event()
        self._heartbeat: threading.Thread | None = None

    def __enter__(self) -> RunLock:
        try:
            if self.rank == 0:
                self._take()
            else:
                self._join()
            heartbeat = threading.Thread(target=self._touch, daemon=True)
            heartbeat.start()
            self._heartbeat = heartbeat
        except BaseException as error:
            if self._read_launch() == self.launch:
                self._release()
            if isinstance(error, RuntimeError):
                raise OSError(errno.EAGAIN, str(error), str(self.path)) from error  # no thread under this `ulimit`
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stop.set()
            if self._heartbeat is not None:
                self._heartbeat.join()
        finally:
            self._release()

    def _release(self) -> None:
        try:
            self._remove()
        except KeyboardInterrupt:
            self._remove()
            raise

    def _remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._own.unlink()
        if not list(self.path.glob("rank-*.json")):
            shutil.rmtree(self.path, ignore_errors=True)

    def clear_dead(self) -> None:
        """Remove the lock if its processes are gone: one may be killed between its last file and the end of its lock."""
        if self.path.exists() and self._holder(watch=False) is None:
            self._set_aside()

    def _create(self) -> bool:
        """Take the lock for this launch unless there is one: the rename fails then, and no lock is ever seen without its owner."""
        with temporary(self.path) as aside:
            aside.mkdir()
            (aside / "launch").write_text(self.launch)
            self._write_rank(aside / self._own.name)
            with contextlib.suppress(OSError):
                aside.rename(self.path)
                return True
        return False

    def _take(self) -> None:
        for _ in range(3):
            if self._create():
                return
            if self._read_launch() == self.launch:
                self._write_rank(self._own)
                return
            holder = self._holder()
            if holder is not None:
                raise RunError(
                    f"{self.path.parent} is being written by another launch ({holder}): wait for it, or stop it and start again"
                )
            self._set_aside()
        raise RunError(f"{self.path}: several launches compete for this run; start one")

    def _join(self) -> None:
        began = time.monotonic()
        while (waited := time.monotonic() - began) < JOIN_S:
            if self._read_launch() == self.launch:
                self._write_rank(self._own)
                return
            # In a run that has begun, process 0 may have answered its share and gone before this process was there.
            if waited > PATIENCE_S and (self.path.parent / "run.json").exists() and self._create():
                return
            time.sleep(0.05)
        raise RunError(
            f"{self.path}: process 0 of this launch did not take the lock within {JOIN_S:.0f} s; see its message"
        )

    def _read_launch(self) -> str | None:
        try:
            return (self.path / "launch").read_text(errors="replace")
        except OSError:
            return None

    def _write_rank(self, path: Path) -> None:
        own = _Process(host=socket.gethostname(), pid=os.getpid(), started=process_started(os.getpid()))
        write_atomically(path, own.model_dump_json().encode())

    def _holder(self, *, watch: bool = True) -> str | None:
        """A process of the lock that is alive, for the message; None if there is none."""
        for file in sorted(self.path.glob("rank-*.json")):
            with contextlib.suppress(OSError):
                name = _alive(file, watch)
                if name is not None:
                    return name
        return None

    def _set_aside(self) -> None:
        """Move a dead lock away. A live one that has replaced it meanwhile is put back."""
        with temporary(self.path) as aside, contextlib.suppress(OSError):
            self.path.rename(aside)
            moved = RunLock.__new__(RunLock)
            moved.path = aside
            if moved._holder(watch=False) is not None:
                aside.rename(self.path)

    def _touch(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):
                os.utime(self._own)
