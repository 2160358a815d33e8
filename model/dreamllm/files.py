"""Files: JSON, JSON lines, images, new folders, checkpoint folders. This module imports neither torch nor transformers."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from dreamllm.errors import CheckpointError, InputError, UsageError, first_line

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


def write_json(path: Path, value: Any, sort_keys: bool = False) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=sort_keys) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write atomically: readers see the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_json_lines(path: Path) -> Iterator[Any]:
    """The records of a file, which may be missing or end in an incomplete line after an interruption."""
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue


def append_json_line(path: Path, record: Any) -> None:
    """Append one line in a single write, so that several processes can share the file."""
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


def check_new_folder(folder: str | Path) -> Path:
    """The folder; UsageError unless it is empty or can be created."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder: choose another")
    _check_parent(folder)
    return folder


def check_new_file(file: Path) -> Path:
    """The file; UsageError if it exists or cannot be created."""
    if file.exists() or file.is_symlink():
        raise UsageError(f"{file} exists: choose another name")
    _check_parent(file)
    return file


def _check_parent(path: Path) -> None:
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise UsageError(f"cannot create {path}: {parent} is a file")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"cannot create {path}: {parent} is not writable")


def check_image_file(file: Path) -> Path:
    """The file, whose folder is created; UsageError if Pillow cannot save an image there."""
    if Image.registered_extensions().get(file.suffix.lower()) not in Image.SAVE:
        raise UsageError(f"cannot save an image as {file}: use .png, .jpg or another format of Pillow")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot create the folder of {file}: {error.strerror}") from None
    if file.is_dir():
        raise UsageError(f"{file} is a folder: name a file")
    return file


def find_checkpoint(folder_or_id: str | Path | None = None) -> Path:
    """The folder of a checkpoint: a local one, that of a hub repository (downloaded if necessary), or by default the embedded one."""
    if folder_or_id is None:
        return embedded_checkpoint()
    if Path(folder_or_id).is_dir():
        return Path(folder_or_id)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", str(folder_or_id)):  # checked before huggingface_hub is imported
        raise CheckpointError(f"{folder_or_id} is not a folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(folder_or_id)))
    except Exception as error:  # offline, refused, unknown: each has its own exception
        raise CheckpointError(
            f"{folder_or_id} is not a local folder and cannot be downloaded from the hub: {first_line(error)}"
        ) from None


def embedded_checkpoint() -> Path:
    """The folder of the trained checkpoint that is installed with the package; CheckpointError if it is missing."""
    import dreamllm

    folder = Path(dreamllm.__file__).parent / "embedded"
    if not (folder / "model.safetensors").is_file():
        raise CheckpointError(
            f"the embedded checkpoint is missing from {folder}: install the package again or name another checkpoint"
        )
    return folder
