"""``human analyse``: acceptance, strengths, win rates, agreement, raters and judges, from a study or a table of votes.

Everything is computed from the rows alone, in a fixed order and with fixed seeds: the same rows give the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dreambench.documents import JSON
from dreambench.errors import DataError, UsageError, counted
from dreambench.files import write_atomically
from dreambench.human import agreement, preference
from dreambench.human.acceptance import DocumentRating, acceptance, acceptance_differences, threshold
from dreambench.human.ppi import judge_report
from dreambench.human.raters import RULE, Answered, rater_table
from dreambench.human.study import Item, Question, Rating, Study
from dreambench.human.votes import Vote, read_votes, systems_of
from dreambench.progress import say
from dreambench.scores import Estimate
from dreambench.statistics import mean_estimate

__all__ = ["PUBLISHED", "Table", "analyse", "analysis", "tables_of_study", "tables_of_votes"]

CONFIDENCE = 0.95
RESAMPLES = 1000
MANY_RATERS = 30
"""Beyond this number of raters, Cohen's kappa is not given for each pair."""
PUBLISHED: list[JSON] = [
    {"system": "DreamLLM", "value": 60.68, "unit": "%"},
    {"system": "MMC4 documents", "value": 77.24, "unit": "%"},
]
"""Supportive rates in the paper of DreamLLM (Dong et al. 2023), section 4.3: 150 documents, 5 for each of 30 topics, 5 volunteers."""
UNKNOWN = (
    "Published rates (DreamLLM paper, section 4.3) have no interval. Unknown: the number of votes (neither rate is a multiple of 1/750,"
    " so votes were missing or averaged otherwise), the number of MMC4 documents, the raters' instructions and their agreement."
)


@dataclass(frozen=True)
class Table:
    """The rows of one question: votes or ratings for the scores, and all answers, checks included, for the raters."""

    question: str
    kind: Literal["pairwise", "accept", "likert"]
    levels: int = 3
    votes: list[Vote] = field(default_factory=list[Vote])
    ratings: list[DocumentRating] = field(default_factory=list[DocumentRating])
    answers: list[Answered] = field(default_factory=list[Answered])


def analyse(
    study: Path | None,
    votes: Path | None,
    *,
    judge_votes: Sequence[Path] = (),
    judges: Sequence[str] = (),
    ties: preference.Ties = "davidson",
    accept_from: int | None = None,
    everyone: bool = False,
    without_careless: bool = False,
    json_file: Path | None = None,
    html_file: Path | None = None,
) -> None:
    """Print the analysis of a study or of a table of votes, and write it as JSON and as a page.

    Raises:
        UsageError: not exactly one of `study` and `votes`, or a judge who did not vote.
        DataError: a file is missing or damaged, or a row is not a vote; the message names the row.
    """
    from dreambench.human.report import page, print_analysis

    if study is not None and votes is None:
        source, tables = tables_of_study(study, accept_from=accept_from, everyone=everyone)
    elif votes is not None and study is None:
        if accept_from is not None or everyone:
            raise UsageError(
                "--accept-from and --everyone are about a study: a table of votes has neither scales nor an import"
            )
        source, tables = tables_of_votes(votes)
    else:
        raise UsageError("give either the folder of a study or a table of votes with --votes FILE")
    found = analysis(
        source, tables, judges=_judges(tables, judge_votes, judges), ties=ties, without_careless=without_careless
    )
    print_analysis(found)
    for target, text in ((json_file, lambda: _dump(found)), (html_file, lambda: page(found))):
        if target is not None:
            write_atomically(target, text().encode())
            say(f"wrote {target}")


def _dump(found: JSON) -> str:
    return json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


# --- rows -------------------------------------------------------------------------------------------------------------


def tables_of_votes(path: Path) -> tuple[JSON, list[Table]]:
    """What a file of votes says of itself, and its table."""
    votes = read_votes(path)
    return {"votes": path.name, "rows": len(votes)}, [_pairwise("preference", votes)]


def _pairwise(question: str, votes: list[Vote], answers: Iterable[Answered] = ()) -> Table:
    return Table(
        question, "pairwise", votes=votes, answers=[*(_answered(vote) for vote in votes if vote.rater), *answers]
    )


