"""Images as every protocol reads them: 8-bit RGB."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dreambench.errors import DataError

if TYPE_CHECKING:
    import torch

__all__ = ["read_bytes", "read_image", "read_rgb", "require_images", "to_uint8"]


def read_rgb(path: str | Path) -> npt.NDArray[np.uint8]:
    """The image as (height, width, 3) uint8, by Pillow's `convert("RGB")`: EXIF orientation and transparency are ignored.

    That is how every published FID decodes its files. Raises DataError, naming the file, when it cannot be decoded whole.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such image") from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        # Pillow's decoders raise all of these on damaged files.
        raise DataError(f"{path}: not a readable image ({error})") from error


def require_images(paths: Iterable[Path]) -> None:
    """DataError for the first file whose head is no image's. Damage further on is found when it is decoded."""
    from PIL import Image

    for path in paths:
        try:
            with warnings.catch_warnings(action="ignore"), Image.open(path):
                pass
        except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: not a readable image ({type(error).__name__}): replace it") from error


def read_bytes(data: bytes) -> torch.Tensor:
    """The image in a file's bytes as a tensor (3, height, width) uint8."""
    import torch
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def read_image(path: str | Path) -> torch.Tensor:
    """`read_rgb` as a tensor (3, height, width) uint8."""
    import torch

    return torch.from_numpy(read_rgb(path)).permute(2, 0, 1).contiguous()


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Images in [0, 1] as uint8: round(255 x), ties to even, clamped. diffusers' `numpy_to_pil` does the same.

    Always applied to generated images before any resize, whether or not a file lies between: what is scored is what a
    reader of the files would score. (torchmetrics' `normalize=True` truncates instead, half a grey level darker.)
    """
    import torch

    if not images.is_floating_point():
        raise TypeError(f"to_uint8 takes images in [0, 1] as floats, got {images.dtype}")
    return (images.float() * 255).round().clamp(0, 255).to(torch.uint8)
