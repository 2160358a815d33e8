"""How images reach a network's input size. Resizing alone can move an FID by 6 (Parmar et al. 2022), so each has a name.

Images come as uint8 (N, 3, height, width), all of one size, on any device; they leave as float32 (N, 3, size, size) in
0..255, unrounded.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dreambench.errors import UsageError

__all__ = ["RESIZERS", "Resizer", "Scaling", "get_resizer", "short_side_crop"]

Scaling = Literal["tf1", "pytorch"]


@dataclass(frozen=True)
class Resizer:
    """A resize, and how the FID Inception network scales its result.

    `scaling` is "tf1" for (x - 128) / 128, as in the TensorFlow graph, or "pytorch" for x / 127.5 - 1, as in pytorch-fid.
    `version` changes when the numbers do; name and version are part of a protocol's identity.
    """

    name: str
    resize: Callable[[Tensor, int], Tensor]
    scaling: Scaling
    version: int = 1

    def __call__(self, images: Tensor, size: int) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise TypeError(f"resize takes uint8 (N, 3, height, width), got {images.dtype} {tuple(images.shape)}")
        if images.device.type == "cpu":  # one at a time stays in the cache, which halves the time
            return torch.cat([self.resize(image, size) for image in images.split(1)])
        return self.resize(images, size)

    @property
    def identity(self) -> dict[str, str | int]:
        return {"resize": self.name, "resize_version": self.version, "inception_scaling": self.scaling}


def clean(images: Tensor, size: int) -> Tensor:
    """clean-fid: bicubic, antialiased, clipped, not rounded (Pillow's mode F to 2e-5 grey levels).

    In double: with float32 sampling positions the result is off by up to 7e-3.
    """
    resized = F.interpolate(images.double(), size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 255).float()


def pytorch(images: Tensor, size: int) -> Tensor:
    """pytorch-fid: bilinear with half-pixel centres, not antialiased."""
    return F.interpolate(images.float(), size=(size, size), mode="bilinear", align_corners=False)


def torchmetrics(images: Tensor, size: int) -> Tensor:
    """torchmetrics >= 1: bilinear, antialiased."""
    return F.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def tf1(images: Tensor, size: int) -> Tensor:
    """The 2015 TensorFlow graph: bilinear from the pixels' upper left corners, not antialiased. Bit for bit on a CPU.

    The same sums as torch-fidelity's `interpolate_bilinear_2d_like_tensorflow1x`, in two passes.
    """
    pixels = images.float()
    left, right, across = _tf1_positions(images.shape[3], size, images.device)
    first = pixels[..., left]
    rows = first + (pixels[..., right] - first) * across
    upper, lower, down = _tf1_positions(images.shape[2], size, images.device)
    top = rows[..., upper, :]
    return top + (rows[..., lower, :] - top) * down[:, None]


def _tf1_positions(inputs: int, outputs: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    position = torch.arange(outputs, dtype=torch.float32, device=device) * torch.tensor(inputs / outputs).float()
    low = position.long()
    return low, (low + 1).clamp_max(inputs - 1), position - low.float()


def dreamllm(images: Tensor, size: int) -> Tensor:
    """DreamLLM's fork of pytorch-fid: short side to 256 and centre crop in uint8, then pytorch-fid."""
    return pytorch(short_side_crop(images, 256), size)


def short_side_crop(images: Tensor, size: int) -> Tensor:
    """torchvision's Resize(size, bilinear) and CenterCrop(size) on Pillow images, in uint8 (N, 3, size, size).

    Bit for bit what Pillow before 13 gives: width first, then height. Pillow 13 does the height first where that shrinks more,
    which rounds some pixels to the next grey level; published numbers are older, and a protocol must not change with Pillow.
    """
    height, width = images.shape[-2:]
    if height <= width:
        new_height, new_width = size, int(size * width / height)
    else:
        new_height, new_width = int(size * height / width), size
    if new_width != width:
        images = _pillow_bilinear(images, new_width)
    if new_height != height:
        images = _pillow_bilinear(images.transpose(2, 3), new_height).transpose(2, 3)
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    return images[..., top : top + size, left : left + size].contiguous()


def _pillow_bilinear(images: Tensor, outputs: int) -> Tensor:
    """Pillow's 8-bit bilinear resize of the last axis: fixed-point weights, the sum rounded once.

    Products of 8-bit pixels and 22-bit weights sum exactly in float64, in any order and on any device.
    """
    weights = torch.from_numpy(_pillow_weights(images.shape[-1], outputs)).to(images.device)
    sums = images.double() @ weights
    return ((sums + _HALF) / _ONE).floor().clamp(0, 255).to(torch.uint8)


_ONE = float(1 << 22)
_HALF = float(1 << 21)


@functools.lru_cache(maxsize=32)
def _pillow_weights(inputs: int, outputs: int) -> np.ndarray:
    """(inputs, outputs) weights in units of 2^-22, as Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc` make them."""
    scale = inputs / outputs
    support = max(scale, 1.0)
    inverse = 1 / support
    weights = np.zeros((inputs, outputs))
    for output in range(outputs):
        center = (output + 0.5) * scale
        first = max(int(center - support + 0.5), 0)
        last = min(int(center + support + 0.5), inputs)
        taps = [max(0.0, 1 - abs((i + first - center + 0.5) * inverse)) for i in range(last - first)]
        # Multiplied by the reciprocal, and summed from the left: the last place decides a rounding now and then.
        share = 1 / functools.reduce(operator.add, taps)
        weights[first:last, output] = [math.floor(0.5 + tap * share * _ONE) for tap in taps]
    return weights


RESIZERS: dict[str, Resizer] = {
    resizer.name: resizer
    for resizer in (
        Resizer("clean", clean, "tf1"),
        Resizer("tf1", tf1, "tf1"),
        Resizer("pytorch", pytorch, "pytorch"),
        Resizer("torchmetrics", torchmetrics, "tf1"),
        Resizer("dreamllm", dreamllm, "pytorch"),
    )
}


def get_resizer(name: str) -> Resizer:
    try:
        return RESIZERS[name]
    except KeyError:
        raise UsageError(f"--protocol {name}: there are {', '.join(RESIZERS)}") from None
