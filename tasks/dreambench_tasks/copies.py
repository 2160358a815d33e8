"""Copies of a benchmark for the `datasets` library (a Hub repository, a clone of it, a ``save_to_disk`` folder, Parquet files).

A copy is read under a *named* mapping of its columns and written once, in the benchmark's official layout, into
``~/.cache/dreambench/datasets``; everything behind that reads official files. The mapping's name and version are fields of the protocol.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dreambench.documents import JSON, digest
from dreambench.errors import DataError, UsageError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["CopyMapping", "Part", "bytes_of", "entries", "local_files", "suffix_of"]

MANIFEST = "manifest.json"
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}


@dataclass(frozen=True)
class Part:
    """One split of a copy: the configuration and split it is there, and the fields of the mapping that it does not have."""

    split: str
    config: str | None = None
    lacks: frozenset[str] = frozenset()

    @property
    def pattern(self) -> str:
        """Its Parquet files within the repository."""
        return f"{self.config or 'data'}/{self.split}-*.parquet"


@dataclass(frozen=True)
class CopyMapping:
    """How the columns of one repository read as a benchmark's fields. `version` grows when what is written from the same copy changes."""

    name: str  # the repository on the Hub
    version: int
    task: str
    columns: Mapping[str, str]  # official field: column of the copy
    parts: Mapping[str, Part]  # the task's --split: where it is; the first is the default
    write: Callable[
        [Dataset, str, Path], None
    ]  # (rows under official names, split, folder): official files, read once to check them

    @property
    def id(self) -> str:
        """For instance ``lmms-lab/VQAv2@1``, as the protocol has it."""
        return f"{self.name}@{self.version}"

    def part(self, split: str | None) -> tuple[str, Part]:
        """The split asked for; its name counts in any case and with or without the task's."""
        if split is None:
            return next(iter(self.parts.items()))
        wanted = split.casefold().removeprefix(f"{self.task}_")
        for name, part in self.parts.items():
            if name.casefold() == wanted:
                return name, part
        raise UsageError(f"--split {split}: the copy {self.name} has {', '.join(self.parts)}")


