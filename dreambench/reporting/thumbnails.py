"""Small images: how they are made, and those of images that a run keeps so that it can be shown without its data.

``thumbnails/images.json`` in a run maps image ids to file names beside it, or to null where no image is known.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

from dreambench.errors import RunError
from dreambench.files import inside, write_atomically
from dreambench.store import RunFolder

__all__ = ["SIDE", "save_reference_images", "saved_reference_images", "thumbnail"]

SIDE = 256
"""Pixels of a thumbnail's longer side, at most."""


def thumbnail(path: Path, side: int = SIDE) -> bytes:
    """The image as a JPEG whose longer side is at most `side` pixels; never enlarged. DataError where it cannot be decoded."""
    from PIL import Image

    from dreambench.metrics.images import read_rgb

    image = Image.fromarray(read_rgb(path))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    # Colours at full resolution: halved, the edges of small images fray.
    image.save(buffer, format="JPEG", quality=85, subsampling=0, optimize=True)
    return buffer.getvalue()


def save_reference_images(run: RunFolder, reference_images: Mapping[int, Path | None]) -> None:
    """Write thumbnails of images, by image id, into the run; the list last, so that what it names is there."""
    names: dict[str, str | None] = {}
    for image_id, path in reference_images.items():
        names[str(image_id)] = None if path is None else f"{image_id:012d}.jpg"
        if path is not None:
            write_atomically(run.path / "thumbnails" / f"{image_id:012d}.jpg", thumbnail(path))
    index = json.dumps(names, indent=1, sort_keys=True) + "\n"
    write_atomically(run.path / "thumbnails" / "reference_images.json", index.encode())


def saved_reference_images(run: RunFolder) -> dict[str, Path | None]:
    """Image ids for which an image was sought, with its thumbnail or None; empty where none were."""
    folder = run.path / "thumbnails"
    index = folder / "reference_images.json"
    if not index.is_file():
        return {}
    try:
        names: dict[str, str | None] = json.loads(index.read_text(encoding="utf-8"))
        return {image_id: None if name is None else inside(folder, name) for image_id, name in names.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{index} is damaged: remove it, and `dreambench score {run.path}` makes it again") from error
