"""From grades to MM-Vet's scores (yuweihao/MM-Vet, mm-vet_evaluator.py).

A capability's score is the mean grade of the questions that list it; an integration is an exact set of capabilities, so integrations
partition the questions. The judge grades several times: values are means over the grading runs, and the spread is that of their totals.

A missing grade (the judge failed) is never 0. The mean is then that of the grades there are, and `lower` and `upper` are what it would
be if every missing grade were 0, or 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dreambench.errors import DataError, counted

__all__ = ["GroupScore", "MMVetScores", "aggregate", "integration_name"]


@dataclass(frozen=True)
class GroupScore:
    """Percent. `per_run` and `value` are None where there is no grade; `n` questions, `unscored` missing grades of n times runs."""

    value: float | None
    lower: float
    upper: float
    per_run: tuple[float | None, ...]
    n: int
    unscored: int


@dataclass(frozen=True)
class MMVetScores:
    """Scores in percent, not rounded; capabilities and integrations in descending order of their number of questions.

    `std` is the population standard deviation of the runs' totals, None where a run has no grade. `question_means` are the questions'
    mean grades over the runs, 0 to 1, None where all are missing.
    """

    total: GroupScore
    std: float | None
    capabilities: dict[str, GroupScore]
    integrations: dict[str, GroupScore]
    question_means: dict[str, float | None]
    runs: int


def integration_name(capabilities: Sequence[str]) -> str:
    """Capabilities sorted and joined by ``_``; the original's order depends on the hash seed."""
    return "_".join(sorted(set(capabilities)))


def aggregate(
    capabilities: Mapping[str, Sequence[str]], grades: Mapping[str, Sequence[float | None]], runs: int
) -> MMVetScores:
    """Scores of all groups.

    Args:
        capabilities: those of each question.
        grades: each question's grade from 0 to 1 per grading run, None where missing, of no question but these.
        runs: how many grading runs count; further ones are left out, as in the official evaluator.
    """
    if unknown := grades.keys() - capabilities.keys():
        raise DataError(
            f"{counted(len(unknown), 'grade belongs', 'grades belong')} to no question, for instance {min(unknown)}"
        )
    table: dict[str, list[float | None]] = {}
    # In the order of the grades, in which the official evaluator adds them.
    for question in dict.fromkeys([*grades, *capabilities]):
        row = list(grades.get(question, ()))[:runs]
        table[question] = row + [None] * (runs - len(row))
    members: dict[str, list[str]] = {}
    integrations: dict[str, list[str]] = {}
    for question in table:
        integrations.setdefault(integration_name(capabilities[question]), []).append(question)
        for capability in dict.fromkeys(capabilities[question]):
            members.setdefault(capability, []).append(question)
    total = _group(table, list(table), runs)
    totals = [value for value in total.per_run if value is not None]
    return MMVetScores(
        total=total,
        std=float(np.std(totals)) if len(totals) == runs else None,
        capabilities=_by_size(table, members, runs),
        integrations=_by_size(table, integrations, runs),
        question_means={question: _mean(table[question]) for question in capabilities},
        runs=runs,
    )


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
    return GroupScore(
        value=_mean(per_run),
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


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None
