"""Raters: their bias and their care, and which of them answered as if they had not looked.

The rule: a rater is named careless where failed attention checks, changed answers to repeated items and disagreement with the other
raters are together too many for the care of the median rater. Each of the three is a one-sided binomial test against the median rater's
rate (at most `BEST`: nobody is perfect); Fisher's method combines them; Holm's method corrects for the number of raters; below `LEVEL`
the rater is named. Speed is shown, and named where it is extreme, but is no reason alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from dreambench.human.crossed import Crossed, difference
from dreambench.scores import Estimate
from dreambench.statistics import adjust_p_values, mean_estimate

__all__ = ["RULE", "Answered", "Count", "RaterRow", "rater_table"]

BEST = 0.95
LEVEL = 0.01
FAST = 1 / 3
RULE = (
    "named careless: failed attention checks, changed answers to repeated items and disagreement with the majority of the other raters"
    f" are together improbable at the median rater's rates (binomial tests, Fisher, Holm over raters, p < {LEVEL})"
)


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer of a rater, reduced to what care needs.

    `item` is the same for all raters who saw the same documents, `group` for all votes on the same two systems; `score` is between 0
    and 1 (accepted, or the first of two sorted systems won), None for checks. `passed` is an attention check's result, `repeated`
    whether an item's second answer was the same. `first` says whether the document shown first won, None for ties and single documents.
    """

    rater: str
    item: Hashable
    score: float | None = None
    passed: bool | None = None
    repeated: bool | None = None
    first: bool | None = None
    seconds: float | None = None
    group: Hashable = None


class Count(NamedTuple):
    """`good` of `n`."""

    good: int
    n: int


@dataclass(frozen=True)
class RaterRow:
    """`bias` is leniency (points above the other raters on the same items) or the share of decisive votes for the document shown first."""

    answers: int
    attention: Count
    repeats: Count
    consensus: Count
    bias: Estimate | None
    ties: int
    median_seconds: float | None
    p_value: float
    careless: bool
    signs: list[str] = field(default_factory=list[str])


def rater_table(answers: Sequence[Answered], pairwise: bool) -> dict[str, RaterRow]:
    """Bias and care of each rater, by name."""
    raters = sorted({answer.rater for answer in answers})
    if not raters:
        return {}
    own = {rater: [answer for answer in answers if answer.rater == rater] for rater in raters}
    others = _leave_one_out(answers)
    counts = {rater: _counts(own[rater], others) for rater in raters}
    usual = [_median_rate([counts[rater][kind] for rater in raters]) for kind in range(3)]
    p_values = adjust_p_values([_p_value(counts[rater], usual) for rater in raters], "holm")
    seconds = {rater: _median_seconds(own[rater]) for rater in raters}
    known = [value for value in seconds.values() if value is not None]
    usual_seconds = statistics.median(known) if known else 0.0
    table: dict[str, RaterRow] = {}
    for rater, p_value in zip(raters, p_values, strict=True):
        attention, repeats, consensus = counts[rater]
        scored = [answer for answer in own[rater] if answer.score is not None]
        spent = seconds[rater]
        signs = _signs(counts[rater], usual)
        if spent is not None and spent < FAST * usual_seconds:
            signs.append(f"median of {spent:.1f} s where the median rater takes {usual_seconds:.1f} s")
        table[rater] = RaterRow(
            answers=len(scored),
            attention=attention,
            repeats=repeats,
            consensus=consensus,
            bias=_position(scored) if pairwise else _leniency(scored, others),
            ties=sum(answer.score == 0.5 for answer in scored),
            median_seconds=spent,
            p_value=float(p_value),
            careless=bool(p_value < LEVEL),
            signs=signs,
        )
    return table


def _leave_one_out(answers: Sequence[Answered]) -> Mapping[tuple[str, Hashable], float]:
    """The mean score of the other raters by (rater, item) and by (rater, group), where there are any."""
    sums: dict[Hashable, dict[str, tuple[float, int]]] = {}
    for answer in answers:
        for key in (answer.item, answer.group):
            if answer.score is not None and key is not None:
                own = sums.setdefault(key, {})
                total, n = own.get(answer.rater, (0.0, 0))
                own[answer.rater] = (total + answer.score, n + 1)
    found: dict[tuple[str, Hashable], float] = {}
    for key, by_rater in sums.items():
        total, n = (sum(values) for values in zip(*by_rater.values(), strict=True))
        for rater, (own_total, own_n) in by_rater.items():
            if n > own_n:
                found[rater, key] = (total - own_total) / (n - own_n)
    return found


def _counts(own: Sequence[Answered], others: Mapping[tuple[str, Hashable], float]) -> tuple[Count, Count, Count]:
    """Attention checks passed, repeats answered the same way, decisive answers on the side of the others' majority.

    The majority is that on the same item or, where no other rater answered it, on the same two systems.
    """
    passed = [answer.passed for answer in own if answer.passed is not None]
    same = [answer.repeated for answer in own if answer.repeated is not None]
    sides: list[bool] = []
    for answer in own:
        usual = others.get((answer.rater, answer.item), others.get((answer.rater, answer.group), 0.5))
        if answer.score not in (None, 0.5) and usual != 0.5:
            sides.append((answer.score > 0.5) == (usual > 0.5))
    first, second, third = (Count(sum(values), len(values)) for values in (passed, same, sides))
    return first, second, third


def _median_rate(counts: Sequence[Count]) -> float:
    return min(BEST, statistics.median([count.good / count.n for count in counts if count.n] or [BEST]))


def _p_value(counts: Sequence[Count], usual: Sequence[float]) -> float:
    from scipy import stats

    tails = [stats.binom.cdf(count.good, count.n, rate) for count, rate in zip(counts, usual, strict=True) if count.n]
    if not tails:
        return 1.0
    return float(stats.chi2.sf(-2 * float(np.log(np.maximum(tails, 1e-300)).sum()), 2 * len(tails)))


def _signs(counts: Sequence[Count], usual: Sequence[float]) -> list[str]:
    from scipy import stats

    words = (
        "attention checks passed",
        "repeated items answered the same way",
        "answers agree with the other raters' majority",
    )
    return [
        f"{count.good} of {count.n} {what}"
        for count, rate, what in zip(counts, usual, words, strict=True)
        if count.n and stats.binom.cdf(count.good, count.n, rate) < 0.05
    ]


def _median_seconds(own: Sequence[Answered]) -> float | None:
    seconds = [answer.seconds for answer in own if answer.seconds is not None]
    return statistics.median(seconds) if seconds else None


def _leniency(scored: Sequence[Answered], others: Mapping[tuple[str, Hashable], float]) -> Estimate | None:
    gaps = [
        answer.score - others[answer.rater, answer.item]
        for answer in scored
        if answer.score is not None and (answer.rater, answer.item) in others
    ]
    if not gaps:
        return None
    values = np.array(gaps)
    error = Crossed([""] * len(gaps), range(len(gaps))).error(100 * (values - values.mean()) / len(gaps))
    mean = round(100 * float(values.mean()), 9) + 0.0  # sums that cancel leave rounding errors
    return difference(mean, error, len(gaps), "over items", "points", 0.95, (-100, 100))


def _position(scored: Sequence[Answered]) -> Estimate | None:
    first = [answer.first for answer in scored if answer.first is not None]
    return mean_estimate(first) if first else None
