"""Small images drawn from a seed."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image

from dreambench.documents import Image


def image_bytes(seed: int, width: int = 24, height: int = 20, form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def image(seed: int, width: int = 24, height: int = 20) -> Image:
    return Image(data=image_bytes(seed, width, height))
