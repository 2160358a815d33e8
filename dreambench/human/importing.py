"""``human import``: ratings from files into a study, by rules that are printed and stored.

STUDY/organiser/ratings/<sha256 of the source>.jsonl   the ratings accepted from a source, as `Rating`
STUDY/organiser/import.json                            the `ImportReport`, written last: what it does not name is not imported

Ratings are accepted one by one (a wrong study, an unknown item, a broken seal: left out, counted and named); raters are kept or left out
as a whole, by `Rules`, from everything imported so far. Nothing in a file is executed, and no name in it becomes a path.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dreambench.documents import JSON, canonical_json
from dreambench.errors import DataError, UsageError, counted
from dreambench.files import read_bytes, read_json, read_json_lines, write_atomically
from dreambench.human.readers import Claim, read_claims
from dreambench.human.study import RATINGS, Answer, Item, Rater, Rating, Study
from dreambench.lock import RunLock
from dreambench.report.text import printable

__all__ = ["ImportReport", "Needed", "RaterReport", "Rules", "SourceReport", "import_ratings", "load_ratings"]

REPORT = Path("organiser/import.json")
NAMED = 5
"""Places that are named for each reason."""

Key: TypeAlias = tuple[str, str, str]
"""Rater, item, question."""

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


# --- importing --------------------------------------------------------------------------------------------------------


def import_ratings(
    study: Path,
    files: Sequence[Path] = (),
    *,
    max_failed_checks: int | None = None,
    min_seconds: float | None = None,
    complete_only: bool | None = None,
) -> ImportReport:
    """Import files of any form that `human export` asks back, and judge all raters anew.

    Without `files`, those of `human serve`. A file that was imported before changes nothing. An answer that was imported stays: another
    file may add to a rater's answers, and only a longer copy of the same sealed chain may change them.

    Args:
        max_failed_checks, min_seconds, complete_only: see `Rules`; where None, as in the import before, or the default.

    Raises:
        DataError: no study, or a file that cannot be read or is of no known form; then nothing is imported.
        UsageError: no files are given, and none were served; or a rule makes no sense.
    """
    key = Study.read(study)
    given = {"max_failed_checks": max_failed_checks, "min_seconds": min_seconds, "complete_only": complete_only}
    changes = {name: value for name, value in given.items() if value is not None}
    files = list(files) or sorted((study / RATINGS).glob("served-*.jsonl"))
    with RunLock(study / "organiser", name="import.lock", alone=True):
        before = _read_report(study, key)
        if not files and not before.sources:
            raise UsageError(f"{study} has no ratings from `human serve`: name the files to import")
        try:
            rules = Rules.model_validate({**before.rules.model_dump(), **changes})
        except ValidationError as error:
            raise UsageError(
                f"{', '.join(f'{name} = {value}' for name, value in changes.items())}: no such rule"
            ) from error
        state = _State(key, _stored(study, before.sources))
        sources, unchanged, new = list(before.sources), list[str](), dict[str, list[Rating]]()
        for file in files:
            data = read_bytes(file)
            sha256 = hashlib.sha256(data).hexdigest()
            if any(source.sha256 == sha256 for source in sources):
                unchanged.append(file.name)
                continue
            form, claims = read_claims(file, data, key)
            accepted, left_out = state.accept(claims)
            new[sha256] = accepted
            sources.append(
                SourceReport(
                    sha256=sha256,
                    name=file.name,
                    form=form,
                    found=len(claims),
                    accepted=len(accepted),
                    left_out=tuple(left_out),
                )
            )
        for sha256, accepted in new.items():
            lines = [canonical_json(rating.model_dump(mode="json")) + "\n" for rating in accepted]
            write_atomically(study / RATINGS / f"{sha256}.jsonl", "".join(lines).encode())
        raters, votes = _judged(key, state.ratings, rules)
        report = ImportReport(
            study=key.id,
            rules=rules,
            sources=tuple(sources),
            raters=raters,
            votes=votes,
            unchanged=tuple(unchanged),
            files=tuple(new),
        )
        write_atomically(study / REPORT, (canonical_json(report.model_dump(mode="json")) + "\n").encode())
    return report


def load_ratings(study: Path, *, everyone: bool = False) -> list[Rating]:
    """The last answer of each kept rater (with `everyone`, of all) to each question of each item, training items included.

    Sorted by rater, item and question. Raises `DataError` where nothing was imported or a file is damaged.
    """
    key = Study.read(study)
    report = _read_report(study, key)
    if not report.sources:
        raise DataError(f"{study} has no imported ratings: `dreambench human import {study} FILE...` first")
    left_out = set() if everyone else {rater.rater for rater in report.raters if rater.left_out}
    last = {_key(rating): rating for rating in _stored(study, report.sources) if rating.rater not in left_out}
    return [last[key] for key in sorted(last)]


def _read_report(study: Path, key: Study) -> ImportReport:
    path = study / REPORT
    if not path.exists():
        return ImportReport(study=key.id, rules=Rules(), sources=(), raters=(), votes=())
    try:
        report = ImportReport.model_validate_json(canonical_json(read_json(path)))
    except ValidationError as error:
        raise DataError(f"{path} is damaged: remove it and import the files again") from error
    if report.study != key.id:
        raise DataError(f"{path} belongs to another study ({report.study}, not {key.id}): remove it and import again")
    return report


def _stored(study: Path, sources: Iterable[SourceReport]) -> list[Rating]:
    ratings: list[Rating] = []
    for source in sources:
        path = study / RATINGS / f"{source.sha256}.jsonl"
        try:
            ratings += [Rating.model_validate(value) for _, value in read_json_lines(path)]
        except ValidationError as error:
            raise DataError(f"{path} is damaged: remove {study / REPORT} and import the files again") from error
    return ratings


def _key(rating: Rating) -> Key:
    return rating.rater, rating.item, rating.question


# --- ratings ----------------------------------------------------------------------------------------------------------


@dataclass
class _Chain:
    """A rater's sealed ratings in the file that is being read."""

    seals: list[str] = field(default_factory=list[str])
    broken: bool = False


