"""Agreement of raters: Krippendorff's alpha, Fleiss' and Randolph's kappa, Cohen's kappa with weights.

Ratings are an array of raters x items with categories 1 .. `levels` and NaN where a rater did not rate. A coefficient that is undefined
is None in `Agreement.value`, and `reason` says why. Sources: Krippendorff, "Content Analysis", chapter 12; Fleiss (1971); Randolph
(2005); Cohen (1960, 1968).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from dreambench.human.crossed import Array

__all__ = ["Agreement", "Metric", "cohen_kappa", "fleiss_kappa", "krippendorff_alpha", "randolph_kappa"]

Metric: TypeAlias = Literal["nominal", "ordinal", "interval", "ratio"]
SEED = 20231


@dataclass(frozen=True)
class Agreement:
    """A coefficient: 1 is perfect agreement, 0 what chance gives. `n` counts the items that at least two raters rated."""

    value: float | None
    n: int
    reason: str = ""
    interval: tuple[float, float] | None = None
    method: str = ""


def krippendorff_alpha(
    ratings: ArrayLike, levels: int, metric: Metric, resamples: int = 0, confidence: float = 0.95
) -> Agreement:
    """1 - observed / expected disagreement, over all pairs of ratings of an item. Any number of raters, missing ratings allowed.

    With `resamples`, a percentile bootstrap over items gives the interval; resamples in which alpha is undefined are left out.
    """
    counts = _counts(ratings, levels)
    counts = counts[counts.sum(axis=1) >= 2]
    if not len(counts):
        return Agreement(None, 0, "no item has ratings of two raters")
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(levels)
    coincidences = pairs / (counts.sum(axis=1) - 1)[:, None, None]
    value = _alpha(coincidences.sum(axis=0), metric)
    if value is None:
        return Agreement(None, len(counts), "all ratings are in one category: there is no disagreement to expect")
    if not resamples:
        return Agreement(value, len(counts))
    draws = np.random.default_rng(SEED).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=resamples)
    sums = (draws @ coincidences.reshape(len(counts), -1)).reshape(resamples, levels, levels)
    replicates = [alpha for matrix in sums if (alpha := _alpha(matrix, metric)) is not None]
    low, high = np.quantile(replicates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Agreement(value, len(counts), "", (float(low), float(high)), "bootstrap over items")


def _alpha(coincidences: Array, metric: Metric) -> float | None:
    totals = coincidences.sum(axis=0)
    n = totals.sum()
    distance = _distance(totals, metric)
    expected = float((np.outer(totals, totals) - np.diag(totals)).ravel() @ distance.ravel()) / (n - 1)
    return None if expected <= 0 else 1 - float(coincidences.ravel() @ distance.ravel()) / expected


def _distance(totals: Array, metric: Metric) -> Array:
    """Squared difference of each two categories. On the ordinal scale: the ratings that lie between them, half of their own included."""
    values = np.arange(1.0, len(totals) + 1)
    if metric == "nominal":
        return 1 - np.eye(len(totals))
    if metric == "ordinal":
        values = np.cumsum(totals) - totals / 2
    squares = (values[:, None] - values) ** 2
    return squares / (values[:, None] + values) ** 2 if metric == "ratio" else squares


def fleiss_kappa(ratings: ArrayLike, levels: int) -> Agreement:
    """Fleiss' kappa: chance follows the shares of the categories. Every item needs the same number of raters."""
    return _kappa(ratings, levels, uniform=False)


def randolph_kappa(ratings: ArrayLike, levels: int) -> Agreement:
    """Randolph's kappa: by chance, all `levels` categories are equally likely. Every item needs the same number of raters."""
    return _kappa(ratings, levels, uniform=True)


def _kappa(ratings: ArrayLike, levels: int, uniform: bool) -> Agreement:
    counts = _counts(ratings, levels)
    sizes = counts.sum(axis=1)
    if not len(sizes) or sizes.min() != sizes.max() or sizes[0] < 2:
        return Agreement(None, int((sizes >= 2).sum()), "not every item has the same number of raters, at least two")
    observed = float(((counts**2).sum(axis=1) - sizes).mean()) / (sizes[0] * (sizes[0] - 1))
    shares = counts.sum(axis=0) / counts.sum()
    expected = 1 / levels if uniform else float(shares @ shares)
    if expected >= 1:
        return Agreement(None, len(sizes), "all ratings are in one category: there is no disagreement to expect")
    return Agreement((observed - expected) / (1 - expected), len(sizes))


def cohen_kappa(
    a: ArrayLike, b: ArrayLike, levels: int, weights: Literal["unweighted", "linear", "quadratic"] = "unweighted"
) -> Agreement:
    """Cohen's kappa of two raters over the items that both rated; disagreements count by distance or by its square."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    both = ~(np.isnan(first) | np.isnan(second))
    n = int(both.sum())
    if n == 0:
        return Agreement(None, 0, "no item has ratings of both raters")
    table = np.zeros((levels, levels))
    np.add.at(table, (first[both].astype(int) - 1, second[both].astype(int) - 1), 1 / n)
    steps = np.abs(np.subtract.outer(np.arange(levels), np.arange(levels))).astype(np.float64)
    cost = {"unweighted": (steps > 0).astype(np.float64), "linear": steps, "quadratic": steps**2}[weights]
    expected = float((np.outer(table.sum(axis=1), table.sum(axis=0)) * cost).sum())
    if expected == 0:
        return Agreement(None, n, "both raters gave a single category, the same: there is no disagreement to expect")
    return Agreement(1 - float((table * cost).sum()) / expected, n)


def _counts(ratings: ArrayLike, levels: int) -> Array:
    """Ratings of each item by category: items x levels."""
    values = np.asarray(ratings, dtype=np.float64)
    return np.stack([(values == level).sum(axis=0) for level in range(1, levels + 1)], axis=1).astype(np.float64)
