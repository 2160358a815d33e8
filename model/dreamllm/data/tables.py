"""Files on disk as records that are read one at a time, by number, without holding them in memory.

As a table: `datasets` turns each file once into an Arrow table in its cache and maps that into memory, so that opening millions of
records is quick and any of them is read in microseconds. As a stream: nothing is written, and the files are read in their order
through a shuffling buffer, for archives that are too large to be kept twice.
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
from typing import Any, cast

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError

from dreamllm.errors import DreamLLMError, InputError, UsageError

_TEXT = (".jsonl", ".jsonl.gz", ".jsonl.zip", ".ndjson")
_JSON = (".json", ".json.gz")
# What `datasets` and the readers under it raise on files that are damaged, cut short or of another kind.
_READ_ERRORS = (
    DatasetGenerationError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
ACCEPTED = ".jsonl (also .gz, .zip), .json (also .gz), .parquet, .tar"


class Table:
    """Records by number. `record(i)` is a dict as the file holds it: undecoded images, no types guessed."""

    def __init__(self, rows: datasets.Dataset, as_json: bool) -> None:
        # Arrow rows are taken as they are: the default format would decode images, and fail where one is broken.
        self._rows, self._as_json = rows.with_format("arrow"), as_json

    def __len__(self) -> int:
        return len(self._rows)

    def record(self, index: int) -> dict[str, Any]:
        """Raises InputError where the line is not a JSON object."""
        row = cast("Any", self._rows[index : index + 1]).to_pylist()[0]
        return _parsed(row) if self._as_json else row

    def another(self, index: int, rng: random.Random) -> int:
        """The number of a record that may stand in for a broken one."""
        return rng.randrange(len(self))


class Stream:
    """Records in the order of a shuffled stream, which begins again, shuffled anew, when it ends: record i is the i-th of them all.

    What is passed over is read but not decoded. Asking for one further back than `window` starts the stream from its beginning.
    """

    window = 64
    batch = 64  # rows read at once

    def __init__(
        self, rows: datasets.IterableDataset, as_json: bool, seed: int, buffer_size: int, files: Sequence[str] = ()
    ) -> None:
        self._rows = rows.shuffle(seed=seed, buffer_size=buffer_size)
        self._as_json, self._files = as_json, files
        self._restart()

    def record(self, index: int) -> dict[str, Any]:
        """Raises InputError where the line is not a JSON object, UsageError where a file cannot be read on."""
        if index <= self._last - len(self._seen):
            self._restart()
        while self._last < index:
            try:
                self._seen.append(next(self._iterator))
            except DreamLLMError:
                raise
            except _READ_ERRORS as error:
                raise _unreadable(self._files, error) from None
            self._last += 1
        row = self._seen[index - self._last - 1]
        return _parsed(row) if self._as_json else row

    def another(self, index: int, rng: random.Random) -> int:
        """One of those just passed: a later one would have to be read ahead."""
        return max(0, index - rng.randrange(self.window // 2))

    def _restart(self) -> None:
        self._seen: deque[dict[str, Any]] = deque(maxlen=self.window)
        self._last = -1  # number of the last row of `_seen`
        self._iterator = self._turns()

    def _turns(self) -> Iterator[dict[str, Any]]:
        for turn in itertools.count():
            self._rows.set_epoch(turn)
            # `iter`, because the plain iterator would deal the files out among data-loader workers.
            rows = 0
            for batch in self._rows.iter(batch_size=self.batch):
                fields: Any = batch
                records = fields.to_pylist() if isinstance(fields, pa.Table) else _rows_of(fields)
                rows += len(records)
                yield from records
            if not rows:
                raise UsageError("a streamed source holds no record")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_seen", "_last", "_iterator")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._restart()


def _rows_of(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _parsed(row: dict[str, Any]) -> dict[str, Any]:
    try:
        record = json.loads(row["text"])
    except ValueError as error:
        raise InputError(f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise InputError(f"a JSON object is expected, this is {type(record).__name__}")
    return record


def find_files(paths: str | Sequence[str], folder: Path) -> list[str]:
    """The files that paths and patterns name, relative to `folder`, in order; UsageError where one names nothing."""
    found: list[str] = []
    for path in [paths] if isinstance(paths, str) else paths:
        pattern = str(folder / Path(path).expanduser())
        named = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
        matches = [name for name in named if Path(name).is_file()]
        if named and not matches:
            raise UsageError(f"{named[0]} is a folder: name the files in `path`, for instance {Path(path) / '*.jsonl'}")
        if not matches:
            raise UsageError(f"data file {pattern} is missing: correct `path`")
        found += matches
    empty = [file for file in found if not Path(file).stat().st_size]
    if empty:
        raise UsageError(f"data file {empty[0]} is empty")
    return found


def open_table(files: Sequence[str], cache: str | None = None) -> Table:
    """One table of files of one format."""
    rows, as_json = _load(files, cache_dir=cache)
    return Table(cast("datasets.Dataset", rows), as_json)


def open_stream(files: Sequence[str], seed: int, buffer_size: int) -> Stream:
    """The same files, read from their beginning, without a table on disk."""
    rows, as_json = _load(files, streaming=True)
    return Stream(cast("datasets.IterableDataset", rows), as_json, seed, buffer_size, files)


def _load(files: Sequence[str], streaming: bool = False, **options: Any) -> tuple[Any, bool]:
    """What `datasets` makes of the files, and whether its rows are lines of JSON."""
    kinds = {_format(file) for file in files}
    if len(kinds) > 1:
        raise UsageError(f"the files of one source must have one format, these have {', '.join(sorted(kinds))}")
    kind = kinds.pop()
    as_json = kind in ("json", "text")
    try:
        if kind == "json":
            # Lists are taken apart here: Arrow wants one type for each field, which LLaVA's ids and images do not have.
            options["gen_kwargs"] = {"stamps": [(file, Path(file).stat().st_mtime_ns) for file in files]}
            options["features"] = datasets.Features({"text": datasets.Value("string")})
            form = datasets.IterableDataset if streaming else datasets.Dataset
            return form.from_generator(_list_items, **options), as_json
        if kind == "text":
            options["encoding_errors"] = "replace"
        rows = datasets.load_dataset(kind, data_files=list(files), split="train", streaming=streaming, **options)
        if isinstance(rows, datasets.IterableDataset):
            # Undecoded either way; archives have no Arrow rows, since the order of their fields differs from row to row.
            rows = rows.decode(False) if kind == "webdataset" else rows.with_format("arrow")
        return rows, as_json
    except _READ_ERRORS as error:
        raise _unreadable(files, error) from None


def _unreadable(files: Sequence[str], error: BaseException) -> UsageError:
    """The library does not say which of several files it was reading."""
    others = f" or one of the {len(files) - 1} others of this source" if len(files) > 1 else ""
    cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
    reason = " ".join(str(cause).split()) or type(cause).__name__
    return UsageError(f"{files[0]}{others} cannot be read as {_format(files[0])}: {reason}")


def _format(file: str) -> str:
    name = PurePosixPath(file).name.lower()
    for kind, suffixes in {"text": _TEXT, "json": _JSON, "parquet": (".parquet",), "webdataset": (".tar",)}.items():
        if name.endswith(suffixes):
            return kind
    raise UsageError(f"{file}: the format of this data file is not known; there are {ACCEPTED}")


def _list_items(stamps: Sequence[tuple[str, int]]) -> Iterator[dict[str, str]]:
    """The items of JSON lists, each as JSON text. The time of change is there for the cache: a changed file is read anew."""
    for file, _ in stamps:
        with (gzip.open if file.endswith(".gz") else open)(file, "rt", encoding="utf-8") as text:
            items = list(_items(json.load(text), file))
        if not items:  # `datasets` has no tables of nothing
            raise ValueError(f"{file} holds no record")
        yield from ({"text": json.dumps(item)} for item in items)


def _items(content: Any, file: str) -> Iterator[Any]:
    """The items of a list, or the captions of a COCO file with their images' names."""
    if isinstance(content, list):
        yield from content
    elif isinstance(content, dict) and {"images", "annotations"} <= set(content):
        try:
            names = {image["id"]: image["file_name"] for image in content["images"]}
            for annotation in content["annotations"]:
                yield {
                    "id": annotation["id"],
                    "image": names.get(annotation["image_id"]),
                    "caption": annotation["caption"],
                }
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file} is not laid out as COCO's captions are: {error!r}") from None
    else:
        raise ValueError(f"{file} holds neither a list nor COCO's images and annotations")