class _State:
    """The key and what is imported. `accept` takes the claims of one file."""

    def __init__(self, study: Study, ratings: list[Rating]) -> None:
        self.study = study
        self.id = study.id  # a hash of the whole key
        self.ratings = ratings
        self.items = {item.id: item for item in study.items}
        self.questions = {question.id: question for question in study.questions}
        self.raters = {rater.id: rater for rater in study.raters}

    def accept(self, claims: Sequence[Claim]) -> tuple[list[Rating], list[LeftOut]]:
        """The ratings that are new and valid, and what was left out, by reason."""
        before = {_key(rating): rating.answer for rating in self.ratings}
        stored: dict[str, list[str]] = {}
        for rating in self.ratings:
            if rating.seal:
                stored.setdefault(rating.rater, []).append(rating.seal)
        chains: dict[str, _Chain] = {}
        people: dict[str, str] = {}
        accepted: list[Rating] = []
        here: dict[Key, Answer] = {}
        places: dict[Reason, list[str]] = {}
        for claim in claims:
            rating = self._rating(claim)
            if rating is None:
                reason = "incomplete or damaged line"
            else:
                reason = self._reason(rating, claim.sealed, chains.setdefault(rating.rater, _Chain()))
                if reason is None:
                    known = stored.get(rating.rater, [])
                    reason = self._met_before(rating, claim.sealed, chains[rating.rater].seals, known, before, here)
                if reason is None and people.setdefault(rating.rater, claim.person) != claim.person:
                    reason = "given by another person than the rater's first answer"
                if reason is None:
                    accepted.append(rating)
                    here[_key(rating)] = rating.answer
            if reason is not None:
                places.setdefault(reason, []).append(claim.where)
        self.ratings = [*self.ratings, *accepted]
        return accepted, [
            LeftOut(reason=reason, n=len(where), where=tuple(where[:NAMED])) for reason, where in places.items()
        ]

    def _rating(self, claim: Claim) -> Rating | None:
        try:
            canonical_json(dict(claim.fields)).encode()  # half a surrogate pair could not be stored
            return Rating.model_validate({"study": self.id, "seconds": 0.0, **claim.fields})
        except (ValidationError, ValueError):
            return None

    def _reason(self, rating: Rating, sealed: bool, chain: _Chain) -> Reason | None:
        """Why a rating is not valid, by itself or after those before it in its file."""
        rater = self.raters.get(rating.rater)
        if rating.study != self.id:
            return "another study"
        if rater is None:
            return "unknown rater"
        if sealed:
            if rating.seal in chain.seals:
                return "repeated"
            before = chain.seals[-1] if chain.seals else ""
            if chain.broken:
                return "follows an edited rating"
            if rating.seal != rating.sealed(rater.token, before):
                chain.broken = True
                return (
                    "sealed by another rater" if self._is_anothers(rating, before) else "edited: its seal does not fit"
                )
            chain.seals.append(rating.seal)
        item = self.items.get(rating.item)
        if item is None or item.id not in rater.items:
            return "item that this rater was not shown"
        if rating.question not in item.questions:
            return "question that this item does not ask"
        if not self.questions[rating.question].allows(rating.answer):
            return "answer that the question does not allow"
        return None

    def _is_anothers(self, rating: Rating, before: str) -> bool:
        """Whether another rater's token made the seal, with that rater's name or under this one's."""
        others = [rater for rater in self.study.raters if rater.id != rating.rater]
        named = ((rater.token, rating.model_copy(update={"rater": rater.id})) for rater in others)
        return any(
            rating.seal in (rating.sealed(token, before), theirs.sealed(token, before)) for token, theirs in named
        )

    @staticmethod
    def _met_before(
        rating: Rating,
        sealed: bool,
        chain: Sequence[str],
        stored: Sequence[str],
        before: dict[Key, Answer],
        here: dict[Key, Answer],
    ) -> Reason | None:
        """Whether an answer is imported already. `chain` and `stored` are the rater's seals in this file and in all before."""
        key = _key(rating)
        if sealed:
            if rating.seal in stored:
                return "repeated"
            if list(chain[: len(stored)]) == list(stored):
                return None  # this copy of the chain goes on where the stored one ends
        elif key not in before and here.get(key) == rating.answer:
            return "repeated"
        if key not in before:
            return None
        return "repeated" if before[key] == rating.answer else "answered otherwise in a file imported before"


