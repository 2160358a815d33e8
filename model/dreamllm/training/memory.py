"""`dreamllm train --memory N`: what a recipe needs on each of N devices, from configurations and data alone. No weights are loaded.

Bytes that training holds throughout follow from the parameters; those of a step are the peak of a simulated one (`simulate.py`).
Not counted: the CUDA context, cuDNN's workspaces and the allocator's fragmentation, together about 1 to 3 GiB on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from dreamllm.data import Collator, TrainingData, training_dataset
from dreamllm.errors import one_line
from dreamllm.recipe import Recipe
from dreamllm.training.losses import DreamLLMForTraining, count_targets
from dreamllm.training.run import check_recipe, outline, simulated
from dreamllm.training.simulate import BatchShape, SimulatedTraining, StepCost
from dreamllm.training.trainer import BatchIndices, training_arguments

INSPECTED_BATCHES = 8
DEEPSPEED_BUCKET, DEEPSPEED_LIVE = (
    5e8,
    1e9,
)  # parameters: DeepSpeed's defaults for reduce_bucket_size, stage3_max_live_parameters
UNSHARDED, SHARDED = ("one process", "DDP"), ("FSDP2", "ZeRO-2", "ZeRO-3")


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. `peak` can be below the sum: activations are freed while gradients appear."""

    weights: float
    gradients: float
    optimizer: float
    buffers: float  # of communication: gathered weights, gradients on their way
    activations: float
    peak: float


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters, and bytes of their state in the dtype that the recipe starts with."""

    trained: int
    frozen: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    optimizer_step: int  # peak of what its step allocates

    @property
    def all(self) -> int:
        return self.trained + self.frozen


@dataclass(frozen=True)
class Estimate:
    shape: BatchShape
    processes: int
    sizes: Sizes
    plain: dict[str, Memory]  # by strategy
    checkpointed: dict[str, Memory]  # with activation checkpointing

    @property
    def host_bytes(self) -> int:
        """Of the weights that a process holds in the host's memory while it loads."""
        return self.sizes.weight_bytes


def estimate(recipe: Recipe, processes: int) -> Estimate:
    """Memory per device by strategy, for the heaviest of the recipe's first batches. Raises UsageError as training does."""
    check_recipe(recipe)
    config, processor = outline(recipe)
    samples = training_dataset(recipe.data, processor)
    # Mixed precision apart, which the library refuses on a machine without a GPU: the machine that trains is another one.
    trainer = {name: value for name, value in recipe.trainer.items() if name not in ("bf16", "fp16", "tf32")}
    args = training_arguments(recipe.model_copy(update={"trainer": trainer}), len(samples))
    shapes = _first_shapes(samples, Collator(processor, config.image_decoder_config.resolution), args)
    start = getattr(torch, recipe.start.dtype)
    wanted: dict[str, Any] = dict(recipe.trainer)
    mixed = torch.bfloat16 if wanted.get("bf16") else torch.float16 if wanted.get("fp16") else None
    options: dict[str, Any] = {"autocast": mixed, "like_cuda": not wanted.get("use_cpu")}
    whole = simulated(recipe, config, start, **options)
    sharded = None  # adapters cannot be
    if recipe.lora is None:
        sharded = whole if mixed is None else simulated(recipe, config, mixed, **options)
    sizes = _sizes(recipe, whole, args)
    shape = shapes[0] if len(shapes) == 1 else max(shapes, key=lambda shape: whole.step(shape).with_gradients)
    known = [args.activation_checkpointing] if args.activation_checkpointing else [False, True]
    found = {on: _strategies(whole, sharded, sizes, args, shape, processes, on) for on in known}
    return Estimate(shape, processes, sizes, found.get(False, {}), found.get(True, {}))


def _first_shapes(samples: TrainingData, collator: Collator, args: TrainingArguments) -> list[BatchShape]:
    """Of the first batches, those with the most tokens, labels, input images and generated images."""
    size = args.per_device_train_batch_size
    shapes: list[BatchShape] = []
    for indices in BatchIndices(size, 0, INSPECTED_BATCHES, 0, 1):
        batch = collator([samples[index] for index in indices])
        labels, generated = count_targets(batch)
        rows, tokens = batch["input_ids"].shape
        shapes.append(BatchShape(rows, tokens, labels, len(batch.get("pixel_values", ())), generated))
    names = ("tokens", "labels", "input_images", "generated_images")
    # Ties go to the batch that has more of the rest.
    most = (max(shapes, key=lambda s: (getattr(s, name), s.tokens, s.generated_images, s.labels)) for name in names)
    return list(dict.fromkeys(most))


def _sizes(recipe: Recipe, training: SimulatedTraining, args: TrainingArguments) -> Sizes:
    parameters = list(training.model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]

    def make(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args, training.model)
        return kind(parameters, **options)

    try:
        state, step = training.optimizer_bytes(make)
    except Exception as error:  # of any optimizer that runs code of its own instead of torch's
        raise recipe.error(
            f"--memory: trainer.optim {args.optim} cannot be simulated ({one_line(error)[:120]})"
        ) from None
    return Sizes(
        trained=_count(trained),
        frozen=_count(parameters) - _count(trained),
        weight_bytes=sum(parameter.nbytes for parameter in parameters),
        gradient_bytes=sum(parameter.nbytes for parameter in trained),
        optimizer_bytes=state,
        optimizer_step=step,
    )


