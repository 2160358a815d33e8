"""Feature extractors by name, and the stream of images through them.

    inception[:PATH]       the FID Inception network; weights found in the torch hub cache, or given
    efficientnet-lite0     ImageNet weights from a Python package (extra `efficientnet`)
    clip:DIR               a CLIP model folder of transformers: its projected image embedding
    dinov2:DIR             a DINOv2 folder of transformers: its class token
    playground-clip        the small CLIP of the embedded data, from an entry point

A further one is added by `register_extractor`, or by an entry point of the group `dreambench.extractors`: the name of a CLIP and a
function that returns its folder. Features are float32 in float32
arithmetic on every device: bfloat16 moves Inception features by 5e-3, and no reported number uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from dreambench.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dreambench.metrics.resize import Resizer, Scaling

__all__ = ["Extractor", "Metric", "extract", "load_extractor", "metric_name", "register_extractor"]
__all__ += ["extractor_names"]


class Extractor(Protocol):
    """A network that turns images into features.

    `name` is part of the metric's name (`fd[NAME]`), and says which weights: equal names, equal numbers. `identity` is what a
    protocol hashes: weights, input size, normalisation, layer.
    """

    name: str
    dim: int
    input_size: int
    identity: dict[str, Any]
    device: torch.device

    def __call__(self, pixels: Tensor, scaling: Scaling) -> Tensor:
        """Features (N, dim) float32 of pixels (N, 3, input_size, input_size), float32 in 0..255.

        `scaling` is the resize protocol's word on the FID Inception network's input; other networks have a normalisation
        of their own, named in their identity, whatever the scaling.
        """
        ...


Loader = Callable[[str | None, "torch.device", bool], Extractor]
_LOADERS: dict[str, Loader] = {}
GROUP = "dreambench.extractors"


def register_extractor(name: str, loader: Loader) -> None:
    """`loader(location, device, offline)` is called for `NAME` (location None) and for `NAME:LOCATION`."""
    _LOADERS[name] = loader


def extractor_names() -> list[str]:
    return sorted({*_LOADERS, *entry_points(group=GROUP).names})


def load_extractor(spec: str, device: str | torch.device = "cpu", *, offline: bool = False) -> Extractor:
    """The extractor that `--features SPEC` names. Raises UsageError, MissingWeightsError or MissingExtraError."""
    import torch

    name, _, location = spec.partition(":")
    if name in _LOADERS:
        return _LOADERS[name](location or None, torch.device(device), offline)
    for entry in entry_points(group=GROUP, name=name):
        from dreambench.metrics.encoders import ClipExtractor

        _no_location(name, location)
        return ClipExtractor(entry.load()(), device=torch.device(device), name=name)
    raise UsageError(f"--features {spec}: no such extractor; there are {', '.join(extractor_names())}")


def extract(
    images: Iterable[Tensor],
    extractor: Extractor,
    resizers: Resizer | list[Resizer],
    *,
    batch_size: int = 32,
) -> list[npt.NDArray[np.float32]]:
    """Features (N, dim) under each resizer, in the images' order, decoding each image once.

    `images` are uint8 (3, height, width) of any sizes; those of one size within a batch are resized together.
    """
    resizers = resizers if isinstance(resizers, list) else [resizers]
    collected: list[list[npt.NDArray[np.float32]]] = [[] for _ in resizers]
    for batch in _batches(images, batch_size):
        on_device = [image.to(extractor.device, non_blocking=True) for image in batch]
        for parts, resizer in zip(collected, resizers, strict=True):
            pixels = _resize(on_device, resizer, extractor.input_size)
            parts.append(extractor(pixels, resizer.scaling).cpu().numpy())
    empty = np.zeros((0, extractor.dim), dtype=np.float32)
    return [np.concatenate([empty, *parts]) for parts in collected]


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


Metric = Literal["frechet", "kernel", "inception_score", "precision", "recall", "density", "coverage"]


def metric_name(metric: Metric, extractor_name: str) -> str:
    """`fid` and `kid` are the FID Inception network's, hash checked; every other extractor is named: `fd[...]`, `kd[...]`."""
    if metric == "frechet":
        return "fid" if extractor_name == "inception" else f"fd[{extractor_name}]"
    if metric == "kernel":
        return "kid" if extractor_name == "inception" else f"kd[{extractor_name}]"
    return metric if extractor_name == "inception" else f"{metric}[{extractor_name}]"


def _inception(location: str | None, device: torch.device, offline: bool) -> Extractor:
    from dreambench.metrics.inception import load_inception

    return load_inception(location, device=device, offline=offline)


def _efficientnet(location: str | None, device: torch.device, offline: bool) -> Extractor:
    from dreambench.metrics.efficientnet import EfficientNetExtractor

    _no_location("efficientnet-lite0", location)
    return EfficientNetExtractor(device=device)


def _clip(location: str | None, device: torch.device, offline: bool) -> Extractor:
    from dreambench.metrics.encoders import ClipExtractor

    return ClipExtractor(_need_location("clip", location), device=device)


def _dinov2(location: str | None, device: torch.device, offline: bool) -> Extractor:
    from dreambench.metrics.encoders import Dinov2Extractor

    return Dinov2Extractor(_need_location("dinov2", location), device=device)


def _need_location(name: str, location: str | None) -> Path:
    if not location:
        raise UsageError(f"--features {name} needs a model folder: --features {name}:DIR")
    return Path(location)


def _no_location(name: str, location: str | None) -> None:
    if location:
        raise UsageError(f"--features {name}:{location}: {name} takes no location")


for _name, _loader in {
    "inception": _inception,
    "efficientnet-lite0": _efficientnet,
    "clip": _clip,
    "dinov2": _dinov2,
}.items():
    register_extractor(_name, _loader)
