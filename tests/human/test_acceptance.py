"""Acceptance rates with raters and documents crossed, raters' care, and the coverage of the intervals in small."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dreambench.human.acceptance import DocumentRating, acceptance, acceptance_differences, threshold
from dreambench.human.crossed import proportion
from dreambench.human.raters import Answered, rater_table


def logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_five_raters_of_different_leniency_widen_the_interval_and_it_covers() -> None:
    """docs/human.md has the whole simulation: 5 raters x 150 documents and others."""
    rng, hits, trials = np.random.default_rng(1), 0, 200
    grid = rng.normal(size=200_000)
    truth = 100 * logistic(0.43 + math.hypot(0.8, 1) * grid).mean()
    raters, documents = np.repeat(np.arange(5), 150), np.tile(np.arange(150), 5)
    for _ in range(trials):
        leniency, quality = rng.normal(0, 0.8, 5), rng.normal(0, 1, 150)
        accepted = rng.random(750) < logistic(0.43 + leniency[raters] + quality[documents])
        estimate = proportion(accepted, raters.tolist(), documents.tolist())
        low, high = estimate.interval or (0, 0)
        hits += low <= truth <= high
    assert estimate.method == "cluster by rater and prompt, t on the logit scale"
    assert 0.90 <= hits / trials <= 0.99  # 95 %, three standard errors of 200 trials


def test_all_accepted_has_wilsons_interval_over_the_documents() -> None:
    estimate = proportion([1] * 20, ["a", "b"] * 10, [k // 2 for k in range(20)])
    assert estimate.value == 100
    assert estimate.method == "wilson over prompts"
    assert estimate.interval == pytest.approx((72.2467, 100), abs=1e-3)


def rows() -> list[DocumentRating]:
    """Two systems, six raters, 20 prompts: `good` is accepted more often by 40 points, in every rater's eyes."""
    rng = np.random.default_rng(4)
    return [
        DocumentRating(f"p{prompt}", "cats" if prompt % 2 else "dogs", system, rater, int(accepted), bool(accepted))
        for prompt in range(20)
        for rater in "abcdef"
        for system, share in (("good", 0.9), ("poor", 0.5))
        for accepted in [rng.random() < share]
    ]


def test_the_better_system_leads_in_rate_rank_majority_and_difference() -> None:
    table = acceptance(rows())
    assert list(table) == ["good", "poor"]
    assert table["good"].rank_interval == (1, 1)
    assert table["good"].majority.value > table["poor"].majority.value
    assert (table["good"].raters, table["good"].documents, table["good"].rate.n) == (6, 20, 120)
    assert set(table["good"].topics) == {"cats", "dogs"}
    assert sum(rate.n for rate in table["good"].topics.values()) == 120
    (difference,) = acceptance_differences(rows())
    assert difference.estimate.value == pytest.approx(table["good"].rate.value - table["poor"].rate.value)
    assert difference.estimate.interval is not None
    assert difference.estimate.interval[0] > 0


def test_a_third_system_and_its_raters_change_nothing_between_two() -> None:
    third = [DocumentRating(f"q{k}", None, "third", f"r{k}", k % 2, bool(k % 2)) for k in range(50)]
    (alone,), both = acceptance_differences(rows()), acceptance_differences([*rows(), *third])
    assert both[0].estimate.interval == pytest.approx(alone.estimate.interval, rel=1e-12)


def test_without_any_spread_there_is_no_interval_and_no_certain_rank() -> None:
    sure = [
        DocumentRating(f"p{k}", None, system, "r", one, bool(one))
        for k in range(2)
        for system, one in (("x", 1), ("y", 0))
    ]
    (difference,) = acceptance_differences(sure)
    assert (difference.estimate.value, difference.estimate.interval) == (100, None)
    assert acceptance(sure)["x"].rank_interval == (1, 2)


def test_no_mean_or_difference_leaves_its_scale() -> None:
    """Three raters, one of whom differs: value -/+ t * error would end above 5, and above 100 points."""
    rated = [
        DocumentRating(f"p{k}", None, system, rater, answer, answer > 3)
        for k in range(4)
        for rater in "abc"
        for system, answer in (("x", 3 if (rater, k) == ("a", 0) else 5), ("y", 4 if (rater, k) == ("b", 1) else 1))
    ]
    for system in acceptance(rated, scale=(1, 5)).values():
        assert system.mean.interval is not None
        assert 1 <= system.mean.interval[0] < system.mean.value < system.mean.interval[1] <= 5
    (found,) = acceptance_differences(rated)
    assert found.estimate.interval is not None
    assert -100 <= found.estimate.interval[0] < found.estimate.value < found.estimate.interval[1] <= 100


@pytest.mark.parametrize(("levels", "lowest"), [(2, 2), (3, 3), (4, 3), (5, 4), (7, 5)])
def test_a_likert_answer_accepts_above_the_middle(levels: int, lowest: int) -> None:
    assert threshold(levels) == lowest


def answers(care: dict[str, float], seed: int, items: int = 60) -> list[Answered]:
    """Raters who look with the given probability and guess otherwise, with 4 attention checks and 4 repeats each."""
    rng = np.random.default_rng(seed)
    truth = rng.random(items) < 0.6

    def given(rater: str, right: bool) -> bool:
        return right if rng.random() < care[rater] else bool(rng.random() < 0.5)

    found: list[Answered] = []
    for rater in care:
        own = [given(rater, bool(right)) for right in truth]
        found += [Answered(rater, k, score=float(answer), seconds=10.0) for k, answer in enumerate(own)]
        found += [Answered(rater, f"check {k}", passed=given(rater, True)) for k in range(4)]
        found += [Answered(rater, f"again {k}", repeated=own[k] == given(rater, bool(truth[k]))) for k in range(4)]
    return found


@pytest.mark.parametrize("seed", range(5))
def test_the_careless_raters_are_named_and_no_other(seed: int) -> None:
    care = {f"careful-{k}": 0.9 for k in range(9)} | {"guessing": 0.0, "tired": 0.2}
    table = rater_table(answers(care, seed), pairwise=False)
    assert {name for name, row in table.items() if row.careless} == {"guessing", "tired"}
    assert table["guessing"].signs


def test_a_lenient_and_a_fast_rater_are_shown_but_not_careless() -> None:
    found = answers(dict.fromkeys("abcdef", 0.95), 3)
    spent = {"a": 3.2, "b": 3.5}  # of the others' 10 s: the sign is less than a third
    found = [Answered(**{**answer_fields(a), "seconds": a.seconds and spent.get(a.rater, a.seconds)}) for a in found]
    table = rater_table(found, pairwise=False)
    assert not table["a"].careless
    assert [
        name for name, row in table.items() if any("where the median rater takes 10.0 s" in s for s in row.signs)
    ] == ["a"]
    lenient = [Answered("x", k, score=1.0) for k in range(30)] + [
        Answered(rater, k, score=float(k % 3 > 0)) for rater in "uvw" for k in range(30)
    ]
    bias = rater_table(lenient, pairwise=False)["x"].bias
    assert bias is not None
    assert bias.value == pytest.approx(100 / 3)
    assert bias.interval is not None
    assert bias.interval[0] > 0


def answer_fields(answer: Answered) -> dict[str, object]:
    return {name: getattr(answer, name) for name in Answered.__slots__}
