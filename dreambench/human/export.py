"""To come."""

from __future__ import annotations

from pathlib import Path


def export_study(runs: list[Path], out: Path) -> None:
    raise NotImplementedError
