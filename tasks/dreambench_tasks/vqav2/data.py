"""VQAv2 as its users have it on disk: official question and annotation JSON, plain or gzipped; results files; the EvalAI export.

A folder holds ``questions.json`` and ``annotations.json``, or the official names (``v2_OpenEnded_mscoco_val2014_questions.json`` and
``v2_mscoco_val2014_annotations.json``); test and test-dev have questions only.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreambench.errors import DataError, UsageError
from dreambench.files import sha256_file
from dreambench_tasks.vqav2.index import ReferenceIndex, build_index, cached_index

__all__ = ["Question", "VQAv2", "load", "read_questions", "read_references", "read_results", "write_evalai"]

_OFFICIAL = {
    "train": ("v2_OpenEnded_mscoco_train2014_questions", "v2_mscoco_train2014_annotations"),
    "val": ("v2_OpenEnded_mscoco_val2014_questions", "v2_mscoco_val2014_annotations"),
    "test": ("v2_OpenEnded_mscoco_test2015_questions", None),
    "test-dev": ("v2_OpenEnded_mscoco_test-dev2015_questions", None),
}


@dataclass(frozen=True)
class Question:
    """One question about one COCO image."""

    question_id: int
    image_id: int
    question: str


@dataclass(frozen=True, eq=False)
class VQAv2:
    """The questions of one split in file order; `references` is None where the answers are held back (test, test-dev).

    `fingerprint` is the sha256 over the sha256 of the question file and, if any, of the annotation file.
    """

    questions: list[Question]
    references: ReferenceIndex | None
    split: str
    fingerprint: str


def load(folder: Path, split: str | None = None, *, cache: Path | None = None) -> VQAv2:
    """Read a folder. `split` is needed where it holds several; `cache` is a folder that keeps the index of the references.

    Raises:
        DataError: files are missing or malformed, or questions and annotations do not name the same ids and images.
        UsageError: the folder holds several splits, or not the one asked for.
    """
    name, question_file, annotation_file = _files(folder, split)
    questions = read_questions(question_file)
    digests = [_sha256(question_file)]
    references = None
    if annotation_file is not None:
        references = read_references(annotation_file, cache=cache)
        digests.append(_sha256(annotation_file))
        _agree(questions, references, annotation_file)
    return VQAv2(questions, references, name, hashlib.sha256(" ".join(digests).encode()).hexdigest())


def _files(folder: Path, split: str | None) -> tuple[str, Path, Path | None]:
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder: --data takes the folder that holds the VQAv2 question and annotation files"
        )
    pairs = {"": ("questions", "annotations"), **_OFFICIAL}
    found = {name: path for name, (stem, _) in pairs.items() if (path := _json(folder, stem))}
    if not found:
        raise DataError(f"{folder} holds neither questions.json nor {_OFFICIAL['val'][0]}.json (plain or .gz)")
    if split is None and len(found) > 1 and "" not in found:
        raise UsageError(f"{folder} holds the splits {', '.join(sorted(found))}: choose one with --split")
    # A plain pair is whatever split its owner says it is.
    chosen = split if split in found else "" if "" in found else split or next(iter(found))
    if chosen not in found:
        raise UsageError(f"{folder} has no split {split!r}, only {', '.join(sorted(found))}")
    stem = pairs[chosen][1]
    annotations = _json(folder, stem) if stem else None
    name = chosen or split or "custom"
    if annotations is None and chosen in ("train", "val"):
        raise DataError(f"{folder} has the questions of {chosen} but not {stem}.json (plain or .gz)")
    return name, found[chosen], annotations


def _json(folder: Path, stem: str) -> Path | None:
    return next((path for suffix in (".json", ".json.gz") if (path := folder / f"{stem}{suffix}").is_file()), None)


def read_questions(path: Path) -> list[Question]:
    """The questions of an official question file, in its order.

    Raises:
        DataError: the file is missing or malformed, or a question_id occurs twice.
    """
    entries = _list(path, "questions")
    questions: list[Question] = []
    for place, entry in enumerate(entries):
        try:
            question = Question(int(entry["question_id"]), int(entry["image_id"]), entry["question"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: question {place} (from 0) lacks a question_id, image_id or question") from error
        questions.append(question)
    if len({question.question_id for question in questions}) != len(questions):
        raise DataError(f"{path}: a question_id occurs twice")
    return questions


def read_references(path: Path, *, cache: Path | None = None) -> ReferenceIndex:
    """The index of an official annotation file; with `cache`, built once per content of the file.

    Raises:
        DataError: the file is missing or malformed.
    """
    digest = _sha256(path)
    kept = cached_index(digest, cache) if cache else None
    if kept is not None:
        return kept
    annotations = _list(path, "annotations")
    try:
        index = cached_index(digest, cache, annotations) if cache else build_index(annotations)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return index or build_index(annotations)


def _agree(questions: list[Question], references: ReferenceIndex, path: Path) -> None:
    asked = np.array([(question.question_id, question.image_id) for question in questions], dtype=np.int64)
    answered = np.stack([references.question_ids, references.image_ids], axis=1)
    for ours, theirs, what in (
        (asked, answered, "are not annotated"),
        (answered, asked, "are annotated but not asked"),
    ):
        alone = np.setdiff1d(ours[:, 0], theirs[:, 0])
        if len(alone):
            raise DataError(f"{path}: {len(alone)} questions {what}, for instance question_id {alone[0]}")
    asked, answered = asked[np.argsort(asked[:, 0])], answered[np.argsort(answered[:, 0])]
    wrong = np.flatnonzero(asked[:, 1] != answered[:, 1])
    if len(wrong):
        raise DataError(
            f"{path}: question_id {asked[wrong[0], 0]} is annotated for another image_id than it is asked of"
        )


def read_results(path: Path) -> dict[int, str]:
    """Answers by question_id from an official results file (``[{question_id, answer}]``) or JSON lines (``{"id", "text"}``).

    Raises:
        DataError: the file is missing or malformed, or answers a question twice.
    """
    text = _read(path).decode("utf-8-sig")
    try:
        entries: Any = json.loads(text)
    except json.JSONDecodeError:
        entries = _json_lines(path, text)
    if isinstance(entries, dict):
        entries = [entries]
    answers: dict[int, str] = {}
    for place, entry in enumerate(entries):
        try:
            question, answer = (
                (entry["question_id"], entry["answer"]) if "question_id" in entry else (entry["id"], entry["text"])
            )
            question = int(question)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f'{path}: entry {place} (from 0) is neither {{"question_id", "answer"}} nor {{"id", "text"}}'
            ) from error
        if not isinstance(answer, str):
            raise DataError(f"{path}: the answer to question_id {question} is not text but {answer!r}")
        if question in answers:
            raise DataError(f"{path}: question_id {question} is answered twice")
        answers[question] = answer
    return answers


def write_evalai(path: Path, questions: list[Question], answers: Mapping[int, str]) -> None:
    """The upload file of the EvalAI challenge: ``[{question_id, answer}]``, every question of the split once.

    Raises:
        DataError: answers do not name exactly the questions; the server would refuse the file.
    """
    ids = [question.question_id for question in questions]
    if set(answers) != set(ids):
        missing, unknown = [each for each in ids if each not in answers], list(set(answers) - set(ids))
        example = (missing or unknown)[0]
        raise DataError(
            f"an EvalAI upload answers every question once: {len(missing)} answers are missing and {len(unknown)} belong to no "
            f"question, for instance question_id {example}"
        )
    entries = [{"question_id": question, "answer": answers[question]} for question in ids]
    path.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _list(path: Path, name: str) -> list[Any]:
    try:
        content: Any = json.loads(_read(path))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    entries = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f'{path} has no list "{name}": is it an official VQAv2 file?')
    return entries


def _json_lines(path: Path, text: str) -> list[Any]:
    entries: list[Any] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: not JSON: {error}") from error
    return entries


def _sha256(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
