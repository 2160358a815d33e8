"""Coefficients of agreement and strengths equal the values that other packages gave for the inputs in ``recorded/``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from human.agreement_checks import checks, exemptions, read
from parity.checks import leaves, uncovered

from dreambench.human.agreement import cohen_kappa, fleiss_kappa, krippendorff_alpha, randolph_kappa

RECORDED = Path(__file__).parent / "recorded"


def test_every_recorded_value_is_ours() -> None:
    problems = [problem for check in checks(RECORDED) if (problem := check.problem())]
    assert not problems, "\n".join(problems)


def test_every_recorded_value_is_compared_and_an_error_would_be_seen() -> None:
    keys = [key for file, recorded in read(RECORDED, "expected").items() for key in leaves(recorded, file)]
    found = checks(RECORDED)
    assert len(keys) > 60
    assert uncovered(keys, found, exemptions(RECORDED)) == []
    assert [check.key for check in found if check.perturbed().problem() is None] == []


def test_an_undefined_coefficient_is_none_with_its_reason() -> None:
    alone, same = [[1, np.nan], [np.nan, 2]], [[2, 2, 2], [2, 2, 2]]
    assert krippendorff_alpha(alone, 2, "nominal").reason == "no item has ratings of two raters"
    for found in (krippendorff_alpha(same, 3, "ordinal"), fleiss_kappa(same, 3), cohen_kappa(same[0], same[1], 3)):
        assert found.value is None
        assert "no disagreement to expect" in found.reason
    assert randolph_kappa(same, 3).value == 1
    uneven = fleiss_kappa([[1, 2, 1], [1, np.nan, 2]], 2)
    assert (uneven.n, uneven.reason) == (2, "not every item has the same number of raters, at least two")


def test_a_little_disagreement_to_expect_is_enough_for_alpha() -> None:
    """On the ratio scale two items may have less than 1 of it in all."""
    assert krippendorff_alpha([[1, 2], [1, 2]], 2, "ratio").value == 1


def test_the_interval_of_alpha_covers_it_and_is_the_same_each_time() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(1, 4, 80)
    ratings = np.where(rng.random((3, 80)) < 0.6, truth, rng.integers(1, 4, (3, 80)))
    first, second = (krippendorff_alpha(ratings, 3, "nominal", resamples=500) for _ in range(2))
    assert first == second
    assert first.interval is not None
    low, high = first.interval
    assert low < 0.36 < high  # 0.6 squared: both raters of a pair must have looked
    assert first.value == pytest.approx((low + high) / 2, abs=0.05)
