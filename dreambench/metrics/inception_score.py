"""Inception Score (Salimans et al. 2016): exp of the mean KL divergence between p(class | image) and p(class)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax, logsumexp

from dreambench.errors import DataError
from dreambench.metrics.gaussian import as_features

__all__ = ["inception_score"]


def inception_score(
    logits: npt.ArrayLike, *, splits: int = 10, shuffle: bool = True, seed: int = 2020
) -> tuple[float, float]:
    """Mean and population standard deviation over `splits` parts of logits (N, classes); 1 is the least.

    Items are permuted by RandomState(seed) first (torch-fidelity's order); part i is rows i·N//s to (i+1)·N//s. FID's
    implementations feed logits without the bias of the last layer.
    """
    matrix = as_features(logits, "logits")
    n = len(matrix)
    if not 1 <= splits <= n:
        raise DataError(f"Inception Score: {n} items do not fill {splits} splits")
    if shuffle:
        matrix = matrix[np.random.RandomState(seed).permutation(n)]
    log_p = log_softmax(matrix, axis=1)
    scores: list[float] = []
    for i in range(splits):
        part = log_p[i * n // splits : (i + 1) * n // splits]
        log_q = logsumexp(part, axis=0) - np.log(len(part))
        scores.append(float(np.exp((np.exp(part) * (part - log_q)).sum(axis=1).mean())))
    return float(np.mean(scores)), float(np.std(scores))
