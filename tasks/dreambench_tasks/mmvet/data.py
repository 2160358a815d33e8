"""MM-Vet as its users have it: ``mm-vet.json`` with an ``images`` folder, answers, and the official evaluator's grade files."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dreambench.errors import DataError

__all__ = ["Grade", "Sample", "data_file", "load", "read_answers", "read_capabilities", "read_grades", "write_grades"]


@dataclass(frozen=True)
class Sample:
    """One question. ``<AND>`` and ``<OR>`` inside `answer` join parts of the reference that are all, or one of them, wanted."""

    id: str
    image: Path  # not opened here
    question: str
    answer: str
    capabilities: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Grade:
    """One judgement: the judge's name, what it said, and the grade from 0 to 1, None where it said none."""

    model: str
    content: str
    score: float | None


def load(folder: Path, images: Path | None = None) -> list[Sample]:
    """The questions of ``mm-vet.json`` (plain or .gz) in its order; images are looked for in `images`, else in ``folder/images``.

    Raises:
        DataError: the file is missing or malformed, or an image's name leads out of its folder.
    """
    path = data_file(folder)
    samples: list[Sample] = []
    for name, entry in _object(path).items():
        texts = (
            [entry.get(field) for field in ("imagename", "question", "answer")] if isinstance(entry, dict) else [None]
        )
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"{path}: {name} lacks an imagename, question or answer")
        image, question, answer = cast("list[str]", texts)
        if Path(image).name != image or image in ("", ".", ".."):
            raise DataError(f"{path}: the imagename of {name} is not a plain file name: {image!r}")
        source = entry.get("imagesource") or ""
        samples.append(
            Sample(
                name,
                (images or folder / "images") / image,
                question,
                answer,
                _capabilities(path, name, entry),
                str(source),
            )
        )
    return samples


def data_file(folder: Path) -> Path:
    """``mm-vet.json`` of a folder, plain or .gz. `DataError` where there is none."""
    path = next((found for name in ("mm-vet.json", "mm-vet.json.gz") if (found := folder / name).is_file()), None)
    if path is None:
        raise DataError(f"{folder} does not hold mm-vet.json (plain or .gz)")
    return path


def read_capabilities(path: Path) -> dict[str, tuple[str, ...]]:
    """Each question's capabilities from ``mm-vet.json`` or any file of its form.

    Raises:
        DataError: the file is missing or malformed.
    """
    return {name: _capabilities(path, name, entry) for name, entry in _object(path).items()}


def _capabilities(path: Path, name: str, entry: Any) -> tuple[str, ...]:
    listed = entry.get("capability") if isinstance(entry, dict) else None
    if (
        not isinstance(listed, list)
        or not listed
        or not all(isinstance(each, str) for each in cast("list[Any]", listed))
    ):
        raise DataError(f"{path}: {name} has no list of capabilities")
    return tuple(cast("list[str]", listed))


def read_answers(path: Path) -> dict[str, str]:
    """Answers by question from the official ``{"v1_0": "..."}`` or JSON lines ``{"id", "text"}``.

    Raises:
        DataError: the file is missing or malformed, or answers a question twice.
    """
    text = _text(path)
    try:
        content: Any = json.loads(text)
    except json.JSONDecodeError:
        content = None
    if isinstance(content, dict) and set(cast("dict[str, Any]", content)) != {"id", "text"}:
        pairs = list(cast("dict[str, Any]", content).items())
    else:
        pairs = _json_lines(path, text)
    answers: dict[str, str] = {}
    for name, answer in pairs:
        if not isinstance(name, str) or not isinstance(answer, str):
            raise DataError(f"{path}: the answer to {name} is not text but {answer!r}")
        if name in answers:
            raise DataError(f"{path}: {name} is answered twice")
        answers[name] = answer
    return answers


def _json_lines(path: Path, text: str) -> list[tuple[Any, Any]]:
    pairs: list[tuple[Any, Any]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                entry = json.loads(line)
                pairs.append((entry["id"], entry["text"]))
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise DataError(f'{path}, line {number}: not {{"id", "text"}} ({error!r})') from error
    return pairs


def read_grades(path: Path) -> dict[str, list[Grade]]:
    """An official grade file: ``{"v1_0": {"model": [...], "content": [...], "score": [...]}}``, one entry per run.

    A score of null is a missing grade. Files without model or content are taken too.

    Raises:
        DataError: the file is missing or malformed, or a score is not a number from 0 to 1.
    """
    grades: dict[str, list[Grade]] = {}
    for name, entry in _object(path).items():
        scores = entry.get("score") if isinstance(entry, dict) else None
        if not isinstance(scores, list):
            raise DataError(f"{path}: {name} has no list of scores")
        given = cast("list[Any]", scores)
        if not all(score is None or (_is_number(score) and 0 <= score <= 1) for score in given):
            raise DataError(f"{path}: the scores of {name} are not numbers from 0 to 1: {given}")
        models, contents = (_texts(path, name, entry.get(field), len(given)) for field in ("model", "content"))
        grades[name] = [Grade(*each) for each in zip(models, contents, given, strict=True)]
    return grades


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _texts(path: Path, name: str, listed: Any, count: int) -> list[str]:
    if listed is None:
        return [""] * count
    if not isinstance(listed, list) or len(cast("list[Any]", listed)) != count:
        raise DataError(f"{path}: {name} has not one model and content per score")
    return [str(each) for each in cast("list[Any]", listed)]


def write_grades(path: Path, grades: Mapping[str, Sequence[Grade]]) -> None:
    """The same format, as the official evaluator writes it."""
    content = {
        name: {field: [getattr(grade, field) for grade in given] for field in ("model", "content", "score")}
        for name, given in grades.items()
    }
    path.write_text(json.dumps(content, indent=4), encoding="utf-8")


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _object(path: Path) -> dict[str, Any]:
    try:
        content: Any = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path} is not an object of questions")
    return cast("dict[str, Any]", content)
