"""Files on disk as tables of records that are read one at a time, by number, without holding them in memory.

`datasets` turns each file once into an Arrow table in its cache and maps that into memory, so that opening millions of records is
quick and any of them is read in microseconds: what a global shuffle and an exact resume need.
"""

from __future__ import annotations

import glob
import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, cast

import datasets
from datasets.exceptions import DatasetGenerationError

from dreamllm.errors import InputError, UsageError

_TEXT = (".jsonl", ".jsonl.gz", ".jsonl.zip", ".ndjson")
_JSON = (".json", ".json.gz")
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
        if not self._as_json:
            return row
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
        matches = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
        if not matches:
            raise UsageError(f"data file {pattern} is missing: correct `path`")
        found += matches
    empty = [file for file in found if not Path(file).stat().st_size]
    if empty:
        raise UsageError(f"data file {empty[0]} is empty")
    return found


def open_table(files: Sequence[str], cache: str | None = None) -> Table:
    """One table of files of one format."""
    kinds = {_format(file) for file in files}
    if len(kinds) > 1:
        raise UsageError(f"the files of one source must have one format, these have {', '.join(sorted(kinds))}")
    kind = kinds.pop()
    try:
        if kind == "json":
            # Lists are taken apart here: Arrow wants one type for each field, which LLaVA's ids and images do not have.
            stamps = [(file, Path(file).stat().st_mtime_ns) for file in files]
            features = datasets.Features({"text": datasets.Value("string")})
            rows = datasets.Dataset.from_generator(
                _list_items, features=features, cache_dir=cast("str", cache), gen_kwargs={"stamps": stamps}
            )
        else:
            options: dict[str, Any] = {"encoding_errors": "replace"} if kind == "text" else {}
            rows = datasets.load_dataset(kind, data_files=list(files), split="train", cache_dir=cache, **options)
    except DatasetGenerationError as error:
        raise UsageError(f"{files[0]} cannot be read as {kind}: {error.__cause__ or error}") from None
    except ValueError as error:
        raise UsageError(f"{files[0]} cannot be read as {kind}: {error}") from None
    return Table(cast("datasets.Dataset", rows), as_json=kind in ("json", "text"))


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
        names = {image["id"]: image["file_name"] for image in content["images"]}
        for annotation in content["annotations"]:
            yield {
                "id": annotation["id"],
                "image": names.get(annotation["image_id"]),
                "caption": annotation["caption"],
            }
    else:
        raise ValueError(f"{file} holds neither a list nor COCO's images and annotations")
