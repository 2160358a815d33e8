"""``echo``: a toy model without torch, for trying and testing the harness."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, Field

from dreambench.documents import JSON, Image, Text, document_text
from dreambench.errors import UsageError
from dreambench.images import encode_png
from dreambench.interfaces import Model, ModelOptions
from dreambench.requests import Kind, Request, Response
from dreambench.spec import parse_arguments
from dreambench.trust import require_said

__all__ = ["Echo"]


class _Arguments(BaseModel):
    delay: float = Field(0, ge=0, lt=3600)
    log: Path | None = None


class Echo(Model):
    """Answers with the prompt's last word, with an image of one colour, and with log-likelihoods by the choices' lengths.

    ``--model-arg delay=SECONDS`` waits before each batch; ``log=FILE`` appends the rank and the id of every request.
    """

    capabilities: ClassVar[frozenset[Kind]] = frozenset(
        {"generate_text", "generate_image", "generate_interleaved", "loglikelihood"}
    )

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        options.only(*_Arguments.model_fields)
        options.without_weights()
        if options.location is not None:
            raise UsageError(f"--model echo:{options.location}: echo has no location, write --model echo")
        self.arguments = parse_arguments(_Arguments, options.arguments, "--model-arg")
        if self.arguments.log is not None:
            require_said(str(self.arguments.log), "a file to append to")

    def identity(self) -> Mapping[str, JSON]:
        return {"name": "echo", "version": 1}

    def parameters(self) -> int:
        return 0

    def notes(self) -> Sequence[str]:
        return ("echo is a toy: its scores only show that the harness runs",)

    def batch_size(self, kind: Kind) -> int:
        return 256

    def answer(self, requests: Sequence[Request]) -> Iterator[Response]:
        if self.arguments.log is not None:
            with self.arguments.log.open("a", encoding="utf-8") as file:
                file.writelines(f"{os.environ.get('RANK', '0')} {request.id}\n" for request in requests)
        if self.arguments.delay:
            time.sleep(self.arguments.delay)
        for request in requests:
            yield self._answer(request)

    def _answer(self, request: Request) -> Response:
        text = document_text(request.document)
        if request.kind == "loglikelihood":
            return Response(request.id, scores=tuple(-float(len(choice)) for choice in request.choices))
        words = text.split()
        word = words[-1].strip("?.!,") if words else ""
        if request.kind == "generate_text":
            return Response(request.id, (Text(word),), prompt_tokens=len(words), new_tokens=1)
        image = Image(data=_flat_colour(f"{request.seed}\0{text}"))
        if request.kind == "generate_image":
            return Response(request.id, (image,))
        return Response(
            request.id, (Text(text), image, Text(word)), prompt_tokens=len(words), new_tokens=len(words) + 1
        )


def _flat_colour(key: str) -> bytes:
    from PIL import Image as PILImage

    red, green, blue = hashlib.sha256(key.encode()).digest()[:3]
    return encode_png(PILImage.new("RGB", (32, 32), (red, green, blue)))
