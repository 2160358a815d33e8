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
from typing import TypeAlias

from pydantic import ValidationError

from dreambench.documents import canonical_json
from dreambench.errors import DataError, UsageError, counted
from dreambench.files import read_bytes, read_json, read_json_lines, sha256_file, write_atomically
from dreambench.human.import_report import (
    NAMED,
    ImportReport,
    LeftOut,
    Needed,
    RaterReport,
    Reason,
    Rules,
    SourceReport,
)
from dreambench.human.readers import Claim, read_claims
from dreambench.human.serve import screening
from dreambench.human.study import RATINGS, Answer, Item, Rater, Rating, Study
from dreambench.lock import RunLock

__all__ = ["import_ratings", "load_ratings"]

REPORT = Path("organiser/import.json")
Key: TypeAlias = tuple[str, str, str]
"""Rater, item, question."""

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
    given = {"max_failed_checks": max_failed_checks, "min_seconds": min_seconds, "complete_only": complete_only}
    key = Study.read(study)
    files = list(files) or sorted((study / RATINGS).glob("served-*.jsonl"))
    with RunLock(study / "organiser", name="import.lock", alone=True):
        before = _read_report(study, key)
        if not files and not before.sources:
            raise UsageError(f"{study} has no ratings from `human serve`: name the files to import")
        rules = _changed(before.rules, {name: value for name, value in given.items() if value is not None})
        state = _State(key, _stored(study, key, before.sources))
        sources = {source.sha256: source for source in before.sources}
        new: dict[str, bytes] = {}
        unchanged: list[str] = []
        for file in files:
            data = read_bytes(file)
            sha256 = hashlib.sha256(data).hexdigest()
            if sha256 in sources:
                unchanged.append(file.name)
            else:
                sources[sha256], new[sha256] = _source(file, data, sha256, state)
        for sha256, accepted in new.items():
            write_atomically(study / RATINGS / f"{sha256}.jsonl", accepted)
        raters, votes = _judged(key, state.ratings, rules)
        report = ImportReport(
            study=key.id,
            rules=rules,
            sources=tuple(sources.values()),
            raters=raters,
            votes=votes,
            unchanged=tuple(unchanged),
            files=tuple(new),
        )
        write_atomically(study / REPORT, (canonical_json(report.model_dump(mode="json")) + "\n").encode())
    return report


def _changed(rules: Rules, changes: dict[str, float]) -> Rules:
    try:
        return Rules.model_validate({**rules.model_dump(), **changes})
    except ValidationError as error:
        text = ", ".join(f"{name} = {value}" for name, value in changes.items())
        raise UsageError(f"{text}: no such rule for raters") from error


def _source(file: Path, data: bytes, sha256: str, state: _State) -> tuple[SourceReport, bytes]:
    """What became of the ratings of a new file, and the lines of those that are accepted."""
    form, claims = read_claims(file, data, state.study)
    accepted, left_out = state.accept(claims)
    lines = "".join(canonical_json(rating.model_dump(mode="json")) + "\n" for rating in accepted).encode()
    report = SourceReport(
        sha256=sha256,
        name=file.name,
        form=form,
        found=len(claims),
        accepted=len(accepted),
        stored=hashlib.sha256(lines).hexdigest(),
        left_out=tuple(left_out),
    )
    return report, lines


def load_ratings(study: Path, *, everyone: bool = False) -> list[Rating]:
    """The last answer of each kept rater (with `everyone`, of all) to each question of each item, training items included.

    Sorted by rater, item and question. Raises `DataError` where nothing was imported or a file is damaged.
    """
    key = Study.read(study)
    report = _read_report(study, key)
    if not report.sources:
        raise DataError(f"{study} has no imported ratings: `dreambench human import {study} FILE...` first")
    left_out = set() if everyone else {rater.rater for rater in report.raters if rater.left_out}
    last = {_key(rating): rating for rating in _stored(study, key, report.sources) if rating.rater not in left_out}
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


def _stored(study: Path, key: Study, sources: Iterable[SourceReport]) -> list[Rating]:
    questions, ratings = {question.id: question for question in key.questions}, list[Rating]()
    items, raters = {item.id for item in key.items}, {rater.id for rater in key.raters}
    for source in sources:
        path, before = study / RATINGS / f"{source.sha256}.jsonl", len(ratings)
        try:
            for _, value in read_json_lines(path):
                rating = Rating.model_validate(value)
                if rating.item not in items or rating.rater not in raters:
                    raise KeyError(rating.item)
                if not questions[rating.question].allows(rating.answer):
                    raise ValueError(rating.answer)
                ratings.append(rating)
            if len(ratings) - before != source.accepted or source.stored not in (None, sha256_file(path)):
                raise ValueError(source.accepted)
        except (KeyError, ValueError) as error:  # pydantic's errors are ValueErrors
            raise DataError(
                f"{path} is damaged or was edited: remove {study / REPORT} and import the files again"
            ) from error
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
