"""The distance without the bias of finite sets, real images against real images, captions of other images.

``python tests/metrics/test_baselines.py [TRIALS]`` prints the table of docs/reliability.md: how often intervals of 95 % hold the distance
of the populations. A seeded part of it is a test.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambench.errors import DataError
from dreambench.metrics.baselines import derangement, frechet_infinity, real_vs_real
from dreambench.metrics.frechet import GaussianStatistics, assign_groups, frechet_distance, frechet_jackknife
from dreambench.scores import Estimate

# --- populations whose distance is known ------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """Two populations of d mixed features. `paired`: each generated item depends on its reference; `clustered`: 4 items of a document."""

    d: int
    different: bool
    kind: str = "normal"

    @property
    def mixing(self) -> np.ndarray:
        return np.random.RandomState(self.d).randn(self.d, self.d) / np.sqrt(self.d)

    @property
    def shift(self) -> np.ndarray:
        """Of the generated side, whose features are also 1.15 times as wide."""
        return 0.15 * np.random.RandomState(2).randn(self.d) * self.different

    def distance(self) -> float:
        covariance = self.mixing.T @ self.mixing
        sides = [(self.shift, covariance * (1.15**2 if self.different else 1)), (np.zeros(self.d), covariance)]
        return frechet_distance(*(GaussianStatistics.from_moments(*side) for side in sides))

    def draw(self, n: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str] | None]:
        """Generated and reference features (n, d), and the items' keys on both sides."""
        random = np.random.RandomState(seed)
        ours, theirs = random.randn(2, n, self.d)
        keys = None
        if self.kind == "skewed":  # a rectified normal, standardised
            deviation = np.sqrt(0.5 - 0.5 / np.pi)
            ours, theirs = ((np.maximum(z, 0) - 1 / np.sqrt(2 * np.pi)) / deviation for z in (ours, theirs))
        elif self.kind == "paired":
            ours, keys = 0.8 * theirs + 0.6 * ours, [str(i) for i in range(n)]
        elif self.kind == "clustered":
            shared = random.randn(2, -(-n // 4), self.d).repeat(4, axis=1)[:, :n]
            ours, theirs = (np.sqrt(0.7) * z + np.sqrt(0.3) * s for z, s in zip((ours, theirs), shared, strict=True))
            keys = [str(i // 4) for i in range(n)]
        wider = 1.15 if self.different else 1
        return ours @ self.mixing * wider + self.shift, theirs @ self.mixing, keys


def estimates(world: World, n: int, seed: int) -> tuple[Estimate, Estimate]:
    """The plain distance and the one without bias. Documents of the two sides have nothing in common, so their keys differ."""
    ours, theirs, keys = world.draw(n, seed)
    reference = GaussianStatistics.from_features(theirs)
    others = keys if keys is None or world.kind == "paired" else [f"reference {key}" for key in keys]
    return (
        frechet_jackknife(ours, reference, keys=keys),
        frechet_infinity(ours, reference, theirs, keys=keys, reference_keys=others),
    )


def covers(estimate: Estimate, truth: float) -> bool:
    assert estimate.interval is not None
    return estimate.interval[0] - 1e-9 <= truth <= estimate.interval[1]


# --- without bias -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [World(16, True, "skewed"), World(64, False)])
def test_the_interval_without_bias_holds_the_populations_distance_and_the_plain_one_does_not(world: World) -> None:
    """Of 40 at a coverage of 93 %, fewer than 33 hold the truth once in 300 times; the plain intervals of d = 64 never do."""
    truth = world.distance()
    plain, infinity = zip(*(estimates(world, 256, seed) for seed in range(40)), strict=True)
    assert sum(covers(each, truth) for each in infinity) >= 33
    assert sum(covers(each, truth) for each in plain) <= 25
    bias = np.mean([each.value for each in plain]) - truth
    assert np.mean([each.value for each in infinity]) == pytest.approx(truth, abs=0.1 * bias)
    assert all(each.interval[0] >= 0 and each.value >= 0 for each in infinity)


def test_it_is_the_jackknife_of_recomputed_distances() -> None:
    world = World(8, True)
    (ours, theirs, _), groups = world.draw(63, 0), assign_groups(63, 20)
    both = [(ours[groups != j], theirs[groups != j]) for j in range(20)]
    value, *without = (
        frechet_distance(*map(GaussianStatistics.from_features, pair)) for pair in [(ours, theirs), *both]
    )
    share = 63 / np.bincount(groups)
    pseudo = share * value - (share - 1) * np.array(without)
    estimate = 20 * value - ((1 - 1 / share) * without).sum()
    found = frechet_infinity(ours, GaussianStatistics.from_features(theirs), theirs)
    assert found.value == pytest.approx(estimate, rel=1e-9)
    assert found.standard_error == pytest.approx(np.sqrt(np.mean((pseudo - estimate) ** 2 / (share - 1))), rel=1e-9)


def test_items_of_one_key_are_left_out_on_both_sides_together() -> None:
    """Images that nearly equal their references differ from them by nearly the same in every sample: a small error, in any order."""
    _, theirs, _ = World(8, False).draw(200, 0)
    ours = theirs * 1.1 + 0.01 * np.random.RandomState(1).randn(200, 8)
    keys, reference = [str(i) for i in range(200)], GaussianStatistics.from_features(theirs)
    order = np.random.RandomState(2).permutation(200)
    paired = frechet_infinity(
        ours[order], reference, theirs, keys=[keys[i] for i in order], reference_keys=keys
    ).standard_error
    assert paired is not None
    assert paired < 0.5 * (frechet_infinity(ours[order], reference, theirs).standard_error or 0)


def test_a_constant_feature_and_saved_statistics_are_no_obstacle() -> None:
    ours, theirs, _ = World(8, True).draw(100, 0)
    whole = frechet_infinity(ours, GaussianStatistics.from_features(theirs), theirs)
    wide = [np.hstack([side, np.full((100, 1), 3.0)]) for side in (ours, theirs)]
    assert frechet_infinity(wide[0], GaussianStatistics.from_features(wide[1]), wide[1]).value == pytest.approx(
        whole.value
    )
    fixed = frechet_infinity(ours, GaussianStatistics.from_features(theirs))
    assert "reference fixed" in fixed.method
    assert fixed.value > whole.value, "the reference's bias stays"


def test_a_set_against_itself_is_0_and_an_estimate_that_was_cut_is_told() -> None:
    _, theirs, _ = World(8, False).draw(100, 0)
    itself = frechet_infinity(theirs, GaussianStatistics.from_features(theirs), theirs)
    assert itself.value == 0
    assert itself.interval == pytest.approx((0, 0), abs=1e-9)
    shuffled = frechet_infinity(theirs[::-1], GaussianStatistics.from_features(theirs), theirs)
    assert shuffled.value == 0
    assert shuffled.interval is not None
    assert shuffled.interval[0] == 0 < shuffled.interval[1]
    assert "cut at 0" in shuffled.method


@pytest.mark.parametrize(("n", "m", "side"), [(15, 40, "generated"), (40, 15, "reference"), (8, 40, "generated")])
def test_fewer_than_two_items_per_feature_leave_it_undetermined(n: int, m: int, side: str) -> None:
    ours, theirs, _ = World(8, True).draw(40, 0)
    reference = GaussianStatistics.from_features(theirs[:m])
    with pytest.raises(DataError, match=f"{min(n, m)} {side} images") as caught:
        frechet_infinity(ours[:n], reference, theirs[:m])
    assert ("singular" in str(caught.value)) == (min(n, m) <= 8), "8 items span 7 of 8 dimensions"
    frechet_infinity(ours[:16], GaussianStatistics.from_features(theirs[:16]), theirs[:16])


# --- real against real ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(150, 150), (60, 300), (200, 120)])
def test_a_perfect_model_falls_into_the_range_of_real_images(n: int, m: int) -> None:
    """Of 40 at 95 %, fewer than 34 once in 300 times. Halves of 150 would be twice as far from each other."""
    world, inside = World(16, False, "skewed"), 0
    for seed in range(40):
        ours, theirs, _ = world.draw(max(n, m), seed)
        plain = frechet_jackknife(ours[:n], GaussianStatistics.from_features(theirs[:m]))
        expected = real_vs_real(theirs[:m], n).frechet_range(n)
        assert expected is not None
        inside += covers(expected, plain.value)
    assert inside >= 34


def test_its_scatter_of_the_kernel_distance_is_that_of_perfect_models() -> None:
    from dreambench.metrics.set_metrics import kernel_distance

    world = World(16, False)
    values = [kernel_distance(*world.draw(120, seed)[:2]).value for seed in range(60)]
    scatter = np.mean([real_vs_real(world.draw(120, seed)[1], 120).kernel_scatter for seed in range(20)])
    assert scatter == pytest.approx(np.std(values), rel=0.3)


def test_images_of_one_document_are_on_one_side() -> None:
    """Else halves would hold the same documents, and look closer than a model's images of other documents can be."""
    features = np.random.RandomState(0).randn(30, 4).repeat(8, axis=0) + 0.01 * np.random.RandomState(1).randn(240, 4)
    together = real_vs_real(features, 240, keys=[str(i // 8) for i in range(240)])
    apart = real_vs_real(features, 240)
    assert together.frechet is not None
    assert apart.frechet is not None
    assert together.frechet.mean() > 3 * apart.frechet.mean()
    assert together.sizes == (120, 120)


def test_what_is_measured_and_what_is_not() -> None:
    features = np.random.RandomState(0).randn(200, 64)
    assert real_vs_real(features, 30).sizes == (30, 170), "as many as the run, if there are others"
    assert real_vs_real(features, 30).frechet is not None, "at the run's own n, nothing is scaled"
    assert real_vs_real(features[:100], 100).frechet is None, "halves of 50 do not span 64 features"
    assert real_vs_real(features, 100).manifold == {}
    assert set(real_vs_real(features, 100, neighbours=5).manifold) == {"precision", "recall", "density", "coverage"}
    assert (real_vs_real(features, 100).kernel == real_vs_real(features, 100).kernel).all()
    with pytest.raises(DataError, match="5 reference images cannot be split"):
        real_vs_real(features[:5], 5)


# --- captions of other images -------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from("abcdef"), max_size=40))
def test_every_image_gets_a_caption_of_another_image_once(keys: list[str]) -> None:
    found = derangement(keys)
    if found is None:
        assert not keys or max(map(keys.count, keys)) > len(keys) / 2
        return
    assert sorted(found) == list(range(len(keys)))
    assert all(keys[i] != keys[other] for i, other in enumerate(found))


# --- the table of docs/reliability.md -------------------------------------------------------------------------------------


def table(trials: int) -> None:
    print("| d | n | distributions | distance | plain | holds it, % | without bias | holds it, % |")
    print("|---|---|---|---|---|---|---|---|")
    cells = [(World(d, different), n) for d in (16, 64) for different in (False, True) for n in (128, 256, 512, 2048)]
    kinds = ("skewed", "paired", "clustered")
    cells += [(World(64, different, kind), 512) for kind in kinds for different in (False, True)]
    for world, n in cells:
        truth = world.distance()
        pairs = [estimates(world, n, seed) for seed in range(trials)]
        row = [str(world.d), str(n), f"{'different' if world.different else 'equal'}, {world.kind}"]
        row.append(f"{abs(truth):.3f}")
        for found in zip(*pairs, strict=True):
            row.append(f"{np.mean([each.value for each in found]):.3f}")
            row.append(f"{100 * np.mean([covers(each, truth) for each in found]):.1f}")
        print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    table(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
