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


def test_the_interval_suits_the_scores() -> None:
    binary, graded = [1.0, 0.0, 1.0, 1.0], [0.9, 0.3, 1.0, 0.6]
    assert st.mean_estimate(binary).method == "wilson"
    assert st.mean_estimate(graded).method == "normal"
    assert st.mean_estimate(graded, ["a", "a", "b", "c"], cluster_name="image").method == "cluster by image"


def test_percent_scales_value_interval_and_error() -> None:
    share, percent = (st.mean_estimate([0.9, 0.3, 1.0, 0.6], unit=unit) for unit in ("", "%"))
    assert percent.value == pytest.approx(100 * share.value)
    assert percent.interval == pytest.approx([100 * end for end in share.interval or ()])
    assert percent.standard_error == pytest.approx(100 * (share.standard_error or math.nan))
    assert percent.value == pytest.approx(70)


def test_all_right_is_not_certainty() -> None:
    for clusters, method, units in ((None, "wilson", 4), (["a", "a", "b", "c"], "wilson over images", 3)):
        estimate = st.mean_estimate([1.0] * 4, clusters, cluster_name="image", unit="")
        assert estimate.method == method
        assert estimate.interval == pytest.approx(st.wilson_interval(units, units))
        assert estimate.interval[0] < 0.6  # type: ignore[index]


def test_one_observation_has_no_interval() -> None:
    assert st.mean_estimate([0.3]).interval is None
    assert st.mean_estimate([0.3]).standard_error is None
    assert st.mean_estimate([0.3, 0.9], ["same", "same"]).interval is None


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