def _answered(vote: Vote, seconds: float | None = None) -> Answered:
    first = None if vote.tie or not vote.first else (vote.vote == vote.position)
    score = vote.score_of(vote.item[1])
    return Answered(vote.rater, vote.item, score, first=first, seconds=seconds, group=vote.item[1:])


def tables_of_study(
    folder: Path, *, accept_from: int | None = None, everyone: bool = False
) -> tuple[JSON, list[Table]]:
    """What a study says of itself, and a table for each of its questions.

    Scores come from the raters whom `human import` kept (with `everyone`, from all); the raters' table holds all of them. Training items
    count for nothing, attention checks and repeats only for care.
    """
    from dreambench.human.importing import load_ratings

    study = Study.read(folder)
    kept = {rating.rater for rating in load_ratings(folder, everyone=everyone)}
    ratings = load_ratings(folder, everyone=True)
    items = {item.id: item for item in study.items}
    tables = [
        _of_question(question, [r for r in ratings if r.question == question.id], items, kept, accept_from)
        for question in study.questions
    ]
    tables = [table for table in tables if table.votes or table.ratings]
    if not tables:
        raise DataError(f"{folder} has no ratings of kept raters: import more, or use --everyone")
    left_out = sorted({rating.rater for rating in ratings} - kept)
    source = {"study": study.id, "title": study.title, "design": study.design, "rows": len(ratings)}
    return source | {"left_out_raters": left_out}, tables


def _of_question(
    question: Question, ratings: Sequence[Rating], items: dict[str, Item], kept: set[str], accept_from: int | None
) -> Table:
    levels = len(question.labels)
    lowest = 1 if question.kind == "accept" else threshold(levels) if accept_from is None else accept_from
    if question.kind == "likert" and not 1 < lowest <= levels:
        raise UsageError(f"--accept-from {lowest}: the answers of question {question.id!r} go from 1 to {levels}")
    answer_of = {(rating.rater, rating.item): rating.answer for rating in ratings}
    votes: list[Vote] = []
    documents: list[DocumentRating] = []
    answers: list[Answered] = []
    for rating in ratings:
        item = items[rating.item]
        if item.purpose == "attention" and question.id in item.expected:
            answers.append(Answered(rating.rater, item.id, passed=rating.answer == item.expected[question.id]))
        elif item.purpose == "repeat" and (rating.rater, item.repeats) in answer_of:
            same = answer_of[rating.rater, str(item.repeats)] == rating.answer
            answers.append(Answered(rating.rater, item.id, repeated=same))
        elif item.purpose == "study" and question.kind == "pairwise":
            left, right = item.systems
            vote = Vote(item.prompt, left, right, str(rating.answer), rating.rater, "a")
            answers.append(_answered(vote, rating.seconds))
            votes += [vote] if rating.rater in kept else []
        elif item.purpose == "study":
            answer, system = int(rating.answer), item.systems[0]
            row = DocumentRating(item.prompt, item.topic, system, rating.rater, answer, answer >= lowest)
            key = (item.prompt, system)
            answers.append(Answered(rating.rater, key, score=float(row.accepted), seconds=rating.seconds))
            documents += [row] if rating.rater in kept else []
    return Table(question.id, question.kind, 3 if question.kind == "pairwise" else levels, votes, documents, answers)


def _judges(tables: list[Table], files: Sequence[Path], names: Sequence[str]) -> dict[str, list[Vote]]:
    """The votes of each judge: of each rater (or the whole) of a file, and of the named raters, who leave the table for it."""
    found: dict[str, list[Vote]] = {}
    for path in files:
        for vote in read_votes(path):
            found.setdefault(vote.rater or path.stem, []).append(vote)
    pairwise = next((number for number, table in enumerate(tables) if table.kind == "pairwise"), None)
    if pairwise is None:
        if files or names:
            raise UsageError("judges' votes can only be held against the votes of a pairwise question")
        return found
    table = tables[pairwise]
    for name in names:
        own = [vote for vote in table.votes if vote.rater == name]
        if not own:
            raters = sorted({vote.rater for vote in table.votes if vote.rater})
            raise UsageError(
                f"--judge {name}: no vote is that rater's; the raters are {', '.join(raters[:20]) or 'unnamed'}"
            )
        found.setdefault(name, []).extend(own)
    humans = [vote for vote in table.votes if vote.rater not in names]
    if not humans:
        raise UsageError("all votes are those of judges: leave some to hold them against")
    answers = [answer for answer in table.answers if answer.rater not in names]
    tables[pairwise] = replace(table, votes=humans, answers=answers)
    return found