def local_files(
    mappings: Iterable[CopyMapping], task: str, spec: str, split: str | None, *, cache: Path, offline: bool
) -> tuple[CopyMapping, Path]:
    """The mapping that `spec` (``NAME[=LOCATION]``) names, and the folder of official files written from the copy.

    What lies at LOCATION counts by path, size and time of change; a copy from the Hub is fetched once and kept until the folder is removed.
    Any number of processes may call this at once.

    Raises:
        UsageError: no such mapping or split, or the mapping is another task's.
        DataError: the copy is not here, cannot be fetched, or lacks what the mapping reads.
    """
    name, _, location = spec.partition("=")
    mapping = _find(mappings, task, name)
    chosen, part = mapping.part(split)
    files = _parquet(mapping, Path(location), part) if location else None
    state: JSON = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files] if files else "hub"
    folder = cache / digest([mapping.id, chosen, location, state])[:32]
    if (folder / MANIFEST).is_file():
        return mapping, folder
    if not location and offline:
        raise DataError(
            f"--offline forbids fetching {name}: give the folder of a copy, --data datasets:{name}=DIR, or official files"
        )
    aside = cache / f".unfinished.{uuid.uuid4().hex}"
    aside.mkdir(parents=True)
    where = location or name
    try:
        rows = _rows(mapping, part, where, Path(location) if location else None, files, aside / "arrow")
        with _named(f"{where} under the mapping {mapping.id}", aside):
            mapping.write(rows, chosen, aside)
        manifest = {
            "mapping": mapping.id,
            "split": chosen,
            "from": where,
            "rows": len(rows),
            "fingerprint": rows._fingerprint,  # pyright: ignore[reportPrivateUsage] - the library's only name for it
            "sources": sorted(rows.info.download_checksums or {}),
        }
        del rows
        shutil.rmtree(aside / "arrow", ignore_errors=True)
        # Last, so that its existence means that everything else is there.
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        _move(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return mapping, folder


def _find(mappings: Iterable[CopyMapping], task: str, name: str) -> CopyMapping:
    known = {mapping.name: mapping for mapping in mappings}
    if name not in known:
        ours = ", ".join(each.name for each in known.values() if each.task == task) or "none"
        raise UsageError(
            f"--data datasets:{name}: no mapping has that name; {task} has {ours}. Columns are not guessed: write the copy out"
            " in the official layout (docs/data.md)"
        )
    if known[name].task != task:
        raise UsageError(f"--data datasets:{name}: a mapping of the task {known[name].task}, not of {task}")
    return known[name]


def _parquet(mapping: CopyMapping, location: Path, part: Part) -> list[Path]:
    """The files that decide what is read at `location`: Parquet files, or what ``save_to_disk`` left."""
    if location.is_file():
        return [location]
    if not location.is_dir():
        raise DataError(f"--data datasets:{mapping.name}={location}: no such file or folder")
    if _saved(location):
        return sorted(path for path in location.rglob("*") if path.is_file())
    plain = part.pattern.rpartition("/")[2]
    found = sorted(location.glob(part.pattern)) or sorted(location.glob(plain))
    if not found:
        raise DataError(
            f"{location} holds neither {part.pattern} (a clone of {mapping.name}), nor {plain}, nor what save_to_disk writes: name"
            " the Parquet file itself, or choose what is there with --split"
        )
    return found


def _saved(location: Path) -> bool:
    return any((location / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _rows(
    mapping: CopyMapping, part: Part, where: str, location: Path | None, files: list[Path] | None, scratch: Path
) -> Dataset:
    """The split's rows, their columns under the official names, images not decoded."""
    import datasets
    from datasets.exceptions import DatasetsError

    found: Any
    try:
        if location is None:
            found = datasets.load_dataset(mapping.name, part.config, split=part.split)
        elif location.is_dir() and _saved(location):
            found = datasets.load_from_disk(str(location))
        else:
            paths = [str(path) for path in files or ()]
            found = datasets.load_dataset("parquet", data_files=paths, split="train", cache_dir=str(scratch))
    except (OSError, ValueError, DatasetsError) as error:
        reason = (str(error).splitlines() or [""])[0]
        how = "" if location else f"; clone it and give the folder, --data datasets:{mapping.name}=DIR"
        raise DataError(f"{where} cannot be read through datasets ({type(error).__name__}: {reason}){how}") from error
    if isinstance(found, datasets.DatasetDict):
        if part.split not in found:
            raise DataError(
                f"{where} has the splits {', '.join(map(str, found))}, not {part.split}: choose with --split"
            )
        found = found[part.split]
    wanted = {field: column for field, column in mapping.columns.items() if field not in part.lacks}
    for field, column in wanted.items():
        if column not in found.column_names:
            raise DataError(
                f"{where} has no column {column}, which the mapping {mapping.id} reads as {field}; it has"
                f" {', '.join(found.column_names)}"
            )
    rows = found.select_columns(list(wanted.values()))
    rows = rows.rename_columns({column: field for field, column in wanted.items() if field != column})
    return rows.cast_column("image", datasets.Image(decode=False))


@contextmanager
def _named(what: str, aside: Path) -> Generator[None]:
    """Say of which copy a complaint is that names a file on its way into the cache."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{what}: {str(error).replace(f'{aside}{os.sep}', '')}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{what}: a row is not of the form that the mapping reads ({error!r})") from error


def _move(aside: Path, folder: Path) -> None:
    try:
        aside.rename(folder)
    except OSError:
        # Another process was faster; what it wrote is the same.
        if not (folder / MANIFEST).is_file():
            raise


def entries(rows: Dataset) -> Iterator[dict[str, Any]]:
    """The rows one by one, a value by each column's name."""
    for row in rows:
        yield cast("dict[str, Any]", row)


def bytes_of(image: Any, row: str) -> bytes:
    """The encoded image of an undecoded `datasets` image. Paths that a copy holds are not followed."""
    data = image.get("bytes") if isinstance(image, dict) else None
    if not isinstance(data, bytes) or not data:
        raise DataError(f"{row} holds no image, only a path or nothing: use a copy with the images inside")
    return data


def suffix_of(data: bytes, row: str) -> str:
    """``.jpg``, ``.png`` or ``.webp``, by what the bytes are."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            return _SUFFIXES[image.format or ""]
    except (UnidentifiedImageError, OSError, KeyError) as error:
        raise DataError(f"{row} holds an image that is neither JPEG, PNG nor WebP") from error
