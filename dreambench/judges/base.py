"""What a judge is: it grades an answer against a reference, and has an identity that is part of the protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dreambench.documents import JSON, digest

__all__ = ["GradeRequest", "GradesFile", "Judge", "Judgement", "judgement_key"]


@dataclass(frozen=True, slots=True)
class GradeRequest:
    """One answer to grade. `run` is the index of the grading run: each run grades the same answers once."""

    id: str
    run: int
    question: str
    reference: str
    prediction: str


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
    """Grades answers. Nothing is loaded or contacted before the first `grade`."""

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
    """A hash of the judge and of what it grades, so that a changed answer never finds an old grade."""
    return digest([dict(identity), item.question, item.reference, item.prediction, item.run])
