"""What a Fréchet distance is to be read against: the distance without the bias of finite sets, real images against real images, and
captions that belong to other images.

Shapes: N generated and M reference items, d features.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg
from scipy import stats

from dreambench.errors import DataError, counted
from dreambench.metrics.frechet import Array, GaussianStatistics, as_features, assign_groups, frechet_distance
from dreambench.metrics.set_metrics import kernel_distance, precision_recall_density_coverage
from dreambench.scores import Estimate

__all__ = ["RealVsReal", "derangement", "frechet_infinity", "real_vs_real"]

LEAST = 2
"""Items per feature from which the bias can be removed: with fewer, its terms beyond 1/N are no longer small (docs/reliability.md)."""
ROUNDING = 1e-9
"""Distances below this share of the traces are rounding errors of 0, which is what a set and itself have."""
SPLITS, MANY = 10, 5000
"""How often the reference is split at random; of more than `MANY` images, less often."""
KERNEL_LIMIT = 2048
"""Images of a part whose kernel distance is computed: its scatter is scaled to the run's number anyway."""

Indices = npt.NDArray[np.int64]

# --- without bias -------------------------------------------------------------------------------------------------------


def frechet_infinity(
    features: npt.ArrayLike,
    reference: GaussianStatistics,
    reference_features: npt.ArrayLike | None = None,
    *,
    groups: int = 20,
    keys: Sequence[str] | None = None,
    reference_keys: Sequence[str] | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """The Fréchet distance of the populations: that of features (N, d) less its bias, by a jackknife of both sides at once.

    The distance of finite sets exceeds the populations' by a / N + b / M + smaller terms. Without the j-th group of both sets it exceeds
    it by as much more; extrapolating that to no bias (Quenouille 1956; unequal groups: Busing et al. 1999) removes both terms. Equal
    keys on the two sides fall into one group, which accounts for images that depend on a reference image through its caption. Where
    only the reference's statistics are known, they are taken for its population's. The interval is the estimate ± t(g - 1) · standard
    error; both are cut at 0, which loses no coverage. ``python tests/metrics/test_baselines.py`` simulates it.

    Raises:
        DataError: a side has fewer than `LEAST` items per feature, which leaves the distance undetermined, or under 3 groups.
    """
    given = [("generated", as_features(features), keys)]
    if reference_features is not None:
        given.append(("reference", as_features(reference_features), reference_keys))
    for name, matrix, of in given:
        n, dim = matrix.shape
        if n < LEAST * dim:
            singular = ", whose covariance is singular" if n <= dim else ""
            raise DataError(f"{n} {name} images{singular}, are fewer than {LEAST} for each of {dim} features")
        groups = min(groups, n if of is None else len(set(of)))
    if groups < 3:
        raise DataError(f"{groups} groups of images are too few")
    ours, *theirs = _sides([matrix for _, matrix, _ in given], [of for _, _, of in given], groups)
    value = frechet_distance(ours.statistics, reference)
    without = np.array([
        frechet_distance(ours.without(index), *([side.without(index) for side in theirs] or [reference]))
        for index in range(groups)
    ])  # fmt: skip
    share = 1 / np.mean([side.shares for side in (ours, *theirs)], axis=0)
    pseudo = share * value - (share - 1) * without
    estimate = groups * value - float(((1 - 1 / share) * without).sum())
    error = float(np.sqrt(((pseudo - estimate) ** 2 / (share - 1)).mean()))
    half = float(stats.t.ppf((1 + confidence) / 2, groups - 1)) * error
    known = "both sides" if theirs else "the generated side, reference fixed"
    known += ", paired by name" if keys is not None and not set(keys).isdisjoint(reference_keys or ()) else ""
    method = f"bias removed by a delete-a-group jackknife of {known}, {groups} groups; covers the populations' distance"
    method += f"; estimate {estimate:.3g} cut at 0" if estimate < 0 else ""
    rounding = ROUNDING * (ours.statistics.trace + reference.trace)
    low, found = (bound if bound > rounding else 0.0 for bound in (estimate - half, estimate))
    return Estimate(found, (low, found + half), method, len(ours.centred), error, confidence)


@dataclass(frozen=True)
class _Side:
    """One set of items (N, d) in groups, the group of each item (N,)."""

    statistics: GaussianStatistics
    centred: Array
    group: Indices
    groups: int

    @property
    def shares(self) -> Array:
        """The share of the items that each group holds: (groups,)."""
        return np.bincount(self.group, minlength=self.groups) / len(self.group)

    def without(self, index: int) -> GaussianStatistics:
        """The statistics of the items outside a group, by taking its sums off those of all."""
        rows = self.centred[self.group == index]
        n, left, total = len(self.group), len(self.group) - len(rows), rows.sum(axis=0)
        scatter = self.statistics.covariance * (n - 1) - rows.T @ rows - np.outer(total, total) / left
        rest = GaussianStatistics(self.statistics.mean - total / left, n=left, covariance=scatter / (left - 1))
        # A quarter of the cost of eigenvectors; impossible for a constant feature.
        with suppress(scipy.linalg.LinAlgError):
            rest.factor = scipy.linalg.cholesky(rest.covariance, lower=True, check_finite=False)
        return rest


def _sides(matrices: Sequence[Array], keys: Sequence[Sequence[str] | None], groups: int) -> list[_Side]:
    """Both sides in groups: by position, or, where all have keys, by key over both sides."""
    group = [assign_groups(len(matrix), groups, of) for matrix, of in zip(matrices, keys, strict=True)]
    known = [of for of in keys if of is not None]
    if len(known) == len(matrices) > 1:
        both = assign_groups(sum(map(len, known)), groups, [key for of in known for key in of])
        group = np.split(both, [len(known[0])])
    sides: list[_Side] = []
    for matrix, of in zip(matrices, group, strict=True):
        statistics = GaussianStatistics.from_features(matrix)
        sides.append(_Side(statistics, matrix - statistics.mean, of, groups))
    return sides


# --- real against real --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RealVsReal:
    """Random parts of the reference images against the rest: what other real images would get. Arrays hold a value per split.

    `frechet` and `kernel` are scaled from the parts' sizes to the run's N and M: to a few percent, both grow with 1/N + 1/M. `frechet` is
    None where that does not hold, because a part spans fewer dimensions than there are features. `manifold` holds precision, recall,
    density and coverage of the parts as they are.
    """

    sizes: tuple[int, int]
    frechet: Array | None
    kernel: Array
    manifold: dict[str, Array]

    @property
    def parts(self) -> str:
        a, b = self.sizes
        return f"{a} reference images against {'the other ' if a != b else ''}{b}"

    @property
    def kernel_scatter(self) -> float:
        return float(self.kernel.std(ddof=1))

    def frechet_range(self, n: int, confidence: float = 0.95) -> Estimate | None:
        """The mean over the splits, and the range in which the distance of other real images falls.

        Images that depend on the reference's through their captions may be nearer without being better: see `frechet_infinity`.
        """
        if self.frechet is None:
            return None
        mean, count = float(self.frechet.mean()), len(self.frechet)
        half = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * float(self.frechet.std(ddof=1))
        half *= float(np.sqrt(1 + 1 / count))
        method = f"range of other real images' distances, from {count} random splits, {self.parts}, scaled to n = {n}"
        return Estimate(max(0.0, mean), (max(0.0, mean - half), mean + half), method, self.sizes[0])


def real_vs_real(
    reference: npt.ArrayLike, n: int, *, keys: Sequence[str] | None = None, neighbours: int | None = None
) -> RealVsReal:
    """Scores of random parts of the reference features (M, d), items of one key together, against the rest.

    Args:
        n: the run's number of images. A part has as many, or half of the reference images if there are not twice as many.
        neighbours: of precision, recall, density and coverage; None leaves them out.

    Raises:
        DataError: there are too few images to split.
    """
    features = as_features(reference, "reference features")
    m, dim = features.shape
    distances: list[float] = []
    kernels: list[float] = []
    manifolds: list[dict[str, float]] = []
    sizes = (0, 0)
    for part in _parts(m, min(n, m // 2), keys):
        a, b = features[part], features[~part]
        if min(len(a), len(b)) < 3:
            raise DataError(f"{counted(m, 'reference image')} cannot be split in two")
        sizes = sizes if sizes[0] else (len(a), len(b))
        scale = (1 / n + 1 / m) / (1 / len(a) + 1 / len(b))
        if scale > 0.9 or min(len(a), len(b)) > dim:
            distances.append(scale * frechet_distance(*map(GaussianStatistics.from_features, (a, b))))
        kernel_a, kernel_b = (side[:: -(-len(side) // KERNEL_LIMIT)] for side in (a, b))
        scale = (1 / n + 1 / m) / (1 / len(kernel_a) + 1 / len(kernel_b))
        kernels.append(scale * kernel_distance(kernel_a, kernel_b).value)
        if neighbours is not None and min(len(a), len(b)) > neighbours:
            found = precision_recall_density_coverage(a, b, k=neighbours)
            manifolds.append({name: estimate.value for name, estimate in found.items()})
    manifold = {name: np.array([each[name] for each in manifolds]) for name in (manifolds[0] if manifolds else ())}
    frechet = np.array(distances) if len(distances) == len(kernels) else None
    return RealVsReal(sizes, frechet, np.array(kernels), manifold)


def _parts(m: int, size: int, keys: Sequence[str] | None) -> Iterator[npt.NDArray[np.bool_]]:
    """Masks (M,) of random parts of about `size` items, the same in every run; the items of a key are on one side."""
    group = np.arange(m) if keys is None else np.unique(np.array(keys), return_inverse=True)[1]
    counts = np.bincount(group, minlength=1)
    for seed in range(SPLITS if m <= MANY else 4):
        order = np.random.RandomState(seed).permutation(len(counts))
        before = np.cumsum(counts[order]) - counts[order]
        yield np.isin(group, order[before < size])


# --- captions of other images ---------------------------------------------------------------------------------------------


def derangement(keys: Sequence[str]) -> Indices | None:
    """For each item another one (n,) with another key, by the keys' SHA-256; None where more than half of the items share a key."""
    n, largest = len(keys), max(Counter(keys).values(), default=0)
    if not n or 2 * largest > n:
        return None
    order = np.array(sorted(range(n), key=lambda i: (hashlib.sha256(keys[i].encode()).digest(), i)))
    others = np.empty(n, dtype=np.int64)
    others[order] = np.roll(order, -largest)
    return others
