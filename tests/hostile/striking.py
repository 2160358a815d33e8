"""Commands that are struck at a chosen system call: the server that forks them, and its client.

The server is a process of its own, started with ``faults.c`` in LD_PRELOAD and torch and transformers imported once; each command runs in a
forked child. `Strike` says what happens at which of the calls that change files below the child's folder.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .case import Limits, Outcome, call, forked

__all__ = ["Server", "Strike", "leftovers", "missing_compiler", "tree"]

COUNT, SIGNAL_BEFORE, SIGNAL_AFTER, TORN, FAIL = range(5)


@dataclass(frozen=True)
class Strike:
    """`kind` with `number` (a signal or an errno) at call `at`; or a signal after `seconds`; or no file larger than `file_size` bytes."""

    at: int = 0
    kind: int = COUNT
    number: int = 0
    seconds: float | None = None
    file_size: int | None = None


def missing_compiler() -> str | None:
    """Why nothing can be struck here; None if it can."""
    if not sys.platform.startswith("linux"):
        return "faults.c is for Linux"
    return None if shutil.which("cc") else "there is no C compiler for faults.c"


class Server:
    """A process that runs command lines in forked children. A context manager."""

    def __init__(self, scratch: Path, modules: Sequence[str]) -> None:
        library = scratch / "faults.so"
        source = Path(__file__).with_name("faults.c")
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        package = Path(__file__).parents[1]
        environment = {**os.environ, "LD_PRELOAD": str(library), "HOSTILE_FAULTS": str(library)}
        environment["PYTHONPATH"] = os.pathsep.join([str(package), *sys.path])
        command = [sys.executable, "-c", "from hostile.striking import serve; serve()", *modules]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=scratch
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(self, arguments: Sequence[object], folder: Path, strike: Strike = Strike()) -> Outcome:
        """A command line, its program first, in `folder`. `values` of the outcome are the calls that were counted."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {
            "arguments": [str(each) for each in arguments],
            "folder": str(folder),
            "strike": dataclasses.asdict(strike),
        }
        print(json.dumps(job), file=self._process.stdin, flush=True)
        return Outcome(**json.loads(self._process.stdout.readline()))


def serve() -> None:
    """The server's side: a job per line of stdin, an outcome per line of stdout."""
    import importlib

    for name in sys.argv[1:]:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        job = json.loads(line)
        folder, strike = Path(job["folder"]), Strike(**job["strike"])
        print(json.dumps(dataclasses.asdict(_run(job["arguments"], folder, strike))), file=answers, flush=True)


def _run(arguments: list[str], folder: Path, strike: Strike) -> Outcome:
    from dreambench.cli import main as dreambench
    from dreamllm.cli import main as dreamllm

    main: Any = {"dreambench": dreambench, "dreamllm": dreamllm}[arguments[0]]
    faults = ctypes.CDLL(os.environ["HOSTILE_FAULTS"])
    faults.faults_count.restype = ctypes.c_long
    faults.faults_arm.argtypes = (ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int)

    def work() -> int:
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if strike.file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (strike.file_size, strike.file_size))
        faults.faults_arm(os.fsencode(folder), strike.at, strike.kind, strike.number)
        if strike.seconds is not None:
            me = os.getpid()
            threading.Thread(
                target=lambda: (time.sleep(strike.seconds or 0), os.kill(me, strike.number)), daemon=True
            ).start()
        return call(main, arguments[1:])

    return forked(work, folder, values=faults.faults_count, limits=Limits(120, 240))


def tree(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder, by path; folders as such; without times and what they are in."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name.startswith("timings"):
            continue
        if path.is_dir():
            found[name] = "folder"
        elif path.parent.name == "responses":
            found[name] = _digest(b"".join(sorted(set(_whole_lines(path)))))
        else:
            found[name] = _digest(path.read_bytes())
    return found


def _whole_lines(path: Path) -> list[bytes]:
    """The answers of an interrupted batch stay beside those of the batch that was answered again, which are the same."""
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def leftovers(folder: Path) -> list[str]:
    """Hidden files, locks and unfinished checkpoints below a folder."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return [
        path for path in paths if path.rpartition("/")[2].startswith(".") or path.endswith(("lock", "scoring", ".tmp"))
    ]