# --- figures ----------------------------------------------------------------------------------------------------------


def analysis(
    source: JSON,
    tables: Sequence[Table],
    *,
    judges: dict[str, list[Vote]] | None = None,
    ties: preference.Ties = "davidson",
    without_careless: bool = False,
) -> dict[str, JSON]:
    """All figures as plain data: those of the first question (pairwise, where one is), then the others under ``other_questions``."""
    ordered = sorted(tables, key=lambda table: table.kind != "pairwise")
    parts = {table.question: _figures(table, judges or {}, ties, without_careless) for table in ordered}
    first = ordered[0].question
    others = {name: part for name, part in parts.items() if name != first}
    return {
        "source": source,
        "confidence": CONFIDENCE,
        **parts[first],
        **({"other_questions": others} if others else {}),
    }


def _figures(
    table: Table, judges: dict[str, list[Vote]], ties: preference.Ties, without_careless: bool
) -> dict[str, JSON]:
    raters = rater_table(table.answers, table.kind == "pairwise")
    careless = [name for name, row in raters.items() if row.careless]
    notes = [f"careless raters: {', '.join(careless)} ({RULE})"] if careless else []
    if without_careless and careless:
        table = replace(
            table,
            votes=[vote for vote in table.votes if vote.rater not in careless],
            ratings=[rating for rating in table.ratings if rating.rater not in careless],
        )
        notes.append(f"the scores leave out the ratings of {counted(len(careless), 'careless rater')}")
    found: dict[str, JSON] = {"question": table.question, "kind": table.kind, "strengths": {}, "win_rates": {}}
    if table.kind == "pairwise":
        found |= _preference(table.votes, ties, notes)
    else:
        found |= _acceptance(table.ratings, (0, 1) if table.kind == "accept" else (1, table.levels))
        notes.append(UNKNOWN)
    found["agreement"] = _agreement(table)
    sensitivity = found.pop("care", {})
    found["raters"] = {name: _json(row) | {"sensitivity": sensitivity.get(name)} for name, row in raters.items()}
    found["rule"] = RULE
    if table.kind == "pairwise" and judges:
        found["judges"] = {name: _json(judge_report(table.votes, judges[name], CONFIDENCE)) for name in sorted(judges)}
    return found | {"notes": notes}


def _acceptance(ratings: Sequence[DocumentRating], scale: tuple[int, int]) -> dict[str, JSON]:
    if not ratings:
        raise DataError("no ratings are left: use the analysis without --without-careless")
    return {
        "acceptance": _json(acceptance(ratings, CONFIDENCE, scale)),
        "differences": _json(acceptance_differences(ratings, CONFIDENCE)),
        "published": PUBLISHED,
    }


def _preference(votes: Sequence[Vote], ties: preference.Ties, notes: list[str]) -> dict[str, JSON]:
    if not votes:
        raise DataError("no votes are left: use the analysis without --without-careless")
    known = all(vote.position for vote in votes)
    models: dict[str, JSON] = {}
    for name in ("davidson", "half", "drop"):
        for position in (False, True) if known else (False,):
            models[f"{name} with position" if position else name] = _model(votes, name, position)
    headline = f"{ties} with position"
    if "strengths" not in models.get(headline, {}):
        notes.append(
            f"no position term: {models[headline]['reason']}"
            if known
            else "no position term: not all votes name the position"
        )
        headline = ties
    care = preference.rater_care(votes, ties, headline != ties) if len({vote.rater for vote in votes}) > 1 else {}
    if care:
        models["raters weighted by care"] = _model(votes, ties, headline != ties, care)
    chosen = models[headline]
    empty = {"value": None, "interval": None, "rank": None, "rank_interval": None, "reason": chosen.get("reason")}
    if "strengths" not in chosen:
        notes.append(f"strengths do not exist: {chosen['reason']}")
    shown = [vote.vote == vote.position for vote in votes if vote.position and not vote.tie]
    return {
        "strengths": chosen.get("strengths") or dict.fromkeys(systems_of(votes), empty),
        "model": headline,
        "models": models,
        "win_rates": _json(preference.win_rates(votes, CONFIDENCE)),
        "pairs": _json(preference.pair_rates(votes, CONFIDENCE)),
        "position": {"first": _json(mean_estimate(shown)) if shown else None, "effect": chosen.get("position")},
        "votes": {
            kind: sum(vote.vote == kind for vote in votes) for kind in ("a", "b", "tie", "both_good", "both_bad")
        },
        "care": care,
    }


