"""A training step on fake tensors, which have shapes and dtypes but no memory: the bytes it would allocate and the FLOPs it would do.

The step is the training's own code, so what is frozen, recomputed or without a gradient is counted as it is.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dreamllm.configuration import DreamLLMConfig
from dreamllm.data import IGNORED
from dreamllm.training.losses import DreamLLMForTraining, draw


@dataclass(frozen=True)
class BatchShape:
    """What the cost of a step depends on. Tokens are those of a padded row."""

    rows: int
    tokens: int
    labels: int
    input_images: int
    generated_images: int


@dataclass(frozen=True)
class StepCost:
    """Of a forward and backward pass.

    `activations`: the peak of all that it allocates but the gradients of parameters; `with_gradients`: the peak of all together.
    """

    activations: int
    with_gradients: int
    flops: int


class SimulatedTraining:
    """A model without weights that takes training steps.

    Args:
        build: makes the model; all tensors that it creates are fake.
        autocast: dtype of mixed precision, if any.
        like_cuda: in mixed precision, normalise in float32, as torch does on GPUs only.
    """

    def __init__(
        self, build: Callable[[], DreamLLMForTraining], autocast: torch.dtype | None = None, *, like_cuda: bool = True
    ) -> None:
        self.autocast, self.like_cuda = autocast, like_cuda and autocast is not None
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)  # of ids and masks the values count: they stay real
        # peft moves its adapters to where they are, in the dtype they have; torch cannot do that with fake tensors.
        with self.mode, patch.object(torch.nn.Module, "to", lambda module, *args, **kwargs: module):
            self.model = build()
        self.model.train()

    def step(self, shape: BatchShape) -> StepCost:
        """A forward and backward pass over a made-up batch; gradients are dropped."""
        model, config = self.model, self.model.config
        batch = self._batch(shape)
        keys = [(0, index) for index in range(shape.generated_images)]
        decoder: Any = config.image_decoder_config
        timesteps = int(model.noise_scheduler.config.num_train_timesteps)
        draws = draw(keys, decoder.latent_shape, timesteps, model.loss_settings) if keys else None
        allocated = _Allocations()
        hooks = [p.register_post_accumulate_grad_hook(allocated.keep) for p in _trained(model)]
        try:
            with ExitStack() as stack:
                stack.enter_context(torch.random.fork_rng())
                if self.autocast is not None:
                    stack.enter_context(torch.autocast("cpu", self.autocast))
                if self.like_cuda:
                    stack.enter_context(_norms_in_float32())
                counter = stack.enter_context(FlopCounterMode(display=False))
                stack.enter_context(allocated)
                losses = model(**batch, draws=draws, counts=(shape.labels, shape.generated_images))
                losses.total.backward()
        finally:
            for hook in hooks:
                hook.remove()
            model.zero_grad(set_to_none=True)
        return StepCost(allocated.peak_without_kept, allocated.peak, counter.get_total_flops())

    def optimizer_bytes(self, make: Callable[[Sequence[torch.nn.Parameter]], torch.optim.Optimizer]) -> tuple[int, int]:
        """Bytes of an optimizer's state, and the peak of what its step allocates beside it."""
        with self.mode:
            parameters = _trained(self.model)
            optimizer = make(parameters)
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter)
            with torch.random.fork_rng():
                optimizer.step()  # the first one makes the state
                with _Allocations() as allocated:
                    optimizer.step()
        self.model.zero_grad(set_to_none=True)
        values = (value for state in optimizer.state.values() for value in state.values())
        return sum(value.nbytes for value in values if isinstance(value, torch.Tensor)), allocated.peak

    def _batch(self, shape: BatchShape) -> dict[str, torch.Tensor]:
        config: Any = self.model.config
        ids, labels = synthetic_rows(config, shape)
        mask = torch.ones_like(ids)
        mask[0, -1] = shape.rows == 1  # of several rows, one is usually padded
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        sizes = {
            "pixel_values": (shape.input_images, config.vision_config.image_size),
            "target_pixels": (shape.generated_images, config.image_decoder_config.resolution),
        }
        with self.mode:
            images = {name: torch.empty(count, 3, side, side) for name, (count, side) in sizes.items() if count}
        return batch | images


