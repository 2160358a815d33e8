"""How sure a Fréchet distance is: delete-a-group jackknife, and the extrapolation to infinitely many items."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from dreambench.errors import DataError
from dreambench.metrics.frechet import frechet_distance, sum_of_roots
from dreambench.metrics.gaussian import Array, GaussianStatistics, as_features

__all__ = ["FrechetEstimate", "assign_groups", "frechet_infinity", "frechet_jackknife"]


@dataclass(frozen=True)
class FrechetEstimate:
    """A distance with its interval; both ends None, with the reason in `method`, where there are too few items for one."""

    value: float
    interval: tuple[float, float] | None
    standard_error: float | None
    method: str
    n: int
    full_rank: bool
    """Whether there are more items than features. If not, the covariance is singular and the value is biased far upwards."""


def assign_groups(n: int, groups: int, keys: Sequence[str] | None = None) -> npt.NDArray[np.int64]:
    """Which of `groups` each of n items belongs to: by position (i mod groups), or by key, items of one key together.

    Distinct keys are dealt out in the order of their SHA-256, so that a group does not depend on the order of items.
    """
    if keys is None:
        return np.arange(n) % groups
    if len(keys) != n:
        raise DataError(f"jackknife: {len(keys)} keys for {n} items")
    ordered = sorted(set(keys), key=lambda key: hashlib.sha256(key.encode()).digest())
    group = {key: index % groups for index, key in enumerate(ordered)}
    return np.array([group[key] for key in keys])


def frechet_jackknife(
    features: npt.ArrayLike,
    reference: GaussianStatistics,
    *,
    groups: int = 20,
    keys: Sequence[str] | None = None,
    confidence: float = 0.95,
) -> FrechetEstimate:
    """Fréchet distance of features (N, d) to the reference, with the interval of a delete-a-group jackknife.

    The reference is taken as fixed. Variance for groups of unequal size: Busing, Meijer and van der Leeden (1999), equation 8;
    with equal groups it is the ordinary (g - 1)/g Σ (θ_(-j) - θ̄)². The interval is value ± t(g - 1) · standard error.
    """
    matrix = as_features(features)
    n = len(matrix)
    generated = GaussianStatistics.from_features(matrix)
    value = frechet_distance(generated, reference)
    distinct = n if keys is None else len(set(keys))
    groups = min(groups, distinct)
    full_rank = n > generated.dim
    if groups < 3 or n < 4:
        return FrechetEstimate(value, None, None, f"none: {distinct} groups of items are too few", n, full_rank)
    group = assign_groups(n, groups, keys)
    without = _leave_out(generated, matrix, reference, group, groups)
    share = n / np.bincount(group, minlength=groups)
    pseudo = share * value - (share - 1) * without
    estimate = groups * value - float(((1 - 1 / share) * without).sum())
    error = float(np.sqrt(((pseudo - estimate) ** 2 / (share - 1)).mean()))
    half = float(stats.t.ppf((1 + confidence) / 2, groups - 1)) * error
    method = f"delete-a-group jackknife, {groups} groups, reference fixed"
    return FrechetEstimate(value, (value - half, value + half), error, method, n, full_rank)


def _leave_out(
    generated: GaussianStatistics,
    features: Array,
    reference: GaussianStatistics,
    group: npt.NDArray[np.int64],
    groups: int,
) -> Array:
    """The distance without each group (groups,), from one pass over the features.

    Rows are carried into the reference's factor B once, Y = (X - mean) B. Without group g the scatter YᵀY loses Y_gᵀY_g and
    the shift of the mean; with N below the rank of B the same is done on the N x N matrix Y Yᵀ, by dropping rows and columns.
    """
    factor = reference.factor
    n, rank = len(features), factor.shape[1]
    centred = features - generated.mean
    squares = np.einsum("ij,ij->i", centred, centred)
    small = n <= rank
    gram = _gram(centred @ factor) if small else factor.T @ generated.covariance @ factor * (n - 1)
    without = np.zeros(groups)
    for index in range(groups):
        chosen = group == index
        left = n - int(chosen.sum())
        total = centred[chosen].sum(axis=0)
        mean = generated.mean - total / left
        trace = (squares.sum() - squares[chosen].sum() - float(total @ total) / left) / (left - 1)
        if small:
            product = _recentred(gram[np.ix_(~chosen, ~chosen)])
        else:
            rows = centred[chosen] @ factor
            shift = rows.sum(axis=0)
            product = gram - rows.T @ rows - np.outer(shift, shift) / left
        root = sum_of_roots(product / (left - 1), min(left - 1, reference.rank_bound))
        difference = mean - reference.mean
        without[index] = float(difference @ difference) + trace + reference.trace - 2 * root
    return without


def _gram(rows: Array) -> Array:
    return rows @ rows.T


def _recentred(gram: Array) -> Array:
    """The Gram matrix of rows minus their mean, from the Gram matrix of the rows."""
    means = gram.mean(axis=0)
    return gram - means - means[:, None] + means.mean()


def frechet_infinity(
    features: npt.ArrayLike, reference: GaussianStatistics, *, points: int = 15, smallest: int = 5000, seed: int = 0
) -> float:
    """The Fréchet distance at N → ∞ (Chong and Forsyth 2020): a line fitted to the distance over 1/N, at 1/N = 0.

    Distances of `points` random subsets, sizes evenly spaced from `smallest` (a tenth of N, if that is less than twice
    `smallest`) to N, each drawn by a fresh shuffle of RandomState(seed), as the authors' code does. It removes the bias of the
    generated side only, and is an extrapolation: report it beside the plain distance, not in its place.
    """
    matrix = as_features(features)
    n = len(matrix)
    least = smallest if n >= 2 * smallest else max(2, n // 10)
    if n < least + points:
        raise DataError(f"FID-infinity: {n} items are too few for {points} subset sizes from {least}")
    random = np.random.RandomState(seed)
    sizes = np.linspace(least, n, points).astype(int)
    distances = [
        frechet_distance(GaussianStatistics.from_features(matrix[random.permutation(n)[:size]]), reference)
        for size in sizes
    ]
    return float(np.polyfit(1 / sizes, distances, 1)[1])