def _model(
    votes: Sequence[Vote], ties: preference.Ties, position: bool, care: dict[str, float] | None = None
) -> dict[str, JSON]:
    found = preference.fit(votes, ties, position=position, care=care)
    if isinstance(found, str):
        return {"reason": found}
    table, effect = preference.strengths(found, CONFIDENCE)
    return {
        "strengths": _json(table),
        "position": _json(effect),
        "tie": found.tie,
        "log_likelihood": found.log_likelihood,
        "n": len(found.votes),
    }


def _agreement(table: Table) -> dict[str, JSON]:
    """Agreement on the items of the scores. Pairwise: 1 the second of the two sorted systems wins, 2 a tie, 3 the first wins."""
    if table.kind == "pairwise":
        rows = [(vote.rater, vote.item, int(2 * vote.score_of(vote.item[1])) + 1) for vote in table.votes]
        decisive = [(rater, item, 1 + category // 2) for rater, item, category in rows if category != 2]
        return _coefficients(rows, 3) | {"without_ties": _coefficients(decisive, 2)}
    shift = 1 if table.kind == "accept" else 0
    return _coefficients([(r.rater, (r.prompt, r.system), r.answer + shift) for r in table.ratings], table.levels)


def _coefficients(rows: Sequence[tuple[str, Any, int]], levels: int) -> dict[str, JSON]:
    """A rater's last answer to an item counts; each answer of an unnamed rater is another rater's."""
    by_item: dict[Any, dict[str, int]] = {}
    for rater, item, category in rows:
        given = by_item.setdefault(item, {})
        given[rater or f"\0{len(given)}"] = category
    raters = sorted({rater for given in by_item.values() for rater in given})
    index = {rater: number for number, rater in enumerate(raters)}
    matrix = np.full((len(raters), len(by_item)), np.nan)
    for column, given in enumerate(by_item.values()):
        for rater, category in given.items():
            matrix[index[rater], column] = category
    compact = np.sort(matrix, axis=0)[: int((~np.isnan(matrix)).sum(axis=0).max(initial=0))]  # NaN sorts last
    alpha = {
        metric: agreement.krippendorff_alpha(compact, levels, metric, RESAMPLES, CONFIDENCE)
        for metric in ("nominal", "ordinal", "interval")
    }
    named = [rater for rater in raters if not rater.startswith("\0")]
    pairs: list[dict[str, JSON]] = []
    if len(named) <= MANY_RATERS:
        pairs = [
            {"raters": [a, b]} | _cohen(matrix[index[a]], matrix[index[b]], levels)
            for number, a in enumerate(named)
            for b in named[number + 1 :]
        ]
    return {
        "krippendorff": _json(alpha),
        "fleiss_kappa": _json(agreement.fleiss_kappa(compact, levels)),
        "randolph_kappa": _json(agreement.randolph_kappa(compact, levels)),
        "cohen_kappa": [pair for pair in pairs if pair["n"]],
    }


def _cohen(a: Any, b: Any, levels: int) -> dict[str, JSON]:
    found = {name: agreement.cohen_kappa(a, b, levels, name) for name in ("unweighted", "linear", "quadratic")}
    return {"n": found["linear"].n} | {name: kappa.value for name, kappa in found.items()}


def _json(value: Any) -> Any:
    """Dataclasses as plain data; the fields of an estimate join those of what it estimates."""
    if isinstance(value, Estimate):
        return {name: _json(part) for name, part in asdict(value).items() if name != "confidence"}
    if is_dataclass(value):
        parts = {part.name: getattr(value, part.name) for part in fields(value)}
        merged: dict[str, Any] = {}
        for name, part in parts.items():
            merged |= _json(part) if name in ("estimate", "rate") else {name: _json(part)}
        return merged
    if isinstance(value, dict):
        return {str(key): _json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_json(part) for part in value]
    if isinstance(value, np.generic):
        return _json(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value
