"""Reading and writing files: JSON, JSON lines and images. Neither torch nor transformers is imported here."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from dreamllm.errors import CheckpointError, InputError

# Pillow's decoders raise SyntaxError, ValueError and others for damaged files.
IMAGE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def read_json(path: Path) -> Any:
    """Raises CheckpointError if the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None


def write_json(path: Path, value: Any) -> None:
    """Write atomically: readers see the old file or the new one, never a part of it."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_json_lines(path: Path) -> Iterator[Any]:
    """The records of a file that may be missing, or end in a torn line because a process was killed while writing it."""
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue


def append_json_line(path: Path, record: Any) -> None:
    """Append one line in one write, so that several processes can share the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read_image(source: str | Path | bytes) -> Image.Image:
    """An RGB image from a file or from its bytes. Raises InputError if it is missing or damaged."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return image.convert("RGB")
    except IMAGE_ERRORS as error:
        name = "bytes" if isinstance(source, bytes) else source
        raise InputError(f"image {name} cannot be read: {error}") from None
