"""Images made by rule."""

from __future__ import annotations

import numpy as np


def draw_image(seed: int, height: int, width: int) -> np.ndarray:
    """An image with edges, gradients and noise, (height, width, 3) uint8."""
    random = np.random.RandomState(seed)
    y, x = np.mgrid[:height, :width]
    image = np.zeros((height, width, 3))
    for channel in range(3):
        a, b, c = random.uniform(-3, 3, 3)
        image[..., channel] = 127 + 60 * np.sin(a * x / 20 + b * y / 20 + c)
    for _ in range(4):
        top, left = random.randint(0, height), random.randint(0, width)
        image[top : top + height // 3, left : left + width // 3] = random.randint(0, 256, 3)
    return np.clip(image + random.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
