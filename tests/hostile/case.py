"""A hostile case, the forked child that runs it, the judge, and the table of verdicts.

A part of the tool is a module with ``cases(scratch, seed, count)``, which yields `Case`s: `scratch` is the part's own folder,
`count` how many are wanted at most. The same seed gives the same cases.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import difflib
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["STATUSES", "Case", "Judge", "Limits", "Outcome", "Report", "Verdict", "call", "forked"]

ERRORS = ("dreambench: error: ", "dreamllm: error: ")
STATUSES = frozenset({0, 1, 2, 130})
"""Exit statuses with a meaning: done, a threshold missed, the user must act, interrupted."""


@dataclass(frozen=True)
class Limits:
    """What a child may use: seconds of CPU, seconds on the clock, and bytes of address space beyond what the parent holds."""

    cpu_s: int = 30
    wall_s: float = 60.0
    memory: int = 3 << 30


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    status: int | None
    """Exit status; None: killed at a limit or by a signal."""
    stdout: str = ""
    stderr: str = ""
    values: Any = None
    """What the case measured after a status 0: metrics, digests of files."""
    seconds: float = 0.0
    peak_bytes: int = 0
    killed: str = ""
    """Why there is no exit status."""


@dataclass(frozen=True)
class Case:
    """One mutated input, misbehaving server, kill or full disk."""

    part: str
    """The row of the report, such as ``inputs/vqav2``."""
    name: str
    """What is mutated and how; names the case within its part."""
    run: Callable[[Path], Outcome]
    """Prepares files in a new empty folder and runs the command there."""
    places: tuple[str, ...] = ()
    """On status 2, the line on stderr contains one of these; empty: any line will do."""
    expected: Any = None
    """The values of the undisturbed command. With status 0, other values are wrong; of a list, values that are not in it."""
    changes: bool = False
    """The mutation may change the values: another valid answer, a subset of the data."""
    must_fail: bool = False
    """Status 0 is a verdict by itself: the input cannot be accepted."""
    check: Callable[[Outcome, Path], str | None] | None = None
    """What else must hold, such as no leftovers; returns a complaint."""


@dataclass(frozen=True)
class Verdict:
    """A case's verdict: ``ok``, or the kind of fault and its details."""

    part: str
    name: str
    kind: str
    status: int | None
    seconds: float
    details: str = ""

    @property
    def ok(self) -> bool:
        return self.kind == "ok"


class Judge:
    """Runs cases, each in a folder of its own, and says what is wrong with them."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch

    def __call__(self, case: Case) -> Verdict:
        folder = Path(tempfile.mkdtemp(prefix="case-", dir=self.scratch))
        try:
            outcome = case.run(folder)
            kind, details = self._verdict(case, outcome, folder)
        finally:
            _remove(folder)
        return Verdict(case.part, case.name, kind, outcome.status, round(outcome.seconds, 3), details)

    @staticmethod
    def _verdict(case: Case, outcome: Outcome, folder: Path) -> tuple[str, str]:
        lines = [line for line in outcome.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(ERRORS)]
        shown = "\n".join(lines[-12:])
        if outcome.status is None:
            return ("memory" if outcome.killed == "memory" else "limit"), f"{outcome.killed}; {shown}"
        if "Traceback (most recent call last)" in outcome.stderr or "this is a bug" in outcome.stderr:
            return "traceback", shown
        if outcome.status not in STATUSES:
            return "status", f"{outcome.status}; {shown}"
        if outcome.status == 2 and (len(errors) != 1 or lines[-1] != errors[0]):
            return "not one line", shown
        if (
            outcome.status == 2
            and case.places
            and not case.changes
            and not any(place in errors[0] for place in case.places)
        ):
            return "no place", f"none of {', '.join(case.places)} in: {shown}"
        if outcome.status == 0 and case.must_fail:
            return "accepted", _short(outcome.values)
        if outcome.status == 0 and not case.changes and not _same(case.expected, outcome.values):
            return "wrong number", _difference(case.expected, outcome.values)
        complaint = case.check(outcome, folder) if case.check else None
        return ("check", complaint) if complaint else ("ok", "")


# --- children ---------------------------------------------------------------------------------------------------------


def call(main: Callable[[list[str]], object], arguments: Sequence[object]) -> int:
    """The exit status of a command line's `main`; an exception that leaves it is printed as the interpreter would, status 1."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0


def forked(
    work: Callable[[], int], folder: Path, *, values: Callable[[], Any] | None = None, limits: Limits | None = None
) -> Outcome:
    """Run `work` in a forked child with `folder` as its working directory; `work` returns the exit status.

    `values` is called in the child after a status 0, and gives what is compared with the undisturbed values.
    """
    limits = limits or Limits()
    aside = Path(tempfile.mkdtemp(prefix="output-", dir=folder.parent))
    started = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(work, folder, aside, values, limits)
    status, usage, late = _wait(pid, limits.wall_s)
    seconds = time.monotonic() - started
    text = {name: _text(aside / name) for name in ("stdout", "stderr", "values")}
    _remove(aside)
    killed = ""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        killed = "time" if late else "CPU time" if number == signal.SIGXCPU else f"signal {signal.Signals(number).name}"
    elif "MemoryError" in text["stderr"] or "bad_alloc" in text["stderr"] or "can't allocate memory" in text["stderr"]:
        killed = "memory"
    return Outcome(
        None if killed else os.WEXITSTATUS(status),
        text["stdout"],
        text["stderr"],
        json.loads(text["values"]) if text["values"] else None,
        seconds,
        usage.ru_maxrss * 1024,
        killed,
    )


def _child(
    work: Callable[[], int], folder: Path, aside: Path, values: Callable[[], Any] | None, limits: Limits
) -> None:
    status = 70
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # nothing outlives the tool
        for name, descriptor in (("stdout", 1), ("stderr", 2)):
            os.dup2(os.open(aside / name, os.O_WRONLY | os.O_CREAT), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        # The parent's may be a terminal, or pytest's.
        sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115 - as the interpreter's own
        os.chdir(folder)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + limits.memory,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_s, limits.cpu_s + 5))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            status = work()
        except BaseException:
            status = 1
            traceback.print_exc()
        if status == 0 and values is not None:
            (aside / "values").write_text(json.dumps(values(), default=repr))
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _wait(pid: int, seconds: float) -> tuple[int, Any, bool]:
    """Wait status and resources of a child, and whether it was killed for being late."""
    descriptor, late = os.pidfd_open(pid), False
    try:
        if not select.select([descriptor], [], [], seconds)[0]:
            late = True
        # A child's own children go with it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL) if late else None
        _, status, usage = os.wait4(pid, 0)
    finally:
        os.close(descriptor)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    return status, usage, late


def _text(path: Path) -> str:
    return path.read_bytes().decode(errors="backslashreplace") if path.exists() else ""


def _remove(folder: Path) -> None:
    """Remove a folder, whatever the case has done to its modes."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def _short(value: Any, length: int = 300) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= length else text[:length] + "…"


def _same(expected: Any, found: Any) -> bool:
    if isinstance(expected, list):
        return isinstance(found, list) and all(value in expected for value in found)
    return expected is None or found == expected


def _difference(expected: Any, found: Any) -> str:
    """The first entries that differ."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        keys = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
        return _short({key: [expected.get(key), found.get(key)] for key in keys[:3]})
    if isinstance(expected, list) and isinstance(found, list):
        return _short([value for value in found if value not in expected])
    if isinstance(expected, str) and isinstance(found, str):
        return "\n".join(difflib.unified_diff(expected.splitlines(), found.splitlines(), lineterm="", n=0))
    return f"{_short(expected)} became {_short(found)}"


# --- the report -------------------------------------------------------------------------------------------------------


class Report:
    """Verdicts, counted by part. With a file, each is a line of it at once, and those that are ok in it hold in later runs too."""

    def __init__(self, file: Path | None = None, seed: int = 0) -> None:
        self.verdicts: list[Verdict] = []
        self._file, self._seed = file, seed
        self._known: dict[tuple[str, str], Verdict] = {}
        for line in file.read_text().splitlines() if file is not None and file.exists() else ():
            fields = json.loads(line)
            if fields.pop("seed") == seed:
                verdict = Verdict(**fields)
                self._known[verdict.part, verdict.name] = verdict

    def known(self, case: Case) -> Verdict | None:
        """The last verdict of a case in the file, if that is ok."""
        verdict = self._known.get((case.part, case.name))
        return verdict if verdict is not None and verdict.ok else None

    def add(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)
        if self._file is not None and self._known.get((verdict.part, verdict.name)) is not verdict:
            with self._file.open("a") as out:
                out.write(json.dumps({"seed": self._seed, **dataclasses.asdict(verdict)}) + "\n")

    @property
    def faults(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if not verdict.ok]

    def table(self) -> str:
        """A Markdown table: cases, exit statuses and faults of each part."""
        parts: dict[str, list[Verdict]] = defaultdict(list)
        for verdict in self.verdicts:
            parts[verdict.part].append(verdict)
        rows = [(name, *_row(parts[name])) for name in sorted(parts)]
        rows.append(("all", *_row(self.verdicts)))
        head = ("part", "cases", "status 0", "1", "2", "130", "faults", "seconds")
        lines = [head, tuple("---" if i == 0 else "---:" for i in range(len(head))), *rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    statuses = Counter(verdict.status for verdict in verdicts)
    kinds = Counter(verdict.kind for verdict in verdicts if not verdict.ok)
    faults = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())) or "0"
    seconds = f"{sum(verdict.seconds for verdict in verdicts):.0f}"
    return (str(len(verdicts)), *(str(statuses[status]) for status in (0, 1, 2, 130)), faults, seconds)
