"""Metrics of sets of features beside the Fréchet distance: kernel distance, precision and recall, Inception Score, CLIPScore.

Shapes: M generated and N reference items, d features.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax, logsumexp

from dreambench.errors import DataError
from dreambench.metrics.frechet import Array, as_features
from dreambench.scores import Estimate
from dreambench.statistics import normal_interval

__all__ = [
    "clip_scores",
    "cosine_similarities",
    "inception_score",
    "kernel_distance",
    "precision_recall_density_coverage",
    "ref_clip_scores",
]

BLOCK = 1024
"""Rows of a kernel or distance matrix held at once."""
CLIP_WEIGHT = 2.5


def _pair(metric: str, features: npt.ArrayLike, reference: npt.ArrayLike) -> tuple[Array, Array]:
    x, y = as_features(features), as_features(reference, "reference features")
    if x.shape[1] != y.shape[1]:
        raise DataError(f"{metric}: {x.shape[1]} features against {y.shape[1]} in the reference")
    return x, y


# --- kernel distance ----------------------------------------------------------------------------------------------------


def kernel_distance(features: npt.ArrayLike, reference: npt.ArrayLike) -> Estimate:
    """Kernel distance (as KID: Bińkowski et al. 2018) of features (M, d) and (N, d), M and N >= 2.

    It is the unbiased squared MMD under the kernel (x·y / d + 1)³; values slightly below 0 are normal. The whole sets are used,
    not random subsets, so the value needs no seed. The standard error is the delete-one jackknife's of both sets, in closed
    form from row sums of the kernel matrices; None below 3 items.
    """
    x, y = _pair("kernel distance", features, reference)
    m, n = len(x), len(y)
    if min(m, n) < 2:
        raise DataError(f"kernel distance: needs 2 items in each set, got {m} and {n}")
    within_x, within_y = _within(x), _within(y)
    across_x, across_y = _across(x, y)
    cross = float(across_x.sum()) / (m * n)
    mean_x, mean_y = float(within_x.sum()) / (m * (m - 1)), float(within_y.sum()) / (n * (n - 1))
    value = mean_x + mean_y - 2 * cross
    if min(m, n) < 3:
        return Estimate(value, None, "none: fewer than 3 images", m)
    variance = _jackknife_variance(within_x, across_x, n) + _jackknife_variance(within_y, across_y, m)
    error = float(np.sqrt(variance))
    method = "normal, delete-one standard error of both sides"
    return Estimate(value, normal_interval(value, error), method, m, error)


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
    """Delete-one variance from one set of m items: MMD² without item i, up to terms that do not change."""
    m = len(within)
    without = (within.sum() - 2 * within) / ((m - 1) * (m - 2)) - 2 * (across.sum() - across) / ((m - 1) * other)
    return float((m - 1) * without.var())


# --- precision, recall, density, coverage -------------------------------------------------------------------------------


def precision_recall_density_coverage(
    generated: npt.ArrayLike, reference: npt.ArrayLike, *, k: int = 5, closed: bool = False
) -> dict[str, Estimate]:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020) of features (M, d) and (N, d).

    The ball of an item reaches to its k-th nearest neighbour in its own set, not counting itself.

    - ``precision``: share of generated items inside a reference item's ball.
    - ``recall``: share of reference items inside a generated item's ball.
    - ``density``: reference balls per generated item, over k; may exceed 1.
    - ``coverage``: share of reference balls that hold a generated item.

    `closed` counts the ball's surface, as torch-fidelity does and the prdc package does not; the two differ on ties only.
    Memory: 1,024 rows of the distance matrix at a time.
    """
    x, y = _pair("PRDC", generated, reference)
    if k < 1 or k >= min(len(x), len(y)):
        raise DataError(f"PRDC: {k} neighbours in sets of {len(x)} and {len(y)} items")
    radius_x, radius_y = _radii(x, k), _radii(y, k)
    inside = np.less_equal if closed else np.less
    balls = np.zeros(len(x), dtype=np.int64)
    recalled = covered = 0
    for i in range(0, len(y), BLOCK):
        distance = _squared_distances(y[i : i + BLOCK], x)
        within = inside(distance, radius_y[i : i + BLOCK, None])
        balls += within.sum(axis=0)
        covered += int(within.any(axis=1).sum())
        recalled += int(inside(distance, radius_x).any(axis=1).sum())
    values = {
        "precision": float((balls > 0).mean()),
        "recall": recalled / len(y),
        "density": float(balls.sum()) / (k * len(x)),
        "coverage": covered / len(y),
    }
    method = f"none: depends on the {k} nearest of all images"
    return {name: Estimate(value, None, method, len(x)) for name, value in values.items()}


def _squared_distances(x: Array, y: Array) -> Array:
    return np.einsum("ij,ij->i", x, x)[:, None] + np.einsum("ij,ij->i", y, y) - 2 * (x @ y.T)


def _radii(x: Array, k: int) -> Array:
    """Squared distance of each item to its k-th nearest neighbour; the smallest of all is the item itself."""
    blocks = [np.partition(_squared_distances(x[i : i + BLOCK], x), k, axis=1)[:, k] for i in range(0, len(x), BLOCK)]
    return np.concatenate(blocks)


# --- Inception Score ----------------------------------------------------------------------------------------------------


def inception_score(
    logits: npt.ArrayLike, *, splits: int = 10, shuffle: bool = True, seed: int = 2020
) -> tuple[Estimate, float]:
    """Inception Score (Salimans et al. 2016): exp of the mean KL divergence between p(class | image) and p(class); at least 1.

    The mean, and the population standard deviation, over `splits` parts of logits (M, classes). Items are first permuted by
    RandomState(seed), torch-fidelity's order; part i is rows i·M//s to (i+1)·M//s. FID's implementations take the logits
    without the last layer's bias.
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
    deviation = float(np.std(scores))
    method = f"none: the field gives the standard deviation over {splits} splits, {deviation:.4g}"
    return Estimate(float(np.mean(scores)), None, method, n), deviation


# --- CLIPScore (Hessel et al. 2021) -------------------------------------------------------------------------------------
# From CLIP's projected image and text features. The official caption evaluation puts "A photo depicts " before each text; whether to do
# so is up to the protocol.


def cosine_similarities(a: npt.ArrayLike, b: npt.ArrayLike) -> Array:
    """Cosine of each pair of rows; leading dimensions broadcast, features (..., d) last. A zero row has the cosine 0."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape[-1:] != y.shape[-1:] or x.ndim == 0:
        raise DataError(f"CLIPScore: features of shape {x.shape} do not pair with {y.shape}")
    norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    products = (x * y).sum(axis=-1)
    return np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)


def clip_scores(image: npt.ArrayLike, text: npt.ArrayLike) -> Array:
    """CLIPScore, 2.5 · max(cos, 0), of each pair of features (M, d). The score of a set is the mean."""
    return CLIP_WEIGHT * np.maximum(cosine_similarities(image, text), 0)


def ref_clip_scores(image: npt.ArrayLike, text: npt.ArrayLike, references: npt.ArrayLike) -> Array:
    """RefCLIPScore: harmonic mean of CLIPScore and the text's best cosine with its reference texts (M, R, d), per pair.

    The second term is not clamped at 0, as in the official code and unlike the paper's equation, so values below 0 occur.
    Both terms 0 give 0.
    """
    score = clip_scores(image, text)
    best = cosine_similarities(np.asarray(text)[..., None, :], references).max(axis=-1)
    total = score + best
    return np.divide(2 * score * best, total, out=np.zeros_like(total), where=total != 0)
