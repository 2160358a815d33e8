"""Standard errors and intervals of a mean of scores, and the one rule that chooses between them: `mean_estimate`."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dreambench.scores import Estimate

Clusters = Iterable[Hashable]

# Rounding leaves about 1e-17 where scores cancel; a standard error that small is no spread at all.
_NOTHING = 1e-13

# Replicates are drawn in blocks of at most this many counts (32 MiB of int64). A constant, so that a seed always draws the same.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Bootstrap:
    """Percentile interval and standard error of a mean over bootstrap replicates."""

    interval: tuple[float, float]
    standard_error: float
    method: str
    resamples: int
    seed: int


def as_scores(scores: ArrayLike) -> NDArray[np.float64]:
    """One finite float64 per question, in a row.

    Raises:
        ValueError: there are none, they are not in one row, or one is not finite.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"scores must be a row of at least one number, not of shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite")
    return values


def cluster_codes(clusters: Clusters, n: int) -> NDArray[np.int64]:
    """Clusters as integers from 0, without gaps.

    Raises:
        ValueError: there is not one cluster per score.
    """
    if isinstance(clusters, np.ndarray):
        codes: NDArray[Any] = np.unique(clusters, return_inverse=True)[1]
    else:
        seen: dict[Hashable, int] = {}
        codes = np.array([seen.setdefault(cluster, len(seen)) for cluster in clusters])
    if codes.shape != (n,):
        raise ValueError(f"{n} scores, but clusters of shape {codes.shape}")
    return codes.astype(np.int64)


def normal_quantile(confidence: float) -> float:
    """The half-width of a two-sided interval in standard errors: 1.96 for 0.95."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def standard_error(scores: ArrayLike, *, ddof: int = 1) -> float:
    """s / sqrt(n) of independent scores; NaN for a single one with ddof 1.

    `ddof` 0 gives sqrt(p (1 - p) / n) for scores of 0 and 1.
    """
    values = as_scores(scores)
    if values.size <= ddof:
        return math.nan
    return _zero_if_rounding(float(values.std(ddof=ddof)) / math.sqrt(values.size), values)


def clustered_standard_error(
    scores: ArrayLike, clusters: Clusters, *, correction: Literal["CR0", "CR1"] = "CR0"
) -> float:
    """Standard error of the mean when only clusters are independent; NaN for a single cluster.

    CR0 is Miller (2024), equation 4: sqrt(sum over clusters of (sum of deviations)^2) / n. CR1 multiplies the variance by G / (G - 1)
    for G clusters, the usual small-sample correction of a model with an intercept only.
    """
    values = as_scores(scores)
    codes = cluster_codes(clusters, values.size)
    count = int(codes.max()) + 1
    if count < 2:
        return math.nan
    sums = np.bincount(codes, weights=values - values.mean())
    variance = float(sums @ sums) / values.size**2
    if correction == "CR1":
        variance *= count / (count - 1)
    return _zero_if_rounding(math.sqrt(variance), values)


def _zero_if_rounding(error: float, values: NDArray[np.float64]) -> float:
    return 0.0 if error <= _NOTHING * float(np.abs(values).max()) else error


def normal_interval(value: float, error: float, confidence: float = 0.95) -> tuple[float, float]:
    """value -/+ z * error. Not cut at the ends of a scale: an interval that leaves it says that the normal form is poor there."""
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


def bootstrap_mean(
    scores: ArrayLike,
    *,
    seed: int,
    clusters: Clusters | None = None,
    cluster_name: str = "cluster",
    resamples: int = 10_000,
    confidence: float = 0.95,
) -> Bootstrap:
    """Percentile bootstrap of a mean; with clusters, whole clusters are drawn and the mean is the ratio of sums.

    Resampling n units of which k are distinct (by score, or by a cluster's sum and size) is a multinomial draw of k counts, exactly. So
    a benchmark whose scores take eleven values costs eleven numbers per replicate, whatever its size.
    """
    values = as_scores(scores)
    if resamples < 2:
        raise ValueError(f"{resamples} resamples do not make an interval")
    if clusters is None:
        units = np.stack([values, np.ones_like(values)], axis=1)
    else:
        codes = cluster_codes(clusters, values.size)
        units = np.stack([np.bincount(codes, weights=values), np.bincount(codes)], axis=1)
    distinct, counts = np.unique(units, axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // len(distinct))
    means: list[NDArray[np.float64]] = []
    for start in range(0, resamples, block):
        draws = generator.multinomial(len(units), counts / len(units), size=min(block, resamples - start))
        totals = draws @ distinct
        means.append(totals[:, 0] / totals[:, 1])
    replicates = np.concatenate(means)
    low, high = np.quantile(replicates, [(1 - confidence) / 2, (1 + confidence) / 2])
    method = "bootstrap" if clusters is None else f"bootstrap by {cluster_name}"
    return Bootstrap((float(low), float(high)), float(replicates.std(ddof=1)), method, resamples, seed)


def mean_estimate(
    scores: ArrayLike,
    clusters: Clusters | None = None,
    *,
    cluster_name: str = "cluster",
    unit: str = "%",
    confidence: float = 0.95,
) -> Estimate:
    """The mean of the scores with the interval that suits them.

    Clusters given: normal with the clustered standard error. Otherwise scores of 0 and 1: Wilson. Otherwise: normal. Scores of 0 and 1
    that are all equal have no spread to build a normal interval from, so the Wilson interval over their clusters is given instead of a
    point.

    Raises:
        ValueError: no scores, a score that is not finite, or another number of clusters.
    """
    values = as_scores(scores)
    scale = 100.0 if unit == "%" else 1.0
    mean = float(values.mean())
    binary = bool(np.isin(values, (0.0, 1.0)).all())
    if clusters is None:
        error, units = standard_error(values), values.size
        method = "wilson" if binary else "normal"
    else:
        codes = cluster_codes(clusters, values.size)
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
