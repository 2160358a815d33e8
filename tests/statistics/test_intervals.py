"""Standard errors and intervals against statsmodels on generated scores, and the properties that no fixture needs."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from dreambench import statistics as st

SCORES = some.lists(some.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]), min_size=2, max_size=60)


def clustered(rng: np.random.Generator, groups: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    codes = rng.integers(0, groups, n)
    lean = rng.random(groups)
    return (rng.random(n) < lean[codes]).astype(float), codes


@pytest.mark.parametrize("seed", range(3))
def test_clustered_errors_equal_statsmodels(seed: int) -> None:
    import statsmodels.api as sm

    scores, codes = clustered(np.random.default_rng(seed), groups=17, n=120)
    for correction, corrected in (("CR0", False), ("CR1", True)):
        fit = sm.OLS(scores, np.ones((len(scores), 1))).fit(
            cov_type="cluster", cov_kwds={"groups": codes, "use_correction": corrected}
        )
        ours = st.clustered_standard_error(scores, codes, correction=correction)  # type: ignore[arg-type]
        assert ours == pytest.approx(float(fit.bse[0]), rel=1e-12)


@pytest.mark.parametrize("successes", [0, 1, 7, 19, 20])
def test_wilson_equals_statsmodels(successes: int) -> None:
    from statsmodels.stats.proportion import proportion_confint

    expected = proportion_confint(successes, 20, alpha=0.1, method="wilson")
    assert st.wilson_interval(successes, 20, confidence=0.9) == pytest.approx(expected, abs=1e-12)


def test_rounding_takes_no_wilson_interval_out_of_its_range() -> None:
    """By the formula the ends for n of n are 1; in floating point they are above it for n = 9, 26, 30, ..., below it for n = 13, 15, ..."""
    assert {st.wilson_interval(n, n)[1] for n in range(1, 100)} == {1.0}
    assert {st.wilson_interval(0, n)[0] for n in range(1, 100)} == {0.0}


@given(SCORES)
def test_clusters_of_one_are_no_clusters(scores: list[float]) -> None:
    alone = st.clustered_standard_error(scores, range(len(scores)))
    assert alone == pytest.approx(st.standard_error(scores, ddof=0), abs=1e-12)


@given(SCORES, some.integers(2, 4))
def test_copies_of_every_question_do_not_narrow_a_clustered_interval(scores: list[float], copies: int) -> None:
    names = [f"image {index}" for index in range(len(scores))]
    once = st.clustered_standard_error(scores, names)
    assert st.clustered_standard_error(scores * copies, names * copies) == pytest.approx(once, abs=1e-12)
    assert st.standard_error(scores * copies, ddof=0) <= once + 1e-12


@given(SCORES, some.randoms())
def test_order_does_not_matter(scores: list[float], random: object) -> None:
    codes = [index % 3 for index in range(len(scores))]
    pairs = list(zip(scores, codes, strict=True))
    random.shuffle(pairs)  # type: ignore[attr-defined]
    mixed_scores, mixed_codes = zip(*pairs, strict=True)
    assert st.clustered_standard_error(mixed_scores, mixed_codes) == pytest.approx(
        st.clustered_standard_error(scores, codes), abs=1e-12
    )


def test_the_method_is_wilsons_and_names_the_cluster() -> None:
    binary, graded = [1.0, 0.0, 1.0, 1.0], [0.9, 0.3, 1.0, 0.6]
    assert st.mean_estimate(binary).method == st.mean_estimate(graded).method == "wilson"
    assert st.mean_estimate(graded, ["a", "a", "b", "c"], cluster_name="image").method == "wilson, clustered by image"


@pytest.mark.parametrize("degrees", [1.0, 1.5, 2.0, 4.0, 9.3, 19.0, 300.0, 2e5, 2e6])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_students_quantile_equals_scipys(degrees: float, confidence: float) -> None:
    from scipy import stats

    expected = stats.t.ppf((1 + confidence) / 2, degrees)
    assert st.student_quantile(confidence, degrees) == pytest.approx(expected, rel=3e-6 if degrees > 1e6 else 1e-7)


def test_students_quantile_needs_a_degree_of_freedom_and_a_confidence() -> None:
    with pytest.raises(ValueError, match="degrees"):
        st.student_quantile(0.95, 0.5)
    with pytest.raises(ValueError, match="confidence"):
        st.student_quantile(1.0, 4)


def test_independent_binary_scores_have_wilsons_interval_with_students_quantile() -> None:
    """The size of independent 0/1 scores is their number, whatever was seen; t with n - 1 takes the place of z."""
    as_normal = 2 * st.NormalDist().cdf(st.student_quantile(0.95, 19)) - 1
    for right in (1, 7, 19):
        ours = st.mean_estimate([1.0] * right + [0.0] * (20 - right), unit="")
        assert ours.interval == pytest.approx(st.wilson_interval(right, 20, as_normal), rel=1e-9)


def test_whole_clusters_of_one_score_count_as_one() -> None:
    """Copies of a question add nothing: neither to the size of the sample nor to the degrees of freedom."""
    scores = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0] * 10
    once = st.mean_estimate(scores, unit="").interval
    copied = st.mean_estimate(scores * 5, list(range(60)) * 5, unit="").interval
    assert copied == pytest.approx(once, abs=0.002)


def test_unequal_clusters_count_as_fewer() -> None:
    """Kish: sizes 9 and 1 are worth 100 / 82 clusters of equal size, so that t has the widest of its quantiles."""
    equal, unequal = (
        st.mean_estimate([1.0, 0.0] * 10, [index >= first for index in range(20)], unit="") for first in (10, 18)
    )
    assert equal.interval is not None
    assert unequal.interval is not None
    assert np.diff(unequal.interval) > np.diff(equal.interval)


@settings(deadline=None)
@given(
    some.lists(some.tuples(some.sampled_from([0.0, 1 / 3, 0.5, 1.0]), some.integers(0, 5)), min_size=1, max_size=40),
    some.sampled_from([(0.0, 1.0), (-1.0, 1.0), (0.0, 2.5), (0.0, math.inf)]),
)
def test_no_interval_leaves_its_range_or_loses_its_value(
    pairs: list[tuple[float, int]], bounds: tuple[float, float]
) -> None:
    scores, clusters = zip(*pairs, strict=True)
    ours = st.mean_estimate(scores, clusters, unit="", bounds=bounds)
    if ours.interval is None:
        assert ours.method.startswith("none: ")
        return
    low, high = ours.interval
    assert bounds[0] <= low <= ours.value + 1e-12
    assert ours.value - 1e-12 <= high <= bounds[1]
    assert low < high


def test_scores_out_of_their_bounds_are_refused() -> None:
    for scores in ([0.0, 1.1], [-0.1, 1.0]):
        with pytest.raises(ValueError, match="between 0 and 1"):
            st.mean_estimate(scores)
    assert st.mean_estimate([1 + 1e-12, 1.0], unit="").interval is not None, "rounding is not out of bounds"


def test_an_unbounded_mean_is_the_limit_of_a_bounded_one() -> None:
    words = [30.0, 12.0, 41.0, 8.0, 22.0]
    free = st.mean_estimate(words, unit="words", bounds=(0, math.inf))
    quantile, error = st.student_quantile(0.95, 4), free.standard_error or 0
    assert free.interval == pytest.approx(st.interval_within(free.value, error, quantile, (0, 1e9)), rel=1e-6)
    assert free.method == "wilson without upper bound"
    assert st.mean_estimate([2.0, 2.0], unit="", bounds=(0, math.inf)).method == "none: all scores are equal"


def test_an_interval_within_bounds_for_any_standard_error() -> None:
    """Wilson's own for the error of independent 0/1 scores; a value on a bound keeps a cut interval."""
    error = math.sqrt(0.3 * 0.7 / 50)
    assert st.interval_within(0.3, error, st.normal_quantile(0.95), (0, 1)) == pytest.approx(st.wilson_interval(15, 50))
    wide = st.interval_within(30, 100 * error, st.normal_quantile(0.95), (0, 100))
    assert wide == pytest.approx([100 * end for end in st.wilson_interval(15, 50)])
    moved = st.interval_within(0.3 - 2, error, st.normal_quantile(0.95), (-2, -1))
    assert moved == pytest.approx([end - 2 for end in st.wilson_interval(15, 50)])
    assert st.interval_within(100, 10, 2, (0, 100)) == (80, 100)
    assert st.interval_within(0.3, 0, 2, (0, 1)) == (0.3, 0.3)


