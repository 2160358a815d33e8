"""The Fréchet distance, its intervals and its files, without recorded values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambench.errors import DataError
from dreambench.metrics.frechet import (
    GaussianStatistics,
    assign_groups,
    frechet_distance,
    frechet_jackknife,
    load_statistics,
    save_statistics,
)


def features(seed: int, n: int, d: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    random = np.random.RandomState(seed)
    mixed = random.randn(n, d) @ np.random.RandomState(d).randn(d, d) / np.sqrt(d)
    return (np.maximum(mixed, 0) * scale + shift).astype(np.float32)


def truth(a: np.ndarray, b: np.ndarray) -> float:
    """From the definition in another way: tr (S1 S2)^½ is the nuclear norm of A1 A2ᵀ, by singular values."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    x, y = ((m - m.mean(axis=0)) / np.sqrt(len(m) - 1) for m in (a, b))
    nuclear = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return float(((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum() + (x**2).sum() + (y**2).sum() - 2 * nuclear)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 60), m=st.integers(2, 60), d=st.integers(1, 40), exponent=st.integers(-6, 6))
def test_equals_the_definition_for_any_numbers_of_items_and_features(n: int, m: int, d: int, exponent: int) -> None:
    a, b = features(1, n, d, 10.0**exponent), features(2, m, d, 10.0**exponent, shift=0.3 * 10.0**exponent)
    x, y = GaussianStatistics.from_features(a), GaussianStatistics.from_features(b)
    assert frechet_distance(x, y) == pytest.approx(truth(a, b), abs=1e-7 * (x.trace + y.trace), rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(100, 20), (20, 100), (2, 50), (50, 50)])
def test_is_symmetric_and_zero_for_a_set_and_itself(n: int, d: int) -> None:
    a, b = (GaussianStatistics.from_features(features(seed, n, d)) for seed in (1, 2))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-7)
    assert abs(frechet_distance(a, a)) <= 2e-6


def test_dead_and_constant_columns_give_a_number() -> None:
    a, b = features(1, 60, 30), features(2, 70, 30)
    a[:, ::3], b[:, ::3] = 7.25, 7.25
    a[:, 1], b[:, 1] = 0, 0
    x, y = GaussianStatistics.from_features(a), GaussianStatistics.from_features(b)
    assert x.factor.shape == (30, 19), "constant columns span no direction"
    assert frechet_distance(x, y) == pytest.approx(truth(a, b), rel=1e-8)


def test_with_statistics_only_the_rank_is_bounded_by_the_number_of_items() -> None:
    """A covariance of 20 items in 200 dimensions has 181 eigenvalues of pure rounding, which the root magnifies to 1e-8 each."""
    a, b = features(1, 20, 200), features(2, 30, 200)
    x, y = (GaussianStatistics.from_features(m) for m in (a, b))
    plain = [GaussianStatistics.from_moments(s.mean, s.covariance, s.n) for s in (x, y)]
    assert frechet_distance(*plain) == pytest.approx(truth(a, b), rel=1e-11)


