"""VQAv2's official question and annotation files and results files, plain or gzipped.

A folder holds ``questions.json`` and ``annotations.json``, or the official names (``v2_OpenEnded_mscoco_val2014_questions.json`` and
``v2_mscoco_val2014_annotations.json``); test and test-dev have questions only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dreambench.errors import DataError, UsageError, counted
from dreambench.files import plain_or_gzip, read_json_or_lines, sha256_file
from dreambench.interfaces import unique_answers
from dreambench.json_items import read_json_items
from dreambench.requests import parse_number

__all__ = ["Annotation", "Question", "VQAv2", "load", "read_annotations", "read_questions", "read_results"]

_OFFICIAL = {
    "train": ("v2_OpenEnded_mscoco_train2014_questions", "v2_mscoco_train2014_annotations"),
    "val": ("v2_OpenEnded_mscoco_val2014_questions", "v2_mscoco_val2014_annotations"),
    "test": ("v2_OpenEnded_mscoco_test2015_questions", None),
    "test-dev": ("v2_OpenEnded_mscoco_test-dev2015_questions", None),
}


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one COCO image."""

    question_id: int
    image_id: int
    question: str


@dataclass(frozen=True, slots=True)
class Annotation:
    """The human answers to one question, usually ten; `index` is the annotation's place in its file.

    `records` is None where no two answers agree in all their other fields (id, confidence), as in the official files. Otherwise answers
    that do share a number.
    """

    index: int
    question_id: int
    image_id: int
    question_type: str
    answer_type: str
    answers: tuple[str, ...]
    records: list[int] | None = None


@dataclass(frozen=True)
class VQAv2:
    """The files of one split. `annotation_file` is None where the answers are held back (test, test-dev)."""

    split: str
    question_file: Path
    annotation_file: Path | None

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the sha256 of the question file and, if any, of the annotation file."""
        files = filter(None, (self.question_file, self.annotation_file))
        return hashlib.sha256(" ".join(map(sha256_file, files)).encode()).hexdigest()

    def pairs(self) -> Iterator[tuple[Question, Annotation | None]]:
        """Each question with its annotation, in the order of the question file.

        The official files have one order; of files that have not, the annotations read ahead are held.

        Raises:
            DataError: a file is malformed, or the two do not have the same question and image ids, each once.
        """
        questions, path = read_questions(self.question_file), self.annotation_file
        if path is None:
            yield from ((question, None) for question in questions)
            return
        annotations = read_annotations(path)
        waiting: dict[int, Annotation] = {}
        paired: set[int] = set()
        missing: list[int] = []

        def read_on() -> bool:
            annotation = next(annotations, None)
            if annotation is None:
                return False
            if annotation.question_id in waiting or annotation.question_id in paired:
                raise DataError(f"{path}: question_id {annotation.question_id} is annotated twice")
            waiting[annotation.question_id] = annotation
            return True

        for question in questions:
            id_ = question.question_id
            if id_ in paired:
                raise DataError(f"{self.question_file}: question_id {id_} occurs twice")
            while id_ not in waiting and read_on():
                pass
            if id_ not in waiting:
                missing.append(id_)
                continue
            annotation = waiting.pop(id_)
            if annotation.image_id != question.image_id:
                raise DataError(
                    f"{path}: question_id {id_} has another image_id here than in {self.question_file.name}"
                )
            paired.add(id_)
            yield question, annotation
        while read_on():
            pass
        name = self.question_file.name
        for ids, verb in ((missing, f"in {name} and not here"), (waiting, f"annotated but not in {name}")):
            if ids:
                many = counted(len(ids), "question is", "questions are")
                raise DataError(f"{path}: {many} {verb}, for instance question_id {min(ids)}")


def load(folder: Path, split: str | None = None) -> VQAv2:
    """The files of a folder; `split` is needed where it holds several.

    Raises:
        DataError: a file is missing.
        UsageError: the folder holds several splits, or not `split`.
    """
    return VQAv2(*_files(folder, split))


def _files(folder: Path, split: str | None) -> tuple[str, Path, Path | None]:
    """The split's name, its question file and its annotation file."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: --data takes the folder of the VQAv2 question and annotation files")
    pairs = {"": ("questions", "annotations"), **_OFFICIAL}
    found = {name: path for name, (stem, _) in pairs.items() if (path := plain_or_gzip(folder / f"{stem}.json"))}
    if not found:
        raise DataError(f"{folder} holds neither questions.json nor {_OFFICIAL['val'][0]}.json (plain or .gz)")
    if split is None and len(found) > 1 and "" not in found:
        raise UsageError(f"{folder} holds the splits {', '.join(sorted(found))}: choose one with --split")
    # questions.json is taken for whatever split the user names.
    chosen = split if split in found else "" if "" in found else split or next(iter(found))
    if chosen not in found:
        raise UsageError(f"{folder} has no split {split!r}, only {', '.join(sorted(found))}")
    stem = pairs[chosen][1]
    annotations = plain_or_gzip(folder / f"{stem}.json") if stem else None
    if annotations is None and chosen in ("train", "val"):
        raise DataError(f"{folder} has the questions of {chosen} but not {stem}.json (plain or .gz)")
    return chosen or split or "custom", found[chosen], annotations


