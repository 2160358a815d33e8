"""Files that are whole or absent: written under another name, synced, renamed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import uuid
from pathlib import Path

__all__ = ["cache_folder", "inside", "sha256_file", "write_atomically", "write_once"]


def _write_aside(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return aside


def _sync_folder(folder: Path) -> None:
    """A rename is safe only once its folder is; not every system lets one sync folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`; a reader sees the old bytes or the new ones, also after a crash."""
    aside = _write_aside(path, data)
    aside.replace(path)
    _sync_folder(path.parent)


def write_once(path: Path, data: bytes) -> bool:
    """Create `path` with `data` unless it exists; True for the process that created it. Never seen half-written."""
    aside = _write_aside(path, data)
    try:
        os.link(aside, path)
    except FileExistsError:
        return False
    finally:
        aside.unlink()
    _sync_folder(path.parent)
    return True


def cache_folder() -> Path:
    """What may be made again at any time: ``$XDG_CACHE_HOME/dreambench`` or ``~/.cache/dreambench`` (``%LOCALAPPDATA%`` on Windows)."""
    if sys.platform == "win32" and "LOCALAPPDATA" in os.environ:
        return Path(os.environ["LOCALAPPDATA"]) / "dreambench"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dreambench"


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inside(folder: Path, name: str) -> Path | None:
    """`folder / name` if that is a place within `folder`, else None: names found in data never lead out of it."""
    root = folder.resolve()
    path = (root / name).resolve()
    return path if path.is_relative_to(root) else None
