"""Images on their way into a model: decoded or refused, one by one."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

from dreambench.documents import Image
from dreambench.requests import Failure, Request, Response

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["BrokenImageError", "broken", "decode_rgb"]


class BrokenImageError(Exception):
    """Bytes that no decoder makes an image of."""


def decode_rgb(image: Image) -> PIL.Image.Image:
    """The image as RGB, as Pillow decodes it: EXIF orientation and transparency are not applied.

    Raises `BrokenImageError` for bytes that are no image or an absurdly large one, `DataError` for a missing file.
    """
    import PIL.Image

    data = image.read()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # palette transparency, odd EXIF: the pixels are what they are
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            return PIL.Image.open(io.BytesIO(data)).convert("RGB")
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        PIL.Image.DecompressionBombError,
        PIL.Image.DecompressionBombWarning,
    ) as error:
        raise BrokenImageError(f"{image.path or 'an image'} cannot be decoded ({type(error).__name__})") from error


def broken(request: Request, error: BrokenImageError) -> Response:
    """The answer to a request whose image is broken: the others of its batch are answered all the same."""
    return Response(request.id, finish_reason="error", error=Failure("broken-image", str(error)))
