"""VQAv2's official question and annotation files and results files, plain or gzipped.

A folder holds ``questions.json`` and ``annotations.json``, or the official names (``v2_OpenEnded_mscoco_val2014_questions.json`` and
``v2_mscoco_val2014_annotations.json``); test and test-dev have questions only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambench.errors import DataError, UsageError, counted
from dreambench.files import plain_or_gzip, read_json, read_json_or_lines, sha256_file
from dreambench.interfaces import unique_answers
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
    """The human answers to one question, usually ten.

    `records` is None where no two answers agree in all their other fields (id, confidence), as in the official files. Otherwise answers
    that do share a number.
    """

    question_id: int
    image_id: int
    question_type: str
    answer_type: str
    answers: tuple[str, ...]
    records: list[int] | None = None


@dataclass(frozen=True)
class VQAv2:
    """The questions of one split and their annotations by question id, both in file order.

    `annotations` is None where the answers are held back (test, test-dev). `fingerprint` is the sha256 over the sha256 of the question
    file and, if any, of the annotation file.
    """

    questions: list[Question]
    annotations: dict[int, Annotation] | None
    split: str
    fingerprint: str


def load(folder: Path, split: str | None = None) -> VQAv2:
    """Read a folder; `split` is needed where it holds several.

    Raises:
        DataError: a file is missing or malformed, or questions and annotations do not have the same question and image ids.
        UsageError: the folder holds several splits, or not `split`.
    """
    name, question_file, annotation_file = _files(folder, split)
    questions = read_questions(question_file)
    digests = [sha256_file(question_file)]
    annotations = None
    if annotation_file is not None:
        annotations = read_annotations(annotation_file)
        digests.append(sha256_file(annotation_file))
        _require_same_questions(questions, annotations, annotation_file)
    return VQAv2(questions, annotations, name, hashlib.sha256(" ".join(digests).encode()).hexdigest())


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


def _entries(path: Path, name: str) -> list[Any]:
    content = read_json(path)
    entries = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f'{path} has no list "{name}": is it an official VQAv2 file?')
    return entries


def read_questions(path: Path) -> list[Question]:
    """The questions of an official question file, in its order. `DataError` where it is malformed or repeats a question_id."""
    questions: list[Question] = []
    for index, entry in enumerate(_entries(path, "questions")):
        try:
            ids = parse_number(entry["question_id"]), parse_number(entry["image_id"])
            questions.append(Question(*ids, entry["question"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: question {index} (from 0) lacks a question_id, image_id or question ({error})"
            ) from error
    if len({question.question_id for question in questions}) != len(questions):
        raise DataError(f"{path}: a question_id occurs twice")
    return questions


def read_annotations(path: Path) -> dict[int, Annotation]:
    """The annotations of an official annotation file by question id, in its order. `DataError` where it is malformed."""
    annotations: dict[int, Annotation] = {}
    for index, entry in enumerate(_entries(path, "annotations")):
        try:
            annotation = _annotation(entry)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: annotation {index} (from 0) is not in the official format ({error})") from error
        if annotation.question_id in annotations:
            raise DataError(f"{path}: question_id {annotation.question_id} is annotated twice")
        annotations[annotation.question_id] = annotation
    if not annotations:
        raise DataError(f"{path}: the annotation file holds no annotations")
    return annotations


def _annotation(entry: Mapping[str, Any]) -> Annotation:
    ids = parse_number(entry["question_id"]), parse_number(entry["image_id"])
    types = entry["question_type"], entry["answer_type"]
    answers = tuple([answer["answer"] for answer in entry["answers"]])
    if set(map(type, types)) != {str}:
        raise TypeError("question_type and answer_type must be text")
    if set(map(type, answers)) != {str}:
        raise TypeError('answers must be a list of at least one {"answer": text}')
    return Annotation(*ids, *types, answers, _equal_records(entry["answers"]))


def _equal_records(answers: list[Mapping[str, Any]]) -> list[int] | None:
    """A number for each answer, the same where all fields but the answer are equal; None where no two are."""
    ids = {answer.get("answer_id") for answer in answers}
    if len(ids) == len(answers):
        return None
    others = [{name: value for name, value in answer.items() if name != "answer"} for answer in answers]
    numbers = [others.index(other) for other in others]
    return None if len(set(numbers)) == len(numbers) else numbers


def _require_same_questions(questions: list[Question], annotations: Mapping[int, Annotation], path: Path) -> None:
    images = {question.question_id: question.image_id for question in questions}
    for ids, verb in (
        (images.keys() - annotations.keys(), "not annotated"),
        (annotations.keys() - images.keys(), "annotated but not in the question file"),
    ):
        if ids:
            many = counted(len(ids), "question is", "questions are")
            raise DataError(f"{path}: {many} {verb}, for instance question_id {min(ids)}")
    for id_, annotation in annotations.items():
        if annotation.image_id != images[id_]:
            raise DataError(f"{path}: question_id {id_} has another image_id here than in the question file")


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
