"""The uncertainty of a score: standard errors, intervals, paired comparisons, significance tests and sample sizes.

Scores are one number per question. Questions that share something (an image, a document) are not independent: pass their groups as
`clusters`. Nothing here reads a clock or a global random generator. scipy is imported on use, because it takes a second.

Sources: Miller, "Adding Error Bars to Evals" (2024), for clustered and paired errors and for sample sizes; Wilson (1927).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dreambench.scores import Estimate

__all__ = [
    "McNemar",
    "PairedDifference",
    "adjust_p_values",
    "bootstrap_mean",
    "clustered_standard_error",
    "mcnemar",
    "mean_estimate",
    "minimum_detectable_effect",
    "normal_interval",
    "normal_quantile",
    "paired_difference",
    "required_questions",
    "standard_error",
    "variance_components",
    "wilcoxon_signed_rank",
    "wilson_interval",
]

Array = NDArray[np.float64]
Clusters = Iterable[Hashable]

ROUNDING = 1e-13
"""A standard error below this share of the largest score is rounding error and becomes 0."""
BLOCK = 1 << 22
"""Bootstrap counts drawn at once (32 MiB of int64). A constant, so that a seed always gives the same replicates."""


def _as_scores(scores: ArrayLike) -> Array:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"scores must be a row of at least one number, not of shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite")
    return values


def _cluster_codes(clusters: Clusters, n: int) -> NDArray[np.int64]:
    """Clusters as integers from 0, without gaps."""
    if isinstance(clusters, np.ndarray):
        codes: NDArray[Any] = np.unique(clusters, return_inverse=True)[1]
    else:
        seen: dict[Hashable, int] = {}
        codes = np.array([seen.setdefault(cluster, len(seen)) for cluster in clusters])
    if codes.shape != (n,):
        raise ValueError(f"{n} scores, but clusters of shape {codes.shape}")
    return codes.astype(np.int64)


# --- one system -------------------------------------------------------------------------------------------------------


def normal_quantile(confidence: float) -> float:
    """The half-width of a two-sided interval in standard errors: 1.96 for 0.95."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def standard_error(scores: ArrayLike, *, ddof: int = 1) -> float:
    """s / sqrt(n) of independent scores; NaN for a single one with `ddof` 1. `ddof` 0 gives sqrt(p (1 - p) / n) for 0/1 scores."""
    values = _as_scores(scores)
    if values.size <= ddof:
        return math.nan
    return _without_rounding(float(values.std(ddof=ddof)) / math.sqrt(values.size), values)


def clustered_standard_error(
    scores: ArrayLike, clusters: Clusters, *, correction: Literal["CR0", "CR1"] = "CR0"
) -> float:
    """Standard error of the mean when only clusters are independent; NaN for a single cluster.

    CR0 is Miller (2024), equation 4: sqrt(sum over clusters of (sum of deviations)^2) / n. CR1 multiplies the variance by G / (G - 1)
    for G clusters, the usual small-sample correction.
    """
    values = _as_scores(scores)
    codes = _cluster_codes(clusters, values.size)
    count = int(codes.max()) + 1
    if count < 2:
        return math.nan
    sums = np.bincount(codes, weights=values - values.mean())
    variance = float(sums @ sums) / values.size**2
    if correction == "CR1":
        variance *= count / (count - 1)
    return _without_rounding(math.sqrt(variance), values)


def _without_rounding(error: float, values: Array) -> float:
    return 0.0 if error <= ROUNDING * float(np.abs(values).max()) else error


def normal_interval(value: float, error: float, confidence: float = 0.95) -> tuple[float, float]:
    """value -/+ z * error. It is not cut at the ends of the scale: an interval that leaves it shows a poor approximation."""
    half = normal_quantile(confidence) * error
    return value - half, value + half


def wilson_interval(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, without continuity correction, within [0, 1]."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    z2 = normal_quantile(confidence) ** 2
    share = successes / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) + z2 / (4 * n)) / n) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_estimate(
    scores: ArrayLike,
    clusters: Clusters | None = None,
    *,
    cluster_name: str = "cluster",
    unit: str = "%",
    confidence: float = 0.95,
) -> Estimate:
    """The mean of the scores with the interval that suits them.

    With clusters: normal, with the clustered standard error. Without: Wilson for scores of 0 and 1, else normal. Scores of 0 and 1 that
    are all equal have no spread for a normal interval, so they get the Wilson interval over their clusters.

    Raises:
        ValueError: there are no scores, a score is not finite, or the number of clusters differs.
    """
    values = _as_scores(scores)
    scale = 100.0 if unit == "%" else 1.0
    mean = float(values.mean())
    binary = bool(np.isin(values, (0.0, 1.0)).all())
    if clusters is None:
        error, units = standard_error(values), values.size
        method = "wilson" if binary else "normal"
    else:
        codes = _cluster_codes(clusters, values.size)
        error, units = clustered_standard_error(values, codes), int(codes.max()) + 1
        method = f"cluster by {cluster_name}" if units > 1 else f"none: a single {cluster_name}"
        if binary and float(np.ptp(values)) == 0 and units > 1:
            method = f"wilson over {cluster_name}s"
    interval = None
    if method.startswith("wilson"):
        interval = wilson_interval(mean * units, units, confidence)
    elif not math.isnan(error):
        interval = normal_interval(mean, error, confidence)
    return Estimate(
        value=scale * mean,
        interval=None if interval is None else (scale * interval[0], scale * interval[1]),
        method=method,
        n=values.size,
        standard_error=None if math.isnan(error) else scale * error,
        confidence=confidence,
        unit=unit,
    )


