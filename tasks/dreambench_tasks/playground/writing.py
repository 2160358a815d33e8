"""Writing the playground to disk: whole or not at all, and never over anything else."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dreambench.errors import DataError, UsageError
from dreambench.files import cache_folder
from dreambench_tasks.playground.formats import BENCHMARK_FORMATS, File, Pool, images
from dreambench_tasks.playground.scene import PARTS, WORLD
from dreambench_tasks.playground.training import TRAINING_FORMATS, story_images

__all__ = ["FORMATS", "MANIFEST", "ensure_default", "write"]

FORMATS: dict[str, Callable[[Pool], Iterator[File]]] = {**BENCHMARK_FORMATS, **TRAINING_FORMATS}

MANIFEST = "manifest.json"
DEFAULT_IMAGES = 512  # 1,024 questions of VQAv2, 307 of MMBench, 307 of MM-Vet
LAYOUT = 2  # what is written with a scene; data of another layout are other data
_WITH_IMAGES = {"coco", "localized_narratives", "vqav2", "pairs", "conversations"}
_WITH_STORY_IMAGES = {"stories", "instructions"}


def write(
    directory: str | Path, split: str = "val", n: int = 1000, seed: int = 0, formats: Sequence[str] | None = None
) -> Path:
    """Write ``n`` scenes of a part in the benchmarks' official formats, or in those of training, and return the directory.

    The bytes depend on the arguments (and, for PNG, on the version of Pillow) only. All files are written beside the directory and
    moved there in one step, the manifest last. Where the same data already are, nothing is written.

    Args:
        directory: absent, empty, or of an earlier call with the same arguments.
        split: ``train``, ``val`` or ``test``.
        n: images; there are two questions of VQAv2 for each, and three for five images of MMBench and of MM-Vet.
            Of ``stories`` and ``instructions`` it is documents.
        formats: names of ``FORMATS``; the benchmarks' by default.

    Raises:
        UsageError: an argument is not accepted, or the directory holds something else or cannot be written.
        DataError: the directory holds these data, but not whole.
    """
    directory = Path(directory).resolve()
    asked = _parameters(split, n, seed, formats)
    if _is_there(directory, asked):
        return directory
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".playground-", dir=directory.parent) as temporary:
            folder = Path(temporary) / "data"
            folder.mkdir()
            _write_files(folder, asked)
            with suppress(OSError):
                # Windows does not rename onto a folder even if it is empty; one that is not empty stays, and is looked at below.
                directory.rmdir()
            folder.rename(directory)
    except OSError as error:
        # Perhaps another process was faster, and what it wrote is the same.
        if not _is_there(directory, asked):
            raise UsageError(f"{directory} cannot be written ({error}): name another folder, or make room") from error
    return directory


def ensure_default(cache_dir: str | Path | None = None, split: str = "val") -> Path:
    """The embedded data, made on first use in the user's cache folder: 512 images of a part in the benchmarks' formats.

    Any number of processes may call this at once. ``cache_dir`` defaults to ``$XDG_CACHE_HOME/dreambench`` or ``~/.cache/dreambench``
    (``%LOCALAPPDATA%`` on Windows).
    """
    asked = _parameters(split, DEFAULT_IMAGES, 0, None)
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
    root = Path(cache_dir) if cache_dir is not None else cache_folder()
    return write(root / f"playground-{digest}", asked["split"], asked["n"], asked["seed"], asked["formats"])


def _parameters(split: str, n: int, seed: int, formats: Sequence[str] | None) -> dict[str, Any]:
    if split not in PARTS:
        raise UsageError(f"the playground has the parts {', '.join(PARTS)}, not {split!r}")
    if n < 1:
        raise UsageError(f"the playground is written with one scene at least, not {n}")
    names = list(BENCHMARK_FORMATS) if formats is None else list(formats)
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise UsageError(f"playground formats are {', '.join(FORMATS)}, not {', '.join(unknown) or 'none at all'}")
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


def _write_files(folder: Path, asked: dict[str, Any]) -> None:
    """Write every file and at last the manifest, with a hash of what the files say and show."""
    pool = Pool(asked["split"], asked["n"], asked["seed"])
    writers = [FORMATS[name] for name in asked["formats"]]
    if _WITH_IMAGES.intersection(asked["formats"]):
        writers.insert(0, images)
    if _WITH_STORY_IMAGES.intersection(asked["formats"]):
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
    manifest = {**asked, "content": content.hexdigest(), "files": sizes}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _is_there(directory: Path, asked: dict[str, Any]) -> bool:
    """Whether the directory holds the data asked for; False if it is absent or empty."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        held = {key: manifest[key] for key in asked}
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(
            f"{directory} holds something else than the playground: name a new or an empty folder"
        ) from None
    if held != asked:
        differs = ", ".join(
            f"{key} {held[key]!r} instead of {asked[key]!r}" for key in asked if held[key] != asked[key]
        )
        raise UsageError(f"{directory} holds another playground ({differs}): name another folder, or remove it")
    for name, size in files.items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != size:
            raise DataError(f"{path} is missing or damaged: remove {directory} and run again")
    return True
