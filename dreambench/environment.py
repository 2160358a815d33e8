"""What a run was made with: versions, machine, device. Recorded beside the results, never part of a score."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

from dreambench.documents import JSON, digest
from dreambench.files import sha256_file

__all__ = ["PACKAGES", "code_sha256", "machine", "versions"]

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


def code_sha256(kind: type) -> str:
    """sha256, in hex, of the code behind a task's or a model's class: what editing its `score` or `answer` changes.

    The class and its bases count by all .py, .json and .txt files of their packages, below a megabyte (larger ones are data); one of the
    harness, whose version is recorded, and one without a package by the file of its module alone.
    """
    files: dict[str, Path] = {}
    for base in kind.__mro__:
        top = base.__module__.partition(".")[0]
        module, package = sys.modules.get(base.__module__), getattr(sys.modules.get(top), "__file__", None)
        path = getattr(module, "__file__", None)
        if path is None or top in sys.stdlib_module_names:
            continue
        if top == "dreambench" or package is None or Path(package).stem != "__init__":
            files[base.__module__] = Path(path)
            continue
        folder = Path(package).parent
        for file in folder.rglob("*"):
            if file.suffix in (".py", ".json", ".txt") and file.is_file() and file.stat().st_size < 1 << 20:
                files[file.relative_to(folder.parent).as_posix()] = file
    return digest([[name, sha256_file(file)] for name, file in sorted(files.items())])


def machine() -> JSON:
    """The machine in words that hold no name of it."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpu_count": os.cpu_count(),
        "byte_order": sys.byteorder,
    }