def bootstrap_mean(
    scores: ArrayLike,
    *,
    seed: int,
    clusters: Clusters | None = None,
    cluster_name: str = "cluster",
    resamples: int = 10_000,
    confidence: float = 0.95,
) -> Estimate:
    """Percentile bootstrap of a mean; with clusters, whole clusters are drawn and the mean is the ratio of sums.

    Resampling n units of which k are distinct (by score, or by a cluster's sum and size) is exactly a multinomial draw of k counts.
    """
    values = _as_scores(scores)
    if resamples < 2:
        raise ValueError(f"an interval needs at least 2 resamples, not {resamples}")
    if clusters is None:
        units = np.stack([values, np.ones_like(values)], axis=1)
    else:
        codes = _cluster_codes(clusters, values.size)
        units = np.stack([np.bincount(codes, weights=values), np.bincount(codes)], axis=1)
    distinct, counts = np.unique(units, axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK // len(distinct))
    means: list[Array] = []
    for start in range(0, resamples, block):
        draws = generator.multinomial(len(units), counts / len(units), size=min(block, resamples - start))
        totals = draws @ distinct
        means.append(totals[:, 0] / totals[:, 1])
    replicates = np.concatenate(means)
    low, high = np.quantile(replicates, [(1 - confidence) / 2, (1 + confidence) / 2])
    method = "bootstrap" if clusters is None else f"bootstrap by {cluster_name}"
    error = float(replicates.std(ddof=1))
    return Estimate(float(values.mean()), (float(low), float(high)), method, values.size, error, confidence)


# --- two systems on the same questions --------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairedDifference:
    """mean(a - b) in the scores' own unit, with the two-sided test of no difference.

    `statistic` and `p_value` are None without spread, and `correlation` is None when one system has none. Comparing
    `unpaired_standard_error` with the estimate's shows what pairing gains.
    """

    estimate: Estimate
    statistic: float | None
    p_value: float | None
    correlation: float | None
    unpaired_standard_error: float | None


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
    test: Literal["z", "t"] = "z",
    confidence: float = 0.95,
) -> PairedDifference:
    """The difference of two systems' scores on the same questions, in the same order.

    `test` "t" takes the p value from Student's t with n - 1 degrees of freedom (independent questions only); the interval is normal.

    Raises:
        ValueError: the numbers of scores differ, or a t test of clustered questions is requested.
    """
    first, second = _pair(a, b)
    difference = first - second
    n = difference.size
    if clusters is None:
        method = "normal"
        error, *errors = (standard_error(values) for values in (difference, first, second))
    elif test == "t":
        raise ValueError("a t test of clustered questions has no agreed degrees of freedom: use test='z'")
    else:
        codes, method = _cluster_codes(clusters, n), f"cluster by {cluster_name}"
        error, *errors = (clustered_standard_error(values, codes) for values in (difference, first, second))
    value = float(difference.mean())
    statistic = p_value = None
    if error > 0:
        statistic = value / error
        p_value = _two_sided_p(statistic) if test == "z" else _student_p(statistic, n - 1)
    unpaired = math.hypot(*errors)
    known = not math.isnan(error)
    interval = normal_interval(value, error, confidence) if known else None
    spread = np.ptp(first) > 0 and np.ptp(second) > 0
    return PairedDifference(
        Estimate(value, interval, method, n, error if known else None, confidence),
        statistic,
        p_value,
        correlation=float(np.corrcoef(first, second)[0, 1]) if spread else None,
        unpaired_standard_error=None if math.isnan(unpaired) else unpaired,
    )


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    first, second = _as_scores(a), _as_scores(b)
    if first.shape != second.shape:
        raise ValueError(f"the systems have {first.size} and {second.size} scores: pair them by question first")
    return first, second


def _two_sided_p(z: float) -> float:
    """P(|Z| >= |z|) of a standard normal, accurate in the tail."""
    return math.erfc(abs(z) / math.sqrt(2))


def _student_p(statistic: float, degrees: int) -> float:
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
    values = _as_scores(p_values)
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
    values = _as_scores(scores)
    codes = _cluster_codes(questions, values.size)
    sizes = np.bincount(codes)
    if len(sizes) < 2 or sizes.min() < 2:
        raise ValueError("variance components need at least two questions with at least two answers each")
    means = np.bincount(codes, weights=values) / sizes
    within = np.bincount(codes, weights=(values - means[codes]) ** 2) / (sizes - 1)
    return float(means.var(ddof=1)), float(within.mean())
