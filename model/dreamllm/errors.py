"""Errors that are the user's to solve, each one line: what is wrong, where, and what to do next.

    DreamLLMError
    ├── UsageError        an option, a name or a combination of them is not accepted
    ├── CheckpointError   a file or tensor of a checkpoint is missing, surplus, misshapen or unreadable
    └── InputError        what is given to the model does not fit together, for instance images and their places

The command line prints them without a traceback and leaves with exit status 2. Anything else is a bug and shows its traceback.
"""

from __future__ import annotations

__all__ = ["CheckpointError", "DreamLLMError", "InputError", "UsageError"]


class DreamLLMError(Exception):
    """The user must do something. ``str(error)`` is one line that says what, where, and what to do."""

    exit_status = 2


class UsageError(DreamLLMError, ValueError):
    """An option, a name or a combination of them is not accepted."""


class CheckpointError(DreamLLMError):
    """A file or tensor of a checkpoint is missing, surplus, misshapen or unreadable."""


class InputError(DreamLLMError, ValueError):
    """What is given to the model does not fit together."""
