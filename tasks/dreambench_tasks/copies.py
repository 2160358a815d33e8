"""Copies of a benchmark for the `datasets` library: a Hub repository, a clone of it, a ``save_to_disk`` folder, Parquet files.

A copy is read under a *named* mapping of its columns (`MAPPINGS`) and written once, in the benchmark's official layout, into
``~/.cache/dreambench/datasets``; the tasks read official files only. The mapping's name and version are fields of the protocol.

Columns and splits of the mappings are those of the repositories' dataset cards; what their values mean is as lmms-eval reads them
(lmms_eval/tasks/{vqav2,mmbench,mmvet}/utils.py).
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dreambench.documents import JSON, digest
from dreambench.errors import DataError, UsageError
from dreambench.files import LINKS, inside, not_led_out, read_json, temporary
from dreambench.images import image_suffix
from dreambench.requests import parse_number

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["MAPPINGS", "CopyMapping", "Part", "local_files"]

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Part:
    """Where a copy has one split of the benchmark; `lacks` are the fields of the mapping that it does not have there."""

    split: str
    config: str | None = None
    lacks: frozenset[str] = frozenset()

    @property
    def pattern(self) -> str:
        """Its Parquet files within the repository."""
        return f"{self.config or 'data'}/{self.split}-*.parquet"


@dataclass(frozen=True)
class CopyMapping:
    """How the columns of one repository become a benchmark's fields. `version` increases when the files written from it change."""

    name: str  # the repository on the Hub
    version: int
    task: str
    columns: Mapping[str, str]  # official field: column of the copy
    parts: Mapping[str, Part]  # by the task's --split; the first is the default
    write: Callable[[Dataset, str, Path], None]
    """Writes rows (under official names) of a split into a folder as official files, and reads them once to check them."""

    @property
    def id(self) -> str:
        """For instance ``lmms-lab/VQAv2@1``; a field of the protocol."""
        return f"{self.name}@{self.version}"

    def part(self, split: str | None) -> tuple[str, Part]:
        """The split of that name, upper or lower case, with or without the task's prefix."""
        if split is None:
            return next(iter(self.parts.items()))
        wanted = split.casefold().removeprefix(f"{self.task}_")
        for name, part in self.parts.items():
            if name.casefold() == wanted:
                return name, part
        raise UsageError(f"--split {split}: the copy {self.name} has {', '.join(self.parts)}")


def local_files(task: str, spec: str, split: str | None, *, cache: Path, offline: bool) -> tuple[CopyMapping, Path]:
    """The mapping that `spec` (``NAME[=LOCATION]``) names, and the folder of official files written from the copy.

    A local copy is written again when a file's path, size or modification time changes; one from the Hub is downloaded once and kept
    until the folder is removed. Safe with any number of processes.

    Raises:
        UsageError: no such mapping or split, or the mapping is another task's.
        DataError: the copy is missing, cannot be downloaded, or lacks what the mapping reads.
    """
    name, _, location = spec.partition("=")
    mapping = _find(task, name)
    chosen, part = mapping.part(split)
    files = _parquet(mapping, Path(location), part) if location else None
    state: JSON = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files] if files else "hub"
    folder = cache / digest([mapping.id, chosen, location, state])[:32]
    if (folder / MANIFEST).is_file():
        return mapping, folder
    if not location and offline:
        raise DataError(
            f"--offline forbids downloading {name}: give the folder of a copy, --data datasets:{name}=DIR, or official files"
        )
    where = location or name
    with temporary(folder) as unfinished:
        unfinished.mkdir()
        rows = _rows(mapping, part, where, Path(location) if location else None, files, unfinished / "arrow")
        with _naming(f"{where} under the mapping {mapping.id}", unfinished):
            mapping.write(rows, chosen, unfinished)
        manifest = {
            "mapping": mapping.id,
            "split": chosen,
            "from": where,
            "rows": len(rows),
            "fingerprint": rows._fingerprint,  # pyright: ignore[reportPrivateUsage] - the library's only name for it
            "sources": sorted(rows.info.download_checksums or {}),
        }
        del rows
        shutil.rmtree(unfinished / "arrow", ignore_errors=True)
        # Written last: its existence means that the folder is complete.
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        _move(unfinished, folder)
    return mapping, folder


def _find(task: str, name: str) -> CopyMapping:
    known = {mapping.name: mapping for mapping in MAPPINGS}
    if name not in known:
        names = ", ".join(mapping.name for mapping in MAPPINGS if mapping.task == task) or "none"
        raise UsageError(
            f"--data datasets:{name}: no mapping has that name; {task} has {names}. Columns are not guessed: convert the copy to the"
            " official layout (docs/data.md)"
        )
    if known[name].task != task:
        raise UsageError(f"--data datasets:{name} is a mapping of the task {known[name].task}, not of {task}")
    return known[name]


