"""Two sides of a comparison: features of image files, kept chunk by chunk, and the reference they are held against."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dreambench.documents import JSON, digest
from dreambench.errors import DataError
from dreambench.files import cache_folder, sha256_file, write_atomically
from dreambench.metrics.gaussian import GaussianStatistics
from dreambench.metrics.stats_file import load_statistics

if TYPE_CHECKING:
    from dreambench.metrics.features import Extractor
    from dreambench.metrics.resize import Resizer

__all__ = [
    "Reference",
    "cached_features",
    "fingerprint",
    "identity_of",
    "image_features",
    "list_images",
    "read_reference",
]

CHUNK = 512
"""Images per file of kept features: what a kill can cost."""
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
Features = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Reference:
    """The real side under one protocol. `features` is None where only statistics are known; `notes` say what else is not."""

    statistics: GaussianStatistics
    features: Features | None
    notes: tuple[str, ...] = ()


def list_images(folder: Path) -> list[Path]:
    """Every image below a folder, by name; hidden files do not count."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images")
    found: list[Path] = []
    for root, folders, files in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in files if Path(name).suffix.lower() in SUFFIXES and name[0] != "."]
    if not found:
        raise DataError(f"{folder}: no images in it ({', '.join(sorted(SUFFIXES))})")
    return sorted(found)


def _unreadable(error: OSError) -> None:
    """A folder that may not be listed would leave its images out unsaid."""
    raise DataError(f"{error.filename}: {error.strerror}; make it readable, or give another folder") from error


def fingerprint(paths: Sequence[Path]) -> JSON:
    """Number and digest of a list of images: names in order, and every byte."""
    try:
        return {"n": len(paths), "sha256": digest([[path.name, sha256_file(path)] for path in paths])}
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}; every image of the folder counts") from error


def identity_of(extractor: Extractor, resizer: Resizer) -> dict[str, JSON]:
    """The fields of a protocol that say how an image becomes features."""
    return {"extractor": {"name": extractor.name, **extractor.identity}, **resizer.identity}


def image_features(
    paths: Sequence[Path],
    extractor: Extractor,
    resizers: Sequence[Resizer],
    keep: Sequence[Path],
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[Features]:
    """Features (N, d) of image files under each resizer, each image decoded once.

    `keep` names a folder for each resizer; what lies there already, chunk by chunk, is not computed again. The folder must be
    this list's and this extractor's own: the caller names it by their fingerprint.
    """
    from dreambench.metrics.features import extract
    from dreambench.metrics.images import read_image

    collected: list[list[Features]] = [[] for _ in resizers]
    for start in range(0, len(paths), CHUNK):
        chunk = paths[start : start + CHUNK]
        files = [folder / f"{start:07d}.npy" for folder in keep]
        kept = [_read(file, len(chunk), extractor.dim) for file in files]
        wanted = [index for index, features in enumerate(kept) if features is None]
        if wanted:
            images = (read_image(path) for path in chunk)
            made = extract(images, extractor, [resizers[index] for index in wanted], batch_size=batch_size)
            for index, features in zip(wanted, made, strict=True):
                kept[index] = features
                write_atomically(files[index], _bytes(features))
        for parts, features in zip(collected, kept, strict=True):
            if features is not None:
                parts.append(features)
        if progress is not None:
            progress(start + len(chunk), len(paths))
    empty = np.zeros((0, extractor.dim), dtype=np.float32)
    return [np.concatenate([empty, *parts]) for parts in collected]


def cached_features(
    paths: Sequence[Path], extractor: Extractor, resizers: Sequence[Resizer], progress: Progress | None = None
) -> list[Features]:
    """`image_features` kept for later runs, under a name made of the images' bytes, the weights and the resize."""
    images = fingerprint(paths)
    keep = [cache_folder() / "features" / digest([images, identity_of(extractor, one)])[:32] for one in resizers]
    return image_features(paths, extractor, resizers, keep, progress=progress)


def _bytes(array: Features) -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _read(file: Path, n: int, dim: int) -> Features | None:
    """Kept features, or None where there are none of this shape."""
    try:
        array: Features = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array if array.shape == (n, dim) and array.dtype == np.float32 else None


def read_reference(path: Path, dim: int, identity: Mapping[str, Any]) -> Reference:
    """Reference statistics from a file. One made under another protocol is an error, an unknown one a note."""
    saved = load_statistics(path, dim)
    if saved.identity is not None:
        for name in ("extractor", "resize", "resize_version", "inception_scaling"):
            if name in saved.identity and saved.identity[name] != identity[name]:
                raise DataError(
                    f"{path} was made with {name} {_short(saved.identity[name])}, this protocol has {_short(identity[name])}: "
                    "make it again with `dreambench fid-stats` under this protocol"
                )
    notes = () if saved.warning is None else (saved.warning,)
    return Reference(saved.statistics, None, notes)


def _short(value: Any) -> str:
    return str(value.get("name", value)) if isinstance(value, dict) else str(value)
