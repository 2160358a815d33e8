"""`dreamllm train --dry-run`: sizes, memory and time of a run, and its first batch for inspection."""

from __future__ import annotations

import time
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms.v2 import functional as F
from torchvision.utils import make_grid

from dreamllm.data import IGNORED
from dreamllm.image_decoder import to_pil
from dreamllm.processing import DreamLLMProcessor
from dreamllm.recipe import Recipe
from dreamllm.training.losses import count_targets
from dreamllm.training.memory import format_bytes
from dreamllm.training.run import (
    BROKEN,
    DRY_RUN,
    check_recipe,
    make_folder,
    make_trainer,
    start,
    worker_errors_on_one_line,
)
from dreamllm.training.trainer import DreamLLMTrainer

MEASURED_STEPS = 2


def dry_run(recipe: Recipe) -> list[str]:
    """The lines to print. Process 0 writes its first batch to `dry-run/` in the output folder, as text and as an image.

    No weight changes.
    """
    check_recipe(recipe)
    folder = recipe.output / DRY_RUN
    make_folder(folder)
    model, processor = start(recipe)
    trainer = make_trainer(recipe.model_copy(update={"output": folder}), model, processor)
    with worker_errors_on_one_line():
        batches = list(islice(trainer.get_train_dataloader(), MEASURED_STEPS))
    if trainer.is_world_process_zero():
        write_batch(batches[0], processor, folder)
    seconds = min(_measure(trainer, batch) for batch in batches)
    broken = len(trainer.data.broken.entries())
    found = [f"{broken:,} records or images are broken so far: {folder / BROKEN}"] if broken else []
    return [*_sizes(model), "", *_costs(trainer, batches[0], seconds), f"the first batch is in {folder}", *found]


def _sizes(model: torch.nn.Module) -> list[str]:
    """Trained and frozen parameters of each part, and the memory of their states."""
    counts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        first, second, *_ = [*name.split("."), ""]
        part = counts.setdefault(f"{first}.{second}" if first == "image_decoder" else first, [0, 0])
        part[0 if parameter.requires_grad else 1] += parameter.numel()
    counts["total"] = [sum(column) for column in zip(*counts.values(), strict=True)]
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return [
        f"{'part':<24}{'trained':>16}{'frozen':>16}",
        *(f"{part:<24}{trained:>16,}{frozen:>16,}" for part, (trained, frozen) in counts.items()),
        f"memory: weights {format_bytes(weights)}, gradients {format_bytes(gradients)}, AdamW's moments {format_bytes(2 * gradients)}, "
        "and activations, which --memory N estimates",
    ]


def _costs(trainer: DreamLLMTrainer, batch: dict[str, torch.Tensor], seconds: float) -> list[str]:
    args = trainer.args
    micro_batches = args.gradient_accumulation_steps
    batches = micro_batches * args.world_size
    labels, targets = count_targets(batch)
    rows, length = batch["input_ids"].shape
    images = len(batch.get("pixel_values", ()))
    step = seconds * micro_batches
    return [
        f"a step: {rows} sequences x {micro_batches} micro-batches x {args.world_size} processes; estimated from the first batch:",
        f"  {int(batch['attention_mask'].sum()) * batches:,} tokens ({rows} x {length} padded), {labels * batches:,} with labels; "
        f"{images * batches:,} input images, {targets * batches:,} generated images",
        f"  {step:.2f} s for forward and backward on {args.device}; about {_duration(step * args.max_steps)} for {args.max_steps:,} steps "
        "(without optimizer, checkpoints and evaluation)",
    ]


def _measure(trainer: DreamLLMTrainer, batch: dict[str, torch.Tensor]) -> float:
    """Seconds of one forward and backward pass."""
    model: Any = trainer.model
    prepare: Any = trainer._prepare_inputs  # pyright: ignore[reportPrivateUsage]  (the library's way to move a batch to the device)
    model.train()
    begin = time.perf_counter()
    inputs = prepare(batch)
    with trainer.accelerator.autocast():
        losses = model(**inputs, draws=trainer.draws(inputs, 0, len(inputs["input_ids"])), counts=count_targets(inputs))
    losses.total.backward()
    float(losses.total.detach())  # waits for the device
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - begin


def write_batch(batch: dict[str, torch.Tensor], processor: DreamLLMProcessor, folder: Path) -> None:
    """`first-batch.txt`: the sequences, with labelled text in brackets. `first-batch.png`: input images above generated ones."""
    lines = ["⟦labelled text⟧; first-batch.png: input images in the upper row, generated images in the lower row"]
    rows = zip(batch["input_ids"], batch["attention_mask"].bool(), batch["labels"], strict=True)
    for index, (ids, mask, labels) in enumerate(rows):
        lines.append(f"--- sequence {index}: {int(mask.sum())} tokens")
        lines.append(_marked(ids[mask].tolist(), labels[mask].tolist(), processor))
    (folder / "first-batch.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    images: list[torch.Tensor] = []
    if "pixel_values" in batch:
        names = ("image_mean", "image_std")
        mean, std = (torch.tensor(getattr(processor.image_processor, name))[:, None, None] for name in names)
        images.append(batch["pixel_values"] * std + mean)
    if "target_pixels" in batch:
        images.append(batch["target_pixels"] / 2 + 0.5)
    if images:
        grids = [
            make_grid(F.resize(row[:64], [128, 128]).clamp(0, 1), nrow=64, padding=4, pad_value=1) for row in images
        ]
        width = max(grid.shape[-1] for grid in grids)
        page = torch.cat([F.pad(grid, [0, 0, width - grid.shape[-1], 0], fill=1) for grid in grids], dim=1)
        to_pil(page[None])[0].save(folder / "first-batch.png")


def _marked(ids: list[int], labels: list[int], processor: DreamLLMProcessor) -> str:
    """The text with brackets around labelled tokens, and runs of patch tokens abbreviated to their number."""
    patch = processor.image_span[1]
    parts: list[str] = []
    pairs = zip(ids, labels, strict=True)
    for (is_patch, labelled), run in groupby(pairs, lambda pair: (pair[0] == patch, pair[1] != IGNORED)):
        tokens = [token for token, _ in run]
        text = f"<im_patch>x{len(tokens)}" if is_patch else processor.decode(tokens, skip_special_tokens=False)
        parts.append(f"⟦{text}⟧" if labelled else text)
    return "".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