# --- raters -----------------------------------------------------------------------------------------------------------


def _judged(
    study: Study, ratings: Sequence[Rating], rules: Rules
) -> tuple[tuple[RaterReport, ...], tuple[Needed, ...]]:
    """Each rater with ratings, and the votes by prompt and systems."""
    items = {item.id: item for item in study.items}
    by_rater: dict[str, list[Rating]] = {}
    for rating in ratings:
        by_rater.setdefault(rating.rater, []).append(rating)
    raters = tuple(
        _judge(study, rater, items, by_rater[rater.id], rules) for rater in study.raters if rater.id in by_rater
    )
    kept = {rater.rater for rater in raters if not rater.left_out}
    answered = {_key(rating) for rating in ratings if rating.rater in kept}
    planned: Counter[tuple[str, tuple[str, ...]]] = Counter()
    given: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for rater in study.raters:
        for item in (items[id_] for id_ in rater.items):
            if item.purpose == "study":
                cell = item.prompt, tuple(sorted(item.systems))
                planned[cell] += 1
                given[cell] += all((rater.id, item.id, question) in answered for question in item.questions)
    votes = tuple(
        Needed(prompt=cell[0], systems=cell[1], planned=planned[cell], given=given[cell]) for cell in sorted(planned)
    )
    return raters, votes


def _judge(study: Study, rater: Rater, items: dict[str, Item], ratings: list[Rating], rules: Rules) -> RaterReport:
    from dreambench.human.serve import screening

    last = {(rating.item, rating.question): rating for rating in ratings}
    shown = [items[id_] for id_ in rater.items if items[id_].purpose != "training"]
    asked = [(item.id, question) for item in shown for question in item.questions]
    times: dict[str, float] = {}
    for rating in ratings:
        if items[rating.item].purpose != "training":
            times[rating.item] = max(times.get(rating.item, 0.0), rating.seconds)
    seconds = median(times.values()) if any(times.values()) else None
    checks = [
        item for item in shown if item.purpose == "attention" and any((item.id, q) in last for q in item.questions)
    ]
    failed = sum(
        any((item.id, q) in last and last[item.id, q].answer != right for q, right in item.expected.items())
        for item in checks
    )
    answered = sum(pair in last for pair in asked)
    reasons = {
        f"{counted(failed, 'attention check')} failed": failed > rules.max_failed_checks,
        "training items failed twice": screening(study, rater, ratings) == "failed",
        f"median {seconds or 0:.1f} s": seconds is not None and seconds < rules.min_seconds,
        "incomplete": rules.complete_only and answered < len(asked),
    }
    return RaterReport(
        rater=rater.id,
        answered=answered,
        asked=len(asked),
        checks=len(checks),
        checks_failed=failed,
        seconds=seconds,
        left_out=tuple(reason for reason, applies in reasons.items() if applies),
    )
