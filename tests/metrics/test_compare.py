"""Which scores come of two sets of features, and that what is left out is said."""

from __future__ import annotations

import numpy as np
import pytest

from dreambench.metrics import compare as module
from dreambench.metrics.gaussian import GaussianStatistics
from dreambench.metrics.reference import Reference
from dreambench.scores import Score


def compare(generated: int, real: int) -> list[Score]:
    random = np.random.default_rng(0)
    made, reference_images = (random.normal(size=(n, 3)).astype(np.float32) for n in (generated, real))
    reference = Reference(GaussianStatistics.from_features(reference_images), reference_images)
    return module.compare({"features": made}, reference, "x", "p")


def left_out(scores: list[Score]) -> list[str]:
    return [note for score in scores for note in score.notes if "left out" in note]


def test_precision_and_its_kin_are_there_and_nothing_is_said() -> None:
    scores = compare(20, 30)
    assert [score.metric for score in scores][2:] == ["precision[x]", "recall[x]", "density[x]", "coverage[x]"]
    assert not left_out(scores)


@pytest.mark.parametrize(("generated", "real", "limit"), [(20, 31, 30), (31, 20, 30), (5, 20, 30), (20, 5, 30)])
def test_where_they_are_left_out_a_note_says_so(
    monkeypatch: pytest.MonkeyPatch, generated: int, real: int, limit: int
) -> None:
    monkeypatch.setattr(module, "MANIFOLD_LIMIT", limit)
    scores = compare(generated, real)
    assert [score.metric for score in scores] == ["fd[x]", "kd[x]"]
    (note,) = left_out(scores)
    assert f"{generated} generated and {real} real images" in note
