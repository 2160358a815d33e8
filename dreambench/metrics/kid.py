"""Kernel distance (as KID: Bińkowski et al. 2018): unbiased squared MMD under the kernel (x·y / d + 1)³.

The whole sets are used, no random subsets, so the value needs no seed; its standard error is the delete-one jackknife's,
which follows in closed form from the kernel matrices' row sums. Subset averages, as torch-fidelity and clean-fid print
them, are there for comparison with their numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from dreambench.errors import DataError
from dreambench.metrics.gaussian import Array, as_features

__all__ = ["KernelDistance", "kernel_distance", "subset_kernel_distance"]

BLOCK = 1024  # rows of a kernel matrix held at once


@dataclass(frozen=True)
class KernelDistance:
    """An unbiased estimate, so values slightly below 0 are normal. `standard_error` over both sets' items; NaN below 3 items."""

    value: float
    standard_error: float


def kernel_distance(features: npt.ArrayLike, reference: npt.ArrayLike) -> KernelDistance:
    """Unbiased MMD² between features (M, d) and (N, d), M and N >= 2, not necessarily equal."""
    x, y = _pair(features, reference)
    within_x, within_y = _within(x), _within(y)
    across_x, across_y = _across(x, y)
    m, n = len(x), len(y)
    cross = float(across_x.sum()) / (m * n)
    mean_x, mean_y = float(within_x.sum()) / (m * (m - 1)), float(within_y.sum()) / (n * (n - 1))
    variance = _jackknife_variance(within_x, across_x, n) + _jackknife_variance(within_y, across_y, m)
    return KernelDistance(mean_x + mean_y - 2 * cross, float(np.sqrt(variance)))


def subset_kernel_distance(
    features: npt.ArrayLike,
    reference: npt.ArrayLike,
    *,
    subsets: int = 100,
    size: int = 1000,
    convention: Literal["torch-fidelity", "clean-fid"] = "torch-fidelity",
    seed: int | None = None,
) -> tuple[float, float]:
    """Mean and population standard deviation of the unbiased MMD² over random subsets, drawn without replacement.

    "torch-fidelity": RandomState(2020), the first set is drawn first, a set smaller than `size` is an error.
    "clean-fid": RandomState(0) (it uses numpy's global generator; 0 is what its users seed), the second set is drawn first,
    `size` is at most the smaller set.
    """
    x, y = _pair(features, reference)
    if convention == "clean-fid":
        size = min(len(x), len(y), size)
    if size > min(len(x), len(y)):
        raise DataError(f"kernel distance: subsets of {size} from sets of {len(x)} and {len(y)} items")
    random = np.random.RandomState((0 if convention == "clean-fid" else 2020) if seed is None else seed)
    values = np.zeros(subsets)
    for index in range(subsets):
        if convention == "clean-fid":
            of_y = random.choice(len(y), size, replace=False)
            of_x = random.choice(len(x), size, replace=False)
        else:
            of_x = random.choice(len(x), size, replace=False)
            of_y = random.choice(len(y), size, replace=False)
        a, b = x[of_x], y[of_y]
        within = float(_within(a).sum() + _within(b).sum()) / (size * (size - 1))
        values[index] = within - 2 * float(_across(a, b)[0].sum()) / size**2
    return float(values.mean()), float(values.std())


def _pair(features: npt.ArrayLike, reference: npt.ArrayLike) -> tuple[Array, Array]:
    x, y = as_features(features), as_features(reference, "reference features")
    if x.shape[1] != y.shape[1]:
        raise DataError(f"kernel distance: {x.shape[1]} features against {y.shape[1]} in the reference")
    if min(len(x), len(y)) < 2:
        raise DataError(f"kernel distance: needs 2 items in each set, got {len(x)} and {len(y)}")
    return x, y


def _kernel(x: Array, y: Array) -> Array:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _within(x: Array) -> Array:
    """Row sums of the kernel matrix of a set with itself, without the diagonal: (N,)."""
    sums = np.concatenate([_kernel(x[i : i + BLOCK], x).sum(axis=1) for i in range(0, len(x), BLOCK)])
    return sums - (np.einsum("ij,ij->i", x, x) / x.shape[1] + 1) ** 3


def _across(x: Array, y: Array) -> tuple[Array, Array]:
    """Row sums (M,) and column sums (N,) of the kernel matrix between two sets."""
    rows, columns = np.zeros(len(x)), np.zeros(len(y))
    for i in range(0, len(x), BLOCK):
        block = _kernel(x[i : i + BLOCK], y)
        rows[i : i + BLOCK] = block.sum(axis=1)
        columns += block.sum(axis=0)
    return rows, columns


def _jackknife_variance(within: Array, across: Array, other: int) -> float:
    """Delete-one variance from one set of m items: what MMD² becomes without item i, up to terms that do not change."""
    m = len(within)
    if m < 3:
        return float("nan")
    without = (within.sum() - 2 * within) / ((m - 1) * (m - 2)) - 2 * (across.sum() - across) / ((m - 1) * other)
    return float((m - 1) * without.var())
