"""What an import says: the rules, what became of each file's ratings and of each rater, and the votes that are still needed."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from dreambench.documents import JSON
from dreambench.errors import counted
from dreambench.report.text import printable

__all__ = ["NAMED", "ImportReport", "LeftOut", "Needed", "RaterReport", "Reason", "Rules", "SourceReport"]

NAMED = 5
"""Places that are named for each reason."""

Reason: TypeAlias = Literal[
    "incomplete or damaged line",
    "another study",
    "unknown rater",
    "repeated",
    "edited: its seal does not fit",
    "follows an edited rating",
    "sealed by another rater",
    "item that this rater was not shown",
    "question that this item does not ask",
    "answer that the question does not allow",
    "answered otherwise in a file imported before",
    "given by another person than the rater's first answer",
]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Rules(_Frozen):
    """Which raters are left out of the analysis. They apply to all ratings imported so far."""

    max_failed_checks: int = Field(default=1, ge=0)
    """Attention checks that a rater may fail."""
    min_seconds: float = Field(default=2.0, ge=0, allow_inf_nan=False)
    """A rater's median time for an item."""
    complete_only: bool = False
    """Leave out raters who have not answered all their items."""

    def __str__(self) -> str:
        rules = [
            f"failed more than {counted(self.max_failed_checks, 'attention check')}",
            "failed the training items twice",
            f"spent less than {self.min_seconds:g} s on the median item",
            *(["did not answer all items"] if self.complete_only else []),
        ]
        return f"leave out raters who {', or '.join(rules)}"


class LeftOut(_Frozen):
    """Ratings of a source that were not accepted for one reason; `where` names the first of them."""

    reason: Reason
    n: int
    where: tuple[str, ...]


class SourceReport(_Frozen):
    """A file: how many ratings it held, and what became of them."""

    sha256: str
    name: str
    form: str
    found: int
    accepted: int
    stored: str | None = None
    """sha256 of the file with the accepted ratings; None in the import of an earlier version."""
    left_out: tuple[LeftOut, ...]


class RaterReport(_Frozen):
    """A rater so far. `seconds` is the median time for an item, None where no times are known."""

    rater: str
    answered: int
    asked: int
    checks: int
    checks_failed: int
    seconds: float | None
    left_out: tuple[str, ...]
    """Why; empty for a rater who is kept."""


class Needed(_Frozen):
    """Votes on the documents of these systems for a prompt: those that were planned and those of kept raters."""

    prompt: str
    systems: tuple[str, ...]
    planned: int
    given: int


class ImportReport(_Frozen):
    """Everything imported so far, in the order of import."""

    study: str
    rules: Rules
    sources: tuple[SourceReport, ...]
    raters: tuple[RaterReport, ...]
    votes: tuple[Needed, ...]
    unchanged: tuple[str, ...] = Field(default=(), exclude=True)
    """Files of this call that had been imported before."""
    files: tuple[str, ...] = Field(default=(), exclude=True)
    """sha256 of the sources of this call."""

    def to_json(self) -> JSON:
        """The report as it is stored, with the rules in words and the number of votes that are still needed."""
        return {**self.model_dump(mode="json"), "rule": str(self.rules), "needed": self.needed}

    @property
    def needed(self) -> int:
        """Votes that are still needed."""
        return sum(max(0, vote.planned - vote.given) for vote in self.votes)

    def lines(self) -> list[str]:
        """The report for a terminal."""
        lines = [f"{printable(name)}: imported before, no change" for name in self.unchanged]
        for source in self.sources:
            if source.sha256 not in self.files:
                continue
            lines.append(
                f"{printable(source.name)} ({source.form}): {source.accepted} of {counted(source.found, 'rating')} accepted"
            )
            for left in source.left_out:
                more = "" if left.n <= len(left.where) else ", …"
                lines.append(f"  left out: {left.n} {left.reason} ({', '.join(map(printable, left.where))}{more})")
        lines.append(f"rule: {self.rules}")
        for rater in self.raters:
            seconds = "no times" if rater.seconds is None else f"median {rater.seconds:.1f} s"
            checks = f"{rater.checks_failed} of {counted(rater.checks, 'check')} failed"
            verdict = f"left out: {'; '.join(rater.left_out)}" if rater.left_out else "kept"
            complete = "" if rater.answered == rater.asked else ", incomplete"
            lines.append(
                f"  {rater.rater}  {rater.answered} of {rater.asked} answers{complete}, {checks}, {seconds}: {verdict}"
            )
        open_votes = [vote for vote in self.votes if vote.given < vote.planned]
        planned = sum(vote.planned for vote in self.votes)
        lines.append(f"votes: {planned - self.needed} of {planned} planned, {self.needed} still needed")
        lines += [
            f"  {printable(vote.prompt)}  {printable(' | '.join(vote.systems))}: {vote.given} of {vote.planned}"
            for vote in open_votes[:NAMED]
        ]
        if len(open_votes) > NAMED:
            lines.append(f"  … and {len(open_votes) - NAMED} others (--json FILE lists them all)")
        return lines
