"""Images as networks take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from numpy import uint8
from numpy.typing import NDArray
from torch import Tensor

from dreambench_tasks.playground.render import render_many
from dreambench_tasks.playground.scene import Scene

__all__ = ["pixels_of", "things_of"]


def pixels_of(images: NDArray[uint8]) -> Tensor:
    """``(N, 64, 64, 3)`` uint8 to ``(N, 3, 64, 64)`` float32 in -1 … 1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def things_of(scenes: Sequence[Scene], images: NDArray[uint8]) -> Tensor:
    """Where the scenes' images ``(N, 64, 64, 3)`` show a thing or its shadow: ``(N, 1, 64, 64)``, 1.0 there and 0.0 elsewhere."""
    empty = render_many(replace(scene, things=()) for scene in scenes)
    return torch.from_numpy((images != empty).any(axis=-1)).float()[:, None]
