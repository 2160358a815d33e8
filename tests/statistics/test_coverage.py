"""How often intervals of 95 % hold the truth: the table of docs/reliability.md by ``python tests/statistics/test_coverage.py [TRIALS]``,
and a seeded part of it as tests.

The truth is the mean over a population of clusters. A cluster's own mean is drawn from a beta distribution with the given intra-cluster
correlation, then its scores: 0/1, or thirds (a binomial of 3 over 3), such as VQA's accuracies.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from dreambench.statistics import mean_estimate, paired_difference

Array = NDArray[np.float64]
Kind = Literal["0/1", "thirds"]
MEANS = (0.02, 0.5, 0.95)
CORRELATIONS = (0.0, 0.1, 0.3)
SIZES = [(n, clusters) for n in (20, 100, 1000) for clusters in (5, 10, 20, 200) if clusters <= n]
UNEQUAL = (1, 2, 3, 6, 8)
"""Cluster sizes in the proportion of which the second table's clusters are repeated."""


def drawn(
    rng: np.random.Generator, trials: int, codes: NDArray[np.int64], mean: float, correlation: float, kind: Kind
) -> Array:
    """(trials, n) scores of clusters."""
    shares = np.full((trials, codes.max() + 1), mean)
    if correlation:
        strength = 1 / correlation - 1
        shares = rng.beta(mean * strength, (1 - mean) * strength, shares.shape)
    tries = 1 if kind == "0/1" else 3
    return rng.binomial(tries, shares[:, codes]) / tries


def equal_clusters(n: int, clusters: int) -> NDArray[np.int64]:
    return np.repeat(np.arange(clusters), n // clusters)


def unequal_clusters(n: int, clusters: int) -> NDArray[np.int64]:
    weights = np.resize(UNEQUAL, clusters)
    return np.repeat(np.arange(clusters), np.maximum(1, np.round(n * weights / weights.sum()).astype(int)))


def coverage(scores: Array, codes: NDArray[np.int64], mean: float) -> float:
    """The share of trials whose interval holds the mean."""
    held = 0
    for row in scores:
        low, high = mean_estimate(row, codes, unit="").interval or (np.nan, np.nan)
        assert 0 <= low <= row.mean() <= high <= 1
        held += low <= mean <= high
    return held / len(scores)


@pytest.mark.parametrize(
    ("kind", "n", "clusters", "mean", "correlation"),
    [
        ("0/1", 100, 5, 0.5, 0.1),
        ("thirds", 100, 10, 0.5, 0.1),
        ("0/1", 100, 20, 0.5, 0.0),
        ("thirds", 1000, 5, 0.5, 0.3),
        ("0/1", 1000, 10, 0.95, 0.0),
        ("thirds", 1000, 20, 0.95, 0.1),
        ("0/1", 1000, 200, 0.02, 0.1),
    ],
)
def test_intervals_of_95_percent_hold_the_truth_in_93_to_97(
    kind: Kind, n: int, clusters: int, mean: float, correlation: float
) -> None:
    """CR0 with the normal distribution held it in 85, 90 and 92 % for 5, 10 and 20 clusters."""
    codes = equal_clusters(n, clusters)
    scores = drawn(np.random.default_rng(1), 1000, codes, mean, correlation, kind)
    assert 0.93 <= coverage(scores, codes, mean) <= 0.975  # the noise of 1,000 trials on top


@pytest.mark.parametrize(
    ("kind", "n", "clusters"), [("0/1", 20, 5), ("0/1", 20, 20), ("thirds", 1000, 5), ("thirds", 1000, 10)]
)
@pytest.mark.parametrize(("mean", "correlation"), [(0.02, 0.0), (0.02, 0.1), (0.95, 0.3)])
def test_rare_outcomes_in_few_clusters_are_covered(
    kind: Kind, n: int, clusters: int, mean: float, correlation: float
) -> None:
    """A rare outcome comes in few clusters, or in none: without `WORST_CASE`, 1,000 scores in 10 clusters covered 80 %."""
    codes = equal_clusters(n, clusters)
    scores = drawn(np.random.default_rng(7), 400, codes, mean, correlation, kind)
    assert coverage(scores, codes, mean) >= 0.93


def test_differences_in_few_clusters_hold_the_truth() -> None:
    codes = equal_clusters(100, 5)
    rng = np.random.default_rng(3)
    first, second = (drawn(rng, 1000, codes, mean, 0.1, "0/1") for mean in (0.5, 0.4))
    held = 0
    for a, b in zip(first, second, strict=True):
        low, high = paired_difference(a, b, codes).estimate.interval or (np.nan, np.nan)
        held += low <= 0.1 <= high
    assert 0.93 <= held / 1000 <= 0.97


def table(trials: int, make: object, sizes: Sequence[tuple[int, int]]) -> None:
    cells = [(mean, correlation) for correlation in CORRELATIONS for mean in MEANS]
    print("| scores | n | clusters | " + " | ".join(f"{mean:g}, {icc:g}" for mean, icc in cells) + " |")
    print("|---|---|---|" + "---|" * len(cells))
    for kind in ("0/1", "thirds"):
        for n, clusters in sizes:
            codes = make(n, clusters)  # type: ignore[operator]
            row: list[str] = []
            for mean, correlation in cells:
                rng = np.random.default_rng([n, clusters, int(100 * mean), int(100 * correlation)])
                held = coverage(drawn(rng, trials, codes, mean, correlation, kind), codes, mean)
                row.append(f"{100 * held:.1f}")
            print(f"| {kind} | {n:,} | {clusters} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    print(f"clusters of equal size, {number:,} trials\n")
    table(number, equal_clusters, SIZES)
    print(f"\nclusters of unequal size ({', '.join(map(str, UNEQUAL))} in proportion), {number:,} trials\n")
    table(number, unequal_clusters, [(100, 5), (100, 20), (1000, 5), (1000, 10), (1000, 20), (1000, 200)])