def test_percent_scales_value_interval_and_error() -> None:
    share, percent = (st.mean_estimate([0.9, 0.3, 1.0, 0.6], unit=unit) for unit in ("", "%"))
    assert percent.value == pytest.approx(100 * share.value)
    assert percent.interval == pytest.approx([100 * end for end in share.interval or ()])
    assert percent.standard_error == pytest.approx(100 * (share.standard_error or math.nan))
    assert percent.value == pytest.approx(70)


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_a_mean_on_a_bound_has_the_exact_interval_of_its_clusters(score: float) -> None:
    from statsmodels.stats.proportion import proportion_confint

    for clusters, units, method in ((None, 6, "exact"), (["a", "b", "c"] * 2, 3, "exact, clustered by image")):
        ours = st.mean_estimate([score] * 6, clusters, unit="", cluster_name="image")
        assert ours.interval == pytest.approx(proportion_confint(int(score * units), units, method="beta"), abs=1e-9)
        assert ours.method == method


def test_equal_scores_within_the_bounds_are_not_certainty() -> None:
    """Then every cluster counts as one 0/1 score."""
    for clusters, units in ((None, 6), (["a", "b", "c"] * 2, 3)):
        ours = st.mean_estimate([0.4] * 6, clusters, unit="").interval
        as_normal = 2 * st.NormalDist().cdf(st.student_quantile(0.95, units - 1)) - 1
        assert ours == pytest.approx(st.wilson_interval(0.4 * units, units, as_normal), abs=1e-9)


