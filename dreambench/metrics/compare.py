"""The scores of generated images against reference images: from features, and from folders (``dreambench fid``, ``fid-stats``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dreambench.documents import JSON, digest
from dreambench.errors import DataError, UsageError
from dreambench.images import saturated
from dreambench.metrics.baselines import RealVsReal, derangement, frechet_infinity, real_vs_real
from dreambench.metrics.features import (
    Features,
    fingerprint,
    identity_of,
    image_features,
    list_images,
    listing_notes,
    load_extractor,
    metric_name,
)
from dreambench.metrics.frechet import GaussianStatistics, frechet_jackknife, load_statistics, save_statistics
from dreambench.metrics.set_metrics import (
    CLIP_WEIGHT,
    clip_scores,
    inception_score,
    kernel_distance,
    precision_recall_density_coverage,
)
from dreambench.progress import say
from dreambench.scores import DISTANCES, Better, Estimate, Protocol, Score
from dreambench.statistics import mean_estimate

if TYPE_CHECKING:
    from dreambench.metrics.features import Extractor
    from dreambench.metrics.resize import Resizer

__all__ = [
    "Reference",
    "compare",
    "compare_folders",
    "image_notes",
    "network_outputs",
    "read_reference",
    "save_folder_statistics",
]

NEIGHBOURS = 5
SPLITS = 10
MANIFOLD_LIMIT = 10_000
"""Above so many images on a side, precision, recall, density and coverage are left out: their cost grows with the square."""


@dataclass(frozen=True)
class Reference:
    """The reference images under one protocol. `features` is None where only statistics are known.

    `notes` say what is unknown about them or odd in their files; equal `keys`, one per image, mark images that belong together.
    """

    statistics: GaussianStatistics
    features: Features | None
    notes: tuple[str, ...] = ()
    keys: Sequence[str] | None = None

    @classmethod
    def from_features(
        cls, features: Features, notes: Sequence[str] = (), keys: Sequence[str] | None = None
    ) -> Reference:
        return cls(GaussianStatistics.from_features(features), features, tuple(notes), keys)


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


def network_outputs(
    extractor: Extractor, features: Features, captions: Sequence[str] | None = None, keys: Sequence[str] = ()
) -> dict[str, Any]:
    """What an extractor's network gives beyond features (N, d): Inception's logits; where the images have captions, CLIP's score of each
    with its own caption and with the caption of an image of another key."""
    import torch

    from dreambench.metrics.convolutional import InceptionExtractor
    from dreambench.metrics.encoders import ClipExtractor

    if isinstance(extractor, InceptionExtractor):
        return {"logits": extractor.logits(torch.from_numpy(features)).cpu().numpy()}
    if captions is None or not isinstance(extractor, ClipExtractor) or not extractor.has_text:
        return {}
    before = extractor.truncated
    batches = (list(captions[i : i + 64]) for i in range(0, len(captions), 64))
    texts = np.concatenate([extractor.text_features(batch).cpu().numpy() for batch in batches])
    outputs = {"clip_scores": clip_scores(features, texts), "clip_truncated": np.array(extractor.truncated - before)}
    if (others := derangement(keys)) is not None:
        outputs["clip_scores_shuffled"] = clip_scores(features, texts[others])
    return outputs


def image_notes(paths: Iterable[Path], side: str) -> list[str]:
    """What a reader must know about image files: whether some are 16-bit grey."""
    count = saturated(paths)
    if not count:
        return []
    return [
        f"{count} {side} images are grey with more than 8 bits: every value above 255 becomes white, as in torch-fidelity, pytorch-fid and"
        " clean-fid; convert them to 8 bits"
    ]


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
    Inception Score, CLIPScore; with what they are to be read against.

    Args:
        generated: ``features`` (N, d), and where there are any, those of `network_outputs` and ``notes``.
        keys: one per image; equal keys mark images that belong together, for instance those of one image's captions.
        cluster_name: what the keys name.
    """
    features: Features = generated["features"]
    left_out = None if reference.features is None else _why_no_manifold(len(features), len(reference.features))
    baseline = _baseline(reference, len(features), None if left_out else NEIGHBOURS)
    found = [*_frechet_scores(features, reference, extractor, keys, baseline)]
    metric, estimate, notes = found[0]
    said = [str(note) for note in generated.get("notes", ())]
    found[0] = metric, estimate, (*reference.notes, *said, *notes, *([left_out] if left_out else ()))
    if reference.features is not None:
        found += _further_scores(features, reference.features, extractor, baseline, manifold=left_out is None)
    found += _network_scores(generated, extractor, keys, cluster_name)
    return [
        Score.of(metric, estimate, protocol, unscored=unscored, notes=notes, better=_better(metric))
        if isinstance(estimate, Estimate)
        else Score(metric, None, "", len(features), protocol, unscored=unscored, interval_method=estimate, notes=notes)
        for metric, estimate, notes in found
    ]