def synthetic_rows(config: DreamLLMConfig, shape: BatchShape) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels (B, T) with that many images and labels. Rows are longer than asked if the images do not fit."""
    ends = config.special_token_ids
    kinds = ((config.image_span, ends["<im_end>"]), (config.dream_span, ends["<dream_end>"]))
    spans = [[start, *[patch] * count, end] for (start, patch, count), end in kinds]
    numbers = (shape.input_images, shape.generated_images)
    rows: list[list[int]] = [[config.bos_token_id] for _ in range(shape.rows)]
    for span, count in zip(spans, numbers, strict=True):
        for _ in range(count):
            min(rows, key=len).extend(span)
    length = max(shape.tokens, *map(len, rows))
    text = config.eos_token_id
    ids = torch.tensor([row + [text] * (length - len(row)) for row in rows])
    labels = torch.full_like(ids, IGNORED)
    targets = torch.full((len(rows) * (length - 1),), IGNORED)  # the first position predicts nothing
    targets[: shape.labels] = text
    labels[:, 1:] = targets.view(len(rows), -1)
    return ids, labels


class FlopsModel:
    """FLOPs of a training step by what is in it: tokens, squared lengths, labels, input images, generated images.

    The step's cost is linear in these; the factors are solved for from simulated steps, in which each occurs in another number. The
    states that replace dropped conditions, a short sequence once in a batch, are left out.
    """

    def __init__(self, training: SimulatedTraining) -> None:
        model = training.model
        model.loss_settings = model.loss_settings.model_copy(update={"drop_probability": 0.0})
        config: Any = model.config
        length = 2 * (config.num_image_tokens + config.num_dream_queries + 8)
        first = BatchShape(rows=1, tokens=length, labels=8, input_images=1, generated_images=1)
        shapes = [
            first,
            replace(first, tokens=2 * length),
            replace(first, labels=length // 2),
            replace(first, input_images=2),
            replace(first, generated_images=2),
        ]
        features = np.array(
            [_features(s.tokens, s.tokens**2, s.labels, s.input_images, s.generated_images) for s in shapes]
        )
        flops = np.array([float(training.step(shape).flops) for shape in shapes])
        scale = features.max(0)
        self.factors = np.linalg.solve(features / scale, flops) / scale

    def __call__(self, tokens: float, squares: float, labels: float, input_images: float, generated: float) -> float:
        return float(self.factors @ _features(tokens, squares, labels, input_images, generated))


def _features(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def _trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


class _Allocations(TorchDispatchMode):
    """Adds up the bytes of the storages that operations create, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.kept = self.peak = self.peak_without_kept = 0
        self._sizes: dict[int, int] = {}  # by storage

    def keep(self, parameter: torch.Tensor) -> None:
        """Count the gradient of a parameter apart from the rest."""
        gradient = parameter.grad
        self.kept += self._sizes.get(id(gradient.untyped_storage()), 0) if gradient is not None else 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, torch.Tensor):
                self._count(result.untyped_storage())
        self.peak = max(self.peak, self.live)
        self.peak_without_kept = max(self.peak_without_kept, self.live - self.kept)
        return results

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)  # torch keeps the object as long as the memory
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            weakref.finalize(storage, self._free, key).atexit = False

    def _free(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def _norms_in_float32() -> Any:
    """Makes these functions take and save float32 in mixed precision, as autocast does on a GPU and not on a CPU."""

    def wrapped(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda first, *args, **kwargs: function(
            first.float(), *(a.float() if isinstance(a, torch.Tensor) else a for a in args), **kwargs
        )

    # Not by a function mode: torch leaves those when it computes activations again.
    names = ("layer_norm", "group_norm", "softmax")
    return patch.multiple(F, **{name: cast("Any", wrapped(getattr(F, name))) for name in names})
