"""Prediction-powered inference equals ppi-python's recorded values; judges are held against humans."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dreambench.human.ppi import corrected_mean, judge_report
from dreambench.human.votes import Vote

CASES = json.loads((Path(__file__).parent / "recorded" / "ppi.json").read_text())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "power"), [("tuned", None), ("1", 1.0), ("0", 0.0)])
def test_value_and_interval_are_those_of_ppi_python(
    case: dict[str, list[float]], name: str, power: float | None
) -> None:
    found = corrected_mean(case["labels"], case["judged"], case["judged_only"], power=power).estimate
    expected = case["expected"][name]  # type: ignore[call-overload]
    assert found.value == pytest.approx(expected["value"], abs=1e-9)
    assert found.interval == pytest.approx(expected["interval"], abs=1e-9)


def test_a_good_judge_makes_labels_worth_more_and_a_useless_one_does_no_harm() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 100).astype(float)
    rest = rng.integers(0, 2, 2000).astype(float)
    perfect = corrected_mean(truth, truth, rest)
    useless = corrected_mean(truth, rng.integers(0, 2, 100), rest)
    assert perfect.power > 0.9
    assert perfect.worth is not None
    assert perfect.worth > 1000
    assert useless.worth == pytest.approx(100, rel=0.1)


def test_the_corrected_mean_covers_although_the_judge_is_biased() -> None:
    rng, hits = np.random.default_rng(1), 0
    for _ in range(200):
        truth = rng.random(600) < 0.5
        judge = np.where(rng.random(600) < 0.7, truth, rng.random(600) < 0.9)
        found = corrected_mean(truth[:100], judge[:100], judge[100:])
        low, high = found.estimate.interval or (0, 0)
        hits += low < 0.5 < high
        assert abs(judge.mean() - 0.5) > 0.05
    assert 180 <= hits <= 199


@pytest.mark.parametrize(("labels", "judged"), [([1.0], [0.0]), ([1.0, 0.0], [1.0]), ([], [])])
def test_fewer_than_two_labelled_items_are_an_error(labels: list[float], judged: list[float]) -> None:
    with pytest.raises(ValueError, match="at least two of each are needed"):
        corrected_mean(labels, judged, [1.0, 0.0, 1.0])


def test_items_of_one_prompt_are_one_cluster() -> None:
    rng = np.random.default_rng(2)
    truth = np.repeat(rng.integers(0, 2, 50), 4).astype(float)
    prompts = np.repeat(np.arange(50), 4).tolist()
    plain = corrected_mean(truth, truth, [], power=0.0).estimate
    clustered = corrected_mean(truth, truth, [], power=0.0, clusters=(prompts, [])).estimate
    assert (clustered.standard_error or 0) == pytest.approx(2 * (plain.standard_error or 0))


def test_agreement_position_and_consistency_of_a_judge() -> None:
    humans = [
        Vote(f"p{k}", "x", "y", vote, rater, "a") for k, vote in enumerate(["a", "b", "tie", "a"]) for rater in "uv"
    ]
    judge = [Vote(f"p{k}", "x", "y", vote, "j", "a") for k, vote in enumerate(["a", "a", "a", "tie", "a", "b"])]
    judge += [Vote("p0", "y", "x", "b", "j", "a"), Vote("p1", "y", "x", "a", "j", "a")]
    report = judge_report(humans, judge)
    assert report.items == 4
    # Both votes on p0 agree and one of two on p1; ties are on one side only.
    assert report.with_ties is not None
    assert report.with_ties.value == pytest.approx(100 * (2 * 2 + 2 * 1) / 12)
    assert report.without_ties is not None
    assert (report.without_ties.value, report.without_ties.n) == (pytest.approx(75), 8)
    assert report.between_humans["with_ties"] == (100, 4)
    assert report.first is not None
    assert (report.first.value, report.first.n) == (pytest.approx(100 * 5 / 7), 7)
    assert report.consistent is not None
    assert (report.consistent.value, report.consistent.n) == (50, 2)
    rate = report.win_rates["x"]
    assert rate.corrected is not None
    assert (rate.corrected.labels, rate.corrected.judged) == (4, 2)
    expected = corrected_mean([100, 0, 50, 100], [100, 50, 100, 50], [100, 0]).estimate.value  # percent that x won
    assert rate.corrected.estimate.value == pytest.approx(expected)


def test_too_few_labels_are_said() -> None:
    report = judge_report([Vote("p", "x", "y", "a")], [Vote("p", "x", "y", "a"), Vote("q", "x", "y", "a")])
    assert report.win_rates["x"].corrected is None
    assert report.win_rates["x"].reason == "humans voted on 1 of the judge's 2 items"


def test_a_corrected_rate_stays_within_its_bounds() -> None:
    """Few labels that the judge misses by much put the plain value above 100 %."""
    labels, judged, rest = [100.0, 100.0, 100.0, 0.0], [50.0, 100.0, 50.0, 0.0], [100.0] * 50
    free = corrected_mean(labels, judged, rest, power=1.0).estimate
    assert free.value > 100
    bounded = corrected_mean(labels, judged, rest, power=1.0, bounds=(0, 100)).estimate
    assert bounded.value == 100
    assert bounded.interval is not None
    assert 0 <= bounded.interval[0] < 100 == bounded.interval[1]
    inside = corrected_mean(labels, judged, judged, power=1.0, bounds=(0, 100)).estimate
    assert inside.interval is not None
    assert 0 < inside.interval[0] < inside.value < inside.interval[1] < 100
