"""What joins the parts: linear layers from one width to another.

Shapes: B batch, T positions, D_in and D_out widths.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F


class Projector(nn.Module):
    """(B, T, D_in) -> (B, T, D_out): `depth` linear layers with exact GELU between, then LayerNorm if asked for."""

    def __init__(self, in_size: int, out_size: int, depth: int = 1, bias: bool = True, layernorm: bool = False) -> None:
        super().__init__()
        sizes = [in_size] + [out_size] * depth
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=bias) for a, b in pairwise(sizes))
        self.norm = nn.LayerNorm(out_size) if layernorm else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index, layer in enumerate(self.layers):
            x = layer(x if index == 0 else F.gelu(x))
        return x if self.norm is None else self.norm(x)
