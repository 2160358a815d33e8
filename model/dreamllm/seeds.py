"""Random numbers of one sample: each from its own seed, drawn on the CPU, so that batch mates and devices change nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dreamllm.errors import InputError

__all__ = ["check_seeds", "derived_seed", "generator_for", "normal"]


def derived_seed(*numbers: int) -> int:
    """A seed in [0, 2**64) that depends on these numbers alone."""
    sequence = np.random.SeedSequence([number % 2**64 for number in numbers])
    return int(sequence.generate_state(1, np.uint64)[0])


def generator_for(*numbers: int) -> torch.Generator:
    """A CPU generator that depends on these numbers alone."""
    return torch.Generator().manual_seed(derived_seed(*numbers))


def check_seeds(seeds: Sequence[int] | None, count: int, what: str) -> list[int]:
    """One seed for each of `count` items; drawn from torch's global generator if None. InputError for another number of them."""
    if seeds is None:
        return torch.randint(2**62, (count,)).tolist()
    if len(seeds) != count:
        raise InputError(f"expected one seed per {what} ({count}), got {len(seeds)}")
    return [int(seed) for seed in seeds]


def normal(generators: Sequence[torch.Generator], shape: tuple[int, ...]) -> torch.Tensor:
    """(n, *shape) standard normal; row i comes from generator i alone."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])
