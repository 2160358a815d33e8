"""Images as records name them: files below one folder, bytes, or URLs that were fetched before."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path, PureWindowsPath
from typing import Any

from PIL import Image

from dreamllm.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def open_image(value: Any, folder: Path) -> Image.Image:
    """An RGB image.

    Args:
        value: the name of a file below `folder`; a URL, whose image is `<hex SHA-256 of the URL>.jpg` (or .jpeg, .png, .webp)
            there; bytes; or a dict of `bytes` and `path` as `datasets` writes images.

    Raises InputError where there is no image, or its name leads out of the folder.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return _decode(io.BytesIO(value), "bytes")
    if not isinstance(value, str) or not value:
        raise InputError(f"an image must be a file name, a URL or bytes, this is {type(value).__name__}")
    if value.startswith(("http://", "https://")):
        return _decode(_fetched(value, folder), value)
    name = PureWindowsPath(value)  # knows both separators
    if name.anchor or ".." in name.parts:
        raise InputError(f"image {value!r} leads out of its folder")
    return _decode(folder / value, value)


def _fetched(url: str, folder: Path) -> Path:
    stem = hashlib.sha256(url.encode()).hexdigest()
    for suffix in SUFFIXES:
        if (folder / f"{stem}{suffix}").is_file():
            return folder / f"{stem}{suffix}"
    raise InputError(f"image {url} is not in {folder}: fetch it as {stem}{SUFFIXES[0]}")


def _decode(source: Path | io.BytesIO, name: str) -> Image.Image:
    try:
        with Image.open(source) as image:
            return image.convert("RGB")
    # Pillow's decoders raise SyntaxError, ValueError and others for damaged files.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"image {name} cannot be read: {error}") from None