def test_one_observation_has_no_interval() -> None:
    assert st.mean_estimate([0.3]).interval is None
    assert st.mean_estimate([0.3]).standard_error is None
    assert st.mean_estimate([0.3, 0.9], ["same", "same"], cluster_name="image").method == "none: a single image"


@pytest.mark.parametrize("scores", [[], [math.nan], [[1.0]], [math.inf, 0.0]])
def test_scores_that_are_not_a_row_of_numbers_are_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="scores must be"):
        st.mean_estimate(scores)


def test_clusters_must_be_as_many_as_scores() -> None:
    with pytest.raises(ValueError, match="clusters"):
        st.mean_estimate([0.0, 1.0], ["a"])


def test_bootstrap_repeats_itself_and_its_seed_matters() -> None:
    scores, codes = clustered(np.random.default_rng(5), groups=20, n=200)
    for clusters in (None, codes):
        first, again, other = (
            st.bootstrap_mean(scores, seed=seed, clusters=clusters, resamples=500) for seed in (7, 7, 8)
        )
        assert first == again
        assert first.standard_error != other.standard_error


def test_bootstrap_by_counts_is_the_bootstrap() -> None:
    """All 3^3 resamples of three scores are equally likely: their spread is known, and the multinomial draw must show it."""
    scores = [0.0, 0.3, 1.0]
    resamples = [sum(draw) / 3 for draw in itertools.product(scores, repeat=3)]
    ours = st.bootstrap_mean(scores, seed=1, resamples=100_000)
    assert ours.standard_error == pytest.approx(np.std(resamples), rel=0.01)
    assert ours.interval == (0.0, 1.0)


def test_cluster_bootstrap_draws_whole_clusters() -> None:
    """Two clusters of unequal size: the four equally likely resamples give three ratios of sums."""
    ours = st.bootstrap_mean([1.0, 0.0, 0.0], seed=3, clusters=["a", "b", "b"], resamples=50_000)
    assert ours.interval == (0.0, 1.0)
    assert ours.standard_error == pytest.approx(np.std([1.0, 1 / 3, 1 / 3, 0.0]), rel=0.02)


@given(SCORES)
@settings(max_examples=25)
def test_bootstrap_of_equal_scores_is_a_point(scores: list[float]) -> None:
    same = [scores[0]] * len(scores)
    ours = st.bootstrap_mean(same, seed=0, resamples=50)
    assert ours.interval == pytest.approx((same[0], same[0]))
    assert ours.standard_error == pytest.approx(0, abs=1e-12)


def test_nothing_heavy_is_imported_with_the_package() -> None:
    """A score's interval must not cost the second that scipy.stats takes to import."""
    script = "import sys, dreambench.statistics as s; s.mean_estimate([0, 1]); sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
