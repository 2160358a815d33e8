"""The fields of `RunSpec` as command-line options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_type_hints

import typer

from dreambench.spec import RunSpec

__all__ = ["option", "with_spec_options"]


def option(field: str) -> Any:
    """The annotation of an option for a field of `RunSpec`: its name, metavar and help. Values are validated by the `RunSpec`."""
    info = RunSpec.model_fields[field]
    extra = info.json_schema_extra
    metavar: Any = extra.get("metavar") if isinstance(extra, dict) else None
    kind: Any = str | None
    if info.annotation is bool:
        kind = bool
    elif info.get_default() in ((), {}):
        kind = list[str] | None
    return Annotated[kind, typer.Option(f"--{field.replace('_', '-')}", metavar=metavar, help=info.description)]


def with_spec_options(*fields: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb an option for each of these fields of `RunSpec`; those the user sets arrive in its argument ``options``."""

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        hints: Mapping[str, Any] = get_type_hints(verb, include_extras=True)
        own = [
            parameter.replace(annotation=hints[name])
            for name, parameter in inspect.signature(verb).parameters.items()
            if name != "options"
        ]
        added: list[inspect.Parameter] = []
        for field in fields:
            default = False if RunSpec.model_fields[field].annotation is bool else None
            added.append(
                inspect.Parameter(field, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=option(field))
            )
        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own] + added

        @functools.wraps(verb)
        def command(**values: Any) -> None:
            options = {field: values.pop(field) for field in fields}
            verb(options={field: value for field, value in options.items() if value not in (None, [])}, **values)

        command.__dict__["__signature__"] = inspect.Signature(parameters)
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate
