"""The uncertainty of one system's score: standard errors, and intervals that stay within the metric's range.

Scores are one number per question. Questions that share something (an image, a document) are not independent: pass their groups as
`clusters`. Nothing here reads a clock or a global random generator, and nothing imports scipy, which takes a second.

Sources: Miller, "Adding Error Bars to Evals" (2024), for clustered errors; Wilson (1927); Kish (1965) for unequal clusters; Dean and
Pagano (2015) and Franco et al. (2019) for Wilson's interval with an effective sample size and Student's t. docs/reliability.md has the
simulated coverage.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from functools import cache
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dreambench.scores import Estimate

__all__ = [
    "Array",
    "Clusters",
    "as_scores",
    "bootstrap_mean",
    "cluster_codes",
    "clustered_standard_error",
    "effective_clusters",
    "interval_within",
    "mean_estimate",
    "normal_interval",
    "normal_quantile",
    "standard_error",
    "student_quantile",
    "wilson_interval",
]

Array = NDArray[np.float64]
Clusters = Iterable[Hashable]

ROUNDING = 1e-13
"""A standard error below this share of the largest score is rounding error and becomes 0."""
SLACK = 1e-9
"""How far rounding may put a score out of its bounds, such as a cosine."""
MANY_DEGREES = 1e6
"""Degrees of freedom above which Student's t is the normal distribution, to 1e-6."""
WORST_CASE = 1.5
"""How many outcomes of the rarer kind must be seen until the scores' own design effect counts as much as the worst case. Chosen by the
simulation of coverage in tests/statistics: with 0, means near the ends of the range in few clusters are covered in 73 to 86 %."""
BLOCK = 1 << 22
"""Bootstrap counts drawn at once (32 MiB of int64). A constant, so that a seed always gives the same replicates."""


def as_scores(scores: ArrayLike) -> Array:
    """A row of at least one finite number."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"scores must be a row of at least one number, not of shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite")
    return values


def cluster_codes(clusters: Clusters, n: int) -> NDArray[np.int64]:
    """Clusters as integers from 0, without gaps."""
    if isinstance(clusters, np.ndarray):
        codes: NDArray[Any] = np.unique(clusters, return_inverse=True)[1]
    else:
        seen: dict[Hashable, int] = {}
        codes = np.array([seen.setdefault(cluster, len(seen)) for cluster in clusters])
    if codes.shape != (n,):
        raise ValueError(f"{n} scores, but clusters of shape {codes.shape}")
    return codes.astype(np.int64)


def effective_clusters(codes: NDArray[np.int64]) -> float:
    """How many clusters of equal size would count as much: (sum of sizes)^2 / sum of squared sizes (Kish)."""
    sizes = np.bincount(codes).astype(np.float64)
    return float(sizes.sum()) ** 2 / float(sizes @ sizes)


# --- quantiles and standard errors --------------------------------------------------------------------------------------


def normal_quantile(confidence: float) -> float:
    """The half-width of a two-sided interval in standard errors: 1.96 for 0.95."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)


@cache
def student_quantile(confidence: float, degrees: float) -> float:
    """The half-width of a two-sided interval in standard errors by Student's t: 2.776 for 0.95 and 4 degrees of freedom (at least 1).

    With t = sqrt(degrees) tan(angle), the share of t within the angle is an integral of cos(angle)^(degrees - 1).
    """
    if degrees < 1:
        raise ValueError(f"{degrees} degrees of freedom")
    if degrees > MANY_DEGREES:
        return normal_quantile(confidence)
    normal_quantile(confidence)  # refuses the same confidences
    nodes, weights = np.polynomial.legendre.leggauss(128)
    whole = math.sqrt(math.pi) / 2 * math.exp(math.lgamma(degrees / 2) - math.lgamma((degrees + 1) / 2))
    low, high = (
        0.0,
        math.atan(math.tan(confidence * math.pi / 2) / math.sqrt(degrees)),
    )  # that of 1 degree is the widest
    while high - low > 1e-14 * high:
        angle = (low + high) / 2
        within = angle / 2 * float(weights @ np.cos(angle * (nodes + 1) / 2) ** (degrees - 1)) / whole
        low, high = (angle, high) if within < confidence else (low, angle)
    return math.sqrt(degrees) * math.tan(high)


def standard_error(scores: ArrayLike, *, ddof: int = 1) -> float:
    """s / sqrt(n) of independent scores; NaN for a single one with `ddof` 1. `ddof` 0 gives sqrt(p (1 - p) / n) for 0/1 scores."""
    values = as_scores(scores)
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
    values = as_scores(scores)
    return _clustered_error(values, cluster_codes(clusters, values.size), correction)


def _clustered_error(values: Array, codes: NDArray[np.int64], correction: Literal["CR0", "CR1"]) -> float:
    sums = np.bincount(codes, weights=values - values.mean())
    count = len(sums)
    if count < 2:
        return math.nan
    variance = float(sums @ sums) / values.size**2
    if correction == "CR1":
        variance *= count / (count - 1)
    return _without_rounding(math.sqrt(variance), values)


def _without_rounding(error: float, values: Array) -> float:
    return 0.0 if error <= ROUNDING * float(np.abs(values).max()) else error


# --- intervals ----------------------------------------------------------------------------------------------------------


def normal_interval(value: float, error: float, confidence: float = 0.95) -> tuple[float, float]:
    """value -/+ z * error, for what has no range, or for many independent observations."""
    half = normal_quantile(confidence) * error
    return value - half, value + half


