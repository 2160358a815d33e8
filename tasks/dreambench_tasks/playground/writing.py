"""Writing the playground to disk: completely or not at all, and never over anything else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dreambench.errors import DataError, UsageError, refusal
from dreambench.files import cache_folder, temporary
from dreambench_tasks.playground.formats import (
    BENCHMARK_FORMATS,
    DOCUMENT_FORMATS,
    TRAINING_FORMATS,
    File,
    Pool,
    images,
    story_images,
)
from dreambench_tasks.playground.scene import SPLITS, WORLD

__all__ = ["FORMATS", "ensure_default", "ensure_documents", "write"]

FORMATS: dict[str, Callable[[Pool], Iterator[File]]] = {
    **BENCHMARK_FORMATS,
    **TRAINING_FORMATS,
    **DOCUMENT_FORMATS,
}

MANIFEST = "manifest.json"
DEFAULT_IMAGES = 512  # 1,024 questions of VQAv2, 307 of MMBench, 307 of MM-Vet
DEFAULT_DOCUMENTS = 240  # 8 of each topic, 509 images
LAYOUT = 4  # version of what is written for a scene
_WITH_IMAGES = {"coco", "localized_narratives", "vqav2", "pairs", "prompts", "conversations"}
_WITH_STORY_IMAGES = {"stories", "instructions"}


def write(
    directory: str | Path, split: str = "val", n: int = 1000, seed: int = 0, formats: Sequence[str] | None = None
) -> Path:
    """Write ``n`` scenes of a split in the benchmarks' official formats or in training formats; returns the directory.

    The bytes depend only on the arguments and, for PNG, on the version of Pillow. All files are written to a temporary folder next to
    the directory, the manifest last, and the folder is then renamed. If the directory already has the same data, nothing is written.

    Args:
        directory: absent, empty, or written by an earlier call with the same arguments.
        split: ``train``, ``val`` or ``test``.
        n: number of images (VQAv2 has two questions per image; MMBench and MM-Vet three per five images), or of documents for
            ``stories``, ``instructions`` and ``documents``.
        formats: names in ``FORMATS``; the benchmarks' by default.

    Raises:
        UsageError: an argument is invalid, or the directory contains something else or cannot be written.
        DataError: the directory contains these data, but files are missing or damaged.
    """
    directory = Path(directory).resolve()
    arguments = _parameters(split, n, seed, formats)
    if _is_written(directory, arguments):
        return directory
    try:
        with temporary(directory) as folder:
            folder.mkdir()
            _write_files(folder, arguments)
            with suppress(OSError):
                # Windows does not rename onto an empty folder; one that is not empty makes the rename fail.
                directory.rmdir()
            folder.rename(directory)
    except OSError as error:
        # Another process may have written the same data first.
        if not _is_written(directory, arguments):
            raise UsageError(refusal(error)) from error
    return directory


def ensure_default(cache_dir: str | Path | None = None, split: str = "val") -> Path:
    """The embedded data: 512 images of a split in the benchmarks' formats, written to the user's cache folder on first use.

    Any number of processes may call this at the same time. ``cache_dir`` defaults to ``$XDG_CACHE_HOME/dreambench`` or
    ``~/.cache/dreambench`` (``%LOCALAPPDATA%`` on Windows).
    """
    return _ensure(cache_dir, split, DEFAULT_IMAGES, None)


def ensure_documents(cache_dir: str | Path | None = None, split: str = "val") -> Path:
    """The embedded interleaved documents: 240 of a split, 8 of each topic, in a folder of their own; see `ensure_default`."""
    return _ensure(cache_dir, split, DEFAULT_DOCUMENTS, list(DOCUMENT_FORMATS))


def _ensure(cache_dir: str | Path | None, split: str, n: int, formats: Sequence[str] | None) -> Path:
    arguments = _parameters(split, n, 0, formats)
    digest = hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()[:12]
    root = Path(cache_dir) if cache_dir is not None else cache_folder()
    return write(root / f"playground-{digest}", split, n, formats=formats)


def _parameters(split: str, n: int, seed: int, formats: Sequence[str] | None) -> dict[str, Any]:
    if split not in SPLITS:
        raise UsageError(f"the playground has the splits {', '.join(SPLITS)}, not {split!r}")
    if n < 1:
        raise UsageError(f"the playground needs at least one scene, not {n}")
    names = list(BENCHMARK_FORMATS) if formats is None else list(formats)
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise UsageError(f"the playground has the formats {', '.join(FORMATS)}, not {', '.join(unknown) or 'none'}")
    ordered = [name for name in FORMATS if name in names]
    return {
        "generator": "dreambench playground",
        "world": WORLD,
        "layout": LAYOUT,
        "split": split,
        "n": n,
        "seed": seed,
        "formats": ordered,
    }


def _write_files(folder: Path, arguments: dict[str, Any]) -> None:
    """Write every file and then the manifest, with a hash of texts and pixels."""
    pool = Pool(arguments["split"], arguments["n"], arguments["seed"])
    writers = [FORMATS[name] for name in arguments["formats"]]
    if _WITH_IMAGES.intersection(arguments["formats"]):
        writers.insert(0, images)
    if _WITH_STORY_IMAGES.intersection(arguments["formats"]):
        writers.insert(0, story_images)
    sizes: dict[str, int] = {}
    content = hashlib.sha256()
    for writer in writers:
        for file in writer(pool):
            path = folder / file.path
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(file.data)
            sizes[file.path] = len(file.data)
            for part in (file.path.encode(), file.identity):
                content.update(len(part).to_bytes(8, "little") + part)
    manifest = {**arguments, "content": content.hexdigest(), "files": sizes}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _is_written(directory: Path, arguments: dict[str, Any]) -> bool:
    """Whether the directory holds the data arguments for; False if it is absent or empty."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        found = {key: manifest[key] for key in arguments}
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(
            f"{directory} contains something other than the playground: choose a new or an empty folder"
        ) from None
    if found != arguments:
        differs = ", ".join(
            f"{key} {found[key]!r} instead of {arguments[key]!r}" for key in arguments if found[key] != arguments[key]
        )
        raise UsageError(f"{directory} contains another playground ({differs}): choose another folder, or remove it")
    for name, size in files.items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != size:
            raise DataError(f"{path} is missing or damaged: remove {directory} and run again")
    return True
