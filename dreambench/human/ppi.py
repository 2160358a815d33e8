"""Judges held against humans on the same items, and judges' win rates corrected by human labels.

Prediction-powered inference: a judge answers every item, humans a part of them. The judge's mean over all items, plus the mean error that
the labelled items show, is unbiased whatever the judge is worth; PPI++ multiplies the judge by the lambda that makes the variance
smallest, so that a useless judge does no harm. Sources: Angelopoulos et al., "Prediction-powered inference" (Science 2023);
Angelopoulos, Duchi and Zrnic, "PPI++" (2023), example 6.1.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dreambench.human.agreement import Agreement, cohen_kappa
from dreambench.human.crossed import proportion
from dreambench.human.votes import Vote, systems_of
from dreambench.scores import Estimate
from dreambench.statistics import clustered_standard_error, interval_within, normal_interval, normal_quantile

__all__ = ["Corrected", "JudgeReport", "JudgedRate", "corrected_mean", "judge_report"]


@dataclass(frozen=True)
class Corrected:
    """A mean by prediction-powered inference. `worth`: the number of labels that alone would give an interval as narrow."""

    estimate: Estimate
    power: float
    labels: int
    judged: int
    worth: float | None


def corrected_mean(
    labels: ArrayLike,
    judged: ArrayLike,
    judged_only: ArrayLike,
    *,
    power: float | None = None,
    clusters: tuple[Sequence[Hashable], Sequence[Hashable]] | None = None,
    bounds: tuple[float, float] | None = None,
    confidence: float = 0.95,
) -> Corrected:
    """The mean of human labels of labelled items and of those that only a judge has seen.

    `labels` and `judged` are the humans' and the judge's scores of the labelled items, `judged_only` the judge's of the others;
    `clusters` are those of the labelled and of the other items. `power` is lambda: 1 is plain PPI, 0 the labels alone; by default
    PPI++'s estimate of the best one between 0 and 1. With `bounds`, those of a score, value and interval stay within them.

    Raises:
        ValueError: fewer than two labelled items, or the numbers of scores differ.
    """
    truth, seen, rest = (np.asarray(values, dtype=np.float64) for values in (labels, judged, judged_only))
    n, others = truth.size, rest.size
    if n < 2 or seen.shape != truth.shape:
        raise ValueError(f"{n} labels and {seen.size} judgements of the same items: at least two of each are needed")
    if power is None:
        power = _best_power(truth, seen, rest)
    value = float((truth - power * seen).mean() + (power * rest.mean() if others else power * seen.mean()))
    labelled_clusters, other_clusters = clusters or (range(n), range(n, n + others))
    influence = _influence(truth - power * seen)
    joint = list(labelled_clusters)
    if others:
        influence = np.concatenate([influence, _influence(power * rest)])
        joint += list(other_clusters)
    else:
        influence = _influence(truth)
    error = _error(influence, joint)
    alone = _error(_influence(truth), list(labelled_clusters))
    interval = normal_interval(value, error, confidence)
    if bounds is not None:
        value = min(max(value, bounds[0]), bounds[1])
        interval = interval_within(value, error, normal_quantile(confidence), bounds)
    estimate = Estimate(value, interval, "PPI++, cluster by prompt", n + others, error, confidence)
    return Corrected(estimate, power, n, others, n * alone**2 / error**2 if error else None)


def _best_power(truth: np.ndarray, seen: np.ndarray, rest: np.ndarray) -> float:
    """cov(label, judgement) / ((1 + n / N) var(judgement)), within 0 and 1 (PPI++, equation 8)."""
    if not rest.size:
        return 0.0
    variance = float(np.concatenate([seen, rest]).var(ddof=1))
    if variance == 0:
        return 0.0
    covariance = float(((truth - truth.mean()) * (seen - seen.mean())).mean())
    return min(1.0, max(0.0, covariance / ((1 + truth.size / rest.size) * variance)))


def _influence(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.size


def _error(influence: np.ndarray, clusters: Sequence[Hashable]) -> float:
    """Square root of the sum over clusters of squared sums. Influence values have mean 0, so this is n times the error of their mean."""
    return influence.size * clustered_standard_error(influence, clusters)


# --- judges -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JudgedRate:
    """A system's win rate by the judge alone and by humans alone, and corrected; None with `reason` where there are too few labels."""

    judge: Estimate
    humans: Estimate | None
    corrected: Corrected | None
    reason: str = ""


@dataclass(frozen=True)
class JudgeReport:
    """A judge against human votes on the same items.

    Agreement is the share of (human vote, judge's vote) pairs on the same item that are equal, ties of all kinds being one answer;
    without ties, pairs with a tie are left out. `between_humans` are the same shares of pairs of human votes, the most a judge can
    hope for. `first` is the share of decisive votes for the system shown first, `consistent` that of items judged in both orders in
    which the same system won.
    """

    items: int
    with_ties: Estimate | None
    without_ties: Estimate | None
    kappa: Agreement
    between_humans: dict[str, tuple[float, int] | None]
    first: Estimate | None
    consistent: Estimate | None
    win_rates: dict[str, JudgedRate]


