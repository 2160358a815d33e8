"""What the measures cost beside the libraries they must equal. One thread.

    pytest tests/benchmarks/test_metrics_speed.py --benchmark-only --benchmark-columns=min,median,rounds

Each group holds ours and the slow oracles that it must equal; pytest-benchmark prints their ratios. With --benchmark-disable every
body runs once, on small sizes. CPU time is taken, so that a busy machine does not decide.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from dreambench.metrics.convolutional import build_network
from dreambench.metrics.features import load_extractor
from dreambench.metrics.frechet import GaussianStatistics, frechet_distance, frechet_jackknife
from dreambench.metrics.resize import RESIZERS

pytestmark = pytest.mark.benchmark(timer=time.process_time, min_rounds=2, max_time=1.0, warmup=False)


@pytest.fixture(scope="module")
def real_sizes(pytestconfig: pytest.Config) -> bool:
    return not pytestconfig.getoption("benchmark_disable") and not pytestconfig.getoption("benchmark_skip")


def features(seed: int, n: int, d: int) -> np.ndarray:
    random = np.random.RandomState(seed)
    return np.maximum(random.standard_normal((n, d)) + random.standard_normal((n, 1)), 0).astype(np.float32)


def by_square_root(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """pytorch-fid and clean-fid."""
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    return float(((a.mean - b.mean) ** 2).sum() + a.trace + b.trace - 2 * np.trace(root).real)


def by_eigenvalues(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """torch-fidelity and torchmetrics."""
    values = np.linalg.eigvals(a.covariance @ b.covariance)
    return float(((a.mean - b.mean) ** 2).sum() + a.trace + b.trace - 2 * np.sqrt(values.astype(complex)).sum().real)


@pytest.fixture(scope="module", params=["more items than features", "fewer items than features"])
def pair(request: pytest.FixtureRequest, real_sizes: bool) -> tuple[str, GaussianStatistics, GaussianStatistics]:
    d = 2048 if real_sizes else 64
    n = 2 * d if request.param.startswith("more") else d // 2
    a, b = (GaussianStatistics.from_features(features(seed, n, d)) for seed in (1, 2))
    for statistics in (a, b):  # what is computed once per reference, and what the oracles take as given
        assert statistics.covariance.shape == (d, d)
        assert statistics.factor.shape[0] == d
    return request.param, a, b


@pytest.mark.parametrize("method", [frechet_distance, by_square_root, by_eigenvalues])
def test_frechet(benchmark, pair: tuple[str, GaussianStatistics, GaussianStatistics], method: Callable) -> None:
    name, a, b = pair
    benchmark.group = f"Fréchet distance, {name}"
    rounds = 3 if method is frechet_distance else 1
    value = benchmark.pedantic(method, (a, b), rounds=rounds, warmup_rounds=int(method is frechet_distance))
    assert value == pytest.approx(frechet_distance(a, b), abs=1e-6 * (a.trace + b.trace))


def test_frechet_with_interval(benchmark, real_sizes: bool) -> None:
    """Twenty more distances; to compare with one."""
    benchmark.group = "Fréchet distance, more items than features"
    d = 2048 if real_sizes else 64
    reference = GaussianStatistics.from_features(features(2, 2 * d, d))
    assert reference.factor.shape[0] == d
    result = benchmark.pedantic(frechet_jackknife, (features(1, 2 * d, d), reference), rounds=1)
    assert result.interval is not None


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(build_network().state_dict(), path)
    return path


@pytest.mark.parametrize("whose", ["ours", "torch-fidelity"])
def test_inception(benchmark, weights: Path, real_sizes: bool, whose: str) -> None:
    """Resize and network on 256-pixel images, in batches of 32."""
    benchmark.group = "Inception, TF1 resize and network, per batch"
    images = torch.randint(0, 256, (32 if real_sizes else 1, 3, 256, 256), dtype=torch.uint8)
    ours = load_extractor(f"inception:{weights}")
    shipped = FeatureExtractorInceptionV3("inception", ["2048"], str(weights))

    def run() -> torch.Tensor:
        if whose == "ours":
            return ours(RESIZERS["tf1"](images, 299), "tf1")
        with torch.inference_mode():
            return shipped(images)[0]

    result = benchmark.pedantic(run, rounds=3 if real_sizes else 1, warmup_rounds=int(real_sizes))
    with torch.inference_mode():
        reference = shipped(images[:1])[0]
    assert float((result[:1] - reference).norm() / reference.norm()) < 1e-6


def clean_fid(images: torch.Tensor) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cleanfid.resize import build_resizer

        resize = build_resizer("clean")
    return np.stack([resize(image.permute(1, 2, 0).numpy()) for image in images])


def torch_fidelity(images: torch.Tensor) -> torch.Tensor:
    return interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(299, 299), align_corners=False)


@pytest.mark.parametrize(
    ("name", "resize"),
    [
        ("clean", lambda images: RESIZERS["clean"](images, 299)),
        ("clean", clean_fid),
        ("tf1", lambda images: RESIZERS["tf1"](images, 299)),
        ("tf1", torch_fidelity),
    ],
    ids=["clean-ours", "clean-fid", "tf1-ours", "torch-fidelity"],
)
def test_resize(benchmark, real_sizes: bool, name: str, resize: Callable) -> None:
    benchmark.group = f"resize {name}, 512 to 299 pixels, 16 images"
    images = torch.randint(0, 256, (16 if real_sizes else 2, 3, 512, 512), dtype=torch.uint8)
    assert len(benchmark(resize, images)) == len(images)
