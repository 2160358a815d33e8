"""Paired comparisons, tests and sample sizes against scipy and statsmodels, and by their own meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from dreambench import statistics as st

PAIRS = some.lists(some.tuples(some.booleans(), some.booleans()), min_size=2, max_size=80)


def test_paired_t_equals_scipy() -> None:
    from scipy import stats

    rng = np.random.default_rng(1)
    a, b = rng.random(40), rng.random(40)
    expected = stats.ttest_rel(a, b)
    ours = st.paired_difference(a, b, test="t")
    assert (ours.statistic, ours.p_value) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-12)


@settings(deadline=None)  # the first example imports statsmodels
@given(PAIRS)
def test_mcnemar_equals_statsmodels(pairs: list[tuple[bool, bool]]) -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    a, b = zip(*pairs, strict=True)
    ours = st.mcnemar(a, b)
    table = np.array(ours.table)
    assert table.sum() == len(pairs)
    assert ours.exact_p == pytest.approx(float(mcnemar(table, exact=True).pvalue), rel=1e-12)
    if table[0, 1] + table[1, 0] == 0:
        assert ours.chi2 is ours.chi2_corrected is None
        return
    assert ours.chi2 is not None
    plain = mcnemar(table, exact=False, correction=False)
    assert ours.chi2 == pytest.approx((plain.statistic, plain.pvalue), rel=1e-12)
    corrected = mcnemar(table, exact=False, correction=True)
    assert ours.chi2_corrected == pytest.approx((corrected.statistic, corrected.pvalue), rel=1e-12)


@settings(deadline=None)
@given(PAIRS)
def test_swapping_the_systems_changes_the_sign_and_nothing_else(pairs: list[tuple[bool, bool]]) -> None:
    a, b = zip(*pairs, strict=True)
    there, back = st.paired_difference(a, b), st.paired_difference(b, a)
    assert there.estimate.value == -back.estimate.value
    assert there.p_value == back.p_value
    assert st.mcnemar(a, b).exact_p == st.mcnemar(b, a).exact_p


def test_a_constant_difference_has_no_test() -> None:
    ours = st.paired_difference([0.9, 0.6, 0.3], [0.6, 0.3, 0.0])
    assert ours.estimate.value == pytest.approx(0.3)
    assert (ours.statistic, ours.p_value, ours.estimate.standard_error) == (None, None, 0.0)
    assert (ours.estimate.interval, ours.estimate.method) == (None, "none: all differences are equal")


def test_pairing_gains_what_correlation_gives() -> None:
    rng = np.random.default_rng(2)
    a = rng.random(500)
    ours = st.paired_difference(a, a + 0.01 * rng.random(500))
    assert ours.correlation is not None
    assert ours.correlation > 0.99
    assert ours.estimate.standard_error is not None
    assert ours.unpaired_standard_error is not None
    assert ours.estimate.standard_error < 0.05 * ours.unpaired_standard_error


def test_clustered_difference_uses_the_clusters() -> None:
    a, b = [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]
    clusters = ["x", "x", "x", "y", "y", "y"]
    plain = st.paired_difference(a, b, clusters, cluster_name="image", test="z").estimate
    assert (plain.method, plain.standard_error) == (
        "normal, clustered by image",
        pytest.approx(np.sqrt(2 * 1.5**2) / 6),
    )
    ours = st.paired_difference(a, b, clusters, cluster_name="image")
    assert ours.estimate.method == "t, clustered by image"
    assert ours.estimate.standard_error == pytest.approx(np.sqrt(2) * np.sqrt(2 * 1.5**2) / 6), "CR1 of two clusters"
    assert ours.p_value == pytest.approx(0.5), "t = 1 with one degree of freedom"


def test_a_clustered_t_test_is_that_of_the_clusters_means() -> None:
    from scipy import stats

    rng = np.random.default_rng(4)
    a, b = rng.random((7, 5)), rng.random((7, 5))
    expected: Any = stats.ttest_rel(a.mean(axis=1), b.mean(axis=1))
    ours = st.paired_difference(a.ravel(), b.ravel(), np.repeat(np.arange(7), 5))
    assert (ours.statistic, ours.p_value) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-10)
    assert ours.estimate.interval == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-10)


def test_an_interval_of_a_difference_ends_where_no_difference_can_be_larger() -> None:
    a, b, clusters = [1, 1, 1, 0.9], [0, 0, 0, 0], ["x", "x", "y", "y"]
    free, bounded = (st.paired_difference(a, b, clusters, bounds=bounds).estimate for bounds in (None, (0, 1)))
    assert free.interval is not None
    assert free.interval[1] > 1
    assert bounded.interval == pytest.approx((free.interval[0], 1))
    a, b = b, a
    assert (st.paired_difference(a, b, clusters, bounds=(0, 1)).estimate.interval or (0,))[0] == -1


def test_a_single_cluster_has_no_difference_to_test() -> None:
    ours = st.paired_difference([1, 0, 1], [0, 0, 0], ["x"] * 3, cluster_name="image")
    assert (ours.estimate.interval, ours.estimate.method, ours.p_value) == (None, "none: a single image", None)
    assert st.paired_difference([1], [0]).estimate.method == "none: a single question"


def test_unequal_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="pair them"):
        st.paired_difference([1, 0], [1, 0, 1])
    with pytest.raises(ValueError, match="0 and 1"):
        st.mcnemar([0.3, 1], [0, 1])


@settings(deadline=None)
@given(some.lists(some.floats(0, 1), min_size=1, max_size=20), some.sampled_from(["holm", "bonferroni", "fdr_bh"]))
def test_adjusted_p_values_equal_statsmodels(p_values: list[float], method: str) -> None:
    from statsmodels.stats.multitest import multipletests

    expected = multipletests(p_values, method=method)[1]
    np.testing.assert_allclose(st.adjust_p_values(p_values, method), expected, rtol=1e-12, atol=1e-300)  # type: ignore[arg-type]


def test_adjustment_needs_probabilities_and_a_known_method() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        st.adjust_p_values([0.5, 1.5])
    with pytest.raises(ValueError, match="unknown adjustment"):
        st.adjust_p_values([0.5], "sidak")  # type: ignore[arg-type]


def test_the_detectable_effect_is_detected_with_the_given_power() -> None:
    n, between = 400, 0.25
    effect = st.minimum_detectable_effect(n, between, power=0.8)
    assert st.required_questions(effect, between, power=0.8) == pytest.approx(n)
    drawn = np.random.default_rng(3).normal(effect, np.sqrt(between / n), 20_000)
    found = np.abs(drawn / np.sqrt(between / n)) > st.normal_quantile(0.95)
    assert found.mean() == pytest.approx(0.8, abs=0.01)


def test_planning_refuses_what_no_study_can_have() -> None:
    """A single question is a study; none, a negative variance or an answer fewer than one are not."""
    assert st.minimum_detectable_effect(1, 0.25) == pytest.approx(0.5 * (st.normal_quantile(0.95) + 0.8416), rel=1e-4)
    for n in (0, -1):
        with pytest.raises(ValueError, match=f"{n} questions"):
            st.minimum_detectable_effect(n, 0.25)
    with pytest.raises(ValueError, match="effect of 0"):
        st.required_questions(0, 0.25)
    for wrong in (
        {"between": -0.1},
        {"between": 0.1, "within_a": -0.1},
        {"between": 0.1, "within_b": -0.1},
        {"between": 0.1, "answers_a": 0},
        {"between": 0.1, "answers_b": 0},
    ):
        with pytest.raises(ValueError, match="negative"):
            st.required_questions(0.1, **wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="negative"):
            st.minimum_detectable_effect(10, **wrong)  # type: ignore[arg-type]
    assert st.required_questions(-0.1, 0.25) == st.required_questions(0.1, 0.25)


@pytest.mark.parametrize("side", ["a", "b"])
def test_each_sides_variance_and_answers_count(side: str) -> None:
    """Miller (2024), equation 9, by hand: between + within / answers of each side."""
    z = st.normal_quantile(0.95) + 0.8416212335729143
    needed = st.required_questions(0.1, 0.1, **{f"within_{side}": 0.3, f"answers_{side}": 2})  # type: ignore[arg-type]
    assert needed == pytest.approx((0.1 + 0.15) * (z / 0.1) ** 2)


def test_more_answers_per_question_need_fewer_questions() -> None:
    once = st.required_questions(0.02, 0.1, 0.2, 0.2)
    often = st.required_questions(0.02, 0.1, 0.2, 0.2, answers_a=4, answers_b=4)
    assert often / once == pytest.approx((0.1 + 0.1) / (0.1 + 0.4))


def test_variance_components_of_known_repeats() -> None:
    between, within = st.variance_components([1, 0, 1, 1], ["q", "q", "r", "r"])
    assert (between, within) == (0.125, 0.25)
    with pytest.raises(ValueError, match="two answers"):
        st.variance_components([1, 0, 1], ["q", "q", "r"])
