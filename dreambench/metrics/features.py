"""Feature extractors by name, the stream of images through them, and features of image files kept on disk.

    inception[:PATH]       the FID Inception network; weights found in the torch hub cache, or a file
    efficientnet-lite0     ImageNet weights from a Python package (extra `efficientnet`)
    clip:DIR               a CLIP model folder of transformers: its projected image embedding
    dinov2:DIR             a DINOv2 folder of transformers: its class token
    playground-clip        the small CLIP of the embedded data, from an entry point

Others are added by an entry point of the group `dreambench.extractors` that names a function which
returns a CLIP's folder. Features are computed in float32 on every device: bfloat16 changes Inception features by 5e-3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from dreambench.documents import JSON, digest
from dreambench.errors import DataError, UsageError
from dreambench.files import cache_folder, files_below, read_arrays, sha256_file, write_arrays

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dreambench.metrics.resize import Resizer, Scaling

__all__ = [
    "Extractor",
    "Features",
    "extract",
    "extractor_names",
    "fingerprint",
    "identity_of",
    "image_features",
    "list_images",
    "listing_notes",
    "load_extractor",
    "metric_name",
    "read_image",
]

EXTRACTORS = "dreambench.extractors"
CHUNK = 512
"""Images per file of saved features: the most that a killed process has to compute again."""
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
_PYTORCH_FID = "bmp jpg jpeg pgm png ppm tif tiff webp"
LISTINGS = {
    "torch-fidelity": ("png jpg jpeg", False, True),
    "pytorch-fid": (_PYTORCH_FID, False, False),
    "clean-fid": (f"{_PYTORCH_FID} npy JPEG JPG PNG", True, False),
}
"""By program: the suffixes of its images, whether it looks below the top level, whether it takes suffixes in any case."""

Features = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]


class Extractor(Protocol):
    """A network that turns images into features.

    `name` is part of the metric's name (`fd[NAME]`) and identifies the weights. `identity` is what a protocol hashes: weights,
    input size, normalisation, layer.
    """

    name: str
    dim: int
    input_size: int
    identity: dict[str, Any]
    device: torch.device

    def __call__(self, pixels: Tensor, scaling: Scaling) -> Tensor:
        """Features (N, dim) float32 of pixels (N, 3, input_size, input_size), float32 in 0..255.

        `scaling` is how the resize protocol scales the FID Inception network's input; other networks have their own
        normalisation, which is in their identity.
        """
        ...


# --- names --------------------------------------------------------------------------------------------------------------

Loader = Callable[[str | None, "torch.device", bool], Extractor]


def _inception(location: str | None, device: torch.device, offline: bool) -> Extractor:
    from dreambench.metrics.convolutional import load_inception

    return load_inception(location, device=device, offline=offline)


def _efficientnet(location: str | None, device: torch.device, offline: bool) -> Extractor:
    from dreambench.metrics.convolutional import EfficientNetExtractor

    _refuse_location("efficientnet-lite0", location)
    return EfficientNetExtractor(device=device)


def _clip(location: str | None, device: torch.device, offline: bool) -> Extractor:
    from dreambench.metrics.encoders import ClipExtractor

    return ClipExtractor(_need_location("clip", location), device=device)


def _dinov2(location: str | None, device: torch.device, offline: bool) -> Extractor:
    from dreambench.metrics.encoders import Dinov2Extractor

    return Dinov2Extractor(_need_location("dinov2", location), device=device)


_LOADERS: dict[str, Loader] = {
    "inception": _inception,
    "efficientnet-lite0": _efficientnet,
    "clip": _clip,
    "dinov2": _dinov2,
}


def extractor_names() -> list[str]:
    return sorted({*_LOADERS, *entry_points(group=EXTRACTORS).names})


def load_extractor(spec: str, device: str | torch.device = "cpu", *, offline: bool = False) -> Extractor:
    """The extractor that `--features SPEC` names. Raises UsageError, MissingWeightsError or MissingExtraError."""
    import torch

    name, _, location = spec.partition(":")
    if name in _LOADERS:
        return _LOADERS[name](location or None, torch.device(device), offline)
    for entry in entry_points(group=EXTRACTORS, name=name):
        from dreambench.metrics.encoders import ClipExtractor

        _refuse_location(name, location)
        return ClipExtractor(entry.load()(), device=torch.device(device), name=name)
    raise UsageError(f"--features {spec}: no such extractor; there are {', '.join(extractor_names())}")


def _need_location(name: str, location: str | None) -> Path:
    if not location:
        raise UsageError(f"--features {name} needs a model folder: --features {name}:DIR")
    return Path(location)


def _refuse_location(name: str, location: str | None) -> None:
    if location:
        raise UsageError(f"--features {name}:{location}: {name} takes no location")


def metric_name(metric: str, extractor_name: str) -> str:
    """The name of ``frechet``, ``kernel``, ``precision``, ... with these features.

    `fid` and `kid` are the FID Inception network's, hash checked; every other extractor is named: `fd[...]`, `kd[...]`.
    """
    published, general = {"frechet": ("fid", "fd"), "kernel": ("kid", "kd")}.get(metric, (metric, metric))
    return published if extractor_name == "inception" else f"{general}[{extractor_name}]"


def identity_of(extractor: Extractor, resizer: Resizer) -> dict[str, JSON]:
    """The fields of a protocol that say how an image becomes features."""
    return {"extractor": {"name": extractor.name, **extractor.identity}, **resizer.identity}


# --- images through a network -------------------------------------------------------------------------------------------


def extract(
    images: Iterable[Tensor], extractor: Extractor, resizers: Sequence[Resizer], *, batch_size: int = 32
) -> list[Features]:
    """Features (N, dim) under each resizer, in the images' order, decoding each image once.

    `images` are uint8 (3, height, width) of any sizes; those of one size within a batch are resized together.
    """
    collected: list[list[Features]] = [[np.zeros((0, extractor.dim), dtype=np.float32)] for _ in resizers]
    for batch in _batches(images, batch_size):
        on_device = [image.to(extractor.device, non_blocking=True) for image in batch]
        for parts, resizer in zip(collected, resizers, strict=True):
            pixels = _resize(on_device, resizer, extractor.input_size)
            parts.append(extractor(pixels, resizer.scaling).cpu().numpy())
    return [np.concatenate(parts) for parts in collected]


def _batches(images: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    batch: list[Tensor] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _resize(images: list[Tensor], resizer: Resizer, size: int) -> Tensor:
    import torch

    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        by_shape.setdefault(tuple(image.shape), []).append(index)
    resized = torch.empty((len(images), 3, size, size), device=images[0].device)
    for indices in by_shape.values():
        resized[indices] = resizer(torch.stack([images[index] for index in indices]), size)
    return resized


# --- features of image files --------------------------------------------------------------------------------------------


def list_images(folder: Path) -> list[Path]:
    """Every image below a folder, sorted by path; hidden files are left out."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images")
    found = list(files_below(folder, lambda name: Path(name).suffix.lower() in SUFFIXES))
    if not found:
        raise DataError(f"{folder}: no images in it ({', '.join(sorted(SUFFIXES))})")
    return sorted(map(Path, found))


