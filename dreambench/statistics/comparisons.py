"""Two systems on the same questions: paired differences, McNemar, Wilcoxon; and several tests at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dreambench.statistics.intervals import (
    Clusters,
    as_scores,
    cluster_codes,
    clustered_standard_error,
    normal_interval,
    standard_error,
)


@dataclass(frozen=True)
class PairedDifference:
    """mean(a - b), in the scores' own unit, with its interval and two-sided test of no difference.

    `statistic` and `p_value` are None without spread; so is `correlation` when one of the systems has none. The unpaired standard error
    says what pairing gained.
    """

    value: float
    standard_error: float | None
    interval: tuple[float, float] | None
    statistic: float | None
    p_value: float | None
    method: str
    n: int
    correlation: float | None
    unpaired_standard_error: float | None
    confidence: float


@dataclass(frozen=True)
class McNemar:
    """Two systems' hits and misses. `table` is [[both, only a], [only b, neither]].

    The chi-square forms are None when the systems never disagree; the exact (binomial, two-sided) p is then 1.
    """

    table: tuple[tuple[int, int], tuple[int, int]]
    exact_p: float
    chi2: tuple[float, float] | None
    chi2_corrected: tuple[float, float] | None


@dataclass(frozen=True)
class SignedRank:
    """Wilcoxon's signed-rank statistic (the smaller rank sum) and its two-sided p by the normal approximation."""

    statistic: float
    p_value: float


def two_sided_p(z: float) -> float:
    """P(|Z| >= |z|) of a standard normal, accurate in the tail."""
    return math.erfc(abs(z) / math.sqrt(2))


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
        ValueError: the systems do not have as many scores, or a t test is asked of clustered questions.
    """
    first, second = _pair(a, b)
    difference = first - second
    n = difference.size
    if clusters is None:
        error, method = standard_error(difference), "normal"
        unpaired = math.hypot(standard_error(first), standard_error(second))
    elif test == "t":
        raise ValueError("a t test of clustered questions has no agreed degrees of freedom: use test='z'")
    else:
        codes = cluster_codes(clusters, n)
        error, method = clustered_standard_error(difference, codes), f"cluster by {cluster_name}"
        unpaired = math.hypot(clustered_standard_error(first, codes), clustered_standard_error(second, codes))
    value = float(difference.mean())
    statistic = p_value = None
    if error > 0:
        statistic = value / error
        p_value = two_sided_p(statistic) if test == "z" else _student_p(statistic, n - 1)
    undefined = math.isnan(error)
    return PairedDifference(
        value=value,
        standard_error=None if undefined else error,
        interval=None if undefined else normal_interval(value, error, confidence),
        statistic=statistic,
        p_value=p_value,
        method=method,
        n=n,
        correlation=_correlation(first, second),
        unpaired_standard_error=None if math.isnan(unpaired) else unpaired,
        confidence=confidence,
    )


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = as_scores(a), as_scores(b)
    if first.shape != second.shape:
        raise ValueError(f"the systems have {first.size} and {second.size} scores: pair them by question first")
    return first, second


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def _student_p(statistic: float, degrees: int) -> float:
    from scipy import stats

    return float(2 * stats.t.sf(abs(statistic), degrees))


def mcnemar(a: ArrayLike, b: ArrayLike) -> McNemar:
    """McNemar's test of two systems' right and wrong answers (scores of 0 and 1).

    Raises:
        ValueError: a score is neither 0 nor 1, or the systems do not have as many scores.
    """
    first, second = _pair(a, b)
    if not (np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()):
        raise ValueError("McNemar's test needs scores of 0 and 1")
    hit_a, hit_b = first == 1, second == 1
    counts = [int(np.count_nonzero(cell)) for cell in (hit_a & hit_b, hit_a & ~hit_b, ~hit_a & hit_b, ~hit_a & ~hit_b)]
    return mcnemar_table(((counts[0], counts[1]), (counts[2], counts[3])))


def mcnemar_table(table: tuple[tuple[int, int], tuple[int, int]]) -> McNemar:
    """The same from the table [[both, only a], [only b, neither]]."""
    only_a, only_b = table[0][1], table[1][0]
    discordant = only_a + only_b
    if discordant == 0:
        return McNemar(table, 1.0, None, None)
    from scipy import stats

    exact = min(1.0, 2 * float(stats.binom.cdf(min(only_a, only_b), discordant, 0.5)))
    distance = abs(only_a - only_b)
    plain, corrected = distance**2 / discordant, (distance - 1) ** 2 / discordant
    # Edwards' correction as it is written, also where the systems err equally often: statsmodels computes the same.
    # Chi-square with one degree of freedom is the square of a standard normal.
    return McNemar(table, exact, (plain, two_sided_p(math.sqrt(plain))), (corrected, two_sided_p(math.sqrt(corrected))))


def wilcoxon_signed_rank(a: ArrayLike, b: ArrayLike) -> SignedRank | None:
    """Wilcoxon's signed-rank test (zeros dropped, normal approximation, no continuity correction); None if nothing differs."""
    first, second = _pair(a, b)
    if not np.any(first != second):
        return None
    from scipy import stats

    result: Any = stats.wilcoxon(first - second, method="approx")
    return SignedRank(float(result.statistic), float(result.pvalue))


def adjust_p_values(
    p_values: ArrayLike, method: Literal["holm", "bonferroni", "fdr_bh"] = "holm"
) -> NDArray[np.float64]:
    """p values adjusted for their number, in the order given.

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
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, stepped)
    return adjusted
