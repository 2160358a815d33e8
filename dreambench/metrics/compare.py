"""The scores of generated images against real ones, from their features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from dreambench.metrics.features import metric_name
from dreambench.metrics.inception_score import inception_score
from dreambench.metrics.intervals import frechet_jackknife
from dreambench.metrics.kid import kernel_distance
from dreambench.metrics.prdc import precision_recall_density_coverage
from dreambench.metrics.reference import Reference
from dreambench.scores import Score
from dreambench.statistics import mean_estimate

__all__ = ["compare"]

NEIGHBOURS = 5
SPLITS = 10
MANIFOLD_LIMIT = 10_000
"""Above so many images on a side, precision and its kin are left out, with a note: their cost grows with the square."""
Features = npt.NDArray[np.float32]


def compare(
    generated: Mapping[str, Any],
    reference: Reference,
    extractor: str,
    protocol: str,
    *,
    unscored: int = 0,
    keys: Sequence[str] | None = None,
) -> list[Score]:
    """Fréchet and kernel distance, precision and its kin, Inception Score, CLIPScore: what these features and this reference allow.

    Args:
        generated: ``features`` (N, d), and where the network gives them ``logits`` (N, classes), for the Inception Score, and
            ``clip_scores`` (N,), for their mean.
        keys: one per image; equal ones say which belong together, for instance all of one image's captions.
    """
    features: Features = generated["features"]
    n = len(features)
    estimate = frechet_jackknife(features, reference.statistics, keys=keys)
    notes = list(reference.notes)
    for side, count in (("generated", n), ("real", reference.statistics.n)):
        if count is not None and count <= features.shape[1]:
            notes.append(
                f"{count} {side} images are too few for {features.shape[1]} features: "
                "the distance is biased upwards and barred from leaderboards"
            )
    if reference.features is not None:
        notes += _why_no_manifold(n, len(reference.features))
    scores = [
        Score(
            metric=metric_name("frechet", extractor),
            value=estimate.value,
            unit="",
            n=n,
            unscored=unscored,
            interval=estimate.interval,
            interval_method=estimate.method,
            protocol=protocol,
            notes=tuple(notes),
        )
    ]
    if reference.features is not None:
        scores.append(_kernel(features, reference.features, extractor, protocol, unscored))
        scores += _manifold(features, reference.features, extractor, protocol, unscored)
    if "logits" in generated:
        scores.append(_inception(generated["logits"], extractor, protocol, unscored))
    if "clip_scores" in generated:
        cut = int(generated.get("clip_truncated", 0))
        notes = (f"clip_score: {cut} captions were longer than the CLIP's context and cut for it",) if cut else ()
        scores.append(_clip(generated["clip_scores"], extractor, protocol, unscored, keys, notes))
    return scores


def _inception(logits: Features, extractor: str, protocol: str, unscored: int) -> Score:
    splits = min(SPLITS, len(logits))
    value, deviation = inception_score(logits, splits=splits)
    return Score(
        metric=metric_name("inception_score", extractor),
        value=value,
        unit="",
        n=len(logits),
        unscored=unscored,
        interval_method=f"none: the field gives the standard deviation over {splits} splits, {deviation:.4g}",
        protocol=protocol,
    )


def _clip(
    scores: Features, extractor: str, protocol: str, unscored: int, keys: Sequence[str] | None, notes: tuple[str, ...]
) -> Score:
    estimate = mean_estimate(scores, keys, cluster_name="image", unit="")
    return Score(
        metric=f"clip_score[{extractor}]",
        value=estimate.value,
        unit="",
        n=estimate.n,
        unscored=unscored,
        interval=estimate.interval,
        interval_method=estimate.method,
        protocol=protocol,
        notes=notes,
    )


def _kernel(features: Features, real: Features, extractor: str, protocol: str, unscored: int) -> Score:
    distance = kernel_distance(features, real)
    known = not math.isnan(distance.standard_error)
    half = NormalDist().inv_cdf(0.975) * distance.standard_error
    return Score(
        metric=metric_name("kernel", extractor),
        value=distance.value,
        unit="",
        n=len(features),
        unscored=unscored,
        interval=(distance.value - half, distance.value + half) if known else None,
        interval_method="normal, delete-one standard error of both sides" if known else "none: fewer than 3 images",
        protocol=protocol,
    )


def _why_no_manifold(generated: int, real: int) -> list[str]:
    """The note that stands in for precision and its kin where they are left out; nothing where they are not."""
    what = "precision, recall, density and coverage are left out:"
    if min(generated, real) <= NEIGHBOURS:
        return [f"{what} {generated} generated and {real} real images, each side needs more than {NEIGHBOURS}"]
    if max(generated, real) > MANIFOLD_LIMIT:
        return [
            f"{what} {generated} generated and {real} real images, at most {MANIFOLD_LIMIT} a side are compared pair by pair"
        ]
    return []


def _manifold(features: Features, real: Features, extractor: str, protocol: str, unscored: int) -> list[Score]:
    if _why_no_manifold(len(features), len(real)):
        return []
    prdc = precision_recall_density_coverage(features, real, k=NEIGHBOURS)
    return [
        Score(
            metric=metric_name(name, extractor),
            value=getattr(prdc, name),
            unit="",
            n=len(features),
            unscored=unscored,
            interval_method=f"none: depends on the {NEIGHBOURS} nearest of all images",
            protocol=protocol,
        )
        for name in ("precision", "recall", "density", "coverage")
    ]
