"""The files of a run as types: what `store` writes is what it reads, and a value of another type is an error that names file and field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, NotRequired, TypeVar

from pydantic import ConfigDict, Field, PositiveFloat, TypeAdapter, ValidationError

# pydantic requires it before Python 3.12.
from typing_extensions import TypedDict

from dreambench.documents import JSON
from dreambench.errors import DreambenchError
from dreambench.scores import Protocol, Score

__all__ = [
    "AnswerLine",
    "ImageSettings",
    "JudgementLine",
    "MetricsFile",
    "PromptPart",
    "RunFile",
    "Targets",
    "check_protocols",
    "first_complaint",
    "parse",
    "parse_score",
]

T = TypeVar("T")
_STRICT = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
_Count = Annotated[int, Field(ge=0)]
_Positive = Annotated[int, Field(ge=1)]
_Fields = dict[str, JSON]


class _ImagePart(TypedDict):
    image: str
    sha256: NotRequired[str | None]


class _TextPart(TypedDict):
    text: str


class _LostImagePart(TypedDict):
    sha256: str


class _Failure(TypedDict):
    type: str
    message: str


class AnswerLine(TypedDict):
    """A line of ``responses/rank-00000.jsonl``."""

    __pydantic_config__ = _STRICT  # pyright: ignore[reportGeneralTypeIssues]

    batch: str
    of: _Positive
    id: str
    document: list[_TextPart | _ImagePart]
    finish_reason: str
    prompt_tokens: NotRequired[_Count | None]
    new_tokens: NotRequired[_Count | None]
    scores: NotRequired[list[float] | None]
    error: NotRequired[_Failure | None]
    details: NotRequired[_Fields]


PromptPart = _TextPart | _ImagePart | _LostImagePart
"""Of an image in a prompt that was never a file only the digest is known."""
Targets = _Fields


class _Environment(TypedDict, total=False):
    device: _Fields
    versions: _Fields
    machine: _Fields


class _Plan(TypedDict, total=False):
    batch_size: _Positive
    batches: list[list[_Count]]


class RunFile(TypedDict):
    """``run.json``."""

    __pydantic_config__ = _STRICT  # pyright: ignore[reportGeneralTypeIssues]

    format: int
    spec: _Fields
    task: str
    model: str
    protocols: dict[str, _Fields]
    system: _Fields
    notes: list[str]
    environment: _Environment
    plan: _Plan
    code: NotRequired[_Fields]
    parameters: NotRequired[_Count | None]
    inputs: NotRequired[str | None]
    """Digest of what the run began on; None where the task does not say what it reads."""
    files: NotRequired[dict[str, str]]
    """sha256 of the files that are written with it."""


class _ErrorType(TypedDict):
    n: _Count
    ids: list[str]


class _Errors(TypedDict):
    n: _Count
    types: dict[str, _ErrorType]


class MetricsFile(TypedDict):
    """``metrics.json``."""

    __pydantic_config__ = _STRICT  # pyright: ignore[reportGeneralTypeIssues]

    task: str
    model: str
    protocols: dict[str, _Fields]
    scores: list[_Fields]
    errors: _Errors
    notes: list[str]
    system: NotRequired[_Fields]
    protocol: NotRequired[str]
    code: NotRequired[_Fields]
    files: NotRequired[dict[str, str]]


class ImageSettings(TypedDict, total=False):
    """What ``preprocessor_config.json`` says about pixels, which transformers takes as it comes: 0 as false, true as 1."""

    __pydantic_config__ = ConfigDict(strict=True, extra="ignore")  # pyright: ignore[reportGeneralTypeIssues]

    do_resize: bool | None
    do_center_crop: bool | None
    do_convert_rgb: bool | None
    do_rescale: bool | None
    do_normalize: bool | None
    rescale_factor: PositiveFloat | None
    image_mean: float | list[float] | None
    image_std: PositiveFloat | list[PositiveFloat] | None


class JudgementLine(TypedDict):
    """A judgement in ``judgements.jsonl``."""

    __pydantic_config__ = _STRICT  # pyright: ignore[reportGeneralTypeIssues]

    key: str
    judge: str
    id: str
    run: Annotated[int, Field(ge=0, le=10_000)]
    score: Annotated[float, Field(ge=0, le=1)] | None
    reason: str | None
    raw: str
    answered_by: str | None


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def parse(kind: Any, value: JSON, error: type[DreambenchError], where: str, advice: str = "") -> Any:
    """`value` if it is of the type `kind`; else `error`, which says where and which field is wrong."""
    if kind not in _ADAPTERS:
        # A typed dict has its own configuration.
        _ADAPTERS[kind] = TypeAdapter(kind, config=None if hasattr(kind, "__pydantic_config__") else _STRICT)
    try:
        return _ADAPTERS[kind].validate_python(value)
    except ValidationError as reason:
        raise error(f"{where} is damaged ({first_complaint(reason)}){advice}") from None


def first_complaint(error: ValueError) -> str:
    """The field and what is wrong with it."""
    if not isinstance(error, ValidationError):
        return str(error)[:200]
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(step) for step in first["loc"] if not str(step).startswith("_"))
    return (f"{field}: " if field else "") + first["msg"][:200]


def check_protocols(protocols: Mapping[str, JSON]) -> None:
    """`ValueError` for fields that do not have the hash that stands beside them."""
    for id_, values in protocols.items():
        rest = {name: value for name, value in values.items() if name not in ("name", "version", "hash")}
        if not isinstance(values.get("name"), str) or type(values.get("version")) is not int:
            raise ValueError(f"the protocol {id_} has no name and version")
        found = Protocol(values["name"], values["version"], rest)
        if found.hash != values.get("hash"):
            raise ValueError(f"the protocol {id_} has other fields than its hash was made of")


_SCORE = TypeAdapter(Score)


def parse_score(line: Mapping[str, JSON]) -> Score:
    """A score of ``metrics.json``; `ValueError` if a field is missing, unknown or of another type."""
    if unknown := sorted(set(line) - {field.name for field in fields(Score)}):
        raise ValueError(f"a score has no {unknown[0]}")
    # By way of JSON, in which a list may be a pair although types are strict.
    score = _SCORE.validate_json(json.dumps(dict(line)), strict=True)
    if min(score.n, score.unscored) < 0:
        raise ValueError(f"n is {score.n} and unscored {score.unscored}")
    return score
