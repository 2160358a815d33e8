"""What the file of a run may not cause by itself: it is perhaps somebody else's, and names code to import and servers to call."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dreambench.errors import RunError, UsageError
from dreambench.spec import RunSpec

__all__ = ["obeyed_run", "obeying", "require_said"]

Option = Literal["task", "model", "judge"]


@dataclass(frozen=True)
class _File:
    path: Path
    spec: RunSpec
    said: frozenset[str]


_FILE: ContextVar[_File | None] = ContextVar("run file", default=None)


@contextmanager
def obeying(path: Path, spec: RunSpec, *, task: str | None, model: str | None, judge: str | None) -> Generator[None]:
    """Within it, `spec` is what a run's file says, and `task`, `model` and `judge` are what the user has repeated of it.

    Raises:
        UsageError: the user has said something else than the file.
        RunError: instead of a UsageError in it, where the user has repeated nothing.
    """
    said = {"task": task, "model": model, "judge": judge}
    for name, value in said.items():
        named = getattr(spec, name)
        if value is not None and value != named:
            raise UsageError(
                f"--{name} {value}: {path} was made with {named or 'none'}; leave the option out, or start a run"
            )
    token = _FILE.set(_File(path, spec, frozenset(name for name, value in said.items() if value is not None)))
    try:
        yield
    except UsageError as error:  # of an option that nobody gave here
        if str(path) in str(error) or any(value is not None for value in said.values()):
            raise
        raise RunError(f"{path / 'run.json'}: {error}") from error
    finally:
        _FILE.reset(token)


def obeyed_run() -> Path | None:
    """The folder of the run whose file is obeyed, if any."""
    file = _FILE.get()
    return None if file is None else file.path


def require_said(named: str, what: str) -> None:
    """`RunError` if `named`, code or a server, comes from a run's file and the user has not repeated the option that has it."""
    file = _FILE.get()
    if file is None or any(named in str(getattr(file.spec, name)) for name in file.said):
        return
    option = next((n for n in ("task", "model", "judge") if named in str(getattr(file.spec, n))), None)
    do = f"repeat --{option} {getattr(file.spec, option)}" if option else "start the run yourself"
    raise RunError(f"{file.path}/run.json names {named}, {what}: if you trust the run, {do}")
