"""The torchmetrics classes equal the functions, in batches, over processes, and with an extractor inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dreambench.metrics.clip_score import clip_scores, ref_clip_scores
from dreambench.metrics.frechet import frechet_distance
from dreambench.metrics.gaussian import GaussianStatistics
from dreambench.metrics.inception_score import inception_score
from dreambench.metrics.kid import kernel_distance
from dreambench.metrics.prdc import precision_recall_density_coverage
from dreambench.metrics.torchmetrics_classes import (
    CLIPScore,
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    PrecisionRecallDensityCoverage,
)

REAL, GENERATED = (torch.randn(n, 12, generator=torch.Generator().manual_seed(n)) + n / 100 for n in (40, 33))


def feed(metric, **sides: torch.Tensor):
    for name, features in sides.items():
        for part in features.split(7):
            metric.update(part, real=name == "real")
    return metric


def plain() -> float:
    return frechet_distance(*(GaussianStatistics.from_features(x.numpy()) for x in (GENERATED, REAL)))


def test_frechet_distance_equals_the_function_and_resets() -> None:
    metric = feed(FrechetDistance(12), real=REAL, generated=GENERATED)
    assert metric.compute().item() == pytest.approx(plain(), rel=1e-9)
    metric.reset()
    metric.update(REAL, real=True)
    with pytest.raises(ValueError, match="got 0"):
        metric.compute()


def test_two_processes_states_add_up() -> None:
    """What torchmetrics does between processes: every state has a reduction, applied to the stacked states of all."""
    first = feed(FrechetDistance(12), real=REAL[:10], generated=GENERATED[:30])
    second = feed(FrechetDistance(12), real=REAL[10:], generated=GENERATED[30:])
    for name, reduce in first._reductions.items():
        setattr(first, name, reduce(torch.stack([getattr(first, name), getattr(second, name)])))
    first.update(torch.zeros(0, 12), real=True)
    assert first.compute().item() == pytest.approx(plain(), rel=1e-9)


def test_an_extractor_makes_it_take_images() -> None:
    images = torch.rand(20, 3, 2, 2)
    metric = FrechetDistance(12, extractor=lambda images: images.flatten(1))
    metric.update(images, real=True)
    metric.update(images.flip(3), real=False)
    other = feed(FrechetDistance(12), real=images.flatten(1), generated=images.flip(3).flatten(1))
    assert metric.compute().item() == pytest.approx(other.compute().item(), rel=1e-9)
    with pytest.raises(ValueError, match="expected features"):
        FrechetDistance(12).update(images, real=True)


def test_measures_of_two_sets_equal_the_functions() -> None:
    value, error = feed(KernelDistance(), real=REAL, generated=GENERATED).compute()
    expected = kernel_distance(GENERATED.numpy(), REAL.numpy())
    assert (value.item(), error.item()) == pytest.approx((expected.value, expected.standard_error), rel=1e-9)
    manifold = feed(PrecisionRecallDensityCoverage(k=3), real=REAL, generated=GENERATED).compute()
    expected = precision_recall_density_coverage(GENERATED.numpy(), REAL.numpy(), k=3)
    assert {name: tensor.item() for name, tensor in manifold.items()} == vars(expected)


def test_scores_of_one_set_equal_the_functions() -> None:
    metric = InceptionScore(splits=3)
    for part in REAL.split(7):
        metric.update(part)
    assert [x.item() for x in metric.compute()] == pytest.approx(inception_score(REAL.numpy(), splits=3), rel=1e-12)
    text, references = REAL.flip(0), REAL.view(20, 2, 12).repeat(2, 1, 1)
    metric, with_references = CLIPScore(), CLIPScore(references=True)
    for at in (slice(0, 15), slice(15, 40)):
        metric.update(REAL[at], text[at])
        with_references.update(REAL[at], text[at], references[at])
    assert metric.compute().item() == pytest.approx(np.mean(clip_scores(REAL, text)), rel=1e-12)
    assert with_references.compute().item() == pytest.approx(
        np.mean(ref_clip_scores(REAL, text, references)), rel=1e-12
    )
    with pytest.raises(ValueError, match="references=False"):
        metric.update(REAL, text, references)
