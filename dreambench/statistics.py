"""Comparisons and planning: paired differences, significance tests and sample sizes; and the intervals of `dreambench.intervals`.

Scores are one number per question. Questions that share something (an image, a document) are not independent: pass their groups as
`clusters`. Nothing here reads a clock or a global random generator. scipy is imported on use, because it takes a second.

Source: Miller, "Adding Error Bars to Evals" (2024), for clustered and paired errors and for sample sizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from dreambench.intervals import (
    Array,
    Clusters,
    as_scores,
    bootstrap_mean,
    cluster_codes,
    clustered_standard_error,
    effective_clusters,
    interval_within,
    mean_estimate,
    normal_interval,
    normal_quantile,
    standard_error,
    student_quantile,
    wilson_interval,
)
from dreambench.scores import Estimate, Score

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "McNemar",
    "PairedDifference",
    "adjust_p_values",
    "bootstrap_mean",
    "clustered_standard_error",
    "detectable_difference",
    "interval_within",
    "mcnemar",
    "mean_estimate",
    "minimum_detectable_effect",
    "normal_interval",
    "normal_quantile",
    "paired_difference",
    "recompute",
    "required_questions",
    "standard_error",
    "student_quantile",
    "unpaired_interval",
    "variance_components",
    "wilcoxon_signed_rank",
    "wilson_interval",
]


def recompute(score: Score, table: pd.DataFrame) -> Estimate:
    """A score that has `cells`, computed again from scores.parquet.

    Raises:
        ValueError: the table has none of the score's cells, or one out of its bounds.
    """
    cells = score.cells
    if cells is None or any(name not in table for name in (cells.column, *cells.where, *filter(None, [cells.cluster]))):
        raise ValueError(f"{score.metric} is no mean of cells of this table")
    rows = cells.select(table)
    clusters = None if cells.cluster is None else rows[cells.cluster].tolist()
    scores, (low, high) = rows[cells.column].to_numpy(dtype=np.float64), cells.bounds
    bounds = low, math.inf if high is None else high
    return mean_estimate(scores, clusters, unit=score.unit, bounds=bounds, confidence=score.confidence)


# --- two systems on the same questions --------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairedDifference:
    """mean(a - b) in the scores' own unit, with the two-sided test of no difference.

    `statistic` and `p_value` are None without spread, and `correlation` is None when one system has none. Comparing
    `unpaired_standard_error` with the estimate's shows what pairing gains. `degrees` are Student's degrees of freedom.
    """

    estimate: Estimate
    statistic: float | None
    p_value: float | None
    correlation: float | None
    unpaired_standard_error: float | None
    degrees: float = math.inf


@dataclass(frozen=True)
class McNemar:
    """Two systems' hits and misses; `table` is [[both, only a], [only b, neither]].

    `exact_p` is binomial and two-sided, 1 when the systems never disagree; `chi2` and `chi2_corrected` (statistic, p) are then None.
    """

    table: tuple[tuple[int, int], tuple[int, int]]
    exact_p: float
    chi2: tuple[float, float] | None = None
    chi2_corrected: tuple[float, float] | None = None


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Clusters | None = None,
    *,
    cluster_name: str = "cluster",
    test: Literal["t", "z"] = "t",
    bounds: tuple[float, float] | None = None,
    confidence: float = 0.95,
) -> PairedDifference:
    """The difference of two systems' scores on the same questions, in the same order.

    `test` "t" is for any number of clusters: the standard error has the correction CR1, and p value and interval are Student's with one
    degree of freedom less than there are clusters (Kish's effective number), or questions. "z" is Miller's: CR0 for clusters, and the
    normal distribution. `bounds` are those of a score: the interval then ends where no difference can be larger. Where all questions
    differ by the same there is neither test nor interval.

    Raises:
        ValueError: the numbers of scores differ.
    """
    first, second = _pair(a, b)
    difference = first - second
    n = difference.size
    codes = np.arange(n) if clusters is None else cluster_codes(clusters, n)
    if clusters is None:
        error, *errors = (standard_error(values) for values in (difference, first, second))
    else:
        correction = "CR1" if test == "t" else "CR0"
        error, *errors = (
            clustered_standard_error(values, codes, correction=correction) for values in (difference, first, second)
        )
    value = float(difference.mean())
    method = f"{'t' if test == 't' else 'normal'}{'' if clusters is None else f', clustered by {cluster_name}'}"
    degrees = max(effective_clusters(codes) - 1, 1.0)
    interval = statistic = p_value = None
    if math.isnan(error):
        method = f"none: a single {'question' if clusters is None else cluster_name}"
    elif error == 0 and test == "t":
        equal = clusters is None or np.allclose(difference, value)
        method = "none: all differences are equal" if equal else f"none: equal for every {cluster_name}"
    else:
        half = error * (student_quantile(confidence, degrees) if test == "t" else normal_quantile(confidence))
        limit = math.inf if bounds is None else bounds[1] - bounds[0]
        interval = max(value - half, -limit), min(value + half, limit)
        if error > 0:
            statistic = value / error
            p_value = _student_p(statistic, degrees) if test == "t" else _two_sided_p(statistic)
    unpaired = math.hypot(*errors)
    spread = np.ptp(first) > 0 and np.ptp(second) > 0
    return PairedDifference(
        Estimate(value, interval, method, n, None if math.isnan(error) else error, confidence),
        statistic,
        p_value,
        correlation=float(np.corrcoef(first, second)[0, 1]) if spread else None,
        unpaired_standard_error=None if math.isnan(unpaired) else unpaired,
        degrees=degrees if test == "t" else math.inf,
    )


def unpaired_interval(
    first: float, first_interval: tuple[float, float], second: float, second_interval: tuple[float, float]
) -> tuple[float, float]:
    """An interval of `second` - `first` from the interval of each, of the confidence that both have.

    Source: Zou and Donner, "Construction of confidence limits about effect measures" (2008), equation 8 (MOVER), for independent
    estimates; too wide where they err in the same direction, as on the same samples.
    """
    (low1, high1), (low2, high2) = first_interval, second_interval
    difference = second - first
    return difference - math.hypot(second - low2, high1 - first), difference + math.hypot(high2 - second, first - low1)


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    first, second = as_scores(a), as_scores(b)
    if first.shape != second.shape:
        raise ValueError(f"the systems have {first.size} and {second.size} scores: pair them by question first")
    return first, second


def _two_sided_p(z: float) -> float:
    """P(|Z| >= |z|) of a standard normal, accurate in the tail."""
    return math.erfc(abs(z) / math.sqrt(2))


def _student_p(statistic: float, degrees: float) -> float:
    from scipy import stats

    return float(2 * stats.t.sf(abs(statistic), degrees))


def mcnemar(a: ArrayLike, b: ArrayLike) -> McNemar:
    """McNemar's test of two systems' right and wrong answers (scores of 0 and 1).

    Raises:
        ValueError: a score is neither 0 nor 1, or the numbers of scores differ.
    """
    first, second = _pair(a, b)
    if not (np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()):
        raise ValueError("McNemar's test needs scores of 0 and 1")
    both, only_a, only_b = int(first @ second), int(first @ (1 - second)), int((1 - first) @ second)
    table = ((both, only_a), (only_b, first.size - both - only_a - only_b))
    discordant = only_a + only_b
    if discordant == 0:
        return McNemar(table, 1.0)
    from scipy import stats

    exact = float(stats.binomtest(only_a, discordant).pvalue)
    # Edwards' correction as it is written, also where the systems err equally often: statsmodels computes the same.
    plain, corrected = ((abs(only_a - only_b) - shift) ** 2 / discordant for shift in (0, 1))
    return McNemar(table, exact, (plain, _chi2_p(plain)), (corrected, _chi2_p(corrected)))


def _chi2_p(statistic: float) -> float:
    """With one degree of freedom, chi-square is the square of a standard normal."""
    return _two_sided_p(math.sqrt(statistic))


def wilcoxon_signed_rank(a: ArrayLike, b: ArrayLike) -> tuple[float, float] | None:
    """Wilcoxon's signed-rank statistic (the smaller rank sum) and its two-sided p; None if nothing differs.

    Zeros are dropped; normal approximation without continuity correction.
    """
    first, second = _pair(a, b)
    if not np.any(first != second):
        return None
    from scipy import stats

    result: Any = stats.wilcoxon(first - second, method="approx")
    return float(result.statistic), float(result.pvalue)


def adjust_p_values(p_values: ArrayLike, method: Literal["holm", "bonferroni", "fdr_bh"] = "holm") -> Array:
    """p values adjusted for their number, in the given order.

    `holm` and `bonferroni` bound the chance of any false finding, `fdr_bh` (Benjamini-Hochberg) the share of false findings.

    Raises:
        ValueError: a value is not a probability, or the method is unknown.
    """
    values = as_scores(p_values)
    if values.min() < 0 or values.max() > 1:
        raise ValueError("p values must lie between 0 and 1")
    if method == "bonferroni":
        return np.minimum(1.0, values * values.size)
    if method == "fdr_bh":
        from scipy import stats

        return np.asarray(stats.false_discovery_control(values), dtype=np.float64)
    if method != "holm":
        raise ValueError(f"unknown adjustment {method!r}: holm, bonferroni or fdr_bh")
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(values.size, 0, -1))
    return np.minimum(1.0, stepped)[np.argsort(order)]


# --- sample sizes (Miller 2024, section 5) ----------------------------------------------------------------------------
# The variance of a paired difference of one question has two parts: `between`, the variance over questions of the true difference, and
# `within_a`, `within_b`, the variance of one answer's score given the question, divided by the number of answers per question.


def required_questions(
    effect: float,
    between: float,
    within_a: float = 0.0,
    within_b: float = 0.0,
    *,
    answers_a: int = 1,
    answers_b: int = 1,
    alpha: float = 0.05,
    power: float = 0.8,
) -> float:
    """Questions needed to detect a true difference `effect` (two-sided level `alpha`); Miller (2024), equation 9. Not rounded.

    Raises:
        ValueError: the effect is 0, which no number of questions can show.
    """
    if effect == 0:
        raise ValueError("no number of questions shows an effect of 0")
    return (_detectable(between, within_a, within_b, answers_a, answers_b, alpha, power) / effect) ** 2


def minimum_detectable_effect(
    n: int,
    between: float,
    within_a: float = 0.0,
    within_b: float = 0.0,
    *,
    answers_a: int = 1,
    answers_b: int = 1,
    alpha: float = 0.05,
    power: float = 0.8,
) -> float:
    """The smallest true difference that `n` questions detect with the given power; the inverse of `required_questions`."""
    if n < 1:
        raise ValueError(f"{n} questions")
    return _detectable(between, within_a, within_b, answers_a, answers_b, alpha, power) / math.sqrt(n)


def detectable_difference(
    standard_error: float, degrees: float = math.inf, *, alpha: float = 0.05, power: float = 0.8
) -> float:
    """The smallest true difference that a two-sided t test finds with the given power, where the estimate has this standard error.

    Exact, by the noncentral t distribution; `minimum_detectable_effect` for infinitely many degrees of freedom.
    """
    if degrees > 1000:  # to 0.2 %
        return standard_error * (normal_quantile(1 - alpha) + NormalDist().inv_cdf(power))
    from scipy import optimize, stats

    critical = float(stats.t.isf(alpha / 2, degrees))
    root: Any = optimize.brentq(lambda shift: stats.nct.sf(critical, degrees, shift) - power, 0.0, 10 * critical)
    return standard_error * float(root)


def _detectable(
    between: float, within_a: float, within_b: float, answers_a: int, answers_b: int, alpha: float, power: float
) -> float:
    """The effect that a single question detects."""
    if min(between, within_a, within_b) < 0 or min(answers_a, answers_b) < 1:
        raise ValueError("variances must not be negative, and there is at least one answer per question")
    variance = between + within_a / answers_a + within_b / answers_b
    return (normal_quantile(1 - alpha) + NormalDist().inv_cdf(power)) * math.sqrt(variance)


def variance_components(scores: ArrayLike, questions: Clusters) -> tuple[float, float]:
    """(variance of the questions' means, mean variance within a question) of repeated answers; both with ddof 1.

    Raises:
        ValueError: there are fewer than two questions, or a question has a single answer.
    """
    values = as_scores(scores)
    codes = cluster_codes(questions, values.size)
    sizes = np.bincount(codes)
    if len(sizes) < 2 or sizes.min() < 2:
        raise ValueError("variance components need at least two questions with at least two answers each")
    means = np.bincount(codes, weights=values) / sizes
    within = np.bincount(codes, weights=(values - means[codes]) ** 2) / (sizes - 1)
    return float(means.var(ddof=1)), float(within.mean())
