"""Reports as files: the page and the contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dreambench.errors import UsageError
from dreambench.files import write_atomically
from dreambench.progress import say
from dreambench.reporting.loading import load, load_all
from dreambench.reporting.page import page
from dreambench.reporting.sheet import contact_sheet

__all__ = ["write_page", "write_sheet"]


def write_page(folders: Sequence[Path], target: Path) -> None:
    """``report RUN... --html FILE``: complete runs as one self-contained HTML file."""
    _write(target, "--html", page(load_all(folders)).encode())


def write_sheet(folder: Path, target: Path) -> None:
    """``report RUN --sheet FILE``: a image generation run's images as one PNG."""
    _write(target, "--sheet", contact_sheet(load(folder)))


def _write(target: Path, option: str, data: bytes) -> None:
    try:
        write_atomically(target, data)
    except OSError as error:
        raise UsageError(f"{option} {target}: {error.strerror or error}") from error
    say(f"wrote {target} ({len(data) / 1e6:.1f} MB)")
