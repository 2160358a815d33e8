"""The Fréchet distance between two Gaussians (Dowson and Landau 1982; as FID: Heusel et al. 2017), in symmetric forms.

    d² = |μ1 - μ2|² + tr S1 + tr S2 - 2 tr (S1 S2)^½

With S2 = B Bᵀ, the eigenvalues of S1 S2 are those of Bᵀ S1 B, a symmetric positive semidefinite matrix: no imaginary parts,
no NaN, and `eigvalsh` in place of a matrix square root. With features A (N, d), N <= d, S1 = AᵀA / (N - 1), the N x N matrix
A S2 Aᵀ / (N - 1) has the same. float64 throughout: in float32 the result is wrong in the second decimal.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from dreambench.errors import DataError
from dreambench.metrics.gaussian import Array, GaussianStatistics

__all__ = ["frechet_distance", "sum_of_roots", "trace_root_of_product"]

LARGE = 512


def frechet_distance(generated: GaussianStatistics, reference: GaussianStatistics) -> float:
    """Squared Fréchet distance (what papers print as FID). Symmetric; identical sets give 0 up to about 1e-8, either sign.

    The reference's factor is kept with it, so that further distances to the same reference cost one `eigvalsh`.
    """
    if generated.dim != reference.dim:
        raise DataError(f"Fréchet distance: {generated.dim} features against {reference.dim} in the reference")
    difference = generated.mean - reference.mean
    root = trace_root_of_product(generated, reference)
    return float(difference @ difference) + generated.trace + reference.trace - 2 * root


def trace_root_of_product(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """tr (Sa Sb)^½."""
    rank = min(a.rank_bound, b.rank_bound)
    if a.centred is not None and b.centred is not None:
        return sum_of_roots(_smaller_gram(a.centred @ b.factor) / (len(a.centred) - 1), rank)
    if a.centred is not None:
        return sum_of_roots(a.centred @ b.covariance @ a.centred.T / (len(a.centred) - 1), rank)
    return sum_of_roots(b.factor.T @ a.covariance @ b.factor, rank)


def sum_of_roots(matrix: Array, rank: int) -> float:
    """Σ √λ over the `rank` largest eigenvalues of a positive semidefinite matrix.

    The others are 0 by the number of items, whatever rounding makes of them.
    """
    rank = min(rank, len(matrix))
    if rank <= 0:
        return 0.0
    values = _eigenvalues(matrix)
    return float(np.sqrt(np.clip(values[-rank:], 0, None)).sum())


def _eigenvalues(matrix: Array) -> Array:
    """In ascending order; the lower half is read, for a product of three factors is symmetric up to rounding only."""
    if len(matrix) < LARGE:
        return scipy.linalg.eigvalsh(matrix, lower=True, check_finite=False, driver="evd")
    # The same LAPACK routine in MKL, which torch brings, takes half the time of OpenBLAS's, and a second to load.
    import torch

    return torch.linalg.eigvalsh(torch.from_numpy(matrix), UPLO="L").numpy()


def _smaller_gram(cross: Array) -> Array:
    return cross @ cross.T if cross.shape[0] <= cross.shape[1] else cross.T @ cross