def _parquet(mapping: CopyMapping, location: Path, part: Part) -> list[Path]:
    """The files to be read at `location`: Parquet files, or those of ``save_to_disk``."""
    if location.is_file():
        return [location]
    if not location.is_dir():
        raise DataError(f"--data datasets:{mapping.name}={location}: no such file or folder")
    if _saved(location):
        files = sorted(not_led_out(location, path) for path in location.rglob("*") if path.is_file())
        for state in (path for path in files if path.name == "state.json"):
            _require_named_inside(state)
        return files
    plain = part.pattern.rpartition("/")[2]
    found = [
        not_led_out(location, path) for path in sorted(location.glob(part.pattern)) or sorted(location.glob(plain))
    ]
    if not found:
        raise DataError(
            f"{location} holds neither {part.pattern} (a clone of {mapping.name}) nor {plain}, and save_to_disk did not write it: name"
            " the Parquet file itself, or choose a split that is there with --split"
        )
    return found


def _require_named_inside(state: Path) -> None:
    """`DataError` where a ``state.json`` of ``save_to_disk`` names a file elsewhere."""
    content = read_json(state)
    files = content.get("_data_files") if isinstance(content, dict) else None
    for file in files if isinstance(files, list) else ():
        name = file.get("filename") if isinstance(file, dict) else None
        if not isinstance(name, str) or inside(state.parent, name) is None:
            raise DataError(f"{state}: {name!r} is not a path within its folder{LINKS}")


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
def _naming(what: str, unfinished: Path) -> Generator[None]:
    """Errors about a file on its way into the cache name the copy instead."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{what}: {str(error).replace(f'{unfinished}{os.sep}', '')}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{what}: a row does not have the form that the mapping expects ({error!r})") from error


def _move(unfinished: Path, folder: Path) -> None:
    try:
        unfinished.rename(folder)
    except OSError:
        # Another process was faster, and wrote the same.
        if not (folder / MANIFEST).is_file():
            raise


def _entries(rows: Dataset) -> Iterator[dict[str, Any]]:
    """The rows one by one, as values by column."""
    for row in rows:
        yield cast("dict[str, Any]", row)


def _image_bytes(image: Any, row: str) -> bytes:
    """The encoded image of an undecoded `datasets` image. Paths in a copy are not followed."""
    data = image.get("bytes") if isinstance(image, dict) else None
    if not isinstance(data, bytes) or not data:
        raise DataError(f"{row} has no image, only a path or nothing: use a copy with the images inside")
    return data


def _suffix(data: bytes, row: str) -> str:
    """``.jpg``, ``.png`` or ``.webp``, by content."""
    kind = image_suffix(data)
    if kind is None:
        raise DataError(f"{row} has an image that is neither JPEG, PNG nor WebP")
    return f".{kind}"


# --- the mappings -----------------------------------------------------------------------------------------------------

_VQAV2 = {"val": "val2014", "test": "test2015", "test-dev": "test-dev2015"}
_VQAV2_KINDS = ("question_type", "answer_type", "multiple_choice_answer")
_VQAV2_FIELDS = ("question_id", "image_id", "question", *_VQAV2_KINDS)


def _write_vqav2(rows: Dataset, split: str, folder: Path) -> None:
    """Questions, annotations where the split has any, and each image once, under its COCO number."""
    from dreambench_tasks.vqav2.data import load

    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    first: dict[int, int] = {}
    for index, row in enumerate(_entries(rows.remove_columns("image"))):
        ids = {name: parse_number(row[name]) for name in ("question_id", "image_id")}
        first.setdefault(ids["image_id"], index)
        questions.append({**ids, "question": row["question"]})
        if split == "val":
            kinds = {name: row[name] for name in _VQAV2_KINDS}
            if not isinstance(row["answers"], list):
                raise DataError(f"question_id {ids['question_id']} has no list of answers")
            annotations.append({**ids, **kinds, "answers": row["answers"]})
    subset = {"data_subtype": _VQAV2[split]}
    _write_json(folder / f"v2_OpenEnded_mscoco_{_VQAV2[split]}_questions.json", {**subset, "questions": questions})
    if split == "val":
        _write_json(folder / f"v2_mscoco_{_VQAV2[split]}_annotations.json", {**subset, "annotations": annotations})
    for _ in load(folder, split).pairs():
        pass
    (folder / "images").mkdir()
    images = rows.select(list(first.values())).select_columns("image")
    for image_id, row in zip(first, _entries(images), strict=True):
        data = _image_bytes(row["image"], f"image_id {image_id}")
        (folder / "images" / f"{image_id:012d}{_suffix(data, f'image_id {image_id}')}").write_bytes(data)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


_OPTIONS = ("A", "B", "C", "D")
_MMBENCH = ("index", "question", "hint", *_OPTIONS, "answer", "category", "image", "source", "l2-category", "comment", "split")  # fmt: skip


def _write_mmbench(rows: Dataset, split: str, folder: Path) -> None:
    """The TSV. A row with the image of an earlier row has that row's index instead, as in the newer official files."""
    from dreambench_tasks.mmbench.data import load

    columns = [name for name in _MMBENCH if name in rows.column_names]
    path = folder / f"{'' if split == 'CCBench' else 'MMBench_'}{split}.tsv"
    holder: dict[bytes, str] = {}
    with path.open("w", encoding="utf-8", newline="") as file:
        # This line ending makes the writer quote a lone carriage return inside a cell, too.
        table = csv.writer(file, delimiter="\t", lineterminator="\r\n")
        table.writerow(columns)
        for row in _entries(rows):
            cells = {name: _cell(row[name]) for name in columns if name != "image"}
            data = _image_bytes(row["image"], f"index {cells['index']}")
            held = holder.setdefault(hashlib.sha256(data).digest(), cells["index"])
            cells["image"] = held if held != cells["index"] else base64.b64encode(data).decode()
            _require_no_gap(cells)
            table.writerow([cells[name] for name in columns])
    load(path)


