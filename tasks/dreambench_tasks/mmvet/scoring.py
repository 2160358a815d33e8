"""From grades to MM-Vet's scores (yuweihao/MM-Vet, mm-vet_evaluator.py).

A capability's score is the mean grade of the questions that list it; an integration is an exact set of capabilities, so integrations
partition the questions. The judge is asked several times: values are means over runs, and the spread is that of the runs' totals.

A grade that is missing (the judge failed) is never 0. The mean is then that of the grades there are, and `lower` and `upper` say where
it would lie if every missing grade were 0, or 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dreambench.errors import DataError

__all__ = ["GroupScore", "MMVetScores", "aggregate", "integration_name"]

Grades = Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class GroupScore:
    """Percent. `per_run` and `value` are None where no grade is there; `n` questions, `unscored` missing grades of n times runs."""

    value: float | None
    lower: float
    upper: float
    per_run: tuple[float | None, ...]
    n: int
    unscored: int


@dataclass(frozen=True)
class MMVetScores:
    """Scores in percent, not rounded; capabilities and integrations by falling number of questions.

    `std` is the population standard deviation of the runs' totals, None where a run has no grade. `question_means` are the questions'
    mean grades over the runs, 0 to 1, None where all are missing.
    """

    total: GroupScore
    std: float | None
    capabilities: dict[str, GroupScore]
    integrations: dict[str, GroupScore]
    question_means: dict[str, float | None]
    runs: int

    def official_tables(self, decimals: int = 1) -> dict[str, Any]:
        """The two tables of the official evaluator, rounded as numpy rounds (ties to even after scaling).

        Raises:
            DataError: grades are missing; the official evaluator has no such score.
        """
        if self.total.unscored or self.std is None:
            raise DataError(f"{self.total.unscored} grades are missing: the official tables need every grade")
        shared = {"std": _round(self.std, decimals), "runs": [_round(total, decimals) for total in self.total.per_run]}
        tables: dict[str, Any] = {}
        for name, groups in (("cap-score", self.capabilities), ("cap-int-score", self.integrations)):
            values = {group: _round(score.value, decimals) for group, score in groups.items()}
            tables[name] = {**values, "total": _round(self.total.value, decimals), **shared}
        return tables


def integration_name(capabilities: Sequence[str]) -> str:
    """Capabilities sorted and joined by ``_``; the original's order depends on the hash seed."""
    return "_".join(sorted(set(capabilities)))


def aggregate(capabilities: Mapping[str, Sequence[str]], grades: Grades, runs: int | None = None) -> MMVetScores:
    """Scores of all groups. `capabilities` lists each question's; `grades` each question's grade per run, None where missing.

    `runs` is the number of runs counted (default: the longest list); grades beyond it are left out, as the official evaluator does.

    Raises:
        DataError: a grade is not within [0, 1], belongs to no question, or there are no questions or no runs.
    """
    counted = max(map(len, grades.values()), default=0) if runs is None else runs
    if not capabilities or counted < 1:
        raise DataError(f"{len(capabilities)} questions and {counted} grading runs make no score")
    table = _table(capabilities, grades, counted)
    members: dict[str, list[str]] = {}
    integrations: dict[str, list[str]] = {}
    # In the order of the grades, in which the official evaluator adds them.
    for question in table:
        integrations.setdefault(integration_name(capabilities[question]), []).append(question)
        for capability in dict.fromkeys(capabilities[question]):
            members.setdefault(capability, []).append(question)
    total = _group(table, list(table), counted)
    complete = [value for value in total.per_run if value is not None]
    return MMVetScores(
        total=total,
        std=float(np.std(complete)) if len(complete) == counted else None,
        capabilities=_by_size(table, members, counted),
        integrations=_by_size(table, integrations, counted),
        question_means={question: _mean(table[question]) for question in capabilities},
        runs=counted,
    )


def _table(capabilities: Mapping[str, Sequence[str]], grades: Grades, runs: int) -> dict[str, list[float | None]]:
    unknown = set(grades) - set(capabilities)
    if unknown:
        raise DataError(f"{len(unknown)} grades belong to no question, for instance {min(unknown)}")
    table: dict[str, list[float | None]] = {}
    for question in (*grades, *(each for each in capabilities if each not in grades)):
        given = list(grades.get(question, ()))[:runs]
        if any(grade is not None and not 0 <= grade <= 1 for grade in given):
            raise DataError(f"the grades of {question} are not within 0 and 1: {given}")
        table[question] = given + [None] * (runs - len(given))
    return table


def _group(table: Mapping[str, Sequence[float | None]], questions: Sequence[str], runs: int) -> GroupScore:
    n = len(questions)
    sums, missing = [0.0] * runs, [0] * runs
    for question in questions:
        for run, grade in enumerate(table[question]):
            if grade is None:
                missing[run] += 1
            else:
                sums[run] += grade
    per_run = tuple(
        float(np.float64(total) / (n - absent) * 100) if absent < n else None
        for total, absent in zip(sums, missing, strict=True)
    )
    present = [value for value in per_run if value is not None]
    return GroupScore(
        value=float(np.mean(present)) if present else None,
        lower=float(np.mean(np.array(sums) / n * 100)),
        upper=float(np.mean((np.array(sums) + np.array(missing)) / n * 100)),
        per_run=per_run,
        n=n,
        unscored=sum(missing),
    )


def _by_size(
    table: Mapping[str, Sequence[float | None]], groups: Mapping[str, Sequence[str]], runs: int
) -> dict[str, GroupScore]:
    sizes = Counter({name: len(questions) for name, questions in groups.items()})
    return {name: _group(table, groups[name], runs) for name, _ in sizes.most_common()}


def _mean(grades: Sequence[float | None]) -> float | None:
    present = [grade for grade in grades if grade is not None]
    return float(np.mean(present)) if present else None


def _round(value: float | None, decimals: int) -> float:
    return float(np.round(np.float64(value or 0.0), decimals))
