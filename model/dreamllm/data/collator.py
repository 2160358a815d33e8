"""Samples to a batch of tensors.

Shapes: B samples, T tokens of the longest, n images that are read and m that are generated over the batch, S pixels of CLIP, R of the
image decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from dreamllm.data.samples import IGNORED, Sample
from dreamllm.errors import UsageError
from dreamllm.processing import DreamLLMProcessor


def target_pixels(image: Image.Image, resolution: int, mirrored: bool = False) -> torch.Tensor:
    """An image to be generated, (3, R, R) float32 in [-1, 1]: short side resized (PIL's bilinear), centre cropped, mirrored if asked."""
    rgb: Any = image.convert("RGB")  # torchvision types its functions for tensors alone
    resized = F.resize(rgb, [resolution], interpolation=InterpolationMode.BILINEAR)
    cropped = F.center_crop(resized, [resolution, resolution])
    pixels = F.to_dtype(F.pil_to_tensor(F.horizontal_flip(cropped) if mirrored else cropped), torch.float32, scale=True)
    return pixels * 2 - 1


class Collator:
    """Batches of samples, padded on the right.

    Args:
        processor: its tokenizer's padding id and its CLIP preprocessing are used.
        resolution: R, pixels of the generated images.
        flip: False generates images nothing mirrored, whatever the samples say.
    """

    def __init__(self, processor: DreamLLMProcessor, resolution: int, flip: bool = True) -> None:
        self.processor, self.resolution, self.flip = processor, resolution, flip

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` and `labels` (B, T) int64; with images `pixel_values` (n, 3, S, S) and `target_pixels`
        (m, 3, R, R) float32, in the order of their spans over the flattened batch."""
        pad = self.processor.tokenizer.pad_token_id
        if not isinstance(pad, int):
            raise UsageError("the tokenizer has no padding token; DreamLLM's is [PAD]")
        batch = {
            "input_ids": _padded([sample.input_ids for sample in samples], pad),
            "attention_mask": _padded([[1] * len(sample.input_ids) for sample in samples], 0),
            "labels": _padded([sample.labels for sample in samples], IGNORED),
        }
        images = [image for sample in samples for image in sample.images]
        if images:
            batch["pixel_values"] = self.processor.pixel_values(images)
        targets = [
            target_pixels(target, self.resolution, mirrored and self.flip)
            for sample in samples
            for target, mirrored in zip(sample.targets, sample.mirrored or [False] * len(sample.targets), strict=True)
        ]
        if targets:
            batch["target_pixels"] = torch.stack(targets)
        return batch


def _padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row, dtype=torch.int64) for row in rows], batch_first=True, padding_value=value
    )
