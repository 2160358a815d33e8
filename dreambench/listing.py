"""Names with a line about each, for ``dreambench list``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from dreambench.registry import MODELS, TASKS, names

__all__ = ["models", "protocols", "tasks"]


def _about(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def tasks() -> Iterator[str]:
    """One line per registered task."""
    for name, point in names(TASKS).items():
        yield f"{name:14s} {_about(point.load())}"


def models() -> Iterator[str]:
    """One line per registered model."""
    for name, point in names(MODELS).items():
        try:
            yield f"{name:14s} {_about(point.load())}"
        except ImportError as error:
            yield f"{name:14s} not installed here ({error.name} is missing)"


def protocols() -> Iterator[str]:
    """One line per protocol of each registered task."""
    for name, point in names(TASKS).items():
        for protocol, meaning in point.load().protocol_names.items():
            yield f"{name:14s} {protocol:24s} {meaning}"
