"""CLIPScore and RefCLIPScore (Hessel et al. 2021), from CLIP's projected image and text features.

The official caption evaluation puts "A photo depicts " before each text; that is the features' matter, and the protocol's.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dreambench.errors import DataError

__all__ = ["clip_scores", "cosine_similarities", "ref_clip_scores", "torchmetrics_clip_score"]

Array = npt.NDArray[np.float64]
WEIGHT = 2.5


def cosine_similarities(a: npt.ArrayLike, b: npt.ArrayLike) -> Array:
    """Cosine of each pair of rows; leading dimensions broadcast, features (..., d) last. A zero row has the cosine 0."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape[-1:] != y.shape[-1:] or x.ndim == 0:
        raise DataError(f"CLIPScore: features of shape {x.shape} do not pair with {y.shape}")
    norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    products = (x * y).sum(axis=-1)
    return np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)


def clip_scores(image: npt.ArrayLike, text: npt.ArrayLike) -> Array:
    """2.5 · max(cos, 0) per pair, features (N, d) each. The score of a set is the mean."""
    return WEIGHT * np.maximum(cosine_similarities(image, text), 0)


def ref_clip_scores(image: npt.ArrayLike, text: npt.ArrayLike, references: npt.ArrayLike) -> Array:
    """Harmonic mean of CLIPScore and the text's best cosine with its reference texts (N, R, d), per pair.

    The second term is not clamped at 0, as in the official code and unlike the paper's equation, so values below 0 occur.
    Both terms 0 give 0.
    """
    score = clip_scores(image, text)
    best = cosine_similarities(np.asarray(text)[..., None, :], references).max(axis=-1)
    total = score + best
    return np.divide(2 * score * best, total, out=np.zeros_like(total), where=total != 0)


def torchmetrics_clip_score(image: npt.ArrayLike, text: npt.ArrayLike) -> float:
    """What torchmetrics calls CLIPScore: the mean of 100 · cos, clamped at 0 after averaging. Another quantity."""
    return max(100 * float(cosine_similarities(image, text).mean()), 0.0)
