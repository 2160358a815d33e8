"""Which scores two sets of features give, and the notes about those that are left out."""

from __future__ import annotations

import numpy as np
import pytest

from dreambench.metrics import compare as module
from dreambench.scores import Score


def compare(generated: int, reference: int) -> list[Score]:
    random = np.random.default_rng(0)
    ours, theirs = (random.normal(size=(n, 3)).astype(np.float32) for n in (generated, reference))
    return module.compare({"features": ours}, module.Reference.from_features(theirs), "x", "p")


def left_out(scores: list[Score]) -> list[str]:
    return [note for score in scores for note in score.notes if "left out" in note]


def test_precision_recall_density_and_coverage_come_without_a_note() -> None:
    scores = compare(20, 30)
    assert [score.metric for score in scores][2:] == ["precision[x]", "recall[x]", "density[x]", "coverage[x]"]
    assert not left_out(scores)


@pytest.mark.parametrize(("generated", "reference", "limit"), [(20, 31, 30), (31, 20, 30), (5, 20, 30), (20, 5, 30)])
def test_a_note_says_where_they_are_left_out(
    monkeypatch: pytest.MonkeyPatch, generated: int, reference: int, limit: int
) -> None:
    monkeypatch.setattr(module, "MANIFOLD_LIMIT", limit)
    scores = compare(generated, reference)
    assert [score.metric for score in scores] == ["fd[x]", "kd[x]"]
    (note,) = left_out(scores)
    assert f"{generated} generated and {reference} reference images" in note


@pytest.mark.parametrize(("generated", "reference", "side"), [(3, 20, "generated"), (20, 3, "reference")])
def test_a_note_says_when_there_are_too_few_images_for_the_features(generated: int, reference: int, side: str) -> None:
    """The covariance is then singular, and the distance biased."""
    assert any(note.startswith(f"3 {side} images are too few") for note in compare(generated, reference)[0].notes)
    assert not any("too few" in note for note in compare(20, 20)[0].notes)
