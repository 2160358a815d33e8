"""What a judge is: something that grades an answer against a reference, and says who it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dreambench.documents import JSON, digest

__all__ = ["GradeRequest", "GradesFile", "Judge", "Judgement", "judgement_key"]


@dataclass(frozen=True, slots=True)
class GradeRequest:
    """One answer to be graded. `run` is the number of the grading run, from 0: the same answer is graded once in each."""

    id: str
    run: int
    question: str
    reference: str
    prediction: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """The grade of the request of the same id and run: `score` in [0, 1], or None and the `reason` why there is none.

    `raw` is what the judge said, `answered_by` the model's name in the server's reply, where there was one.
    """

    id: str
    run: int
    score: float | None
    raw: str = ""
    reason: str | None = None
    answered_by: str | None = None

    def __post_init__(self) -> None:
        if (self.score is None) == (self.reason is None):
            raise ValueError("a judgement has a score or the reason why it has none")
        if self.score is not None and not 0 <= self.score <= 1:
            raise ValueError(f"a score lies in [0, 1]: {self.score}")


class Judge(ABC):
    """Grades answers. Making one asks nothing of anybody; the first `grade` does."""

    runs: int = 1
    """How many grading runs the reported mean is over, unless the task says otherwise."""

    @abstractmethod
    def identity(self) -> Mapping[str, JSON]:
        """What pins the judge: ``name``, the prompt's sha256, settings. A field of the protocol; not what merely changes its pace."""

    @abstractmethod
    def grade(self, items: Sequence[GradeRequest]) -> Iterator[Judgement]:
        """Grade each item once, in any order, each yielded as soon as it is known.

        An item that cannot be graded has a judgement without a score; a judge that cannot be reached raises `JudgeError`.
        """

    @property
    def prompt_name(self) -> str:
        """``official`` or another grading prompt's name, which then names the protocol; the judge's own name where it has none."""
        return str(self.identity().get("prompt", self.identity()["name"]))

    def estimate(self, items: Sequence[GradeRequest]) -> Sequence[str]:
        """Lines for ``--dry-run``: calls, tokens, cost. Nothing where grading costs nothing."""
        return ()


@dataclass(frozen=True, slots=True)
class GradesFile:
    """``grades:FILE``: grades given elsewhere, in the official evaluator's file format; the task reads them."""

    path: Path


def judgement_key(identity: Mapping[str, JSON], item: GradeRequest) -> str:
    """The content that a judgement is of, hashed: who judges what. Changed answers never find old grades."""
    return digest([dict(identity), item.question, item.reference, item.prediction, item.run])
