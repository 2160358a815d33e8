"""Data files as records that are read by number, without holding them in memory.

As a table: `datasets` converts each file once into a memory-mapped Arrow table in its cache. As a stream, for archives that are too large
for a second copy: the files are read in order through a shuffling buffer, and nothing is written to disk.
"""

from __future__ import annotations

import glob
import gzip
import itertools
import json
import random
import tarfile
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError

from dreamllm.errors import DreamLLMError, InputError, UsageError, one_line
from dreamllm.files import parse_json

FORMATS = {  # of `datasets`, by suffix
    "text": (".jsonl", ".jsonl.gz", ".jsonl.zip", ".ndjson"),
    "json": (".json", ".json.gz"),
    "parquet": (".parquet",),
    "webdataset": (".tar",),
}
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # of images
# What `datasets` and its readers raise on files that are damaged, truncated or of another format.
_READ_ERRORS = (
    *(DatasetGenerationError, OSError, EOFError, ValueError, TypeError),
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error),
)


class Table:
    """Records by number. `record(i)` is a dict as in the file: images are not decoded, types are not guessed."""

    def __init__(self, files: Sequence[str], cache: str | None = None) -> None:
        rows, self._as_json = _load(files, cache_dir=cache)
        # Arrow rows, because the default format would decode images and fail on a broken one.
        self._rows = rows.with_format("arrow")

    def __len__(self) -> int:
        return len(self._rows)

    def record(self, index: int) -> dict[str, Any]:
        """Raises InputError if the line is not a JSON object."""
        row = self._rows[index : index + 1].to_pylist()[0]
        return _parse(row) if self._as_json else row

    def replacement(self, index: int, rng: random.Random) -> int:
        """The number of a record to use in place of a broken one."""
        return rng.randrange(len(self))