def _better(metric: str) -> Better | None:
    """Of a distance lower is better, of all else higher; of baselines neither."""
    if metric.endswith(("-real-vs-real", "-shuffled")):
        return None
    return "lower" if metric.startswith(DISTANCES) else "higher"


_Found = tuple[str, Estimate | str, tuple[str, ...]]
"""Metric, estimate or why there is none, and notes."""


def _baseline(reference: Reference, n: int, neighbours: int | None) -> RealVsReal | str:
    """The real-vs-real baseline at n, or why there is none."""
    if reference.features is None:
        return "none: the reference is a file of statistics, without images to compare with each other"
    try:
        return real_vs_real(reference.features, n, keys=reference.keys, neighbours=neighbours)
    except DataError as error:
        return f"none: {error}"


def _frechet_scores(
    features: Features,
    reference: Reference,
    extractor: str,
    keys: Sequence[str] | None,
    baseline: RealVsReal | str,
) -> Iterator[_Found]:
    """The distance, the distance without bias, and real images at this n."""
    n, dim = features.shape
    name = metric_name("frechet", extractor)
    notes = [
        f"{count} {side} images are too few for {dim} features: "
        "the distance is biased upwards and barred from leaderboards"
        for side, count in (("generated", n), ("reference", reference.statistics.n))
        if count is not None and count <= dim
    ]
    plain = frechet_jackknife(features, reference.statistics, keys=keys)
    infinity, left_out = _infinity(features, reference, keys, name)
    real: Estimate | str | None = baseline if isinstance(baseline, str) else baseline.frechet_range(n)
    if real is None:
        assert not isinstance(baseline, str)  # noqa: S101 - a reason is no estimate
        real = f"none: {baseline.parts} are too few for {dim} features"
    if isinstance(real, str):
        notes.append(f"{name} has no real-vs-real baseline: {real.removeprefix('none: ')}")
    elif real.interval is not None and plain.value <= real.interval[1]:
        low, high = real.interval
        within = f"{name} {plain.value:.4g} is within what other real images get at this n ({low:.4g} to {high:.4g})"
        if isinstance(infinity, Estimate) and infinity.interval is not None and infinity.interval[0] > 0:
            low, high = infinity.interval
            notes.append(
                f"{within}; without bias it is {low:.4g} to {high:.4g}, so a difference from real images is shown"
            )
        else:
            notes.append(f"{within}: no difference from real images is shown in these features")
    yield name, plain, tuple(notes)
    yield f"{name}-infinity", infinity, left_out
    yield f"{name}-real-vs-real", real, ()


def _infinity(
    features: Features, reference: Reference, keys: Sequence[str] | None, name: str
) -> tuple[Estimate | str, tuple[str, ...]]:
    try:
        estimate = frechet_infinity(
            features, reference.statistics, reference.features, keys=keys, reference_keys=reference.keys
        )
    except DataError as error:
        return f"none: {error}", (f"{name}-infinity, without the bias of finite sets, is left out: {error}",)
    return estimate, ()


