"""A toy that answers at once, for trying and testing the harness. It loads no torch and knows nothing."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from dreambench.documents import JSON, Image, Text, document_text
from dreambench.errors import UsageError
from dreambench.images import encode_png
from dreambench.interfaces import Model, ModelOptions
from dreambench.requests import Kind, Request, Response

__all__ = ["Echo"]


class Echo(Model):
    """Reads by repeating the prompt's last word, generates images a flat colour, weighs choices by their length.

    ``--model-arg delay=SECONDS`` waits that long over each batch; ``log=FILE`` appends the id of every request, to see what is asked.
    """

    capabilities: ClassVar[frozenset[Kind]] = frozenset(
        {"generate_text", "generate_image", "generate_interleaved", "loglikelihood"}
    )

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        options.only("delay", "log")
        options.without_weights()
        if options.location is not None:
            raise UsageError(f"--model echo:{options.location}: echo has no location, write --model echo")
        try:
            self.delay = float(options.arguments.get("delay", "0"))
            if not 0 <= self.delay < 3600:
                raise ValueError(self.delay)
        except ValueError as error:
            raise UsageError(f"--model-arg delay={options.arguments['delay']}: not a number of seconds") from error
        self.log = Path(options.arguments["log"]) if "log" in options.arguments else None

    def identity(self) -> Mapping[str, JSON]:
        return {"name": "echo", "version": 1}

    def notes(self) -> Sequence[str]:
        return ("echo is a toy: its scores only show that the harness runs",)

    def answer(self, requests: Sequence[Request]) -> Iterator[Response]:
        if self.log is not None:
            with self.log.open("a", encoding="utf-8") as file:
                file.writelines(f"{os.environ.get('RANK', '0')} {request.id}\n" for request in requests)
        time.sleep(self.delay)
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
