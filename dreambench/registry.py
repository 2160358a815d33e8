"""Names of tasks and models: entry points of installed packages, or ``package.module:Class`` written out."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from dreambench.errors import UsageError
from dreambench.interfaces import Model, ModelOptions, Task
from dreambench.spec import RunSpec
from dreambench.trust import require_said

__all__ = [
    "MODELS",
    "TASKS",
    "list_models",
    "list_protocols",
    "list_tasks",
    "load_model",
    "load_task",
    "model_class",
    "names",
    "parse_model",
]

TASKS = "dreambench.tasks"
MODELS = "dreambench.models"

T = TypeVar("T")


def names(group: str) -> dict[str, EntryPoint]:
    """Registered names of a group, sorted."""
    return {point.name: point for point in sorted(entry_points(group=group), key=lambda point: point.name)}


def _find(group: str, name: str, kind: type[T]) -> type[T]:
    word = group.rpartition(".")[2].rstrip("s")
    registered = names(group)
    if name in registered:
        found = registered[name].load()
    elif ":" in name:
        module, _, attribute = name.partition(":")
        try:
            if not all(step.isidentifier() for step in module.split(".")):
                raise UsageError(f"{word} {name}: {module} is no module's name; write package.module:Class")
            require_said(name, "which is code to import")
            found = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if error.name is None or not module.startswith(error.name):
                raise
            raise UsageError(f"{word} {name}: no module {error.name} can be imported from here") from error
        except AttributeError as error:
            raise UsageError(f"{word} {name}: the module {module} has no {attribute}") from error
    else:
        near = difflib.get_close_matches(name, registered, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(
            f"no {word} is called {name}: {hint}`dreambench list {word}s` shows the names, or write package.module:Class"
        )
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise UsageError(f"{word} {name} is not a {kind.__module__}.{kind.__name__}: derive it from that class")
    return found


def load_task(spec: RunSpec) -> Task:
    """The task that the spec names, constructed with it."""
    return _find(TASKS, spec.task, Task)(spec)  # pyright: ignore[reportAbstractUsage] - a subclass, as _find has seen to


def parse_model(spec: str) -> tuple[str, str | None]:
    """``NAME[:LOCATION]``, or ``package.module:Class[:LOCATION]`` where NAME is not registered, as (name, location)."""
    name, colon, location = spec.partition(":")
    first, _, rest = location.partition(":")
    if name not in names(MODELS) and first.isidentifier():
        return f"{name}:{first}", (rest or None)
    return name, (location if colon else None)


def model_class(name: str) -> type[Model]:
    """The class of the model of that name; nothing is loaded yet."""
    return _find(MODELS, name, Model)


def load_model(options: ModelOptions) -> Model:
    """The model of that name, with its weights loaded."""
    return model_class(options.name)(options)  # pyright: ignore[reportAbstractUsage] - a subclass, as _find has seen to


# --- ``dreambench list`` ------------------------------------------------------------------------------------------------


def _about(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def list_tasks() -> Iterator[str]:
    """One line per registered task."""
    for name, point in names(TASKS).items():
        yield f"{name:14s} {_about(point.load())}"


def list_models() -> Iterator[str]:
    """One line per registered model."""
    for name, point in names(MODELS).items():
        try:
            yield f"{name:14s} {_about(point.load())}"
        except ImportError as error:
            yield f"{name:14s} not installed here ({error.name} is missing)"


def list_protocols() -> Iterator[str]:
    """One line per protocol of each registered task."""
    for name, point in names(TASKS).items():
        for protocol, meaning in point.load().protocol_names.items():
            yield f"{name:14s} {protocol:24s} {meaning}"