@pytest.mark.parametrize(
    ("values", "message"),
    [([[1.0, 2.0]], "at least 2 items"), ([[1.0], [np.nan]], "item 1 holds NaN"), ([1.0, 2.0], "expected a matrix")],
)
def test_anything_but_a_finite_matrix_of_two_rows_is_refused(values: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        GaussianStatistics.from_features(values)


def test_a_covariance_with_a_negative_eigenvalue_is_refused() -> None:
    bad = GaussianStatistics.from_moments([0.0, 0.0], [[1.0, 0.0], [0.0, -0.5]])
    with pytest.raises(DataError, match="negative eigenvalue"):
        frechet_distance(GaussianStatistics.from_moments([0.0, 0.0], np.eye(2)), bad)


def leave_out(data: np.ndarray, reference: GaussianStatistics, group: np.ndarray) -> np.ndarray:
    """Each distance computed from the remaining items."""
    return np.array([
        frechet_distance(GaussianStatistics.from_features(data[group != g]), reference) for g in range(group.max() + 1)
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("n", "m", "d"),
    [(90, 80, 12), (30, 200, 40), (30, 20, 40), (90, 20, 40), (41, 300, 40), (40, 300, 40), (40, 40, 40)],
)
def test_jackknife_equals_recomputing_without_each_group(n: int, m: int, d: int) -> None:
    """Both forms (N x N and by the reference's rank), with equal and unequal groups."""
    data, reference = features(1, n, d), GaussianStatistics.from_features(features(2, m, d, shift=0.1))
    group = assign_groups(n, 10)
    without = leave_out(data.astype(np.float64), reference, group)
    result = frechet_jackknife(data, reference, groups=10)
    assert result.value == pytest.approx(frechet_distance(GaussianStatistics.from_features(data), reference), rel=1e-12)
    share = n / np.bincount(group)
    pseudo = share * result.value - (share - 1) * without
    centre = 10 * result.value - ((1 - 1 / share) * without).sum()
    assert result.standard_error == pytest.approx(np.sqrt(np.mean((pseudo - centre) ** 2 / (share - 1))), rel=1e-6)
    if n % 10 == 0:
        assert result.standard_error == pytest.approx(
            np.sqrt(9 / 10 * ((without - without.mean()) ** 2).sum()), rel=1e-6
        )


def test_jackknife_error_is_the_spread_over_repeated_samples() -> None:
    reference = GaussianStatistics.from_moments(np.zeros(4), np.eye(4), 10**6)
    random = np.random.RandomState(0)
    results = [frechet_jackknife(random.randn(400, 4) + 0.3, reference) for _ in range(60)]
    spread = np.std([result.value for result in results])
    assert np.mean([result.standard_error for result in results]) == pytest.approx(spread, rel=0.25)


def test_groups_by_key_keep_a_key_together_and_do_not_depend_on_the_order() -> None:
    keys = [f"image{i // 3}" for i in range(60)]
    group = assign_groups(60, 7, keys)
    assert all(len({group[i] for i in range(60) if keys[i] == key}) == 1 for key in set(keys))
    order = np.random.RandomState(0).permutation(60)
    assert (assign_groups(60, 7, [keys[i] for i in order]) == group[order]).all()
    assert np.bincount(group).min() >= 6


def test_too_few_items_give_a_value_without_an_interval() -> None:
    result = frechet_jackknife(features(1, 3, 5), GaussianStatistics.from_features(features(2, 9, 5)))
    assert result.interval is None
    assert "too few" in result.method


def test_saved_statistics_come_back_exactly(tmp_path: Path) -> None:
    statistics = GaussianStatistics.from_features(features(1, 50, 6))
    save_statistics(tmp_path / "s.npz", statistics, {"extractor": "x", "resize": "clean"})
    loaded = load_statistics(tmp_path / "s.npz", dim=6)
    assert loaded.warning is None
    assert loaded.identity == {"extractor": "x", "resize": "clean"}
    assert loaded.statistics.n == 50
    assert (loaded.statistics.mean == statistics.mean).all()
    assert (loaded.statistics.covariance == statistics.covariance).all()
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]


def test_foreign_statistics_are_read_with_a_warning_of_what_is_unknown(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", mu=np.zeros(3, np.float32), sigma=np.eye(3, dtype=np.float32))
    loaded = load_statistics(tmp_path / "f.npz")
    assert loaded.identity is None
    assert loaded.warning is not None
    assert "number of images" in loaded.warning
    assert "extractor" in loaded.warning


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "sigma is missing"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, "does not fit"),
        ({"mu": np.zeros(3), "sigma": np.full((3, 3), np.inf)}, "NaN or infinite"),
        ({"mu": np.zeros(3), "sigma": np.triu(np.ones((3, 3)))}, "not symmetric"),
        ({"mu": np.zeros(3), "sigma": np.eye(3)}, "extractor has 5"),
        ({"mu": np.array([None], dtype=object), "sigma": np.eye(1)}, "not a statistics file"),
        ({"mu": np.zeros(5), "sigma": np.eye(5), "identity": np.array("[1]")}, "not a JSON object"),
        ({"mu": np.zeros(5), "sigma": np.eye(5), "n": np.array("x")}, "n holds <U1 of shape"),
        ({"mu": np.zeros(5), "sigma": np.eye(5), "n": np.array([8, 8])}, "not a whole number"),
    ],
)
def test_damaged_statistics_are_refused_by_name(tmp_path: Path, arrays: dict, message: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        load_statistics(tmp_path / "bad.npz", dim=5)
    assert "bad.npz" in str(caught.value)


def test_missing_and_torn_statistics_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fid-stats"):
        load_statistics(tmp_path / "none.npz")
    save_statistics(tmp_path / "s.npz", GaussianStatistics.from_features(features(1, 50, 6)), {})
    (tmp_path / "torn.npz").write_bytes((tmp_path / "s.npz").read_bytes()[:300])
    with pytest.raises(DataError, match=r"torn\.npz"):
        load_statistics(tmp_path / "torn.npz")