def read_questions(path: Path) -> Iterator[Question]:
    """The questions of an official question file, in its order. `DataError` where it is malformed."""
    for index, entry in enumerate(read_json_items(path, "questions")):
        try:
            ids = parse_number(entry["question_id"]), parse_number(entry["image_id"])
            if not isinstance(entry["question"], str):
                raise TypeError("question must be text")
            yield Question(*ids, entry["question"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: question {index} (from 0) lacks a question_id, image_id or question ({error})"
            ) from error


def read_annotations(path: Path) -> Iterator[Annotation]:
    """The annotations of an official annotation file, in its order. `DataError` where it is malformed."""
    index = -1
    for index, entry in enumerate(read_json_items(path, "annotations")):
        try:
            yield _annotation(index, entry)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: annotation {index} (from 0) is not in the official format ({error})") from error
    if index < 0:
        raise DataError(f"{path}: the annotation file holds no annotations")


def _annotation(index: int, entry: Mapping[str, Any]) -> Annotation:
    ids = parse_number(entry["question_id"]), parse_number(entry["image_id"])
    types = entry["question_type"], entry["answer_type"]
    answers = tuple([answer["answer"] for answer in entry["answers"]])
    if set(map(type, types)) != {str}:
        raise TypeError("question_type and answer_type must be text")
    if set(map(type, answers)) != {str}:
        raise TypeError('answers must be a list of at least one {"answer": text}')
    return Annotation(index, *ids, *types, answers, _equal_records(entry["answers"]))


def _equal_records(answers: list[Mapping[str, Any]]) -> list[int] | None:
    """A number for each answer, the same where all fields but the answer are equal; None where no two are."""
    ids = {answer.get("answer_id") for answer in answers}
    if len(ids) == len(answers):
        return None
    others = [{name: value for name, value in answer.items() if name != "answer"} for answer in answers]
    numbers = [others.index(other) for other in others]
    return None if len(set(numbers)) == len(numbers) else numbers


def read_results(path: Path) -> dict[str, str]:
    """Answers by question id from an official results file (``[{question_id, answer}]``) or JSON lines (``{"id", "text"}``).

    Raises:
        DataError: the file is missing or malformed, or answers a question twice.
    """
    content = read_json_or_lines(path)
    pairs: list[tuple[str, Any]] = []
    for index, entry in enumerate([content] if isinstance(content, dict) else content):
        try:
            names = ("question_id", "answer") if "question_id" in entry else ("id", "text")
            pairs.append((str(parse_number(entry[names[0]])), entry[names[1]]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f'{path}: entry {index} (from 0) is neither {{"question_id", "answer"}} nor {{"id", "text"}} ({error})'
            ) from error
    return unique_answers(path, pairs)
