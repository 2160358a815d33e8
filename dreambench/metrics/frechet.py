"""The Fréchet distance between two sets of features (Dowson and Landau 1982; as FID: Heusel et al. 2017), in symmetric forms.

    d² = |μ1 - μ2|² + tr S1 + tr S2 - 2 tr (S1 S2)^½

With S2 = B Bᵀ, the eigenvalues of S1 S2 are those of Bᵀ S1 B, a symmetric positive semidefinite matrix: no imaginary parts,
no NaN, and `eigvalsh` in place of a matrix square root. With features A (N, d), N <= d, S1 = AᵀA / (N - 1), the N x N matrix
A S2 Aᵀ / (N - 1) has the same. float64 throughout: in float32 the result is wrong in the second decimal.

Shapes: N items, d features, r the rank of a factor.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg
from scipy import stats

from dreambench.errors import DataError
from dreambench.files import read_arrays, write_arrays
from dreambench.scores import Estimate

__all__ = [
    "Array",
    "GaussianStatistics",
    "SavedStatistics",
    "as_features",
    "assign_groups",
    "frechet_distance",
    "frechet_jackknife",
    "load_statistics",
    "save_statistics",
]

Array = npt.NDArray[np.float64]

NEGATIVE_EIGENVALUE = 1e-5
"""The share of a covariance's largest eigenvalue that its most negative one may reach. Other programs' float32 files reach 1e-7."""
LARGE = 512
"""From this size on, eigenvalues are computed by torch's LAPACK."""
FORMAT = 1

# --- statistics -------------------------------------------------------------------------------------------------------


