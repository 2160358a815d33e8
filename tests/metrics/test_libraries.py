"""The same images through torchmetrics, torch-fidelity and clean-fid, and through ours: the numbers agree.

The network is an Inception of the true shape with random weights. Ten images against 2,048 features: the hard case.
"""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from metrics.subsets import subset_kernel_distance

from dreambench.metrics.convolutional import InceptionExtractor
from dreambench.metrics.features import Extractor, extract, load_extractor, read_image
from dreambench.metrics.frechet import GaussianStatistics, frechet_distance
from dreambench.metrics.resize import RESIZERS
from dreambench.metrics.set_metrics import inception_score, precision_recall_density_coverage

NAMES = ("clean", "tf1", "torchmetrics")
Sides = dict[str, tuple[np.ndarray, np.ndarray]]


def load(folder: Path) -> list[torch.Tensor]:
    return [read_image(path) for path in sorted(folder.glob("*.png"))]


@pytest.fixture(scope="module")
def network(inception_weights: Path) -> Extractor:
    return load_extractor(f"inception:{inception_weights}")


@pytest.fixture(scope="module")
def ours(network: Extractor, image_folders: tuple[Path, Path]) -> Sides:
    """Features of (real, generated) under each resize, one pass over the images."""
    real, generated = (extract(load(folder), network, [RESIZERS[name] for name in NAMES]) for folder in image_folders)
    return {name: (real[index], generated[index]) for index, name in enumerate(NAMES)}


def distance(sides: tuple[np.ndarray, np.ndarray]) -> float:
    real, generated = (GaussianStatistics.from_features(features) for features in sides)
    return frechet_distance(generated, real)


def distance_tolerance(sides: tuple[np.ndarray, np.ndarray], value: float) -> float:
    """How far a squared distance may move when features move by one part in a million, the extractors' own tolerance.

    The Fréchet distance is a metric, so its root moves by no more than the root mean square of the features' changes,
    whatever kernels and threads compute them. Float32 moves these features by 3e-7.
    """
    moved = sum(1e-6 * np.linalg.norm(features) / np.sqrt(len(features) - 1) for features in sides)
    return float(2 * np.sqrt(value) * moved + moved**2)


def test_fid_equals_torchmetrics(ours: Sides, inception_weights: Path, image_folders: tuple[Path, Path]) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    theirs = FrechetInceptionDistance(2048, feature_extractor_weights_path=str(inception_weights)).set_dtype(
        torch.float64
    )
    for folder, real in zip(image_folders, (True, False), strict=True):
        theirs.update(torch.stack(load(folder)), real=real)
    sides, expected = ours["torchmetrics"], float(theirs.compute())
    assert distance(sides) == pytest.approx(expected, abs=distance_tolerance(sides, expected))


def test_fid_kid_is_and_precision_equal_torch_fidelity(
    ours: Sides, network: Extractor, inception_weights: Path, image_folders: tuple[Path, Path]
) -> None:
    from torch_fidelity import calculate_metrics

    real, generated = image_folders
    theirs = calculate_metrics(
        input1=str(generated), input2=str(real), cuda=False, verbose=False, cache=False, save_cpu_ram=True, batch_size=10,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(inception_weights),
        fid=True, kid=True, isc=True, prc=True, kid_subsets=20, kid_subset_size=6, isc_splits=2, prc_neighborhood=3,
    )  # fmt: skip
    features_real, features_generated = ours["tf1"]
    expected = theirs["frechet_inception_distance"]
    assert distance(ours["tf1"]) == pytest.approx(expected, abs=distance_tolerance(ours["tf1"], expected))
    mean, deviation = subset_kernel_distance(features_generated, features_real, subsets=20, size=6)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert deviation == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-4)
    assert isinstance(network, InceptionExtractor)
    score, deviation = inception_score(network.logits(torch.from_numpy(features_generated)).numpy(), splits=2)
    assert score.value == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    assert deviation == pytest.approx(theirs["inception_score_std"], rel=1e-2, abs=1e-4)
    neighbours = precision_recall_density_coverage(features_generated, features_real, k=3, closed=True)
    assert neighbours["precision"].value == pytest.approx(theirs["precision"], abs=1e-6)
    assert neighbours["recall"].value == pytest.approx(theirs["recall"], abs=1e-6)


def test_fid_and_kid_equal_clean_fid(ours: Sides, network: Extractor, image_folders: tuple[Path, Path]) -> None:
    """Its file reader, resizer and distances. Its network is a TorchScript file; ours takes its place."""
    if "disp" not in inspect.signature(scipy.linalg.sqrtm).parameters:
        pytest.skip("clean-fid calls scipy.linalg.sqrtm(disp=False), which this scipy no longer has")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clean-fid's deprecated calls of numpy, scipy and torch
        from cleanfid import fid

        theirs = [
            fid.get_files_features(
                [str(path) for path in sorted(folder.glob("*.png"))], model=lambda batch: network(batch, "tf1"),
                num_workers=0, batch_size=10, device=torch.device("cpu"), mode="clean", verbose=False,
            )
            for folder in image_folders
        ]  # fmt: skip
        moments = [(features.mean(axis=0), np.cov(features, rowvar=False)) for features in theirs]
        np.random.seed(0)
        kernel = fid.kernel_distance(theirs[1], theirs[0], num_subsets=20, max_subset_size=6)
        # Ten items span 9 of 2,048 dimensions, and clean-fid's root of the singular product costs minutes and digits; a part of
        # the features is compared where its arithmetic holds.
        part = slice(0, 8)
        distance_of_part = fid.frechet_distance(
            *[m[part] if m.ndim == 1 else m[part, part] for pair in moments for m in pair]
        )
    for mine, their in zip(ours["clean"], theirs, strict=True):
        np.testing.assert_allclose(mine, their, rtol=1e-4, atol=1e-4)
    assert distance((ours["clean"][0][:, part], ours["clean"][1][:, part])) == pytest.approx(
        float(distance_of_part), rel=1e-4
    )
    mean, _ = subset_kernel_distance(ours["clean"][1], ours["clean"][0], subsets=20, size=6, convention="clean-fid")
    assert mean == pytest.approx(kernel, rel=1e-4)