class Stream:
    """A shuffled stream, which starts again in a new order when it ends: record i is the i-th record of them all.

    Skipped records are read but not decoded. A record more than `window` behind the latest one restarts the stream.
    """

    window = 64
    batch = 64  # rows read at once

    def __init__(self, files: Sequence[str], seed: int, buffer_size: int) -> None:
        rows, self._as_json = _load(files, streaming=True)
        self._rows, self._files = rows.shuffle(seed=seed, buffer_size=buffer_size), files
        self._restart()

    def record(self, index: int) -> dict[str, Any]:
        """Raises InputError if the line is not a JSON object, UsageError if a file cannot be read."""
        if index <= self._last - len(self._recent):
            self._restart()
        while self._last < index:
            try:
                self._recent.append(next(self._iterator))
            except DreamLLMError:
                raise
            except _READ_ERRORS as error:
                raise _unreadable(self._files, error) from None
            self._last += 1
        row = self._recent[index - self._last - 1]
        return _parse(row) if self._as_json else row

    def replacement(self, index: int, rng: random.Random) -> int:
        """A recent record, because a later one would have to be read ahead."""
        return max(0, index - rng.randrange(self.window // 2))

    def _restart(self) -> None:
        self._recent: deque[dict[str, Any]] = deque(maxlen=self.window)
        self._last = -1  # number of the last row of `_recent`
        self._iterator = self._passes()

    def _passes(self) -> Iterator[dict[str, Any]]:
        for number in itertools.count():
            self._rows.set_epoch(number)
            rows = 0
            # `iter`, because the plain iterator would distribute the files over data-loader workers.
            for batch in self._rows.iter(batch_size=self.batch):
                if isinstance(batch, pa.Table):
                    records = batch.to_pylist()
                else:
                    records = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
                rows += len(records)
                yield from records
            if not rows:
                raise UsageError(f"{self._files[0]}: a streamed source has no records")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_recent", "_last", "_iterator")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._restart()


def _parse(row: dict[str, Any]) -> dict[str, Any]:
    if row.get("broken"):
        raise InputError(row["broken"])
    try:
        record = parse_json(row["text"])
    except ValueError as error:
        raise InputError(f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise InputError(f"expected a JSON object, found {type(record).__name__}")
    return record


def find_files(paths: str | Sequence[str], folder: Path, pairs: bool = False) -> list[str]:
    """The files that paths and patterns relative to `folder` match, in order; UsageError if one matches nothing.

    With `pairs`, also one folder in which images have captions beside them.
    """
    files: list[str] = []
    for path in [paths] if isinstance(paths, str) else paths:
        pattern = str(folder / Path(path).expanduser())
        matches = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
        if not matches:
            raise UsageError(f"data file {pattern} is missing: correct `path`")
        if pairs and len(matches) == 1 and next(Path(matches[0]).rglob("*.txt"), None):
            if paths not in (path, [path]):
                raise UsageError(f"{matches[0]} is a folder of images: give it a source of its own")
            return matches
        matched_files = [name for name in matches if Path(name).is_file()]
        if not matched_files:
            example, captions = Path(path) / "*.jsonl", ", or put a .txt file beside each image" if pairs else ""
            raise UsageError(f"{matches[0]} is a folder: name its files in `path`, for instance {example}{captions}")
        files += matched_files
    empty = [file for file in files if not Path(file).stat().st_size]
    if empty:
        raise UsageError(f"data file {empty[0]} is empty")
    return files


def _load(files: Sequence[str], streaming: bool = False, **options: Any) -> tuple[Any, bool]:
    """The rows as `datasets` reads them, and whether they are lines of JSON."""
    formats = {_format(file) for file in files}
    if len(formats) > 1:
        raise UsageError(f"the files of a source must have one format, not {' and '.join(sorted(formats))}")
    format_ = formats.pop()
    as_json = format_ in ("json", "text", "folder")
    try:
        kind = datasets.IterableDataset if streaming else datasets.Dataset
        if format_ in ("json", "folder"):
            columns = ("text", "broken") if format_ == "folder" else ("text",)
            options["features"] = datasets.Features(dict.fromkeys(columns, datasets.Value("string")))
        if format_ == "json":
            # Lists are split here, because Arrow wants one type for each field, unlike LLaVA's ids and images.
            options["gen_kwargs"] = {"stamps": [_stamp(Path(file)) for file in files]}
            return kind.from_generator(_list_items, **options), as_json
        if format_ == "folder":
            # A tuple, because `datasets` calls the generator for each item of a list alone.
            stamps = tuple(_stamp(file) for file in sorted(Path(files[0]).rglob("*.*")))
            options["gen_kwargs"] = {"stamps": stamps, "folder": files[0]}
            return kind.from_generator(_captioned_images, **options), as_json
        if format_ == "text":
            options["encoding_errors"] = "replace"
        rows = datasets.load_dataset(format_, data_files=list(files), split="train", streaming=streaming, **options)
        if isinstance(rows, datasets.IterableDataset):
            # Undecoded either way; archives have no Arrow rows, because the order of their fields differs from row to row.
            rows = rows.decode(False) if format_ == "webdataset" else rows.with_format("arrow")
        return rows, as_json
    except _READ_ERRORS as error:
        raise _unreadable(files, error) from None


def _unreadable(files: Sequence[str], error: BaseException) -> UsageError:
    """`datasets` does not say which of several files it was reading."""
    others = f" or another of the {len(files)} files of this source" if len(files) > 1 else ""
    cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
    return UsageError(f"{files[0]}{others} cannot be read as {_format(files[0])}: {one_line(cause)}")


def _format(file: str) -> str:
    if Path(file).is_dir():
        return "folder"
    for name, suffixes in FORMATS.items():
        if PurePosixPath(file).name.lower().endswith(suffixes):
            return name
    accepted = ", ".join(suffix for suffixes in FORMATS.values() for suffix in suffixes)
    raise UsageError(f"the format of data file {file} is unknown; accepted are {accepted}")


def _stamp(file: Path) -> tuple[str, int]:
    """A file's name and modification time: in the key of the cache, so that a changed file is read anew."""
    return str(file), file.stat().st_mtime_ns


def _captioned_images(stamps: Sequence[tuple[str, int]], folder: str) -> Iterator[dict[str, str | None]]:
    """The images of a folder with their captions, as JSON text; `broken` says why one without the other cannot be used."""
    files = [Path(file) for file, _ in stamps]
    captions = {file.with_suffix(""): file for file in files if file.suffix.lower() == ".txt"}
    images = [(file.with_suffix(""), file) for file in files if file.suffix.lower() in SUFFIXES]
    alone = sorted(captions.keys() - {name for name, _ in images})
    for name, image in [*images, *((name, None) for name in alone)]:
        caption, broken = None, None
        if image is None:
            broken = f"{captions[name]} has no image beside it"
        elif name not in captions:
            broken = f"{image} has no text beside it: {name.name}.txt is missing"
        else:
            try:
                caption = captions[name].read_text(encoding="utf-8-sig").strip()
                broken = None if caption else f"{captions[name]} is empty"
            except UnicodeDecodeError:
                broken = f"{captions[name]} is not UTF-8"
        record = {"image": image and image.relative_to(folder).as_posix(), "caption": caption}
        yield {"text": json.dumps(record), "broken": broken}


def _list_items(stamps: Sequence[tuple[str, int]]) -> Iterator[dict[str, str]]:
    """The items of JSON lists, each as JSON text."""
    for file, _ in stamps:
        with (gzip.open if file.endswith(".gz") else open)(file, "rt", encoding="utf-8") as text:
            items = list(_items(parse_json(text.read()), file))
        if not items:  # `datasets` has no empty tables
            raise ValueError(f"{file} has no records")
        yield from ({"text": json.dumps(item)} for item in items)


def _items(content: Any, file: str) -> Iterator[Any]:
    """The items of a list, or the captions of a COCO file with their images' names."""
    if isinstance(content, list):
        yield from content
    elif isinstance(content, dict) and {"images", "annotations"} <= set(content):
        try:
            names = {image["id"]: image["file_name"] for image in content["images"]}
            for annotation in content["annotations"]:
                image = names.get(annotation["image_id"])
                yield {"id": annotation["id"], "image": image, "caption": annotation["caption"]}
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file} does not have the layout of COCO's captions: {error!r}") from None
    else:
        raise ValueError(f"{file} is neither a list nor an object with COCO's images and annotations")