def wilson_interval(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, without continuity correction, within [0, 1]."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    return _wilson(successes / n, n, normal_quantile(confidence))


def _wilson(share: float, n: float, quantile: float) -> tuple[float, float]:
    square = quantile**2
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = math.sqrt(square * (share * (1 - share) + square / (4 * n)) / n) / (1 + square / n)
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))  # rounding must not part them


def _exact(share: float, n: float, confidence: float) -> tuple[float, float]:
    """Clopper and Pearson's interval of a share of 0 or 1: n scores are all equal with a probability of (1 - confidence) / 2 at its end."""
    end = ((1 - confidence) / 2) ** (1 / n)
    return (end, 1.0) if share else (0.0, 1 - end)


def interval_within(value: float, error: float, quantile: float, bounds: tuple[float, float]) -> tuple[float, float]:
    """Wilson's interval of a value with any standard error, within `bounds`, of which the upper one may be infinite.

    The ends are the means m at which |value - m| is `quantile` standard errors, where the error at m is that of the value times
    sqrt(V(m) / V(value)), with V(m) = (m - low) (high - m), or m - low without an upper bound. A value on a bound has no such error: its
    interval is value -/+ quantile * error, cut at the bounds.
    """
    low, high = bounds
    above, width = value - low, high - low
    if not 0 < above < width:
        half = quantile * error
        return max(low, value - half), min(high, value + half)
    if error == 0:
        return value, value
    if math.isinf(high):
        step = (quantile * error) ** 2 / above
        half = math.sqrt(step * (above + step / 4))
        return low + max(0.0, above + step / 2 - half), value + step / 2 + half
    share = above / width
    first, last = _wilson(share, share * (1 - share) * (width / error) ** 2, quantile)
    return low + width * first, low + width * last


def mean_estimate(
    scores: ArrayLike,
    clusters: Clusters | None = None,
    *,
    cluster_name: str = "cluster",
    unit: str = "%",
    bounds: tuple[float, float] = (0.0, 1.0),
    confidence: float = 0.95,
) -> Estimate:
    """The mean of scores within `bounds`, with an interval that stays within them and holds for few clusters.

    Wilson's interval with the effective sample size of the scores (`_effective_size`), and Student's t with one degree of freedom less
    than there are clusters (Kish's effective number); a mean on a bound has Clopper and Pearson's, with the clusters as scores. Without
    `clusters` each score is one. An upper bound may be infinite.

    Args:
        unit: the estimate's; "%" multiplies value and interval by 100.

    Raises:
        ValueError: there are no scores, a score is not finite or out of bounds, or the number of clusters differs.
    """
    values = as_scores(scores)
    low, high = bounds
    if values.min() < low - SLACK or values.max() > high + SLACK:
        raise ValueError(
            f"scores must lie between {low:g} and {high:g}, not between {values.min():g} and {values.max():g}"
        )
    values = values.clip(low, high)
    codes = np.arange(values.size) if clusters is None else cluster_codes(clusters, values.size)
    mean, error = float(values.mean()), _clustered_error(values, codes, "CR1")
    interval, method = None, f"none: a single {'score' if clusters is None else cluster_name}"
    if error == 0 and math.isinf(high):
        method = "none: all scores are equal"
    elif not math.isnan(error):
        groups = effective_clusters(codes)
        quantile = student_quantile(confidence, max(groups - 1, 1.0))
        if math.isinf(high):
            interval = interval_within(mean, error, quantile, bounds)
            method = "wilson without upper bound"
        else:
            share = (mean - low) / (high - low)
            size = _effective_size(share, error / (high - low), values.size, groups)
            certain = share in (0, 1)
            first, last = _exact(share, size, confidence) if certain else _wilson(share, size, quantile)
            interval = low + (high - low) * first, low + (high - low) * last
            method = "exact" if certain else "wilson"
        method += "" if clusters is None else f", clustered by {cluster_name}"
    scale = 100.0 if unit == "%" else 1.0
    return Estimate(
        value=scale * mean,
        interval=None if interval is None else (scale * interval[0], scale * interval[1]),
        method=method,
        n=values.size,
        standard_error=None if math.isnan(error) else scale * error,
        confidence=confidence,
        unit=unit,
    )


def _effective_size(share: float, error: float, n: int, clusters: float) -> float:
    """The number of independent 0/1 scores that a mean `share` of scores in [0, 1] with this standard error is worth.

    share (1 - share) / error^2, which is n for independent 0/1 scores. How far clusters reduce it is hardly known where the rarer
    outcome was seen seldom, and not at all where it was never seen; then every cluster counts as one score. In between, the logarithm
    of the size is the mean of both, weighted with the effective number of rarer outcomes and with `WORST_CASE`.
    """
    if error == 0:
        return clusters
    size = share * (1 - share) / error**2 * n / (n - 1)
    seen = size * min(share, 1 - share)
    return math.exp((seen * math.log(size) + WORST_CASE * math.log(min(clusters, size))) / (seen + WORST_CASE))


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
    values = as_scores(scores)
    if resamples < 2:
        raise ValueError(f"an interval needs at least 2 resamples, not {resamples}")
    if clusters is None:
        units = np.stack([values, np.ones_like(values)], axis=1)
    else:
        codes = cluster_codes(clusters, values.size)
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
