"""The colors of the toy world, shared by the task's scorer and the model."""

from __future__ import annotations

from PIL import Image

COLORS = {
    "red": (226, 61, 69),
    "orange": (245, 133, 37),
    "yellow": (250, 204, 51),
    "green": (54, 168, 92),
    "blue": (52, 120, 222),
    "purple": (150, 84, 208),
    "cream": (247, 236, 215),
    "mint": (195, 230, 214),
    "gray": (205, 211, 219),
    "navy": (41, 53, 87),
}


def nearest_color(pixel: tuple[int, int, int]) -> str:
    """The name of the color at the smallest Euclidean distance in RGB."""
    return min(COLORS, key=lambda name: sum((a - b) ** 2 for a, b in zip(COLORS[name], pixel, strict=True)))


def scene_colors(image: Image.Image) -> list[str]:
    """The color of the shape in the middle and of the background in the corner."""
    pixels = image.convert("RGB")
    return [nearest_color(pixels.getpixel((x, y))) for x, y in ((image.width // 2, image.height // 2), (2, 2))]  # type: ignore[arg-type]