def as_features(features: npt.ArrayLike, name: str = "features") -> Array:
    """`features` as a float64 matrix (N, d). Raises DataError for other shapes and for NaN or infinite values."""
    matrix = np.asarray(features, dtype=np.float64)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise DataError(f"{name}: expected a matrix (items, features), got the shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        row = int(np.flatnonzero(~np.isfinite(matrix).all(axis=1))[0])
        raise DataError(f"{name}: item {row} holds NaN or infinite values")
    return matrix


class GaussianStatistics:
    """Mean (d,) and covariance (d, d), N - 1 in the denominator, of N items; `n` is None where another tool's file does not say.

    Built from features with N <= d it keeps the centred features (N, d): the covariance then has rank N - 1 at most, and
    the N x N form is both cheaper and more exact. Covariance and factor are computed on first use and kept.
    """

    def __init__(
        self, mean: Array, *, n: int | None, covariance: Array | None = None, centred: Array | None = None
    ) -> None:
        if (covariance is None) == (centred is None):
            raise ValueError("give either a covariance or centred features")
        self.mean = mean
        self.n = n
        self.centred = centred
        if covariance is not None:
            self.covariance = covariance

    @classmethod
    def from_features(cls, features: npt.ArrayLike) -> GaussianStatistics:
        """From features (N, d), N >= 2."""
        matrix = as_features(features)
        n, d = matrix.shape
        if n < 2:
            raise DataError("a covariance needs at least 2 items, got 1")
        mean = matrix.mean(axis=0)
        centred = matrix - mean
        if n <= d:
            return cls(mean, n=n, centred=centred)
        return cls(mean, n=n, covariance=centred.T @ centred / (n - 1))

    @classmethod
    def from_moments(cls, mean: npt.ArrayLike, covariance: npt.ArrayLike, n: int | None = None) -> GaussianStatistics:
        """From a mean (d,) and a symmetric covariance (d, d). Raises DataError on other shapes or values."""
        mu = np.atleast_1d(np.asarray(mean, dtype=np.float64))
        sigma = np.atleast_2d(np.asarray(covariance, dtype=np.float64))
        if mu.ndim != 1 or sigma.shape != (mu.size, mu.size):
            raise DataError(f"statistics: a mean of shape {mu.shape} does not fit a covariance of shape {sigma.shape}")
        if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
            raise DataError("statistics: mean or covariance holds NaN or infinite values")
        scale = float(np.abs(sigma).max())
        if scale and float(np.abs(sigma - sigma.T).max()) > NEGATIVE_EIGENVALUE * scale:
            raise DataError("statistics: the covariance is not symmetric")
        return cls(mu, n=n, covariance=(sigma + sigma.T) / 2)

    @property
    def dim(self) -> int:
        return self.mean.size

    @property
    def rank_bound(self) -> int:
        """The covariance's rank is at most this: N items span N - 1 directions."""
        return self.dim if self.n is None else min(self.dim, self.n - 1)

    @cached_property
    def trace(self) -> float:
        if self.centred is not None:
            return float(np.vdot(self.centred, self.centred)) / (len(self.centred) - 1)
        return float(np.trace(self.covariance))

    @cached_property
    def covariance(self) -> Array:
        assert self.centred is not None  # noqa: S101 - __init__ stores the one or the other
        return self.centred.T @ self.centred / (len(self.centred) - 1)

    @cached_property
    def factor(self) -> Array:
        """B (d, r) with B Bᵀ = covariance: the centred features, else eigenvectors times square roots of eigenvalues.

        Directions below the covariance's rounding error (numpy.linalg.matrix_rank's rule) are left out: the square root
        would magnify their noise from 1e-16 to 1e-8.
        """
        if self.centred is not None:
            return self.centred.T / np.sqrt(len(self.centred) - 1)
        values, vectors = scipy.linalg.eigh(self.covariance)
        largest = max(float(values[-1]), 0.0)
        if values[0] < -NEGATIVE_EIGENVALUE * max(largest, np.finfo(np.float64).tiny):
            raise DataError(f"statistics: the covariance has a negative eigenvalue, {values[0]:.3g}")
        keep = values > largest * self.dim * np.finfo(np.float64).eps
        keep[: self.dim - self.rank_bound] = False
        return vectors[:, keep] * np.sqrt(values[keep])


# --- distance ---------------------------------------------------------------------------------------------------------


def frechet_distance(generated: GaussianStatistics, reference: GaussianStatistics) -> float:
    """Squared Fréchet distance (what papers print as FID). Symmetric; identical sets give 0 up to about 1e-8, either sign.

    The reference keeps its factor, so that another distance to the same reference costs one `eigvalsh`.
    """
    if generated.dim != reference.dim:
        raise DataError(f"Fréchet distance: {generated.dim} features against {reference.dim} in the reference")
    difference = generated.mean - reference.mean
    root = _trace_root_of_product(generated, reference)
    return float(difference @ difference) + generated.trace + reference.trace - 2 * root


def _trace_root_of_product(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """tr (Sa Sb)^½."""
    rank = min(a.rank_bound, b.rank_bound)
    if a.centred is not None and b.centred is not None:
        return _sum_of_roots(_smaller_gram(a.centred @ b.factor) / (len(a.centred) - 1), rank)
    if a.centred is not None:
        return _sum_of_roots(a.centred @ b.covariance @ a.centred.T / (len(a.centred) - 1), rank)
    return _sum_of_roots(b.factor.T @ a.covariance @ b.factor, rank)


def _sum_of_roots(matrix: Array, rank: int) -> float:
    """Σ √λ over the `rank` largest eigenvalues of a positive semidefinite matrix; the others are rounding errors of 0."""
    rank = min(rank, len(matrix))
    if rank <= 0:
        return 0.0
    values = _eigenvalues(matrix)
    return float(np.sqrt(np.clip(values[-rank:], 0, None)).sum())


def _eigenvalues(matrix: Array) -> Array:
    """In ascending order, from the lower triangle: a product of three factors is symmetric only up to rounding."""
    if len(matrix) < LARGE:
        return scipy.linalg.eigvalsh(matrix, lower=True, check_finite=False, driver="evd")
    # The same LAPACK routine in MKL, which torch brings, takes half the time of OpenBLAS's, and a second to load.
    import torch

    return torch.linalg.eigvalsh(torch.from_numpy(matrix), UPLO="L").numpy()


def _smaller_gram(cross: Array) -> Array:
    return cross @ cross.T if cross.shape[0] <= cross.shape[1] else cross.T @ cross


# --- interval -----------------------------------------------------------------------------------------------------------


def assign_groups(n: int, groups: int, keys: Sequence[str] | None = None) -> npt.NDArray[np.int64]:
    """The group (n,) of each item: by position (i mod groups), or by key, with items of one key together.

    Distinct keys are assigned in the order of their SHA-256, so that a group does not depend on the order of items.
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
) -> Estimate:
    """Fréchet distance of features (N, d) to the reference, with the interval of a delete-a-group jackknife.

    The reference is taken as fixed, and the interval covers the distance expected at this N, which exceeds the populations' (see
    `metrics.baselines`). Variance for groups of unequal size: Busing, Meijer and van der Leeden (1999), equation 8;
    with equal groups it is the ordinary (g - 1)/g Σ (θ_(-j) - θ̄)². The interval is value ± t(g - 1) · standard error, cut at 0, as is
    a value that rounding has made negative.
    """
    matrix = as_features(features)
    n = len(matrix)
    generated = GaussianStatistics.from_features(matrix)
    value = max(0.0, frechet_distance(generated, reference))
    distinct = n if keys is None else len(set(keys))
    groups = min(groups, distinct)
    if groups < 3 or n < 4:
        return Estimate(value, None, f"none: {distinct} groups of items are too few", n, confidence=confidence)
    group = assign_groups(n, groups, keys)
    without = _leave_out(generated, matrix, reference, group, groups)
    share = n / np.bincount(group, minlength=groups)
    pseudo = share * value - (share - 1) * without
    estimate = groups * value - float(((1 - 1 / share) * without).sum())
    error = float(np.sqrt(((pseudo - estimate) ** 2 / (share - 1)).mean()))
    half = float(stats.t.ppf((1 + confidence) / 2, groups - 1)) * error
    method = f"delete-a-group jackknife, {groups} groups, reference fixed; covers the distance expected at this n"
    return Estimate(value, (max(0.0, value - half), value + half), method, n, error, confidence)


def _leave_out(
    generated: GaussianStatistics,
    features: Array,
    reference: GaussianStatistics,
    group: npt.NDArray[np.int64],
    groups: int,
) -> Array:
    """The distance without each group (groups,), from one pass over the features.

    Rows are multiplied by the reference's factor B once, Y = (X - mean) B. Without group g the scatter YᵀY loses Y_gᵀY_g and
    the shift of the mean; with N below the rank of B the same is done on the N x N matrix Y Yᵀ, by dropping rows and columns.
    """
    factor = reference.factor
    n, rank = len(features), factor.shape[1]
    centred = features - generated.mean
    squares = np.einsum("ij,ij->i", centred, centred)
    small = n <= rank
    if small:
        projected = centred @ factor
        gram = projected @ projected.T
    else:
        gram = factor.T @ generated.covariance @ factor * (n - 1)
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
        root = _sum_of_roots(product / (left - 1), min(left - 1, reference.rank_bound))
        difference = mean - reference.mean
        without[index] = float(difference @ difference) + trace + reference.trace - 2 * root
    return without


def _recentred(gram: Array) -> Array:
    """The Gram matrix of rows minus their mean, from the Gram matrix of the rows."""
    means = gram.mean(axis=0)
    return gram - means - means[:, None] + means.mean()


# --- saved statistics ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SavedStatistics:
    """Statistics and the identity saved with them (None in another tool's file); `warning` says what is unknown."""

    statistics: GaussianStatistics
    identity: dict[str, Any] | None
    warning: str | None


def save_statistics(path: Path, statistics: GaussianStatistics, identity: Mapping[str, Any]) -> None:
    """Write `mu`, `sigma`, `n` and the identity (JSON: extractor, resize, fingerprint of the images) as ``.npz``, atomically."""
    write_arrays(
        path,
        mu=statistics.mean,
        sigma=statistics.covariance,
        n=np.array(-1 if statistics.n is None else statistics.n),
        format=np.array(FORMAT),
        identity=np.array(json.dumps(dict(identity), sort_keys=True)),
    )


def load_statistics(path: Path, dim: int | None = None) -> SavedStatistics:
    """Read our file, or one with `mu` and `sigma` only, as pytorch-fid and its relatives write it.

    Raises:
        DataError: the file is missing or damaged, or its statistics are not of `dim` features.
    """
    if not path.exists():
        raise DataError(f"{path}: no such statistics file; make one with `dreambench fid-stats DIR --out {path}`")
    try:
        arrays = read_arrays(path)
    except DataError as error:
        raise DataError(f"{path}: not a statistics file, an .npz with mu and sigma") from error
    for name in ("mu", "sigma"):
        if name not in arrays:
            content = ", ".join(arrays) or "nothing"
            raise DataError(f"{path}: not a statistics file: {name} is missing (it holds {content})")
        if arrays[name].dtype.kind != "f":
            raise DataError(f"{path}: {name} holds {arrays[name].dtype}, not floating-point numbers")
    identity = _identity(path, arrays)
    count = arrays.get("n", np.array(-1))
    if count.shape != () or count.dtype.kind not in "iu":
        raise DataError(f"{path}: n holds {count.dtype} of shape {count.shape}, not a whole number")
    n = int(count)
    try:
        statistics = GaussianStatistics.from_moments(arrays["mu"], arrays["sigma"], n if n > 0 else None)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if dim is not None and statistics.dim != dim:
        raise DataError(f"{path}: statistics of {statistics.dim} features; the extractor has {dim}")
    unknown = [what for what, known in (("number of images", n > 0), ("extractor and resize", identity)) if not known]
    warning = f"{path}: unknown {' and '.join(unknown)}; comparable only if they are the protocol's"
    return SavedStatistics(statistics, identity, warning if unknown else None)


def _identity(path: Path, arrays: Mapping[str, Any]) -> dict[str, Any] | None:
    if "identity" not in arrays:
        return None
    try:
        identity: Any = json.loads(str(arrays["identity"]))
    except ValueError as error:
        raise DataError(f"{path}: its identity is not JSON ({error})") from error
    if not isinstance(identity, dict):
        raise DataError(f"{path}: its identity is not a JSON object")
    return identity
