"""What model, generation and training share: spans in a sequence, projectors, seeds, the cache's name.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaModel

from dreamllm.errors import InputError

CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"
"""The name of keys and values, as argument and as output, in the installed transformers: `cache` from 5.24 on."""


def find_spans(input_ids: torch.Tensor, start_id: int, patch_id: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, columns) of the patch positions of all spans of (B, T) ids in reading order, each (spans, length).

    A start token without a patch token after it is an ordinary token, which the model may have generated. Raises InputError for a
    start token that is followed by only some of its patch tokens.
    """
    rows, starts = (input_ids == start_id).nonzero(as_tuple=True)
    columns = starts[:, None] + 1 + torch.arange(length, device=input_ids.device)
    inside = columns < input_ids.shape[1]
    patches = inside & (input_ids[rows[:, None], columns.clamp(max=input_ids.shape[1] - 1)] == patch_id)
    begun, complete = patches[:, 0], patches.all(dim=1)
    if (begun != complete).any():
        found = int(patches[begun & ~complete][0].sum())
        raise InputError(
            f"a span that begins with token {start_id} has {found} of its {length} patch tokens: keep or drop a span as a whole"
        )
    return rows[complete, None].expand(-1, length), columns[complete]


def count_spans(input_ids: torch.Tensor, start_id: int, patch_id: int, length: int) -> torch.Tensor:
    """The number of spans in each row of (B, T) ids: (B,)."""
    rows, _ = find_spans(input_ids, start_id, patch_id, length)
    return torch.bincount(rows[:, 0], minlength=input_ids.shape[0])


def position_ids_from_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """(B, T) positions that count attended tokens only, so that padding on either side changes nothing."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


class Projector(nn.Module):
    """(B, T, in_size) -> (B, T, out_size): `depth` linear layers with exact GELU between them, then an optional LayerNorm."""

    def __init__(self, in_size: int, out_size: int, depth: int = 1, bias: bool = True, layernorm: bool = False) -> None:
        super().__init__()
        sizes = [in_size] + [out_size] * depth
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=bias) for a, b in pairwise(sizes))
        self.norm = nn.LayerNorm(out_size) if layernorm else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index, layer in enumerate(self.layers):
            x = layer(x if index == 0 else F.gelu(x))
        return x if self.norm is None else self.norm(x)


def generator_for(*numbers: int) -> torch.Generator:
    """A CPU generator that depends on these numbers alone, so that neither batch mates nor devices change what it draws."""
    return torch.Generator().manual_seed(derived_seed(*numbers))


def derived_seed(*numbers: int) -> int:
    """A seed in [0, 2**64) that depends on these numbers alone."""
    sequence = np.random.SeedSequence([number % 2**64 for number in numbers])
    return int(sequence.generate_state(1, np.uint64)[0])


def check_room(attention_mask: torch.Tensor, positions: int, needed: int = 1, what: str = "an answer") -> None:
    """InputError if fewer than `needed` of a model's positions are left after a prompt of the batch (B, T)."""
    longest = int(attention_mask.sum(1).max())
    if longest + needed > positions:
        raise InputError(f"a prompt of {longest} tokens leaves no room for {what}: the model has {positions} positions")


def check_seeds(seeds: Sequence[int] | None, count: int, what: str) -> list[int]:
    """One seed for each of `count` items, by default drawn from torch's global generator. InputError for another number of seeds."""
    if seeds is None:
        return torch.randint(2**62, (count,)).tolist()
    if len(seeds) != count:
        raise InputError(f"expected one seed per {what} ({count}), got {len(seeds)}")
    return [int(seed) for seed in seeds]
