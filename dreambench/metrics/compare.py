"""The scores of generated images against reference images: from features, and from folders (``dreambench fid``, ``fid-stats``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambench.documents import JSON, digest
from dreambench.errors import DataError, UsageError
from dreambench.metrics.features import (
    Features,
    fingerprint,
    identity_of,
    image_features,
    list_images,
    load_extractor,
    metric_name,
)
from dreambench.metrics.frechet import (
    GaussianStatistics,
    frechet_infinity,
    frechet_jackknife,
    load_statistics,
    save_statistics,
)
from dreambench.metrics.set_metrics import (
    CLIP_WEIGHT,
    inception_score,
    kernel_distance,
    precision_recall_density_coverage,
)
from dreambench.progress import say
from dreambench.scores import Estimate, Protocol, Score
from dreambench.statistics import mean_estimate

if TYPE_CHECKING:
    from dreambench.metrics.features import Extractor
    from dreambench.metrics.resize import Resizer

__all__ = ["Reference", "compare", "compare_folders", "read_reference", "save_folder_statistics"]

NEIGHBOURS = 5
SPLITS = 10
MANIFOLD_LIMIT = 10_000
"""Above so many images on a side, precision, recall, density and coverage are left out: their cost grows with the square."""


@dataclass(frozen=True)
class Reference:
    """The reference images under one protocol. `features` is None where only statistics are known; `notes` say what is unknown."""

    statistics: GaussianStatistics
    features: Features | None
    notes: tuple[str, ...] = ()

    @classmethod
    def from_features(cls, features: Features) -> Reference:
        return cls(GaussianStatistics.from_features(features), features)


def read_reference(path: Path, dim: int, identity: Mapping[str, Any]) -> Reference:
    """Reference statistics from a file. One made under another protocol is an error, an unknown one a note."""
    saved = load_statistics(path, dim)
    for name in ("extractor", "resize", "resize_version", "inception_scaling"):
        found = (saved.identity or {}).get(name, identity[name])
        if found != identity[name]:
            raise DataError(
                f"{path} was made with {name} {_short(found)}, this protocol has {_short(identity[name])}: "
                "make it again with `dreambench fid-stats` under this protocol"
            )
    return Reference(saved.statistics, None, () if saved.warning is None else (saved.warning,))


def _short(value: Any) -> str:
    return str(value.get("name", value)) if isinstance(value, dict) else str(value)


# --- from features ------------------------------------------------------------------------------------------------------


def compare(
    generated: Mapping[str, Any],
    reference: Reference,
    extractor: str,
    protocol: str,
    *,
    unscored: int = 0,
    keys: Sequence[str] | None = None,
    cluster_name: str = "image",
) -> list[Score]:
    """The scores that these features and this reference allow: Fréchet and kernel distance, precision, recall, density, coverage,
    Inception Score, CLIPScore.

    Args:
        generated: ``features`` (N, d), and where the network gives them ``logits`` (N, classes) for the Inception Score, or
            ``clip_scores`` (N,), and how many captions were cut, ``clip_truncated``.
        keys: one per image; equal keys mark images that belong together, for instance those of one image's captions.
        cluster_name: what the keys name.
    """
    return [
        Score.of(metric, estimate, protocol, unscored=unscored, notes=notes)
        for metric, estimate, notes in _estimates(generated, reference, extractor, keys, cluster_name)
    ]


def _estimates(
    generated: Mapping[str, Any],
    reference: Reference,
    extractor: str,
    keys: Sequence[str] | None,
    cluster_name: str,
) -> Iterator[tuple[str, Estimate, tuple[str, ...]]]:
    """(metric, estimate, notes) of each score."""
    features: Features = generated["features"]
    n, dim = features.shape
    notes = [
        f"{count} {side} images are too few for {dim} features: "
        "the distance is biased upwards and barred from leaderboards"
        for side, count in (("generated", n), ("reference", reference.statistics.n))
        if count is not None and count <= dim
    ]
    left_out = None if reference.features is None else _why_no_manifold(n, len(reference.features))
    notes = (*reference.notes, *notes, *([left_out] if left_out else ()))
    yield metric_name("frechet", extractor), frechet_jackknife(features, reference.statistics, keys=keys), notes
    if reference.features is not None:
        yield metric_name("kernel", extractor), kernel_distance(features, reference.features), ()
        if left_out is None:
            manifold = precision_recall_density_coverage(features, reference.features, k=NEIGHBOURS)
            for name, estimate in manifold.items():
                yield metric_name(name, extractor), estimate, ()
    if "logits" in generated:
        logits = generated["logits"]
        yield metric_name("inception_score", extractor), inception_score(logits, splits=min(SPLITS, len(logits)))[0], ()
    if "clip_scores" in generated:
        cut = int(generated.get("clip_truncated", 0))
        notes = (f"clip_score: {cut} captions were longer than the CLIP's context and cut for it",) if cut else ()
        bounds = 0.0, CLIP_WEIGHT
        estimate = mean_estimate(generated["clip_scores"], keys, cluster_name=cluster_name, unit="", bounds=bounds)
        yield f"clip_score[{extractor}]", estimate, notes


def _why_no_manifold(generated: int, reference: int) -> str | None:
    """The note that says why precision, recall, density and coverage are left out; None where they are not."""
    what = "precision, recall, density and coverage are left out:"
    counts = f"{generated} generated and {reference} reference images"
    if min(generated, reference) <= NEIGHBOURS:
        return f"{what} {counts}, each side needs more than {NEIGHBOURS}"
    if max(generated, reference) > MANIFOLD_LIMIT:
        return f"{what} {counts}, at most {MANIFOLD_LIMIT} a side are compared pair by pair"
    return None


# --- from folders -------------------------------------------------------------------------------------------------------


def compare_folders(
    reference: Path,
    generated: Path,
    protocols: Sequence[str],
    features: str = "inception",
    device: str = "auto",
    offline: bool = False,
    infinity: bool = False,
    real_vs_real: bool = False,
) -> list[Score]:
    """The scores of a folder of generated images under each protocol, each image decoded once.

    Args:
        reference: a folder of images, or statistics of `save_folder_statistics` or of another tool (``.npz`` with mu and sigma).
        protocols: names of resizers: clean, pytorch, tf1, torchmetrics, dreamllm.
        infinity: also FID-infinity (Chong and Forsyth 2020), an extrapolation over the number of generated images.
        real_vs_real: also the real-vs-real baseline, the distance between every other reference image and the rest. Each half
            has half of the images, so its bias is larger than that of the comparison.
    """
    resizers = _resizers(protocols)
    if real_vs_real and reference.suffix == ".npz":
        raise UsageError("--real-vs-real compares halves of the reference images: give their folder, not statistics")
    paths = list_images(generated)
    if reference.suffix != ".npz":
        list_images(reference)  # a missing folder is found before weights are loaded
    elif not reference.is_file():
        raise DataError(
            f"{reference}: no such file of statistics; make it with `dreambench fid-stats DIR --out {reference}`"
        )
    extractor = _extractor(features, device, offline)
    ours = _features(paths, extractor, resizers)
    references, fields = _references(reference, extractor, resizers)
    metric = metric_name("frechet", extractor.name)
    scores: list[Score] = []
    for resizer, array, side in zip(resizers, ours, references, strict=True):
        protocol = _protocol(extractor, resizer, metric, fields).id
        scores += compare({"features": array}, side, extractor.name, protocol)
        if infinity:
            scores.append(Score.of(f"{metric}-infinity", frechet_infinity(array, side.statistics), protocol))
        if real_vs_real:
            scores.append(Score.of(f"{metric}-real-vs-real", _real_vs_real(side), protocol))
    return scores


def _protocol(extractor: Extractor, resizer: Resizer, metric: str, reference: JSON) -> Protocol:
    return Protocol(resizer.name, 1, {"metric": metric, "reference": reference, **identity_of(extractor, resizer)})


def _real_vs_real(reference: Reference) -> Estimate:
    assert reference.features is not None  # noqa: S101 - a folder has features
    return frechet_jackknife(reference.features[::2], GaussianStatistics.from_features(reference.features[1::2]))


def _references(path: Path, extractor: Extractor, resizers: Sequence[Resizer]) -> tuple[list[Reference], JSON]:
    """The reference under each resizer, and the protocol's field that describes it."""
    if path.suffix == ".npz":
        references = [read_reference(path, extractor.dim, identity_of(extractor, resizer)) for resizer in resizers]
        mean = references[0].statistics.mean
        return references, {"kind": "statistics file", "statistics_sha256": digest(mean.tolist())}
    paths = list_images(path)
    references = [Reference.from_features(array) for array in _features(paths, extractor, resizers)]
    return references, {"kind": "folder", **fingerprint(paths)}


