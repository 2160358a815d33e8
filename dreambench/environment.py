"""What a run was made with: versions, machine, device. Recorded beside the results, never part of a score."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata

from dreambench.documents import JSON

__all__ = ["PACKAGES", "machine", "versions"]

PACKAGES = (
    "dreambench",
    "torch",
    "torchvision",
    "transformers",
    "diffusers",
    "accelerate",
    "datasets",
    "torchmetrics",
    "torch-fidelity",
    "clean-fid",
    "pycocotools",
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
    "pillow",
    "safetensors",
    "sentencepiece",
)


def versions() -> dict[str, str | None]:
    """Installed versions of what a number may depend on; None for what is not installed. Imports nothing."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def machine() -> JSON:
    """The machine in words that hold no name of it."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpu_count": os.cpu_count(),
        "byte_order": sys.byteorder,
    }