def _cell(value: Any) -> str:
    """An empty cell is ``nan`` or null in the copy, and empty in an official file."""
    text = "" if value is None else str(value)
    return "" if text == "nan" else text


def _require_no_gap(cells: dict[str, str]) -> None:
    """The official options ``None`` and ``NA`` are ``nan`` in a copy made through pandas: the text is lost."""
    present = [bool(cells[letter]) for letter in _OPTIONS]
    if present != sorted(present, reverse=True):
        letter = _OPTIONS[present.index(False)]
        raise DataError(f"index {cells['index']} has no option {letter} but one after it: use the official TSV")


def _write_mmvet(rows: Dataset, split: str, folder: Path) -> None:
    """``mm-vet.json``, and images named by their content: the copy does not have the official names."""
    from dreambench_tasks.mmvet.data import load

    (folder / "images").mkdir()
    questions: dict[str, dict[str, Any]] = {}
    for row in _entries(rows):
        id_ = row["question_id"]
        if not isinstance(id_, str) or id_ in questions:
            raise DataError(f"question_id {id_!r} is not text, or occurs twice")
        if not isinstance(row["capability"], str):
            raise DataError(f"question_id {id_} has no capability")
        data = _image_bytes(row["image"], f"question_id {id_}")
        name = hashlib.sha256(data).hexdigest()[:32] + _suffix(data, f"question_id {id_}")
        (folder / "images" / name).write_bytes(data)
        questions[id_] = {
            "imagename": name,
            "question": row["question"],
            "answer": row["answer"],
            "imagesource": row["imagesource"],
            "capability": [word.strip() for word in row["capability"].split(",")],
        }
    (folder / "mm-vet.json").write_text(json.dumps(questions, ensure_ascii=False, indent=1), encoding="utf-8")
    load(folder)


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_CCBENCH = frozenset({"hint", "l2-category", "comment", "split"})

MAPPINGS = (
    CopyMapping(
        name="lmms-lab/VQAv2",
        version=1,
        task="vqav2",
        columns=_same(*_VQAV2_FIELDS, "answers", "image"),
        parts={"val": Part("validation"), "test-dev": Part("testdev"), "test": Part("test")},
        write=_write_vqav2,
    ),
    CopyMapping(
        name="lmms-lab/MMBench",
        version=1,
        task="mmbench",
        columns={**_same(*_MMBENCH), "l2-category": "L2-category"},
        parts={
            "DEV_EN": Part("dev", "en"),
            "TEST_EN": Part("test", "en"),
            "DEV_CN": Part("dev", "cn"),
            "TEST_CN": Part("test", "cn"),
            "CCBench": Part("test", "cc", _CCBENCH),
        },
        write=_write_mmbench,
    ),
    CopyMapping(
        name="lmms-lab/MMVet",
        version=1,
        task="mmvet",
        columns={**_same("question_id", "image", "question", "answer", "capability"), "imagesource": "image_source"},
        parts={"test": Part("test")},
        write=_write_mmvet,
    ),
)