def save_folder_statistics(
    folder: Path, out: Path, protocol: str, features: str = "inception", device: str = "auto", offline: bool = False
) -> int:
    """Save mean and covariance of a folder's features as ``.npz``, with what they were made from; returns the number of images."""
    if out.suffix != ".npz":
        raise UsageError(f"--out {out}: statistics are saved as .npz")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"--out {out}: the folder {out.parent} does not exist")
    resizers, paths = _resizers([protocol]), list_images(folder)
    extractor = _extractor(features, device, offline)
    (array,) = _features(paths, extractor, resizers)
    identity = {**identity_of(extractor, resizers[0]), "images": fingerprint(paths)}
    save_statistics(out, GaussianStatistics.from_features(array), identity)
    return len(paths)


def _features(paths: Sequence[Path], extractor: Extractor, resizers: Sequence[Resizer]) -> list[Features]:
    if len(paths) < 2:
        raise DataError(f"{paths[0].parent}: one image has no spread; a Fréchet distance needs at least two")
    return image_features(
        paths, extractor, resizers, progress=lambda done, total: say(f"features of {done} of {total} images")
    )


def _resizers(names: Sequence[str]) -> list[Resizer]:
    from dreambench.metrics.resize import get_resizer

    return [get_resizer(name) for name in names]


def _extractor(features: str, device: str, offline: bool) -> Extractor:
    from dreambench.adapters.torch_tools import resolve_device

    return load_extractor(features, resolve_device(device), offline=offline)
