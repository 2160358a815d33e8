"""MM-Vet's files: ``mm-vet.json`` with an ``images`` folder, answers, and the official evaluator's grade files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dreambench.errors import DataError
from dreambench.files import (
    not_led_out,
    plain_or_gzip,
    read_json,
    read_json_lines,
    read_json_or_lines,
    write_atomically,
)
from dreambench.interfaces import unique_answers
from dreambench.requests import parse_id

__all__ = ["Grade", "Question", "data_file", "load", "read_answers", "read_capabilities", "read_grades", "write_grades"]


@dataclass(frozen=True)
class Question:
    """One question. ``<AND>`` and ``<OR>`` inside `answer` join parts of the reference, all or one of which are expected."""

    id: str
    image: Path  # not opened here
    question: str
    answer: str
    capabilities: tuple[str, ...]


@dataclass(frozen=True)
class Grade:
    """One judgement: the judge's name, its reply, and the grade from 0 to 1, None where it gave none."""

    model: str
    content: str
    score: float | None


def load(folder: Path, images: Path | None = None) -> list[Question]:
    """The questions of ``mm-vet.json`` (plain or .gz) in its order; their images are in `images`, else in ``folder/images``.

    Raises:
        DataError: the file is missing or malformed, or an image's name leads out of its folder.
    """
    path = data_file(folder)
    questions: list[Question] = []
    for id_, entry in _questions(path).items():
        names = ("imagename", "question", "answer")
        texts = [entry.get(name) if isinstance(entry, dict) else None for name in names]
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"{path}: {id_} lacks an imagename, question or answer")
        image, question, answer = cast("list[str]", texts)
        if Path(image).name != image or image in ("", ".", ".."):
            raise DataError(f"{path}: the imagename of {id_} is not a plain file name: {image!r}")
        image_path = not_led_out(images or folder, (images or folder / "images") / image)
        questions.append(Question(id_, image_path, question, answer, _capabilities(path, id_, entry)))
    return questions


def data_file(folder: Path) -> Path:
    """``mm-vet.json`` of a folder, plain or .gz. `DataError` where there is none."""
    path = plain_or_gzip(folder / "mm-vet.json")
    if path is None:
        raise DataError(f"{folder} does not hold mm-vet.json (plain or .gz)")
    return path


def read_capabilities(path: Path) -> dict[str, tuple[str, ...]]:
    """Each question's capabilities from ``mm-vet.json`` or any file of its form. `DataError` where it is malformed."""
    return {id_: _capabilities(path, id_, entry) for id_, entry in _questions(path).items()}


def _capabilities(path: Path, id_: str, entry: Any) -> tuple[str, ...]:
    names = entry.get("capability") if isinstance(entry, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: {id_} has no list of capabilities")
    return tuple(names)


def read_answers(path: Path) -> dict[str, str]:
    """Answers by question from the official ``{"v1_0": "..."}`` or JSON lines ``{"id", "text"}``.

    Raises:
        DataError: the file is missing or malformed, or answers a question twice.
    """
    content = read_json_or_lines(path)
    if isinstance(content, dict) and set(content) != {"id", "text"}:
        return unique_answers(path, content.items())
    pairs: list[tuple[str, Any]] = []
    for number, line in read_json_lines(path):
        try:
            pairs.append((parse_id(line["id"]), line["text"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f'{path}, line {number}: not {{"id", "text"}} ({error!r})') from error
    return unique_answers(path, pairs)


def read_grades(path: Path) -> dict[str, list[Grade]]:
    """An official grade file: ``{"v1_0": {"model": [...], "content": [...], "score": [...]}}``, one entry per grading run.

    A score of null is a missing grade. Files without model or content are accepted too.

    Raises:
        DataError: the file is missing or malformed, or a score is not a number from 0 to 1.
    """
    grades: dict[str, list[Grade]] = {}
    for id_, entry in _questions(path).items():
        scores = entry.get("score") if isinstance(entry, dict) else None
        if not isinstance(scores, list):
            raise DataError(f"{path}: {id_} has no list of scores")
        if not all(score is None or (type(score) in (int, float) and 0 <= score <= 1) for score in scores):
            raise DataError(f"{path}: the scores of {id_} are not numbers from 0 to 1: {scores}")
        empty = [""] * len(scores)
        models, contents = (empty if entry.get(name) is None else entry[name] for name in ("model", "content"))
        if not all(isinstance(texts, list) and len(texts) == len(scores) for texts in (models, contents)):
            raise DataError(f"{path}: {id_} has not one model and content per score")
        grades[id_] = [
            Grade(str(model), str(content), score)
            for model, content, score in zip(models, contents, scores, strict=True)
        ]
    return grades


def write_grades(path: Path, grades: Mapping[str, Sequence[Grade]]) -> None:
    """The same format, as the official evaluator writes it."""
    content = {
        id_: {name: [getattr(grade, name) for grade in listed] for name in ("model", "content", "score")}
        for id_, listed in grades.items()
    }
    write_atomically(path, json.dumps(content, indent=4).encode())


def _questions(path: Path) -> dict[str, Any]:
    """A JSON object with an entry for each question."""
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path} is not an object of questions")
    return content
