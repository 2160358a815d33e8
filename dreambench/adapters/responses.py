"""``responses``: answers generated elsewhere, for ``dreambench score --responses``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from dreambench.documents import JSON, Text
from dreambench.errors import DataError, UsageError
from dreambench.files import sha256_file
from dreambench.interfaces import Model, ModelOptions
from dreambench.requests import Kind, Request, Response

__all__ = ["Responses"]


class Responses(Model):
    """``responses:FILE``: a file in the benchmark's result format, or of {"id", "text"} lines.

    The task reads the file (`Task.read_responses`), because it knows the benchmark's formats, and passes the answers to `bind`.
    """

    capabilities: ClassVar[frozenset[Kind]] = frozenset({"generate_text"})
    generates: ClassVar[bool] = False
    sees: ClassVar[bool] = False

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        options.only()
        options.without_weights()
        if not options.location:
            raise UsageError("--model responses: write responses:FILE")
        self.path = Path(options.location)
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file of answers")
        self._sha256 = sha256_file(self.path)
        self._texts: Mapping[str, str] | None = None

    def bind(self, texts: Mapping[str, str]) -> None:
        """Set the answers, by sample id."""
        self._texts = texts

    def identity(self) -> Mapping[str, JSON]:
        return {"name": "responses", "sha256": self._sha256}

    def batch_size(self, kind: Kind) -> int:
        return 4096

    def answer(self, requests: Sequence[Request]) -> Iterator[Response]:
        if self._texts is None:
            raise UsageError(f"{self.path}: the task does not read answers from a file")
        for request in requests:
            text = self._texts.get(request.id)
            if text is None:
                yield Response.failed(request.id, "no-answer", f"{self.path.name} has no answer to {request.id}")
            else:
                yield Response(request.id, (Text(text),))
