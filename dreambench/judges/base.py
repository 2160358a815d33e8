"""The interface of judges, and the judge without a model: the fraction of the reference's parts that an answer contains."""

from __future__ import annotations

import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dreambench.documents import JSON, Document, Text, digest

__all__ = [
    "GradeRequest",
    "GradesFile",
    "Judge",
    "Judgement",
    "RuleJudge",
    "contained_fraction",
    "judgement_key",
]

_TOKEN = re.compile(r"(?<![\w)])-\d+(?:\.\d+)*|\d+(?:\.\d+)*|[^\W\d_]+")
_ARTICLES = {"a", "an", "the"}


@dataclass(frozen=True, slots=True)
class GradeRequest:
    """One answer to grade. `run` is the index of the grading run: each run grades the same answers once.

    Where the answer is a document with images, `document` holds it in place of `prediction`, and `reference_document` its reference.
    """

    id: str
    run: int
    question: str
    reference: str
    prediction: str
    document: Document = ()
    reference_document: Document = ()

    def to_json(self) -> dict[str, JSON]:
        """Plain data for a log, with images by the hash of their bytes; documents only where the answer is one."""
        line: dict[str, JSON] = {
            name: getattr(self, name) for name in ("id", "run", "question", "reference", "prediction")
        }
        for name in ("document", "reference_document"):
            if document := getattr(self, name):
                line[name] = _content(document)
        return line


@dataclass(frozen=True, slots=True)
class Judgement:
    """The grade of the request with the same id and run: a `score` in [0, 1], or None and the `reason`.

    `raw` is the judge's reply, `answered_by` the model's name in the reply of a server.
    """

    id: str
    run: int
    score: float | None
    raw: str = ""
    reason: str | None = None
    answered_by: str | None = None

    def __post_init__(self) -> None:
        if (self.score is None) == (self.reason is None):
            raise ValueError("a judgement has either a score or a reason")
        if self.score is not None and not 0 <= self.score <= 1:
            raise ValueError(f"a score lies in [0, 1]: {self.score}")


class Judge(ABC):
    """Grades answers. Construction loads no model and contacts no server; `identity` may load a local model."""

    runs: int = 1
    """Grading runs; the reported score is the mean over them."""

    @abstractmethod
    def identity(self) -> Mapping[str, JSON]:
        """What defines the judge: ``name``, the prompt's sha256, settings that affect grades. A field of the protocol."""

    @abstractmethod
    def grade(self, items: Sequence[GradeRequest]) -> Iterator[Judgement]:
        """Grade each item once, in any order; yield each judgement as soon as it is known.

        An item that cannot be graded gets a judgement without a score. Raises `JudgeError` if the judge cannot be reached.
        """

    @property
    def prompt_name(self) -> str:
        """The name of the grading prompt (``official``, ...), which names the protocol; without a prompt, the judge's name."""
        return str(self.identity().get("prompt", self.identity()["name"]))

    def estimate(self, items: Sequence[GradeRequest]) -> Sequence[str]:
        """Lines for ``--dry-run``: calls, tokens, cost."""
        return ()


@dataclass(frozen=True, slots=True)
class GradesFile:
    """``grades:FILE``: grades in the official evaluator's file format, which the task reads."""

    path: Path


def judgement_key(identity: Mapping[str, JSON], item: GradeRequest) -> str:
    """A hash of the judge and of what it grades: a changed answer, or an image with other bytes, has another key."""
    parts = [dict(identity), item.question, item.reference, item.prediction, item.run]
    if item.document or item.reference_document:
        parts += [_content(item.document), _content(item.reference_document)]
    return digest(parts)


def _content(document: Document) -> list[JSON]:
    return [{"text": part.text} if isinstance(part, Text) else {"sha256": part.digest()} for part in document]


# --- the rule -----------------------------------------------------------------------------------------------------------


def _tokens(text: str) -> list[str]:
    """Words and numbers, case-folded, without articles; a minus sign belongs to its number, a thousands separator does not."""
    plain = unicodedata.normalize("NFKC", text).replace("−", "-").casefold()
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", plain)
    return [token for token in _TOKEN.findall(plain) if token not in _ARTICLES]


def _contains(prediction: str, part: str) -> bool:
    """Whether the part's tokens occur consecutively in the prediction; a part without tokens (a sign) is searched as text."""
    wanted, tokens = _tokens(part), _tokens(prediction)
    if not wanted:
        return part.strip().casefold() in prediction.casefold()
    return any(tokens[start : start + len(wanted)] == wanted for start in range(len(tokens) - len(wanted) + 1))


def contained_fraction(reference: str, prediction: str) -> float | None:
    """The fraction of parts, separated by ``<AND>``, of which the prediction contains an ``<OR>`` alternative.

    ``<OR>`` binds tighter: ``red <OR> crimson <AND> two`` has two parts, the first with two alternatives. None for an empty reference.
    """
    parts = [[word for word in part.split("<OR>") if word.strip()] for part in reference.split("<AND>")]
    parts = [part for part in parts if part]
    if not parts:
        return None
    return sum(any(_contains(prediction, word) for word in part) for part in parts) / len(parts)


class RuleJudge(Judge):
    """``rule``: exact and free, but it knows no paraphrases and no contradictions."""

    def identity(self) -> Mapping[str, JSON]:
        return {"name": "rule", "version": 1}

    def grade(self, items: Sequence[GradeRequest]) -> Iterator[Judgement]:
        for item in items:
            score = contained_fraction(item.reference, item.prediction)
            reason = "the reference is empty" if score is None else None
            yield Judgement(item.id, item.run, score, reason=reason)