def _strategies(
    whole: SimulatedTraining,
    sharded: SimulatedTraining | None,
    sizes: Sizes,
    args: TrainingArguments,
    shape: BatchShape,
    processes: int,
    checkpointing: bool,
) -> dict[str, Memory]:
    if checkpointing:
        for training in filter(None, (whole, sharded)):
            training.model.activation_checkpointing_enable(args.activation_checkpointing_kwargs or None)
    cost = whole.step(shape)
    found = dict(zip(UNSHARDED, _unsharded(sizes, cost, args.gradient_accumulation_steps), strict=True))
    if sharded is None:
        return found
    activations = cost.activations if sharded is whole else sharded.step(shape).activations
    return found | _sharded(sizes, sharded.model, activations, processes)


def _unsharded(sizes: Sizes, cost: StepCost, micro_batches: int) -> tuple[Memory, Memory]:
    held, gradients = sizes.weight_bytes + sizes.optimizer_bytes, sizes.gradient_bytes
    # From the second micro-batch on, all gradients are there from the beginning.
    step = cost.with_gradients if micro_batches == 1 else cost.activations + gradients
    peak = held + max(step, gradients + sizes.optimizer_step)
    fields = (sizes.weight_bytes, gradients, sizes.optimizer_bytes)
    alone = Memory(*fields, buffers=0, activations=cost.activations, peak=peak)
    # DDP copies gradients into buckets of its own, which stay.
    replicated = Memory(*fields, buffers=gradients, activations=cost.activations, peak=peak + gradients)
    return alone, replicated


def _sharded(sizes: Sizes, model: DreamLLMForTraining, activations: int, processes: int) -> dict[str, Memory]:
    compute = next(model.parameters()).element_size()  # bytes per weight in the dtype of computation
    per_weight = sizes.gradient_bytes / sizes.trained  # in the dtype of the start
    moments = sizes.optimizer_bytes / sizes.trained * 4 / per_weight  # the optimizer works in float32
    share = sizes.trained / processes

    def sum_up(weights: float, gradients: float, buffers: float) -> Memory:
        fields = (weights, gradients, moments * share, buffers, activations)
        return Memory(*fields, peak=sum(fields))

    layers, rest = _units(model)
    largest = max(layers, key=lambda unit: unit[0])
    # The layer at work, the next one, and all that is outside of layers; their gradients, and a float32 copy on its way to the others.
    gathered = compute * (2 * largest[0] + rest[0]) + (compute + 4) * (largest[1] + rest[1])
    master = 4 if compute < 4 else per_weight
    frozen = per_weight * sizes.frozen / processes
    bucket = compute * min(DEEPSPEED_BUCKET, sizes.trained)
    partition = master * share if compute < 4 else 0  # a copy of the weights in float32
    live = compute * min(DEEPSPEED_LIVE, sizes.all)
    return {
        "FSDP2": sum_up(master * share + frozen, master * share, gathered),
        "ZeRO-2": sum_up(compute * sizes.all + partition, compute * share, 2 * bucket),
        "ZeRO-3": sum_up(compute * sizes.all / processes + partition, compute * share, live + bucket),
    }


def _units(model: DreamLLMForTraining) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """(parameters, trained ones) of each layer of the language model, which FSDP2 shards by itself, and of all the rest."""
    decoder: Any = model.get_decoder()
    layers = [_counts(layer.parameters()) for layer in decoder.layers]
    everything = _counts(model.parameters())
    inside = [sum(column) for column in zip(*layers, strict=True)]
    return layers, (everything[0] - inside[0], everything[1] - inside[1])


def _counts(parameters: Iterable[nn.Parameter]) -> tuple[int, int]:
    listed = list(parameters)
    return _count(listed), _count(parameter for parameter in listed if parameter.requires_grad)


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(math.prod(parameter.shape) for parameter in parameters)


def memory_lines(recipe: Recipe, processes: int) -> list[str]:
    """What `--memory` prints."""
    found = estimate(recipe, processes)
    shape, sizes = found.shape, found.sizes
    lines = [
        f"{sizes.trained:,} trained and {sizes.frozen:,} frozen parameters; {processes} processes",
        f"a process's batch, the heaviest of the first {INSPECTED_BATCHES}: {shape.rows} sequences x {shape.tokens:,} tokens, "
        f"{shape.labels:,} labels, {shape.input_images:,} input images, {shape.generated_images:,} generated images",
    ]
    for title, table in (("", found.plain), ("with activation checkpointing", found.checkpointed)):
        if table:
            columns = ("weights", "gradients", "optimizer", "buffers", "activations", "peak")
            head = f"{title or 'per device':<30}"
            lines += ["", head + "".join(f"{name:>13}" for name in columns)]
            for name, memory in table.items():
                row = "".join(f"{format_bytes(getattr(memory, column)):>13}" for column in columns)
                lines.append(f"{name:<30}{row}")
    lines += [
        "",
        "beside these: the CUDA context, workspaces and fragmentation, about 1 to 3 GiB",
        f"host memory while loading: {format_bytes(found.host_bytes)} in each process; with FSDP2's cpu_ram_efficient_loading in the first",
    ]
    return lines


def format_bytes(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
