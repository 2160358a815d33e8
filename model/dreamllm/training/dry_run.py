"""What a recipe will do, before it does it for long: sizes, costs, time, and the first batch for the eye."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from dreamllm.processing import DreamLLMProcessor
from dreamllm.sampling import to_pil
from dreamllm.training.losses import count_targets
from dreamllm.training.recipe import Recipe
from dreamllm.training.run import DRY_RUN, check_data, make_folder, make_trainer, plain_errors, start
from dreamllm.training.trainable import count_by_part
from dreamllm.training.trainer import DreamLLMTrainer

MEASURED_STEPS = 2


def dry_run(recipe: Recipe) -> list[str]:
    """Lines to print. The first batch is written to `dry-run/` in the recipe's output folder, as text and as an image.

    Gradients are made and thrown away: no weight changes.
    """
    check_data(recipe)
    folder = recipe.output / DRY_RUN
    make_folder(folder)
    model, processor = start(recipe)
    trainer = make_trainer(recipe.model_copy(update={"output": folder}), model, processor)
    args = trainer.args
    with plain_errors():
        batches = [batch for _, batch in zip(range(MEASURED_STEPS), trainer.get_train_dataloader(), strict=False)]
    show_batch(batches[0], processor, folder)
    seconds = [_measure(trainer, batch) for batch in batches]
    together = args.gradient_accumulation_steps * args.world_size
    counts = count_targets(batches[0])
    rows, length = batches[0]["input_ids"].shape
    read = len(batches[0].get("pixel_values", ()))
    step = min(seconds) * args.gradient_accumulation_steps
    return [
        *_sizes(model),
        "",
        f"a step is {rows} sequences x {args.gradient_accumulation_steps} micro-batches x {args.world_size} processes; in the first one:",
        f"  {int(batches[0]['attention_mask'].sum()) * together:,} tokens ({rows} x {length} padded), {counts[0] * together:,} learnt; "
        f"{read * together:,} images read, {counts[1] * together:,} generated",
        f"  {step:.2f} s forward and backward on {args.device}; {args.max_steps:,} steps take about {_duration(step * args.max_steps)} "
        "(without optimizer, checkpoints and evaluation)",
        f"the first batch is in {folder}",
    ]


def _sizes(model: torch.nn.Module) -> list[str]:
    counts = count_by_part(model)
    lines = [f"{'part':<24}{'learns':>16}{'frozen':>16}"]
    lines += [f"{part:<24}{learnt:>16,}{frozen:>16,}" for part, (learnt, frozen) in counts.items()]
    learnt, frozen = (sum(pair[i] for pair in counts.values()) for i in (0, 1))
    lines.append(f"{'all':<24}{learnt:>16,}{frozen:>16,}")
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    states = sum(2 * p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    lines.append(
        f"weights {_bytes(weights)}, gradients {_bytes(states // 2)}, optimizer {_bytes(states)} (AdamW's two moments), activations besides"
    )
    return lines


def _measure(trainer: DreamLLMTrainer, batch: dict[str, torch.Tensor]) -> float:
    """Seconds of one forward and backward pass."""
    model: Any = trainer.model
    prepare: Any = trainer._prepare_inputs  # pyright: ignore[reportPrivateUsage]  (the library's own way to the device)
    model.train()
    begun = time.perf_counter()
    inputs = prepare(batch)
    with trainer.accelerator.autocast():
        losses = model(**inputs, draws=trainer.draws(inputs, 0, len(inputs["input_ids"])), counts=count_targets(inputs))
    losses.total.backward()
    float(losses.total.detach())  # waits for the device
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - begun


def show_batch(batch: dict[str, torch.Tensor], processor: DreamLLMProcessor, folder: Path) -> None:
    """`first-batch.txt`: each sequence with its spans shortened and what is learnt in brackets. `first-batch.png`: images in order."""
    lines = []
    for index, (ids, mask, labels) in enumerate(
        zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
    ):
        kept = mask.bool()
        lines.append(f"--- sequence {index}: {int(kept.sum())} tokens")
        lines.append(_marked(ids[kept].tolist(), labels[kept].tolist(), processor))
    lines.append("--- ⟦what is learnt⟧; in first-batch.png the upper row is read, the lower row generated, in order")
    (folder / "first-batch.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = [
        _read_images(batch, processor),
        to_pil(batch["target_pixels"] / 2 + 0.5) if "target_pixels" in batch else [],
    ]
    sheet(rows).save(folder / "first-batch.png")


def _marked(ids: list[int], labels: list[int], processor: DreamLLMProcessor) -> str:
    """Text with runs of learnt tokens in brackets and runs of patch tokens as their number."""
    patch = processor.image_span[1]
    runs: list[tuple[tuple[bool, bool], list[int]]] = []
    for token, label in zip(ids, labels, strict=True):
        kind = (token == patch, label != -100)
        if not runs or runs[-1][0] != kind:
            runs.append((kind, []))
        runs[-1][1].append(token)
    parts = []
    for (patches, learnt), tokens in runs:
        text = f"<im_patch>x{len(tokens)}" if patches else processor.decode(tokens, skip_special_tokens=False)
        parts.append(f"⟦{text}⟧" if learnt else text)
    return "".join(parts)


def _read_images(batch: dict[str, torch.Tensor], processor: DreamLLMProcessor) -> list[Image.Image]:
    if "pixel_values" not in batch:
        return []
    mean, std = (
        torch.tensor(getattr(processor.image_processor, name))[:, None, None] for name in ("image_mean", "image_std")
    )
    return to_pil((batch["pixel_values"] * std + mean).clamp(0, 1))


def sheet(rows: list[list[Image.Image]], side: int = 128, gap: int = 4) -> Image.Image:
    """Rows of images under each other, each numbered; an empty sheet says so."""
    rows = [row[:64] for row in rows if row]
    width = max([len(row) for row in rows], default=1) * (side + gap) + gap
    page = Image.new("RGB", (width, max(len(rows), 1) * (side + gap) + gap), "white")
    pen = ImageDraw.Draw(page)
    if not rows:
        pen.text((gap, gap), "no images", fill="black")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            corner = (gap + x * (side + gap), gap + y * (side + gap))
            page.paste(image.resize((side, side), Image.Resampling.BICUBIC), corner)
            pen.text((corner[0] + 3, corner[1] + 1), str(x), fill="white", stroke_width=1, stroke_fill="black")
    return page


def _bytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
