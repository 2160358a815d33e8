"""Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020), by k nearest neighbours.

The ball of an item reaches to its k-th nearest neighbour in its own set, itself not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dreambench.errors import DataError
from dreambench.metrics.gaussian import Array, as_features

__all__ = ["PRDC", "precision_recall_density_coverage"]

BLOCK = 1024  # rows of a distance matrix held at once


@dataclass(frozen=True)
class PRDC:
    """precision: share of generated items inside a real item's ball. recall: share of real items inside a generated one's.
    density: real balls per generated item, over k; may exceed 1. coverage: share of real balls that hold a generated item.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall_density_coverage(
    generated: npt.ArrayLike, real: npt.ArrayLike, *, k: int = 5, closed: bool = False
) -> PRDC:
    """Of features (M, d) and (N, d), both more than k. `closed` counts the ball's surface, as torch-fidelity does; the prdc
    package does not. The two differ on ties only.

    Memory: one block of 1,024 rows of the distance matrix at a time.
    """
    x, y = as_features(generated), as_features(real, "reference features")
    if x.shape[1] != y.shape[1]:
        raise DataError(f"PRDC: {x.shape[1]} features against {y.shape[1]} in the reference")
    if k < 1 or k >= min(len(x), len(y)):
        raise DataError(f"PRDC: {k} neighbours in sets of {len(x)} and {len(y)} items")
    radius_x, radius_y = _radii(x, k), _radii(y, k)
    inside = np.less_equal if closed else np.less
    in_real_balls = np.zeros(len(x), dtype=np.int64)
    recalled = covered = 0
    for i in range(0, len(y), BLOCK):
        distance = _squared_distances(y[i : i + BLOCK], x)
        within = inside(distance, radius_y[i : i + BLOCK, None])
        in_real_balls += within.sum(axis=0)
        covered += int(within.any(axis=1).sum())
        recalled += int(inside(distance, radius_x).any(axis=1).sum())
    precision = float((in_real_balls > 0).mean())
    return PRDC(precision, recalled / len(y), float(in_real_balls.sum()) / (k * len(x)), covered / len(y))


def _squared_distances(x: Array, y: Array) -> Array:
    return np.einsum("ij,ij->i", x, x)[:, None] + np.einsum("ij,ij->i", y, y) - 2 * (x @ y.T)


def _radii(x: Array, k: int) -> Array:
    """Squared distance of each item to its k-th nearest neighbour: the smallest of all is the item itself."""
    blocks = [np.partition(_squared_distances(x[i : i + BLOCK], x), k, axis=1)[:, k] for i in range(0, len(x), BLOCK)]
    return np.concatenate(blocks)
