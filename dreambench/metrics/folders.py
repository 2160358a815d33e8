"""``dreambench fid`` and ``fid-stats`` as functions: images in folders, no task and no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dreambench.documents import digest
from dreambench.errors import DataError, UsageError
from dreambench.metrics.compare import compare
from dreambench.metrics.features import load_extractor, metric_name
from dreambench.metrics.gaussian import GaussianStatistics
from dreambench.metrics.intervals import frechet_infinity, frechet_jackknife
from dreambench.metrics.reference import (
    Features,
    Reference,
    cached_features,
    fingerprint,
    identity_of,
    list_images,
    read_reference,
)
from dreambench.metrics.resize import RESIZERS, Resizer, get_resizer
from dreambench.metrics.stats_file import save_statistics
from dreambench.progress import say
from dreambench.scores import Protocol, Score

if TYPE_CHECKING:
    from dreambench.metrics.features import Extractor

__all__ = ["compare_folders", "save_folder_statistics"]


def compare_folders(
    real: Path,
    fake: Path,
    protocols: Sequence[str],
    features: str = "inception",
    device: str = "auto",
    offline: bool = False,
    infinity: bool = False,
    real_vs_real: bool = False,
) -> list[Score]:
    """The scores of a folder of generated images against real ones, under each protocol, each image decoded once.

    Args:
        real: a folder, or statistics of `save_folder_statistics` or of another tool (``.npz`` with mu and sigma).
        protocols: names of resizers: clean, pytorch, tf1, torchmetrics, dreamllm.
        infinity: also FID-infinity (Chong and Forsyth 2020), an extrapolation over the number of generated images.
        real_vs_real: also the distance between two halves of the real images, every other one in each: what no model can be
            told apart from.
    """
    resizers = [_resizer(name) for name in protocols]
    extractor = _extractor(features, device, offline)
    generated = list_images(fake)
    made = _features(generated, extractor, resizers)
    references, side = _real_side(real, extractor, resizers)
    scores: list[Score] = []
    for resizer, one, reference in zip(resizers, made, references, strict=True):
        fields = {
            "metric": metric_name("frechet", extractor.name),
            "reference": side,
            **identity_of(extractor, resizer),
        }
        protocol = Protocol(resizer.name, 1, fields).id
        scores += compare({"features": one}, reference, extractor.name, protocol)
        if infinity:
            scores.append(_at_infinity(one, reference, extractor.name, protocol))
        if real_vs_real:
            scores.append(_real_vs_real(reference, extractor.name, protocol))
    return scores


def _real_vs_real(reference: Reference, extractor: str, protocol: str) -> Score:
    if reference.features is None:
        raise UsageError("--real-vs-real compares halves of the reference images: give their folder, not statistics")
    half = GaussianStatistics.from_features(reference.features[1::2])
    estimate = frechet_jackknife(reference.features[::2], half)
    return Score(
        metric=f"{metric_name('frechet', extractor)} of real halves",
        value=estimate.value,
        unit="",
        n=estimate.n,
        interval=estimate.interval,
        interval_method=estimate.method,
        protocol=protocol,
    )


def _at_infinity(features: Features, reference: Reference, extractor: str, protocol: str) -> Score:
    return Score(
        metric=f"{metric_name('frechet', extractor)}-infinity",
        value=frechet_infinity(features, reference.statistics),
        unit="",
        n=len(features),
        interval_method="none: an extrapolation",
        protocol=protocol,
    )


def save_folder_statistics(
    folder: Path, out: Path, protocol: str, features: str = "inception", device: str = "auto", offline: bool = False
) -> int:
    """Mean and covariance of a folder's features as ``.npz``, with what they were made from; gives the number of images."""
    if out.suffix != ".npz":
        raise UsageError(f"--out {out}: statistics are saved as .npz")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"--out {out}: the folder {out.parent} does not exist")
    resizer = _resizer(protocol)
    extractor = _extractor(features, device, offline)
    paths = list_images(folder)
    (made,) = _features(paths, extractor, [resizer])
    identity = {**identity_of(extractor, resizer), "images": fingerprint(paths)}
    save_statistics(out, GaussianStatistics.from_features(made), identity)
    return len(paths)


def _real_side(
    real: Path, extractor: Extractor, resizers: Sequence[Resizer]
) -> tuple[list[Reference], dict[str, object]]:
    if real.suffix == ".npz":
        references = [read_reference(real, extractor.dim, identity_of(extractor, resizer)) for resizer in resizers]
        return references, {
            "kind": "statistics file",
            "statistics_sha256": digest(references[0].statistics.mean.tolist()),
        }
    paths = list_images(real)
    made = _features(paths, extractor, resizers)
    return [Reference(GaussianStatistics.from_features(one), one) for one in made], {
        "kind": "folder",
        **fingerprint(paths),
    }


def _features(paths: Sequence[Path], extractor: Extractor, resizers: Sequence[Resizer]) -> list[Features]:
    if len(paths) < 2:
        raise DataError(f"{paths[0].parent}: one image has no spread; a Fréchet distance needs at least two")
    return cached_features(paths, extractor, resizers, _tell)


def _tell(done: int, total: int) -> None:
    say(f"features of {done} of {total} images")


def _resizer(name: str) -> Resizer:
    if name not in RESIZERS:
        raise UsageError(f"--protocol {name}: there are {', '.join(RESIZERS)}")
    return get_resizer(name)


def _extractor(features: str, device: str, offline: bool) -> Extractor:
    from dreambench.adapters.torch_tools import resolve_device

    return load_extractor(features, resolve_device(device), offline=offline)
