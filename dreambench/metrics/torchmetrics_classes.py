"""The measures as `torchmetrics.Metric` classes: update in batches, gather over processes, compute once, in float64.

Each takes features, or images if it is given an `extractor`, a callable from what `update` gets to features (N, d):

    metric = FrechetDistance(dim=2048, extractor=network)
    metric.update(real_pictures, real=True)
    metric.update(painted_pictures, real=False)
    metric.compute()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from dreambench.metrics.clip_score import clip_scores, ref_clip_scores
from dreambench.metrics.frechet import frechet_distance
from dreambench.metrics.gaussian import Array, GaussianStatistics
from dreambench.metrics.inception_score import inception_score
from dreambench.metrics.kid import kernel_distance
from dreambench.metrics.prdc import precision_recall_density_coverage

__all__ = ["CLIPScore", "FrechetDistance", "InceptionScore", "KernelDistance", "PrecisionRecallDensityCoverage"]

Features = Callable[[Any], Tensor]


class FrechetDistance(Metric):
    """Fréchet distance. The state is sums in float64 (number, Σx, Σxxᵀ per side), added up over processes: memory is flat."""

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    def __init__(self, dim: int, extractor: Features | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim = dim
        self.extractor = extractor
        for side in ("real", "generated"):
            self.add_state(f"{side}_n", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
            self.add_state(f"{side}_sum", torch.zeros(dim, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{side}_products", torch.zeros(dim, dim, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, batch: Any, real: bool) -> None:
        """Add a batch of features (N, dim), or of what the extractor takes, to one side."""
        features = _features(batch, self.extractor).double()
        if features.shape[1] != self.dim:
            raise ValueError(f"expected {self.dim} features, got {features.shape[1]}")
        side = "real" if real else "generated"
        setattr(self, f"{side}_n", getattr(self, f"{side}_n") + len(features))
        setattr(self, f"{side}_sum", getattr(self, f"{side}_sum") + features.sum(dim=0))
        setattr(self, f"{side}_products", getattr(self, f"{side}_products") + features.T @ features)

    def compute(self) -> Tensor:
        """The squared distance, a float64 scalar."""
        return _scalar(frechet_distance(self._statistics("generated"), self._statistics("real")))

    def _statistics(self, side: str) -> GaussianStatistics:
        n = int(getattr(self, f"{side}_n"))
        if n < 2:
            raise ValueError(f"the Fréchet distance needs 2 {side} items, got {n}")
        mean = _array(getattr(self, f"{side}_sum")) / n
        scatter = _array(getattr(self, f"{side}_products")) - n * np.outer(mean, mean)
        return GaussianStatistics.from_moments(mean, scatter / (n - 1), n)


class _TwoSets(Metric):
    """Keeps the features of both sides."""

    is_differentiable = False
    full_state_update = False
    real: list[Tensor]
    generated: list[Tensor]

    def __init__(self, extractor: Features | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.extractor = extractor
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("generated", [], dist_reduce_fx="cat")

    def update(self, batch: Any, real: bool) -> None:
        """Add a batch of features (N, d), or of what the extractor takes, to one side."""
        (self.real if real else self.generated).append(_features(batch, self.extractor))

    def _sets(self) -> tuple[Array, Array]:
        return _array(dim_zero_cat(self.generated)), _array(dim_zero_cat(self.real))


class KernelDistance(_TwoSets):
    """Unbiased kernel distance of the whole sets, and its standard error."""

    higher_is_better = False

    def compute(self) -> tuple[Tensor, Tensor]:
        result = kernel_distance(*self._sets())
        return _scalar(result.value), _scalar(result.standard_error)


class PrecisionRecallDensityCoverage(_TwoSets):
    """Precision, recall, density and coverage, by name."""

    higher_is_better = True

    def __init__(self, k: int = 5, extractor: Features | None = None, **kwargs: Any) -> None:
        super().__init__(extractor, **kwargs)
        self.k = k

    def compute(self) -> dict[str, Tensor]:
        result = precision_recall_density_coverage(*self._sets(), k=self.k)
        names = ("precision", "recall", "density", "coverage")
        return {name: _scalar(getattr(result, name)) for name in names}


class InceptionScore(Metric):
    """Mean and deviation of the Inception Score over splits, of logits (N, classes)."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    logits: list[Tensor]

    def __init__(self, splits: int = 10, extractor: Features | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.splits = splits
        self.extractor = extractor
        self.add_state("logits", [], dist_reduce_fx="cat")

    def update(self, batch: Any) -> None:
        self.logits.append(_features(batch, self.extractor))

    def compute(self) -> tuple[Tensor, Tensor]:
        mean, deviation = inception_score(_array(dim_zero_cat(self.logits)), splits=self.splits)
        return _scalar(mean), _scalar(deviation)


class CLIPScore(Metric):
    """Mean CLIPScore of pairs of image and text features, 0 to 2.5; with `references`, mean RefCLIPScore.

    torchmetrics' class of this name is another quantity: 100 · cosine, clamped at 0 after averaging.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, references: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.references = references
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, image: Tensor, text: Tensor, references: Tensor | None = None) -> None:
        """Features (N, d) of images and texts, and (N, R, d) of reference texts if the class was made for them."""
        if (references is not None) != self.references:
            raise ValueError(
                f"CLIPScore(references={self.references}) was {'' if references is not None else 'not '}given some"
            )
        if references is None:
            scores = clip_scores(_array(image), _array(text))
        else:
            scores = ref_clip_scores(_array(image), _array(text), _array(references))
        self.total = self.total + float(scores.sum())
        self.count = self.count + len(scores)

    def compute(self) -> Tensor:
        return self.total / self.count


def _features(batch: Any, extractor: Features | None) -> Tensor:
    features = batch if extractor is None else extractor(batch)
    if features.ndim != 2:
        raise ValueError(f"expected features (N, d), got the shape {tuple(features.shape)}")
    return features.detach()


def _array(tensor: Tensor) -> Array:
    return tensor.detach().cpu().double().numpy()


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
