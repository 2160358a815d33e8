"""Pictures as networks take them."""

from __future__ import annotations

import torch
from numpy import uint8
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["pixels_of"]


def pixels_of(pictures: NDArray[uint8]) -> Tensor:
    """``(N, 64, 64, 3)`` uint8 to ``(N, 3, 64, 64)`` float32 in -1 … 1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
