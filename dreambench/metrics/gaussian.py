"""A set of features as a Gaussian: mean, covariance (N - 1), and a factor of the covariance. All float64, no torch.

Shapes: N items, d features, r the rank of a factor.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
import scipy.linalg

from dreambench.errors import DataError

__all__ = ["Array", "GaussianStatistics", "Moments", "as_features"]

Array = npt.NDArray[np.float64]

# A covariance whose most negative eigenvalue is beyond this share of its largest is no covariance. Statistics saved as
# float32 by other programs reach about 1e-7.
NEGATIVE_EIGENVALUE = 1e-5


def as_features(features: npt.ArrayLike, name: str = "features") -> Array:
    """`features` as a float64 matrix (N, d). Raises DataError when it is none, or holds NaN or infinity."""
    matrix = np.asarray(features, dtype=np.float64)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise DataError(f"{name}: expected a matrix (items, features), got the shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        row = int(np.flatnonzero(~np.isfinite(matrix).all(axis=1))[0])
        raise DataError(f"{name}: item {row} holds NaN or infinite values")
    return matrix


class GaussianStatistics:
    """Mean (d,) and covariance (d, d) of N items; `n` is None where a foreign file does not say.

    Built from features with N <= d it keeps the centred features (N, d): the covariance then has rank N - 1 at most, and
    the N x N form is both cheaper and more exact. Covariance and factor are computed when first asked for, and kept.
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


class Moments:
    """Running mean and scatter matrix: batches of features in, `GaussianStatistics` out, memory of one (d, d) matrix.

    Batches are merged by the update of Chan, Golub and LeVeque (1983), which never subtracts two large sums. Add and merge
    in a fixed order: the last digits depend on it.
    """

    def __init__(self, dim: int) -> None:
        self.n = 0
        self.mean: Array = np.zeros(dim)
        self.scatter: Array = np.zeros((dim, dim))

    def add(self, features: npt.ArrayLike) -> None:
        """Add a batch (N, d)."""
        batch = as_features(features)
        if batch.shape[1] != self.mean.size:
            raise DataError(f"features: expected {self.mean.size} columns, got {batch.shape[1]}")
        mean = batch.mean(axis=0)
        centred = batch - mean
        self._merge(len(batch), mean, centred.T @ centred)

    def merge(self, other: Moments) -> None:
        """Add what another process has gathered."""
        if other.mean.size != self.mean.size:
            raise DataError(f"statistics of {other.mean.size} features do not merge with {self.mean.size}")
        if other.n:
            self._merge(other.n, other.mean, other.scatter)

    def _merge(self, n: int, mean: Array, scatter: Array) -> None:
        total = self.n + n
        delta = mean - self.mean
        self.scatter += scatter
        self.scatter += np.outer(delta, delta) * (self.n * n / total)
        self.mean = self.mean + delta * (n / total)
        self.n = total

    def statistics(self) -> GaussianStatistics:
        if self.n < 2:
            raise DataError(f"a covariance needs at least 2 items, got {self.n}")
        return GaussianStatistics(self.mean.copy(), n=self.n, covariance=self.scatter / (self.n - 1))
