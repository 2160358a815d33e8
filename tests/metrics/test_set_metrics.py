"""KID, Inception Score, PRDC and CLIPScore against their definitions, written out."""

from __future__ import annotations

import numpy as np
import pytest

from dreambench.errors import DataError
from dreambench.metrics import set_metrics
from dreambench.metrics.set_metrics import (
    clip_scores,
    cosine_similarities,
    inception_score,
    kernel_distance,
    precision_recall_density_coverage,
    ref_clip_scores,
)


def sets(n: int = 23, m: int = 31, d: int = 5) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(0)
    return random.randn(n, d), random.randn(m, d) * 1.3 + 0.2


def mmd2(x: np.ndarray, y: np.ndarray) -> float:
    def mean(a: np.ndarray, b: np.ndarray, same: bool) -> float:
        values = [
            (float(p @ q) / len(p) + 1) ** 3 for i, p in enumerate(a) for j, q in enumerate(b) if not same or i != j
        ]
        return sum(values) / len(values)

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def test_kernel_distance_and_its_error_equal_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_metrics, "BLOCK", 7)  # several blocks, the last one short
    x, y = sets()
    result = kernel_distance(x, y)
    assert result.value == pytest.approx(mmd2(x, y), rel=1e-10)
    without_x = np.array([mmd2(np.delete(x, i, 0), y) for i in range(len(x))])
    without_y = np.array([mmd2(x, np.delete(y, i, 0)) for i in range(len(y))])
    variance = sum((len(v) - 1) * v.var() for v in (without_x, without_y))
    assert result.standard_error == pytest.approx(np.sqrt(variance), rel=1e-6)


def test_two_items_give_a_kernel_distance_without_an_interval() -> None:
    x, y = sets(2, 5)
    result = kernel_distance(x, y)
    assert result.value == pytest.approx(mmd2(x, y), rel=1e-10)
    assert (result.interval, result.standard_error, result.method) == (None, None, "none: fewer than 3 images")
    assert kernel_distance(*sets(3, 3)).interval is not None
    with pytest.raises(DataError, match="needs 2 items"):
        kernel_distance(x[:1], y)


def test_prdc_equals_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_metrics, "BLOCK", 7)
    x, y = sets()
    k = 3
    distance = np.linalg.norm(x[:, None] - y, axis=-1)
    radius_x = np.sort(np.linalg.norm(x[:, None] - x, axis=-1), axis=1)[:, k]
    radius_y = np.sort(np.linalg.norm(y[:, None] - y, axis=-1), axis=1)[:, k]
    result = precision_recall_density_coverage(x, y, k=k)
    assert result["precision"].value == (distance < radius_y).any(axis=1).mean()
    assert result["recall"].value == (distance < radius_x[:, None]).any(axis=0).mean()
    assert result["density"].value == pytest.approx((distance < radius_y).sum() / (k * len(x)), rel=1e-12)
    assert result["coverage"].value == (distance < radius_y).any(axis=0).mean()


def test_prdc_open_and_closed_balls_differ_on_a_tie_only() -> None:
    real, generated = np.array([[0.0], [1.0]]), np.array([[2.0], [5.0]])
    assert precision_recall_density_coverage(generated, real, k=1)["precision"].value == 0
    assert precision_recall_density_coverage(generated, real, k=1, closed=True)["precision"].value == 0.5


def test_prdc_needs_more_items_than_neighbours() -> None:
    with pytest.raises(DataError, match="23 neighbours"):
        precision_recall_density_coverage(*sets(), k=23)


def test_inception_score_is_one_for_equal_and_the_number_of_classes_for_distinct_certain_predictions() -> None:
    assert inception_score(np.zeros((50, 10)))[0].value == pytest.approx(1, abs=1e-12)
    certain = np.tile(np.eye(10) * 2000, (5, 1))  # probabilities underflow to exactly 0
    assert inception_score(certain, splits=1)[0].value == pytest.approx(10, rel=1e-9)
    with pytest.raises(DataError, match="splits"):
        inception_score(np.zeros((5, 10)))


def test_clip_score_clamps_and_ref_clip_score_does_not_clamp_its_second_term() -> None:
    image, text = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]), np.array([[2.0, 0.0], [-1.0, 0.0], [1.0, 1.0]])
    references = np.array([[[0.0, 1.0], [3.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]], [[-1.0, 0.0], [-1.0, -1.0]]])
    half = np.sqrt(0.5)
    np.testing.assert_allclose(clip_scores(image, text), [2.5, 0, 2.5 * half])
    expected = [2 * 2.5 / 3.5, 0, 2 * 2.5 * half * -half / (2.5 * half - half)]
    np.testing.assert_allclose(ref_clip_scores(image, text, references), expected)


def test_clip_score_does_not_depend_on_the_features_lengths_and_takes_zero_as_no_similarity() -> None:
    random = np.random.RandomState(0)
    a, b = random.randn(5, 8), random.randn(5, 8)
    np.testing.assert_allclose(clip_scores(a * 7, b / 9), clip_scores(a, b))
    assert cosine_similarities(np.zeros((1, 8)), b[:1])[0] == 0
    with pytest.raises(DataError, match="do not pair"):
        cosine_similarities(a, b[:, :7])
