"""What the extractors share: strict weights, batch norm folded into convolutions, and arithmetic that is float32 indeed."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from dreambench.errors import DataError

__all__ = ["exact_float32", "fold_batch_norm", "load_strictly", "read_weights"]


@contextmanager
def exact_float32(device: torch.device) -> Generator[None]:
    """Inference in true float32, whatever the model under test has switched on: no autocast, no TF32, no search for kernels."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.inference_mode(),
            torch.autocast(device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def read_weights(path: Path) -> dict[str, Tensor]:
    """A file's state dictionary, read with `weights_only=True`. Raises DataError, naming the file, when it holds anything else."""
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a dozen types on files that are no checkpoints
        first_line = str(error).partition("\n")[0]
        raise DataError(f"{path}: not a file of tensors ({first_line})") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"{path}: expected a state dictionary (name -> tensor)")
    return {str(name): value for name, value in state.items()}


def load_strictly(module: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """Load `state` into a module built on the meta device; a missing, surplus or misshapen tensor is an error that names it.

    Batch norm's counter of training steps may be missing: old files lack it, and it is not used.
    """
    wanted = module.state_dict()
    counters = {name: torch.zeros((), dtype=torch.int64) for name in wanted if name.endswith("num_batches_tracked")}
    state = {**counters, **state}
    if missing := sorted(set(wanted) - set(state)):
        raise DataError(f"{source}: {len(missing)} tensors are missing, the first is {missing[0]}")
    if surplus := sorted(set(state) - set(wanted)):
        raise DataError(f"{source}: {len(surplus)} tensors are not the network's, the first is {surplus[0]}")
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            raise DataError(f"{source}: {name} has the shape {list(tensor.shape)}, not {list(wanted[name].shape)}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"{source}: {name} holds NaN or infinite values")
    state = {name: tensor.to(wanted[name].dtype) for name, tensor in state.items()}
    module.load_state_dict(state, assign=True)
    module.eval().requires_grad_(False)


def fold_batch_norm(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Put `norm`'s scale and shift into `convolution`, in float64, rounded once. Exact up to that rounding."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("batch norm without running statistics cannot be folded")
    weight, bias = fuse_conv_bn_weights(
        convolution.weight.double(),
        None if convolution.bias is None else convolution.bias.double(),
        norm.running_mean.double(),
        norm.running_var.double(),
        norm.eps,
        norm.weight.double(),
        norm.bias.double(),
    )
    convolution.weight = nn.Parameter(weight.float(), requires_grad=False)
    convolution.bias = nn.Parameter(bias.float(), requires_grad=False)