def judge_report(humans: Sequence[Vote], judge: Sequence[Vote], confidence: float = 0.95) -> JudgeReport:
    """How far a judge agrees with humans, and the win rates that both together give."""
    by_human, by_judge = _by_item(humans), _by_item(judge)
    pairs = [
        (vote.score_of(item[1]), other.score_of(item[1]), vote.rater, vote.prompt)
        for item in by_human
        if item in by_judge
        for vote in by_human[item]
        for other in by_judge[item]
    ]
    decisive = [pair for pair in pairs if 0.5 not in pair[:2]]
    scores = np.array([pair[:2] for pair in pairs]).reshape(-1, 2)
    shown = [vote for vote in judge if vote.first and not vote.tie]
    return JudgeReport(
        items=sum(item in by_judge for item in by_human),
        with_ties=_share(pairs, confidence),
        without_ties=_share(decisive, confidence),
        kappa=cohen_kappa(2 * scores[:, 0] + 1, 2 * scores[:, 1] + 1, levels=3),
        between_humans={"with_ties": _between(by_human, True), "without_ties": _between(by_human, False)},
        first=_proportion([(vote.vote == vote.position, "", vote.prompt) for vote in shown], confidence),
        consistent=_consistency(by_judge, confidence),
        win_rates={system: _judged_rate(system, by_human, by_judge, confidence) for system in systems_of(judge)},
    )


Items = Mapping[tuple[str, str, str], Sequence[Vote]]


def _by_item(votes: Sequence[Vote]) -> dict[tuple[str, str, str], list[Vote]]:
    found: dict[tuple[str, str, str], list[Vote]] = {}
    for vote in votes:
        found.setdefault(vote.item, []).append(vote)
    return found


def _share(pairs: Sequence[tuple[float, float, str, str]], confidence: float) -> Estimate | None:
    return _proportion([(first == second, rater, prompt) for first, second, rater, prompt in pairs], confidence)


def _proportion(rows: Sequence[tuple[bool, str, str]], confidence: float) -> Estimate | None:
    if not rows:
        return None
    hits, raters, prompts = zip(*rows, strict=True)
    return proportion(hits, raters, prompts, confidence)


def _between(by_human: Items, ties: bool) -> tuple[float, int] | None:
    """(share in %, number) of pairs of human votes on the same item that are equal."""
    equal = total = 0
    for item, votes in by_human.items():
        scores = [vote.score_of(item[1]) for vote in votes if ties or not vote.tie]
        sizes = [scores.count(value) for value in (0.0, 0.5, 1.0)]
        equal += sum(size * (size - 1) // 2 for size in sizes)
        total += len(scores) * (len(scores) - 1) // 2
    return (100 * equal / total, total) if total else None


def _consistency(by_judge: Items, confidence: float) -> Estimate | None:
    """Over items that the judge saw in both orders: whether all votes name the same winner, or all a tie."""
    rows: list[tuple[bool, str, str]] = []
    for item, votes in by_judge.items():
        orders = {vote.first * (1 if vote.system_a == item[1] else -1) for vote in votes}
        if {1, -1} <= orders:
            rows.append((len({vote.score_of(item[1]) for vote in votes}) == 1, "", item[0]))
    return _proportion(rows, confidence)


def _judged_rate(system: str, by_human: Items, by_judge: Items, confidence: float) -> JudgedRate:
    def score(votes: Sequence[Vote]) -> float:
        return float(np.mean([vote.score_of(system) for vote in votes]))

    judged = {item: score(votes) for item, votes in by_judge.items() if system in item[1:]}
    labels = {item: score(votes) for item, votes in by_human.items() if system in item[1:]}
    alone = proportion(list(judged.values()), [""] * len(judged), [item[0] for item in judged], confidence)
    both, rest = [item for item in labels if item in judged], [item for item in judged if item not in labels]
    humans = None
    if labels:
        humans = proportion(list(labels.values()), [""] * len(labels), [item[0] for item in labels], confidence)
    if len(both) < 2:
        return JudgedRate(alone, humans, None, f"humans voted on {len(both)} of the judge's {len(judged)} items")
    corrected = corrected_mean(
        100 * np.array([labels[item] for item in both]),
        100 * np.array([judged[item] for item in both]),
        100 * np.array([judged[item] for item in rest]),
        clusters=([item[0] for item in both], [item[0] for item in rest]),
        bounds=(0, 100),
        confidence=confidence,
    )
    reason = "" if rest else "the judge saw no item that humans did not vote on"
    if len(both) < len(labels):
        reason = f"the correction leaves out {len(labels) - len(both)} items that the judge did not see"
    return JudgedRate(alone, humans, corrected, reason)
