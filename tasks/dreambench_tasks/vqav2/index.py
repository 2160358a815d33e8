"""The references of a whole annotation file as integers: built once, kept beside, compared as arrays.

n   questions, in the order of the annotation file        V   distinct strings, cleaned and normalised
N   answers per question (10), shorter rows padded with -1
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dreambench.errors import DataError
from dreambench_tasks.vqav2.normalise import clean, normalise

__all__ = ["PAD", "Numbers", "ReferenceIndex", "build_index", "cached_index", "load_index", "save_index"]

PAD = -1
# Part of the cache's key: raise it whenever what is stored, or the normalisation, changes.
_CACHE_VERSION = 1
_ARRAYS = ("question_ids", "image_ids", "answers", "normalised", "answer_type", "question_type", "others")


@dataclass(frozen=True, eq=False)
class ReferenceIndex:
    """References of n questions. Strings are numbered by their place in `strings`."""

    strings: list[str]  # V
    question_ids: NDArray[np.int64]  # n
    image_ids: NDArray[np.int64]  # n
    answers: NDArray[np.int32]  # n x N, cleaned references
    normalised: NDArray[np.int32]  # V, the number of each string's normalised form
    answer_type: NDArray[np.int32]  # n, places in answer_types
    question_type: NDArray[np.int32]  # n, places in question_types
    answer_types: list[str]
    question_types: list[str]
    # n x N: answers of one question whose other fields (id, confidence) are all equal share a number. Empty when no two do, which
    # is the case wherever answers carry their ids.
    others: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.question_ids)

    @cached_property
    def number_of(self) -> dict[str, int]:
        """The number of each string."""
        return {text: number for number, text in enumerate(self.strings)}

    @cached_property
    def unanimous(self) -> NDArray[np.bool_]:
        """n: all references are the same string once cleaned; the official rule then normalises nothing."""
        return ((self.answers == self.answers[:, :1]) | (self.answers == PAD)).all(axis=1)

    @cached_property
    def normalised_answers(self) -> NDArray[np.int32]:
        """n x N: the references, all normalised."""
        return np.where(self.answers == PAD, np.int32(PAD), self.normalised[self.answers])

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """n: references of each question."""
        return np.count_nonzero(self.answers != PAD, axis=1)

    def select(self, question_ids: Iterable[int]) -> ReferenceIndex:
        """The same index of some questions, in the annotation file's order.

        Raises:
            DataError: a question has no references here.
        """
        wanted = np.unique(np.fromiter(question_ids, dtype=np.int64))
        rows = np.flatnonzero(np.isin(self.question_ids, wanted))
        if len(rows) != len(wanted):
            missing = np.setdiff1d(wanted, self.question_ids)
            raise DataError(f"{len(missing)} questions have no references, for instance question_id {missing[0]}")
        rowwise = ("question_ids", "image_ids", "answers", "answer_type", "question_type", "others")
        parts = {name: getattr(self, name)[rows] for name in rowwise if len(getattr(self, name))}
        return replace(self, **parts)


def build_index(annotations: Sequence[Mapping[str, Any]]) -> ReferenceIndex:
    """The index of official annotations (`annotations` of the annotation JSON).

    Raises:
        DataError: a field is missing or of another type, a question has no answer, or two annotations have one question_id.
    """
    if not annotations:
        raise DataError("the annotation file holds no annotations")
    try:
        question_ids = np.fromiter(map(itemgetter("question_id"), annotations), dtype=np.int64, count=len(annotations))
        image_ids = np.fromiter(map(itemgetter("image_id"), annotations), dtype=np.int64, count=len(annotations))
        rows = list(map(itemgetter("answers"), annotations))
        sizes = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        raw = map(itemgetter("answer"), chain.from_iterable(rows))
        strings, cleaned, normalised = _intern(raw, int(sizes.sum()))
        answer_type, answer_types = _categories(map(itemgetter("answer_type"), annotations), len(annotations))
        question_type, question_types = _categories(map(itemgetter("question_type"), annotations), len(annotations))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _explain(annotations) or DataError(
            f"annotations are not in the official VQA format: {error!r}"
        ) from error
    if (np.diff(np.sort(question_ids)) == 0).any() or sizes.min() == 0:
        raise _explain(annotations) or DataError("annotations are not in the official VQA format")
    return ReferenceIndex(
        strings=strings,
        question_ids=question_ids,
        image_ids=image_ids,
        answers=_padded(cleaned, sizes),
        normalised=normalised,
        answer_type=answer_type,
        question_type=question_type,
        answer_types=answer_types,
        question_types=question_types,
        others=_equal_others(rows, sizes),
    )


class Numbers(dict[str, int]):
    """Strings numbered as they are first asked for: one look-up per answer, in C."""

    def __missing__(self, text: str) -> int:
        number = self[text] = len(self)
        return number


def _intern(raw: Iterable[str], count: int) -> tuple[list[str], NDArray[np.int32], NDArray[np.int32]]:
    """All strings; the number of each answer's cleaned form; the number of each string's normalised form."""
    as_written, number_of = Numbers(), Numbers()
    written = np.fromiter(map(as_written.__getitem__, raw), dtype=np.int32, count=count)
    cleaned = np.array([number_of[clean(text)] for text in as_written], dtype=np.int32)
    normalised = [number_of[normalise(text)] for text in list(number_of)]
    # A normalised form that is nobody's cleaned form is never looked up here; it stands for itself.
    normalised += range(len(normalised), len(number_of))
    return list(number_of), cleaned[written], np.array(normalised, dtype=np.int32)


def _categories(names: Iterable[Any], count: int) -> tuple[NDArray[np.int32], list[str]]:
    number_of = Numbers()
    numbers = np.fromiter(map(number_of.__getitem__, names), dtype=np.int32, count=count)
    if set(map(type, number_of)) != {str}:
        raise TypeError("a type is not text")
    return numbers, list(number_of)


def _padded(flat: NDArray[np.int32], sizes: NDArray[np.int64]) -> NDArray[np.int32]:
    if sizes.min() == sizes.max():
        return flat.reshape(len(sizes), -1)
    table = np.full((len(sizes), int(sizes.max())), PAD, dtype=np.int32)
    table[np.arange(table.shape[1]) < sizes[:, None]] = flat
    return table


def _equal_others(rows: list[list[Mapping[str, Any]]], sizes: NDArray[np.int64]) -> NDArray[np.int32]:
    """Which answers of a question agree in every field but the answer; an empty array when none do."""
    nothing = np.empty((0, 0), dtype=np.int32)
    if _have_distinct_ids(rows, sizes):
        return nothing
    numbers: list[int] = []
    repeated = False
    for row in rows:
        seen: list[dict[str, Any]] = []
        for answer in row:
            rest = {name: value for name, value in answer.items() if name != "answer"}
            repeated |= rest in seen
            seen += [] if rest in seen else [rest]
            numbers.append(seen.index(rest))
    return _padded(np.array(numbers, dtype=np.int32), sizes) if repeated else nothing


def _have_distinct_ids(rows: list[list[Mapping[str, Any]]], sizes: NDArray[np.int64]) -> bool:
    """Whether every answer has an integer id of its own within its question: the usual case, decided on arrays."""
    try:
        answers = chain.from_iterable(rows)
        ids = np.fromiter(map(itemgetter("answer_id"), answers), dtype=np.int32, count=int(sizes.sum()))
    except (KeyError, TypeError, ValueError, OverflowError):
        return False
    if ids.min() < 0:
        return False
    ordered = np.sort(_padded(ids, sizes), axis=1)
    return not ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != PAD)).any()


def _explain(annotations: Sequence[Any]) -> DataError | None:
    """The first thing that is wrong, found slowly."""
    fields: dict[str, type] = {
        "question_id": int,
        "image_id": int,
        "answer_type": str,
        "question_type": str,
        "answers": list,
    }
    seen: set[int] = set()
    for place, annotation in enumerate(annotations):
        for name, kind in fields.items():
            if not isinstance(annotation, Mapping) or not isinstance(annotation.get(name), kind):
                return DataError(f"annotation {place} (from 0) has no {name} ({kind.__name__})")
        question = annotation["question_id"]
        if question in seen:
            return DataError(f"question_id {question} is annotated twice")
        seen.add(question)
        answers: list[Any] = annotation["answers"]
        if not answers or not all(
            isinstance(answer, Mapping) and isinstance(answer.get("answer"), str) for answer in answers
        ):
            return DataError(f"question_id {question}: answers must be a list of at least one {{'answer': text}}")
    return None


def cached_index(
    key: str, folder: Path, annotations: Sequence[Mapping[str, Any]] | None = None
) -> ReferenceIndex | None:
    """The index kept in `folder` under `key` (the sha256 of the annotation file).

    With annotations it is built and kept when it is not there yet; without, None says that it is not there. A cache that cannot be read
    is built anew.
    """
    path = folder / f"vqav2-{hashlib.sha256(f'{_CACHE_VERSION} {key}'.encode()).hexdigest()[:32]}.npz"
    kept = load_index(path)
    if kept is not None or annotations is None:
        return kept
    index = build_index(annotations)
    save_index(path, index)
    return index


def save_index(path: Path, index: ReferenceIndex) -> None:
    """Write an index: whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    lists = {name: _packed(getattr(index, name)) for name in ("strings", "answer_types", "question_types")}
    with unfinished.open("wb") as file:
        np.savez(file, **lists, **{name: getattr(index, name) for name in _ARRAYS})
    unfinished.replace(path)


def load_index(path: Path) -> ReferenceIndex | None:
    """An index that `save_index` wrote; None where there is none that can be read."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            lists = {name: _unpacked(file[name]) for name in ("strings", "answer_types", "question_types")}
            return ReferenceIndex(**lists, **{name: file[name] for name in _ARRAYS})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


# Cleaned strings hold no line feed, and types are names: one text with a string a line. Lone surrogates, which JSON allows, survive.
def _packed(strings: list[str]) -> NDArray[np.uint8]:
    return np.frombuffer("\n".join(strings).encode("utf-8", "surrogatepass"), dtype=np.uint8)


def _unpacked(data: NDArray[np.uint8]) -> list[str]:
    return data.tobytes().decode("utf-8", "surrogatepass").split("\n")
