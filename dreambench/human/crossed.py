"""Standard errors of estimates whose observations share raters and prompts: two crossed kinds of clusters.

An estimate that is a function of sums has an influence value for each observation: how much that observation moved it. Their sums
within clusters give the variance, by raters plus by prompts minus what both count (Cameron, Gelbach and Miller 2011). With five raters
the normal distribution is far too narrow: Student's t with Satterthwaite's degrees of freedom takes its place. docs/human.md has the
simulated coverage, and that of the percentile bootstrap over raters and documents beside it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dreambench.scores import Estimate
from dreambench.statistics import interval_within, wilson_interval

__all__ = ["Array", "Crossed", "Error", "difference", "proportion", "rank_intervals"]

Array = NDArray[np.float64]


class Error(NamedTuple):
    """A standard error with its degrees of freedom, for Student's t."""

    standard_error: float
    degrees: float

    def quantile(self, confidence: float) -> float:
        """The half-width of a two-sided interval in standard errors."""
        from scipy import stats

        return float(stats.t.ppf((1 + confidence) / 2, self.degrees))


class Crossed:
    """The clusters of a list of observations: those kinds of `names` that have at least two clusters."""

    def __init__(self, raters: Sequence[Hashable], prompts: Sequence[Hashable]) -> None:
        kinds = {"rater": _codes(raters), "prompt": _codes(prompts)}
        self._kinds = {name: codes for name, codes in kinds.items() if codes.size and codes.max() > 0}
        self._both = _codes(list(zip(*self._kinds.values(), strict=True))) if len(self._kinds) == 2 else None
        self.method = "cluster by " + " and ".join(self._kinds) if self._kinds else "none: a single rater and prompt"

    def error(self, influence: Array) -> Error | None:
        """The standard error of an estimate with these influence values (n,); None where there is a single cluster."""
        parts = [_part(influence, codes) for codes in self._kinds.values()]
        if not parts:
            return None
        if self._both is None:
            variance, degrees = parts[0]
        else:
            (a, a_degrees), (b, b_degrees) = parts
            both, both_degrees = _part(influence, self._both)
            variance = a + b - both
            if variance <= max(a, b):
                # No variance is left for the other kind of cluster; the difference could even be negative.
                variance, degrees = max(parts)
            else:
                squares = a**2 / a_degrees + b**2 / b_degrees + both**2 / both_degrees
                degrees = max(variance**2 / squares, min(a_degrees, b_degrees))
        return Error(math.sqrt(variance), degrees)


def _codes(values: Sequence[Hashable]) -> NDArray[np.int64]:
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(value, len(seen)) for value in values], dtype=np.int64)


def _part(influence: Array, codes: NDArray[np.int64]) -> tuple[float, float]:
    """(variance between clusters, its degrees of freedom). Clusters of unequal size count as fewer: (sum of sizes)^2 / sum of squares.

    Observations without influence, such as those of other systems, belong to no cluster.
    """
    sums, sizes = np.bincount(codes, weights=influence), np.bincount(codes, weights=influence != 0)
    count = max(2, int((sizes > 0).sum()))
    effective = float(sizes.sum()) ** 2 / max(float(sizes @ sizes), 1.0)
    return float(sums @ sums) * count / (count - 1), max(effective - 1, 1.0)


def proportion(
    scores: ArrayLike, raters: Sequence[Hashable], prompts: Sequence[Hashable], confidence: float = 0.95
) -> Estimate:
    """The mean of scores between 0 and 1 with an interval on the logit scale, in %.

    Scores that are all 0 or all 1 have no spread: Wilson's interval over the prompts, as if all raters were one, takes its place.
    """
    values = np.asarray(scores, dtype=np.float64)
    mean = float(values.mean())
    clusters = Crossed(raters, prompts)
    error = clusters.error((values - mean) / values.size)
    estimate: dict[str, Any] = {"value": 100 * mean, "n": values.size, "confidence": confidence, "unit": "%"}
    if mean in (0.0, 1.0):
        units = len(set(prompts))
        low, high = wilson_interval(mean * units, units, confidence)
        return Estimate(interval=(100 * low, 100 * high), method="wilson over prompts", **estimate)
    if error is None:
        return Estimate(interval=None, method=clusters.method, **estimate)
    spread = error.quantile(confidence) * error.standard_error / (mean * (1 - mean))
    low, high = (100 / (1 + math.exp(-(math.log(mean / (1 - mean)) + side * spread))) for side in (-1, 1))
    return Estimate(
        interval=(low, high),
        method=f"{clusters.method}, t on the logit scale",
        standard_error=100 * error.standard_error,
        **estimate,
    )


def difference(
    value: float,
    error: Error | None,
    n: int,
    method: str,
    unit: str,
    confidence: float,
    bounds: tuple[float, float] | None = None,
) -> Estimate:
    """An estimate with the interval value -/+ t * error, or Wilson's within `bounds`; none where the observations do not vary."""
    if error is None or error.standard_error == 0:
        return Estimate(value, None, "none: no spread" if error else method, n, None, confidence, unit)
    half = error.quantile(confidence) * error.standard_error
    interval = value - half, value + half
    if bounds is not None:
        interval = interval_within(value, error.standard_error, error.quantile(confidence), bounds)
    return Estimate(value, interval, f"{method}, t", n, error.standard_error, confidence, unit)


def rank_intervals(
    values: Array, influence: Array, clusters: Crossed, confidence: float = 0.95
) -> list[tuple[int, int] | None]:
    """For each of the estimates (influence: n x estimates), the ranks it may have, 1 being the largest.

    Its interval leaves out the estimates whose difference from it is significant after Bonferroni's correction for the number of others,
    so it covers the rank with at least the given confidence. None where there is no error; where nothing varies, all ranks are possible.
    """
    k = len(values)
    above = np.zeros((k, k), dtype=bool)
    for i in range(k):
        for j in range(i):
            error = clusters.error(influence[:, i] - influence[:, j])
            if error is None:
                return [None] * k
            gap = values[i] - values[j]
            if (
                error.standard_error > 0
                and abs(gap) > error.quantile(1 - (1 - confidence) / (k - 1)) * error.standard_error
            ):
                above[(i, j) if gap > 0 else (j, i)] = True
    return [(1 + int(above[:, i].sum()), k - int(above[i].sum())) for i in range(k)]