def _further_scores(
    features: Features, reference: Features, extractor: str, baseline: RealVsReal | str, *, manifold: bool
) -> Iterator[_Found]:
    """Kernel distance, precision, recall, density and coverage, with a note where they say no more than real images would."""
    name, estimate = metric_name("kernel", extractor), kernel_distance(features, reference)
    known = None if isinstance(baseline, str) else baseline
    notes: list[str] = []
    if known is not None and abs(estimate.value) <= 2 * known.kernel_scatter:
        notes.append(
            f"{name} {estimate.value:.4g} is no finding: at this n real images against real images scatter by {known.kernel_scatter:.2g}"
            f" (standard deviation over {len(known.kernel)} random splits)"
        )
    yield name, estimate, tuple(notes)
    if not manifold:
        return
    found = precision_recall_density_coverage(features, reference, k=NEIGHBOURS)
    saturated = [
        f"{metric} {found[metric].value:.3f} (real: {values.mean():.3f})"
        for metric, values in (known.manifold if known else {}).items()
        if found[metric].value >= values.mean() - max(values.std(ddof=1), 0.02)
    ]
    notes = []
    if known and saturated:
        notes = [
            f"as high as for real images ({known.parts}), which proves nothing: {', '.join(saturated)};"
            " these features may miss what an eye sees"
        ]
    for metric, value in found.items():
        yield metric_name(metric, extractor), value, tuple(notes if metric == "precision" else ())


def _network_scores(
    generated: Mapping[str, Any], extractor: str, keys: Sequence[str] | None, cluster_name: str
) -> Iterator[_Found]:
    if "logits" in generated:
        logits = generated["logits"]
        yield metric_name("inception_score", extractor), inception_score(logits, splits=min(SPLITS, len(logits)))[0], ()
    if "clip_scores" not in generated:
        return
    name, cut = f"clip_score[{extractor}]", int(generated.get("clip_truncated", 0))
    notes = [f"clip_score: {cut} captions were longer than the CLIP's context and cut for it"] if cut else []
    own, *blind = (
        mean_estimate(generated[array], keys, cluster_name=cluster_name, unit="", bounds=(0.0, CLIP_WEIGHT))
        for array in ("clip_scores", "clip_scores_shuffled")
        if array in generated
    )
    shuffled = f"{name}-shuffled"
    if not blind:
        notes.append(
            f"{shuffled} is left out: more than half of the images belong to one {cluster_name}, or the features are of an earlier version"
        )
    elif own.interval is not None and own.interval[0] <= blind[0].value:
        notes.append(f"{name} {own.value:.4g} is no better than with captions of other images, {blind[0].value:.4g}")
    yield name, own, tuple(notes)
    for estimate in blind:
        yield shuffled, estimate, ()


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
) -> list[Score]:
    """The scores of a folder of generated images under each protocol, each image decoded once.

    Args:
        reference: a folder of images, or statistics of `save_folder_statistics` or of another tool (``.npz`` with mu and sigma).
        protocols: names of resizers: clean, pytorch, tf1, torchmetrics, dreamllm.
    """
    resizers = _resizers(protocols)
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
    notes = [*listing_notes(generated), *image_notes(paths, "generated")]
    keys = _stems(paths)
    scores: list[Score] = []
    for resizer, array, side in zip(resizers, ours, references, strict=True):
        arrays = {"features": array, "notes": notes, **network_outputs(extractor, array)}
        scores += compare(arrays, side, extractor.name, _protocol(extractor, resizer, metric, fields).id, keys=keys)
    return scores


def _stems(paths: Sequence[Path]) -> list[str] | None:
    """File names without suffix, which may pair the images of two folders; None where one occurs twice."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else None


def _protocol(extractor: Extractor, resizer: Resizer, metric: str, reference: JSON) -> Protocol:
    return Protocol(resizer.name, 1, {"metric": metric, "reference": reference, **identity_of(extractor, resizer)})


def _references(path: Path, extractor: Extractor, resizers: Sequence[Resizer]) -> tuple[list[Reference], JSON]:
    """The reference under each resizer, and the protocol's field that describes it."""
    if path.suffix == ".npz":
        references = [read_reference(path, extractor.dim, identity_of(extractor, resizer)) for resizer in resizers]
        mean = references[0].statistics.mean
        return references, {"kind": "statistics file", "statistics_sha256": digest(mean.tolist())}
    paths = list_images(path)
    notes = [*listing_notes(path), *image_notes(paths, "reference")]
    arrays = _features(paths, extractor, resizers)
    references = [Reference.from_features(array, notes, _stems(paths)) for array in arrays]
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