def listing_notes(folder: Path) -> list[str]:
    """Which other programs would compare other files of the folder, and how many."""
    known = {suffix.lower() for suffixes, _, _ in LISTINGS.values() for suffix in suffixes.split()}
    files = [*map(Path, files_below(folder, lambda name: Path(name).suffix.lower()[1:] in known))]
    ours, others = set(list_images(folder)), list[str]()
    for program, (suffixes, deep, any_case) in LISTINGS.items():
        theirs = {
            path
            for path in files
            if (path.suffix.lower() if any_case else path.suffix)[1:] in suffixes.split()
            and (deep or path.parent == folder)
        }
        if theirs != ours:
            rule = f"{'all levels' if deep else 'top level'}: {', '.join(suffixes.split())}"
            others.append(f"{program} {len(theirs)} ({rule})")
    many = f"{folder}: {len(ours)} images; other programs list other files of it: {'; '.join(others)}"
    return [many] if others else []


def fingerprint(paths: Sequence[Path]) -> JSON:
    """Number and digest of a list of images: names in order, and every byte."""
    try:
        return {"n": len(paths), "sha256": digest([[path.name, sha256_file(path)] for path in paths])}
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}; every image of the folder counts") from error


def read_image(path: Path) -> Tensor:
    """The image as a tensor (3, height, width) uint8. Raises DataError where it cannot be decoded."""
    from torchvision.transforms.functional import pil_to_tensor

    from dreambench.images import read_rgb

    pixels: Tensor = pil_to_tensor(read_rgb(path))
    return pixels.contiguous()


def image_features(
    paths: Sequence[Path],
    extractor: Extractor,
    resizers: Sequence[Resizer],
    folders: Sequence[Path] | None = None,
    *,
    progress: Progress | None = None,
) -> list[Features]:
    """Features (N, d) of image files under each resizer, each image decoded once, each chunk of images computed once.

    Chunks are saved in `folders`, one per resizer, which must belong to this list of images and this extractor; by default in the
    user's cache, under a digest of the images' bytes, the weights and the resize.
    """
    if folders is None:
        listed = fingerprint(paths)
        keys = [digest([listed, identity_of(extractor, resizer)])[:32] for resizer in resizers]
        folders = [cache_folder() / "features" / key for key in keys]
    collected: list[list[Features]] = [[np.zeros((0, extractor.dim), dtype=np.float32)] for _ in resizers]
    for start in range(0, len(paths), CHUNK):
        chunk = paths[start : start + CHUNK]
        files = [folder / f"{start:07d}.npz" for folder in folders]
        saved = [_saved(file, (len(chunk), extractor.dim)) for file in files]
        missing = [index for index, features in enumerate(saved) if features is None]
        if missing:
            images = (read_image(path) for path in chunk)
            computed = extract(images, extractor, [resizers[index] for index in missing])
            for index, features in zip(missing, computed, strict=True):
                write_arrays(files[index], features=features)
                saved[index] = features
        for parts, features in zip(collected, saved, strict=True):
            if features is not None:
                parts.append(features)
        if progress is not None:
            progress(start + len(chunk), len(paths))
    return [np.concatenate(parts) for parts in collected]


def _saved(file: Path, shape: tuple[int, int]) -> Features | None:
    """Saved features, or None where there are none of this shape."""
    try:
        features = read_arrays(file).get("features")
    except DataError:
        return None
    return features if features is not None and features.shape == shape and features.dtype == np.float32 else None
