"""Samples of a benchmark, requests to a model and its responses."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal, TypeAlias

from dreambench.documents import JSON, Document, Text, document_text, from_json, to_json

__all__ = ["Failure", "Kind", "Request", "Response", "Sample", "parse_id", "parse_number", "sample_seed"]

Kind: TypeAlias = Literal["generate_text", "generate_image", "generate_interleaved", "loglikelihood"]


def sample_seed(seed: int, sample_id: str) -> int:
    """A seed in [0, 2**63) that depends on the run's seed and the sample's id only, not on batch, order or process."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{sample_id}".encode()).digest()[:8], "big") >> 1


def choice_order(key: str) -> int:
    """A number in [0, 2**63) by which a benchmark draws samples: the same in every run.

    What is drawn belongs to the protocol, whereas a run's seed is the system's: runs of several seeds measure the same.
    """
    return sample_seed(0, key)


def parse_number(value: object) -> int:
    """An id that is a whole number from 0 to 2**63 - 1, or its digits as text. `ValueError` for anything else."""
    if type(value) is int or (isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20):
        number = int(value)
        if 0 <= number < 1 << 63:
            return number
    raise ValueError(f"{repr(value)[:40]} is no id (a whole number)")


def parse_id(value: object) -> str:
    """An id that is a text or a whole number, as text. `ValueError` for anything else: fractions, true, nothing."""
    if type(value) is int or (isinstance(value, str) and value.strip()):
        return str(value)
    raise ValueError(f"{repr(value)[:40]} is no id (a text or a whole number)")


@dataclass(frozen=True, slots=True)
class Sample:
    """One item of a benchmark. `targets` is what its scorer needs, as plain JSON; samples of one `group` share an image."""

    id: str
    prompt: Document
    targets: Mapping[str, JSON] = field(default_factory=dict[str, JSON])
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One request to a model.

    `settings` are the generation settings of the task (``max_new_tokens``, ``num_inference_steps``, ...); `choices` are the
    continuations that a ``loglikelihood`` request scores; `seed` is the sample's own.
    """

    id: str
    kind: Kind
    document: Document
    settings: Mapping[str, JSON] = field(default_factory=dict[str, JSON])
    seed: int = 0
    group: str | None = None
    choices: tuple[str, ...] = ()

    def length(self) -> int:
        """Characters of text: the length by which the plan sorts requests into batches."""
        return len(document_text(self.document)) + sum(map(len, self.choices))

    def identity(self) -> JSON:
        """What a run's id depends on. Image files count by name, so that their folder may move."""
        parts = [
            part.text if isinstance(part, Text) else [PurePath(part.path).name if part.path else part.digest()]
            for part in self.document
        ]
        return [self.id, self.kind, parts, dict(self.settings), self.seed, self.group, list(self.choices)]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request has no answer: a typed reason, counted in the results."""

    type: str
    message: str


@dataclass(frozen=True, slots=True)
class Response:
    """A model's answer to the request of the same id: a document, or `scores` for ``loglikelihood``, or an `error`."""

    id: str
    document: Document = ()
    finish_reason: str = "stop"
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    scores: tuple[float, ...] | None = None
    error: Failure | None = None
    details: Mapping[str, JSON] = field(default_factory=dict[str, JSON])

    @classmethod
    def failed(cls, id_: str, type_: str, message: str) -> Response:
        """No answer, for a typed reason; the message becomes one line."""
        return cls(id_, finish_reason="error", error=Failure(type_, " ".join(message.split())))

    def to_json(self) -> JSON:
        line: dict[str, JSON] = {"id": self.id, "document": to_json(self.document), "finish_reason": self.finish_reason}
        if self.prompt_tokens is not None:
            line["prompt_tokens"] = self.prompt_tokens
        if self.new_tokens is not None:
            line["new_tokens"] = self.new_tokens
        if self.scores is not None:
            line["scores"] = list(self.scores)
        if self.error is not None:
            line["error"] = {"type": self.error.type, "message": self.error.message}
        if self.details:
            line["details"] = dict(self.details)
        return line

    @classmethod
    def from_json(cls, line: Mapping[str, JSON]) -> Response:
        error, scores = line.get("error"), line.get("scores")
        return cls(
            id=line["id"],
            document=from_json(line["document"]),
            finish_reason=line["finish_reason"],
            prompt_tokens=line.get("prompt_tokens"),
            new_tokens=line.get("new_tokens"),
            scores=None if scores is None else tuple(scores),
            error=None if error is None else Failure(error["type"], error["message"]),
            details=line.get("details", {}),
        )
