"""Files: JSON, JSON lines, images, new folders, checkpoint folders. This module imports neither torch nor transformers."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import shutil
import socket
import struct
import time
import uuid
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PureWindowsPath
from typing import Any

from PIL import Image, ImageOps
from safetensors import SafetensorError

from dreamllm.errors import CheckpointError, InputError, UsageError, first_line

# Pillow's decoders raise SyntaxError, ValueError and others for damaged files.
IMAGE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; ValueError for one that is not JSON, has a key twice in an object, a number that is
    not finite, or half of a surrogate pair."""
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)
        if "\\ud" in (text if isinstance(text, str) else text.decode()).lower():
            json.dumps(
                value, ensure_ascii=False
            ).encode()  # half of a surrogate pair is a UnicodeEncodeError, a ValueError
        return value
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key stands twice in one object ({', '.join(key for key, _ in pairs)})")
    return found


def _finite(literal: str) -> float:
    if not math.isfinite(number := float(literal)):
        raise ValueError(f"{literal[:40]} is no finite number")
    return number


def read_json(path: Path) -> Any:
    """Raises CheckpointError if the file is missing or is not JSON."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """Raises CheckpointError if the file is missing or does not hold a JSON object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return value


def write_json(path: Path, value: Any, sort_keys: bool = False) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=sort_keys) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write atomically: readers see the old file or the new one."""
    with temporary(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)


# A name of what is not finished: .NAME.HOST-PROCESS-START-RANDOM.tmp.SUFFIX
_TEMPORARY = re.compile(r"\..*\.([0-9a-f]{8})-([0-9]+)-([0-9]+)-[0-9a-f]{8}\.tmp(\..*)?", re.DOTALL)


@contextmanager
def temporary(path: Path, place: Path | None = None) -> Generator[Path]:
    """A hidden name beside `path` for a file or folder that will take its place; what is still there at the end is removed.

    What killed processes left in the same folder is removed first. Errors name `place`, by default `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    pid = os.getpid()
    owner = f"{_host()}-{pid}-{_started(pid) or 0}-{uuid.uuid4().hex[:8]}"
    name = path.with_name(f".{path.stem[:40]}.{owner}.tmp{path.suffix[:20]}")
    try:
        yield name
    except OSError as error:
        if error.errno is not None and isinstance(error.filename, str | None):
            error.filename = (error.filename or str(name)).replace(str(name), str(place or path))
        raise
    finally:
        try:
            _discard(name)
        except KeyboardInterrupt:
            _discard(name)
            raise


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left unfinished in `folder`; what a living process writes stays.

    A process of another host, or of a system that does not say when a process started, counts as dead after a day without a change.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        if found := _TEMPORARY.fullmatch(path.name):
            host, pid, started = found.groups()[:3]
            with suppress(OSError):
                here = host == _host() and started != "0"
                if _started(int(pid)) != started if here else time.time() - path.stat().st_mtime > 24 * 3600:
                    _discard(path)


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _started(pid: int) -> str | None:
    """When a process started, by the kernel; None where unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@contextmanager
def new_folder(path: str | Path) -> Generator[Path]:
    """A folder whose files move to `path` at the end: all at once if that is absent, else one by one, over those of the same name.

    An error leaves `path` as it was.
    """
    path = Path(path).absolute()
    exists = path.is_dir()
    with errors_of_writing(path), temporary(path / "files" if exists else path, path) as unfinished:
        unfinished.mkdir()
        yield unfinished
        if not exists:
            unfinished.rename(path)
            return
        for file in sorted(unfinished.iterdir()):
            _discard(path / file.name)
            file.rename(path / file.name)


@contextmanager
def errors_of_writing(path: Path) -> Generator[None]:
    """UsageError for what safetensors and `torch.save` raise when they cannot write."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        if not isinstance(error, SafetensorError) and not re.search("PytorchStreamWriter|inline_container", str(error)):
            raise
        raise UsageError(
            f"{path} cannot be written ({first_line(error)}): make room, or choose another place"
        ) from error


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
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, (json.dumps(record, sort_keys=True) + "\n").encode())
    finally:
        os.close(descriptor)


def read_image(source: str | Path | bytes) -> Image.Image:
    """An RGB image from a file or from its bytes, turned upright as its EXIF says. Raises InputError if it is missing or damaged."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            _turn_upright(image)
            return image.convert("RGB")
    except IMAGE_ERRORS as error:
        name = "bytes" if isinstance(source, bytes) else source
        raise InputError(f"image {name} cannot be read: {error}") from None


def _turn_upright(image: Image.Image) -> None:
    """As transformers, diffusers and datasets do when they read an image. Damaged EXIF is no reason to refuse one that can be decoded."""
    with suppress(*IMAGE_ERRORS, struct.error), warnings.catch_warnings(action="ignore"):
        ImageOps.exif_transpose(image, in_place=True)


def inside(folder: Path, name: str) -> Path:
    """`folder / name`; InputError if the name or a link leads out of the folder. DREAMBENCH_FOLLOW_LINKS=1 allows such links."""
    parts = PureWindowsPath(name)  # handles both separators
    if parts.anchor or ".." in parts.parts:
        raise InputError(f"image {name!r} is outside its folder")
    if os.environ.get("DREAMBENCH_FOLLOW_LINKS") != "1":
        try:
            led_out = not (folder / name).resolve().is_relative_to(folder.resolve())
        except (OSError, ValueError, RuntimeError):  # too long a name, a null character, a circle of links
            led_out = True
        if led_out:
            raise InputError(
                f"image {name!r} is a link out of its folder: DREAMBENCH_FOLLOW_LINKS=1 allows it, if you trust the data"
            )
    return folder / name


def check_new_folder(folder: str | Path) -> Path:
    """The folder; UsageError unless it is empty or can be created."""
    folder = Path(folder)
    remove_leftovers(folder)
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
