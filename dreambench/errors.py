"""Errors that the user can solve, one line each: what is wrong, where, and what to type next.

    DreambenchError
    ├── UsageError            an option, a name or a combination of them is not accepted
    ├── DataError             a benchmark's file is missing, malformed or inconsistent
    ├── MissingWeightsError   weights that a model, an extractor or a judge needs are not here
    ├── MissingExtraError     an optional dependency is not installed
    ├── ModelError            a model cannot do what a task asks of it, or broke while answering
    ├── JudgeError            a judge cannot be reached or does not answer in its format
    └── RunError              a run's folder is locked, damaged, or of another version

The command line prints them without a traceback and exits with status 2. Any other exception is a bug and shows its traceback.
"""

from __future__ import annotations

import errno
import os

__all__ = [
    "DataError",
    "DreambenchError",
    "JudgeError",
    "MissingExtraError",
    "MissingWeightsError",
    "ModelError",
    "RunError",
    "UsageError",
    "counted",
    "refusal",
]


class DreambenchError(Exception):
    """The user has to act. ``str(error)`` is one line: what, where, and what to do."""

    exit_status = 2


class UsageError(DreambenchError):
    """An option, a name or a combination of them is not accepted."""


class DataError(DreambenchError):
    """A benchmark's file is missing, malformed or inconsistent with another."""


class MissingWeightsError(DreambenchError):
    """Weights are not on this machine (and may not be downloaded)."""


class MissingExtraError(DreambenchError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package}: pip install 'dreambench[{extra}]'")


class ModelError(DreambenchError):
    """A model cannot do what a task asks of it, or broke while answering."""


class JudgeError(DreambenchError):
    """A judge cannot be reached or does not answer in its format."""


class RunError(DreambenchError):
    """A run's folder is locked by another launch, damaged, or of another version."""


def counted(n: int, singular: str, plural: str | None = None) -> str:
    """A number with its noun, for messages: ``1 image``, ``2 images``; `plural` where it is not the singular and an s."""
    return f"{n} {singular if n == 1 else plural or singular + 's'}"


_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room, or name another place"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "change its permissions, or name another place"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files (`ulimit -n`)"),
    **dict.fromkeys((errno.ENOMEM, errno.EAGAIN), "allow more memory and processes (`ulimit`), or ask for less"),
    errno.EIO: "the disk is damaged, or not there any more",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def refusal(error: OSError) -> str:
    """What the system refused, in one line with the place and what may help."""
    if error.errno is None:
        return str(error) or type(error).__name__
    place = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else "the output or a file"
    return f"{place}: {error.strerror or os.strerror(error.errno)}; {_ADVICE.get(error.errno, 'name another place')}"
