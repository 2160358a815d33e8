"""Threads for small networks: one. More only wait for each other, and on busy cores make the same work ten times slower."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["SMALL", "threads_for"]

SMALL = 50_000_000
"""Parameters below which a network on the CPU gets one thread. ``OMP_NUM_THREADS``, where set, is left to the user."""


@contextmanager
def threads_for(network: nn.Module) -> Generator[None]:
    """Within it, torch computes with the number of threads that suits `network`."""
    import torch

    before = torch.get_num_threads()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    if "OMP_NUM_THREADS" not in os.environ and parameters < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
