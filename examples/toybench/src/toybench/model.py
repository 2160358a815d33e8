"""The model: it answers requests with text and images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import PIL.Image

from dreambench import Image, Model, ModelOptions, Request, Response, Text
from dreambench.documents import JSON, document_text
from dreambench.images import BrokenImageError, decode_rgb, encode_png
from dreambench.interfaces import OutOfMemoryError
from dreambench.requests import Kind
from toybench.colors import COLORS, scene_colors


class Palette(Model):
    """Names the color in the middle or in a corner of an image, and draws a square in the colors of a prompt.

    ``--model-arg memory=N``: it holds at most N requests at once (1000).
    """

    capabilities: ClassVar[frozenset[Kind]] = frozenset({"generate_text", "generate_image"})

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        options.only("memory")
        self.memory = int(options.arguments.get("memory", "1000"))

    def identity(self) -> Mapping[str, JSON]:
        return {"name": "palette", "version": 1}

    def answer(self, requests: Sequence[Request]) -> Iterator[Response]:
        if len(requests) > self.memory:
            raise OutOfMemoryError(f"{len(requests)} requests are more than memory={self.memory}")
        for request in requests:
            try:
                part = describe(request) if request.kind == "generate_text" else draw(request)
                yield Response(request.id, (part,))
            except BrokenImageError as error:
                yield Response.failed(request.id, "broken-image", str(error))


def describe(request: Request) -> Text:
    """The color of the background if the question names it, else that of the shape."""
    image = next(part for part in request.document if isinstance(part, Image))
    shape, background = scene_colors(decode_rgb(image))
    return Text(background if "background" in document_text(request.document) else shape)


def draw(request: Request) -> Image:
    """A square of the first color in the prompt on the second, 64 x 64."""
    shape, background = re.findall("|".join(COLORS), document_text(request.document))[:2]
    image = PIL.Image.new("RGB", (64, 64), COLORS[background])
    image.paste(COLORS[shape], (22, 22, 42, 42))
    return Image(data=encode_png(image))
