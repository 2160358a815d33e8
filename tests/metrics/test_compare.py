"""Which scores two sets of features give, and the notes about those that are left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dreambench.metrics import compare as module
from dreambench.metrics.encoders import ClipExtractor
from dreambench.scores import Score


def compare(generated: int, reference: int, shift: float = 0, **arrays: object) -> list[Score]:
    random = np.random.default_rng(0)
    ours, theirs = (random.normal(size=(n, 3)).astype(np.float32) for n in (generated, reference))
    return module.compare({"features": ours + shift, **arrays}, module.Reference.from_features(theirs), "x", "p")


DISTANCES = ["fd[x]", "fd[x]-infinity", "fd[x]-real-vs-real", "kd[x]"]
MANIFOLD = ["precision[x]", "recall[x]", "density[x]", "coverage[x]"]


def notes(scores: list[Score]) -> list[str]:
    return [note for score in scores for note in score.notes]


def left_out(scores: list[Score]) -> list[str]:
    return [note for note in notes(scores) if note.startswith("precision") and "left out" in note]


def test_precision_recall_density_and_coverage_come_without_a_note() -> None:
    scores = compare(20, 30)
    assert [score.metric for score in scores] == [*DISTANCES, *MANIFOLD]
    assert not left_out(scores)


@pytest.mark.parametrize(("generated", "reference", "limit"), [(20, 31, 30), (31, 20, 30), (5, 20, 30), (20, 5, 30)])
def test_a_note_says_where_they_are_left_out(
    monkeypatch: pytest.MonkeyPatch, generated: int, reference: int, limit: int
) -> None:
    monkeypatch.setattr(module, "MANIFOLD_LIMIT", limit)
    scores = compare(generated, reference)
    assert [score.metric for score in scores] == DISTANCES
    (note,) = left_out(scores)
    assert f"{generated} generated and {reference} reference images" in note


def test_images_like_the_real_ones_are_no_finding() -> None:
    """Each metric says where real images against real images get as much."""
    scores = {score.metric: score for score in compare(200, 200)}
    assert "within what other real images get" in scores["fd[x]"].notes[0]
    assert "no difference from real images is shown" in scores["fd[x]"].notes[0]
    assert "is no finding" in scores["kd[x]"].notes[0]
    assert "as high as for real images" in scores["precision[x]"].notes[0]
    for metric in MANIFOLD:
        assert metric.partition("[")[0] in scores["precision[x]"].notes[0]


def test_a_difference_that_only_pairs_show_is_no_equality() -> None:
    """Images that follow the reference's one by one have a small distance without being real."""
    theirs = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    keys = [str(i) for i in range(200)]
    reference = module.Reference.from_features(theirs, keys=keys)
    plain, infinity, *_ = module.compare({"features": theirs * 1.08}, reference, "x", "p", keys=keys)
    assert "paired by name" in infinity.interval_method
    assert "so a difference from real images is shown" in plain.notes[0]


def test_images_unlike_the_real_ones_are_one() -> None:
    scores = compare(200, 200, shift=2)
    assert not notes(scores)
    plain, infinity, real = scores[:3]
    assert plain.value is not None
    assert real.interval is not None
    assert plain.value > 10 * real.interval[1]
    assert infinity.interval is not None
    assert infinity.interval[0] > 0


def test_without_images_of_the_reference_its_baseline_is_none_and_says_why() -> None:
    random = np.random.default_rng(0)
    statistics = module.GaussianStatistics.from_features(random.normal(size=(50, 3)))
    scores = module.compare({"features": random.normal(size=(50, 3))}, module.Reference(statistics, None), "x", "p")
    assert [score.metric for score in scores] == DISTANCES[:3]
    assert "reference fixed" in scores[1].interval_method
    assert scores[2].value is None
    assert "file of statistics" in scores[2].interval_method
    assert any("no real-vs-real baseline" in note for note in scores[0].notes)


def test_too_few_images_for_the_features_leave_the_unbiased_distance_out() -> None:
    """At n = d the covariance is singular, below 2 d the bias cannot be removed."""
    for n, words in ((3, "singular"), (5, "fewer than 2")):
        scores = compare(n, 20)
        assert scores[1].value is None
        assert words in scores[1].interval_method
        assert any(note.startswith("fd[x]-infinity") and words in note for note in notes(scores))
    assert compare(6, 20)[1].value is not None


class Captions(ClipExtractor):
    """The feature of a text that is a number: the unit vector in its direction."""

    has_text, truncated = True, 0

    def __init__(self) -> None:
        self.asked: list[int] = []

    def text_features(self, texts: list[str]) -> torch.Tensor:
        self.asked.append(len(texts))
        return torch.eye(150)[[int(text) for text in texts]]


def test_every_image_is_scored_with_its_own_caption_and_with_another() -> None:
    """More captions than the text tower is given at once."""
    extractor = Captions()
    captions = [str(number) for number in range(150)]
    outputs = module.network_outputs(extractor, np.eye(150, dtype=np.float32), captions, captions)
    assert extractor.asked == [64, 64, 22]
    assert len(set(outputs["clip_scores"])) == 1
    assert outputs["clip_scores"][0] > 0
    assert not outputs["clip_scores_shuffled"].any()


def test_clip_scores_stand_beside_those_of_shuffled_captions() -> None:
    own, other = np.full(20, 0.8), np.full(20, 0.3)
    *_, score, shuffled = compare(20, 30, clip_scores=own, clip_scores_shuffled=other)
    assert (score.metric, score.value) == ("clip_score[x]", pytest.approx(0.8))
    assert (shuffled.metric, shuffled.value) == ("clip_score[x]-shuffled", pytest.approx(0.3))
    assert not score.notes
    *_, blind, _ = compare(20, 30, clip_scores=other, clip_scores_shuffled=own)
    assert "no better than with captions of other images" in blind.notes[0]
    *_, alone = compare(20, 30, clip_scores=own)
    assert alone.metric == "clip_score[x]"
    assert "left out" in alone.notes[0]


def test_what_the_files_are_is_said_first() -> None:
    assert compare(20, 30, notes=np.array(["odd files"]))[0].notes[0] == "odd files"


@pytest.mark.parametrize(("generated", "reference", "side"), [(3, 20, "generated"), (20, 3, "reference")])
def test_a_note_says_when_there_are_too_few_images_for_the_features(generated: int, reference: int, side: str) -> None:
    """The covariance is then singular, and the distance biased."""
    assert any(note.startswith(f"3 {side} images are too few") for note in compare(generated, reference)[0].notes)
    assert not any("too few" in note for note in compare(20, 20)[0].notes)
