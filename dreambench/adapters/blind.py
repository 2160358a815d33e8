"""A guesser that sees neither image nor reference: the most frequent training answer to questions that begin alike."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from dreambench.documents import JSON, Text, digest, document_text
from dreambench.errors import DataError, UsageError
from dreambench.interfaces import Model, ModelOptions
from dreambench.requests import Kind, Request, Response

__all__ = ["BlindGuesser", "most_frequent", "question_type"]

_SENTENCE = re.compile(r"[^.?!:\n]+\?")
_REST = "none of the above"
"""VQAv2's name for questions that begin like no type; also what a prompt without a question counts as."""


def most_frequent(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """For each question type its most frequent answer, the alphabetically first among equals; ``none of the above`` always has one."""
    by_type: dict[str, Counter[str]] = {}
    everything: Counter[str] = Counter()
    for type_, answer in pairs:
        by_type.setdefault(type_.casefold(), Counter())[answer] += 1
        everything[answer] += 1
    by_type.setdefault(_REST, everything)
    return {type_: min(counts, key=lambda answer: (-counts[answer], answer)) for type_, counts in by_type.items()}


def question_type(prompt: str, types: Iterable[str]) -> str:
    """The longest type that the prompt's last question begins with, as VQAv2 types its questions: by their first words."""
    questions = [" ".join(sentence.casefold().split()) for sentence in _SENTENCE.findall(prompt)]
    fitting = [type_ for type_ in types if questions and re.match(rf"{re.escape(type_)}\b", questions[-1])]
    return max(fitting, key=len, default=_REST)


class BlindGuesser(Model):
    """``blind:FILE``, FILE being VQAv2's official *training* annotations, or JSON lines {"question_type", "answer"}, plain or gzipped.

    The row that every reading score is read against: what is right without looking.
    """

    capabilities: ClassVar[frozenset[Kind]] = frozenset({"generate_text"})

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        options.only()
        options.without_weights()
        if not options.location:
            raise UsageError("--model blind: write blind:FILE, a file of training answers (docs/models.md)")
        self.answers = most_frequent(_pairs(Path(options.location)))

    def identity(self) -> Mapping[str, JSON]:
        return {"name": "blind", "answers_sha256": digest(self.answers)}

    def batch_size(self, kind: Kind) -> int:
        return 4096

    def notes(self) -> Sequence[str]:
        return ("the blind guesser sees no image: its scores are the floor of the others",)

    def answer(self, requests: Sequence[Request]) -> Iterator[Response]:
        for request in requests:
            guess = self.answers[question_type(document_text(request.document), self.answers)]
            yield Response(request.id, (Text(guess),))


def _pairs(path: Path) -> list[tuple[str, str]]:
    """(question type, answer) of each training question. Annotations of another split are refused."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"--model blind:{path}: cannot be read ({type(error).__name__})") from error
    try:
        official: Any = json.loads(text)
    except ValueError:
        official = None
    try:
        if isinstance(official, dict) and "annotations" in official:
            split = str(official.get("data_subtype", "train"))
            if not split.startswith("train"):
                raise DataError(f"--model blind:{path}: annotations of the split {split}; give those of train")
            pairs = [(one["question_type"], one["multiple_choice_answer"]) for one in official["annotations"]]
        else:
            lines = [json.loads(line) for line in text.splitlines() if line.strip()]
            pairs = [(line["question_type"], line["answer"]) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"--model blind:{path}: neither VQAv2 annotations nor lines of question_type and answer"
        ) from error
    if not pairs or not all(isinstance(word, str) for pair in pairs for word in pair):
        raise DataError(f"--model blind:{path}: it holds no answers, or some that are not text")
    return pairs
