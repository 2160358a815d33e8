"""Errors that the user can solve, each one line: what is wrong, where, and what to do next.

    DreamLLMError
    ├── UsageError        an option, a name or a combination of them is not accepted
    ├── CheckpointError   a file or tensor of a checkpoint is missing, unexpected, mismatched or unreadable
    ├── InputError        inputs of the model do not match, for instance images and placeholders
    │   └── TooSmallError an image is smaller than the recipe's min_size
    └── NotFiniteError    the model computed NaN or infinity, from which neither a token nor an image follows

The command line prints them without a traceback and exits with status 2. Any other exception is a bug and shows its traceback.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager

NOT_FINITE = "the model computed NaN or infinity; try --dtype float32"


class DreamLLMError(Exception):
    """The user must do something. ``str(error)`` is one line that says what, where, and what to do."""


class UsageError(DreamLLMError, ValueError):
    """An option, a name or a combination of them is not accepted."""


class CheckpointError(DreamLLMError):
    """A file or tensor of a checkpoint is missing, unexpected, mismatched or unreadable."""


class InputError(DreamLLMError, ValueError):
    """Inputs of the model do not match."""


class TooSmallError(InputError):
    """An image is smaller than the recipe's `min_size`: its record is not broken, only not used."""


class NotFiniteError(DreamLLMError, ArithmeticError):
    """The model computed NaN or infinity, from which neither a token nor an image follows."""


@contextmanager
def naming(where: object) -> Generator[None]:
    """Errors of ours within it name the file `where`."""
    try:
        yield
    except DreamLLMError as error:
        if str(where) in str(error):
            raise
        raise type(error)(f"{where}: {error}") from error


@contextmanager
def library_errors(where: object) -> Generator[None]:
    """Around calls of a library that reads or builds what a checkpoint's files say; any exception becomes a CheckpointError.

    transformers, diffusers, tokenizers and jinja check files as they need them, so that damaged ones raise AttributeError,
    ZeroDivisionError, a bare Exception and many others. Nothing of our own belongs inside.
    """
    try:
        with naming(where):
            yield
    except DreamLLMError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of tokenizers, in Rust
            raise
        raise CheckpointError(
            f"{where} cannot be read as a checkpoint: {type(error).__name__}: {one_line(error)}"
        ) from error


def one_line(error: BaseException) -> str:
    """The message of a library's error, or its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of a library's message, or the error's type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room, or choose another place"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files (`ulimit -n`)"),
    **dict.fromkeys((errno.ENOMEM, errno.EAGAIN), "allow more memory and processes (`ulimit`), or ask for less"),
    errno.EIO: "the disk is damaged, or not there any more",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def refusal(error: OSError) -> str:
    """What the system refused, in one line with the place and what may help."""
    if error.errno is None:
        return one_line(error)
    place = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else "the output or a file"
    advice = _ADVICE.get(error.errno, "change its permissions, or choose another place")
    return f"{place}: {error.strerror or os.strerror(error.errno)}; {advice}"
