"""The majority-answer baseline: what can be answered without the image."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from dreambench.documents import JSON, Text, digest, document_text
from dreambench.errors import DataError
from dreambench.files import plain_or_gzip, read_json_or_lines
from dreambench.interfaces import Model, ModelOptions
from dreambench.requests import Kind, Request, Response

__all__ = ["Blind", "majority_answers", "question_type"]

_OPTION = re.compile(r"^([A-E])\. (.+)$", re.MULTILINE)
_QUESTION = re.compile(r"[^.?!:\n]+\?")
_FILES = ("v2_mscoco_train2014_annotations", "annotations")
_OTHER = "none of the above"
"""VQAv2's type of questions that begin like no type; here also of prompts without a question."""


class Blind(Model):
    """The majority-answer baseline: the most frequent training answer to questions with the same first words

    ``blind`` uses the training part of the embedded data, ``blind:DIR`` VQAv2's training annotations in a folder, ``blind:FILE`` that
    file, or JSON lines {"question_type", "answer"}. It never opens an image. Of lettered options (MMBench) it chooses the one that
    equals its answer, else A; to open questions (MM-Vet) it gives its answer.
    """

    capabilities: ClassVar[frozenset[Kind]] = frozenset({"generate_text"})
    sees: ClassVar[bool] = False

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        options.only()
        options.without_weights()
        self.answers = majority_answers(_pairs(_training_file(options.location)))

    def identity(self) -> Mapping[str, JSON]:
        return {"name": "blind", "answers_sha256": digest(self.answers)}

    def batch_size(self, kind: Kind) -> int:
        return 4096

    def notes(self) -> Sequence[str]:
        return ("the majority-answer baseline sees no image: compare the other models with it",)

    def answer(self, requests: Sequence[Request]) -> Iterator[Response]:
        for request in requests:
            text = document_text(request.document)
            answer = self.answers[question_type(text, self.answers)]
            letters = {option.strip().casefold(): letter for letter, option in _OPTION.findall(text)}
            yield Response(request.id, (Text(letters.get(answer.casefold(), "A") if letters else answer),))


def majority_answers(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The most frequent answer to each question type, the alphabetically first of equals; ``none of the above`` always has one.

    Args:
        pairs: (question type, answer) of each training question.
    """
    by_type: dict[str, Counter[str]] = {}
    total: Counter[str] = Counter()
    for type_, answer in pairs:
        by_type.setdefault(type_.casefold(), Counter())[answer] += 1
        total[answer] += 1
    by_type.setdefault(_OTHER, total)
    return {type_: min(counts, key=lambda answer: (-counts[answer], answer)) for type_, counts in by_type.items()}


def question_type(prompt: str, types: Iterable[str]) -> str:
    """The longest of `types` with which the prompt's last question begins: VQAv2 types questions by their first words."""
    questions = [" ".join(sentence.casefold().split()) for sentence in _QUESTION.findall(prompt)]
    found = _beginning(tuple(types)).match(questions[-1]) if questions else None
    return found[0] if found else _OTHER


@cache
def _beginning(types: tuple[str, ...]) -> re.Pattern[str]:
    """The longest of `types` at the beginning of a question, as whole words."""
    return re.compile(rf"(?:{'|'.join(map(re.escape, sorted(types, key=len, reverse=True)))})\b")


def _training_file(location: str | None) -> Path:
    """The file of training answers: of a folder, the official name or a plain ``annotations.json``, perhaps gzipped."""
    if location is None:
        from dreambench_tasks.playground import ensure_default

        folder = ensure_default(split="train")
    else:
        folder = Path(location)
        if not folder.is_dir():
            return folder
    for stem in _FILES:
        if path := plain_or_gzip(folder / f"{stem}.json"):
            return path
    raise DataError(f"--model blind:{folder}: it holds neither {_FILES[0]}.json nor annotations.json (plain or .gz)")


def _pairs(path: Path) -> list[tuple[str, str]]:
    """(question type, answer) of each training question; annotations of another split are refused."""
    try:
        content: Any = read_json_or_lines(path)
    except DataError as error:
        raise DataError(f"--model blind:{error}") from error
    try:
        if isinstance(content, dict) and "annotations" in content:
            split = str(content.get("data_subtype", "train"))
            if not split.startswith("train"):
                raise DataError(f"--model blind:{path}: annotations of the split {split}; give those of train")
            pairs = [(entry["question_type"], entry["multiple_choice_answer"]) for entry in content["annotations"]]
        else:
            lines = [content] if isinstance(content, dict) else content
            pairs = [(line["question_type"], line["answer"]) for line in lines]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"--model blind:{path}: neither VQAv2 annotations nor lines of question_type and answer"
        ) from error
    if not pairs or not all(isinstance(word, str) for pair in pairs for word in pair):
        raise DataError(f"--model blind:{path}: it holds no answers, or some that are not text")
    return pairs
