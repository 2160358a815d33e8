"""The named mappings of Hub copies onto official files, and what each writes.

Columns and splits are those of the repositories' dataset cards; what their values mean is as lmms-eval reads them
(lmms_eval/tasks/{vqav2,mmbench,mmvet}/utils.py).
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambench.errors import DataError
from dreambench_tasks.copies import CopyMapping, Part, bytes_of, entries, suffix_of

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["MAPPINGS"]

_VQAV2 = {"val": "val2014", "test": "test2015", "test-dev": "test-dev2015"}
_VQAV2_KINDS = ("question_type", "answer_type", "multiple_choice_answer")
_VQAV2_FIELDS = ("question_id", "image_id", "question", *_VQAV2_KINDS)


def _write_vqav2(rows: Dataset, split: str, folder: Path) -> None:
    """Questions, annotations where the split has any, and each image once, under its COCO number."""
    from dreambench_tasks.vqav2.data import load

    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    first: dict[int, int] = {}
    for place, row in enumerate(entries(rows.remove_columns("image"))):
        ids = {"question_id": int(row["question_id"]), "image_id": int(row["image_id"])}
        first.setdefault(ids["image_id"], place)
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
    load(folder, split)
    (folder / "images").mkdir()
    images = rows.select(list(first.values())).select_columns("image")
    for image_id, row in zip(first, entries(images), strict=True):
        data = bytes_of(row["image"], f"image_id {image_id}")
        (folder / "images" / f"{image_id:012d}{suffix_of(data, f'image_id {image_id}')}").write_bytes(data)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


_OPTIONS = ("A", "B", "C", "D")
_MMBENCH = ("index", "question", "hint", *_OPTIONS, "answer", "category", "image", "source", "l2-category", "comment", "split")  # fmt: skip


def _write_mmbench(rows: Dataset, split: str, folder: Path) -> None:
    """The TSV. Rows with the image of an earlier one refer to it by its index, as the newer official files do."""
    from dreambench_tasks.mmbench.data import load

    columns = [name for name in _MMBENCH if name in rows.column_names]
    path = folder / f"{'' if split == 'CCBench' else 'MMBench_'}{split}.tsv"
    holder: dict[bytes, str] = {}
    with path.open("w", encoding="utf-8", newline="") as file:
        # With this line ending a lone carriage return inside a cell is quoted, too.
        table = csv.writer(file, delimiter="\t", lineterminator="\r\n")
        table.writerow(columns)
        for row in entries(rows):
            cells = {name: _cell(row[name]) for name in columns if name != "image"}
            data = bytes_of(row["image"], f"index {cells['index']}")
            held = holder.setdefault(hashlib.sha256(data).digest(), cells["index"])
            cells["image"] = held if held != cells["index"] else base64.b64encode(data).decode()
            _require_no_gap(cells)
            table.writerow([cells[name] for name in columns])
    load(path)


def _cell(value: Any) -> str:
    """The copy spells an empty cell ``nan``, or has a null; an official file has nothing there."""
    text = "" if value is None else str(value)
    return "" if text == "nan" else text


def _require_no_gap(cells: dict[str, str]) -> None:
    """An official option that reads ``None`` or ``NA`` is ``nan`` in a copy made through pandas: the word is lost."""
    there = [bool(cells[letter]) for letter in _OPTIONS]
    if there != sorted(there, reverse=True):
        letter = _OPTIONS[there.index(False)]
        raise DataError(f"index {cells['index']} has no option {letter} but one after it: use the official TSV")


def _write_mmvet(rows: Dataset, split: str, folder: Path) -> None:
    """``mm-vet.json``, and images named by their content, as the copy does not have the official names."""
    from dreambench_tasks.mmvet.data import load

    (folder / "images").mkdir()
    questions: dict[str, dict[str, Any]] = {}
    for row in entries(rows):
        id_ = row["question_id"]
        if not isinstance(id_, str) or id_ in questions:
            raise DataError(f"question_id {id_!r} is not text, or occurs twice")
        if not isinstance(row["capability"], str):
            raise DataError(f"question_id {id_} has no capability")
        data = bytes_of(row["image"], f"question_id {id_}")
        name = hashlib.sha256(data).hexdigest()[:32] + suffix_of(data, f"question_id {id_}")
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
