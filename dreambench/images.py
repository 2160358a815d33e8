"""Images to and from bytes. Generated images are stored as PNG: nothing is lost between the model and the metric."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambench.documents import Image
from dreambench.errors import DataError

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["BrokenImageError", "contact_sheet", "decode", "decode_rgb", "encode_png", "image_suffix", "read_rgb"]
__all__ += ["require_images", "saturated"]

# What Pillow's decoders raise on damaged files, beside DecompressionBombError.
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Warning)


class BrokenImageError(Exception):
    """Bytes that Pillow cannot decode, or an image of an absurd size."""


def decode(data: bytes, name: str = "an image", *, large: bool = False) -> PIL.Image.Image:
    """Encoded bytes as an RGB image, as Pillow decodes them: EXIF orientation and transparency are not applied.

    Raises:
        BrokenImageError: the bytes are no image, are cut short, or hold more pixels than Pillow finds plausible (with `large`, twice
            as many).
    """
    import PIL.Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # palette transparency, odd EXIF: the pixels are what they are
            warnings.simplefilter("ignore" if large else "error", PIL.Image.DecompressionBombWarning)
            return PIL.Image.open(io.BytesIO(data)).convert("RGB")
    except (*_BROKEN, PIL.Image.DecompressionBombError) as error:
        raise BrokenImageError(f"{name} cannot be decoded ({type(error).__name__})") from error


def decode_rgb(image: Image) -> PIL.Image.Image:
    """`decode` for an image of a document. Raises `DataError` where its file is missing or has changed."""
    return decode(image.read(), image.path or "an image")


def read_rgb(path: Path) -> PIL.Image.Image:
    """`decode` for an image file. Raises `DataError`, naming the file, where it is missing or damaged."""
    try:
        return decode(path.read_bytes(), str(path), large=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such image") from None
    except (OSError, BrokenImageError) as error:
        raise DataError(f"{path}: not a readable image ({type(error.__cause__ or error).__name__})") from error


def require_images(paths: Iterable[Path]) -> None:
    """`DataError` for the first file that does not begin as an image does. Damage further on is found on decoding."""
    for _ in _modes(paths):
        pass


def saturated(paths: Iterable[Path]) -> int:
    """How many of the images are grey with more than 8 bits, whose values above 255 all become white. Reads headers only."""
    return sum(mode[0] in "IF" for mode in _modes(paths))


def _modes(paths: Iterable[Path]) -> Iterator[str]:
    import PIL.Image

    for path in paths:
        try:
            with warnings.catch_warnings(action="ignore"), PIL.Image.open(path) as image:
                mode = image.mode
        except (*_BROKEN, PIL.Image.DecompressionBombError) as error:
            raise DataError(f"{path}: not a readable image ({type(error).__name__}): replace it") from error
        yield mode


def image_suffix(data: bytes) -> str | None:
    """``png``, ``jpg`` or ``webp`` by the first bytes of an encoded image: the forms that a run stores. None for other bytes."""
    if data.startswith(b"\x89PNG"):
        return "png"
    if data.startswith(b"\xff\xd8"):
        return "jpg"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def encode_png(image: PIL.Image.Image) -> bytes:
    """An RGB PNG (zlib level 1: a third faster than the default for a few percent of size)."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def contact_sheet(images: Sequence[PIL.Image.Image], columns: int, *, padding: int = 4) -> PIL.Image.Image:
    """Images of one size in a grid of `columns`, on white."""
    import torch
    from torchvision.transforms.functional import pil_to_tensor, to_pil_image
    from torchvision.utils import make_grid

    pixels: Any = torch.stack([pil_to_tensor(image.convert("RGB")) for image in images])
    return to_pil_image(make_grid(pixels, nrow=columns, padding=padding, pad_value=255))
