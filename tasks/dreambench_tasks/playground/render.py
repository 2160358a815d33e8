"""Scenes to images: 64 x 64 RGB, antialiased, bit-identical on every machine.

Shapes are masks of 8 x 8 samples per pixel; everything after them is integer arithmetic. An object is a cached sprite (its shadow and
its shaded body under one alpha), so drawing it takes one multiplication and one addition.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from dreambench_tasks.playground.scene import LIGHTS, Scene

__all__ = ["CENTRES", "RADII", "SIDE", "render", "render_many"]

SIDE = 64
CENTRES = (13, 32, 51)  # pixels, of the rows and of the columns
RADII = {"small": 8.0, "large": 10.5}  # pixels

_PALETTE = {
    "red": (226, 61, 69),
    "orange": (245, 133, 37),
    "yellow": (250, 204, 51),
    "green": (54, 168, 92),
    "blue": (52, 120, 222),
    "purple": (150, 84, 208),
}
_GROUNDS = {  # top and bottom of a vertical gradient
    "cream": ((253, 246, 231), (241, 225, 199)),
    "mint": ((214, 240, 226), (176, 220, 201)),
    "gray": ((222, 226, 232), (188, 195, 206)),
    "navy": ((52, 66, 104), (30, 39, 70)),
}
_SAMPLES = 8  # per side of a pixel
_SPRITE = 32  # pixels; fits a large object and its shadow
_MARGIN = 8  # pixels around the canvas, so that shadows need no clipping
_SHADOW = (1, 2)  # pixels right and down
_SHADOW_PERCENT = 34

Image = NDArray[np.uint8]


def render(scene: Scene) -> Image:
    """The image of a scene, ``(64, 64, 3)`` uint8."""
    canvas = _ground(scene.background, scene.light).copy()
    for thing in scene.things:
        keep, add = _sprite(thing.shape, thing.colour, thing.size, thing.tilt)
        left = CENTRES[thing.column] + scene.shift[0] + _MARGIN - _SPRITE // 2
        top = CENTRES[thing.row] + scene.shift[1] + _MARGIN - _SPRITE // 2
        patch = canvas[top : top + _SPRITE, left : left + _SPRITE]
        patch *= keep
        patch += add
        patch //= 255
    return canvas[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN].astype(np.uint8)


def render_many(scenes: Iterable[Scene]) -> Image:
    """Images of scenes, ``(N, 64, 64, 3)`` uint8."""
    return np.stack([render(scene) for scene in scenes])


@cache
def _ground(background: str, light: int) -> NDArray[np.uint16]:
    """The canvas of a background with its margin: a vertical gradient, slightly lighter or darker with ``light``."""
    top, bottom = (np.array(colour) for colour in _GROUNDS[background])
    size = SIDE + 2 * _MARGIN
    depth = np.arange(size)[:, None]
    column = (top * (size - 1 - depth) + bottom * depth) // (size - 1)
    column = np.clip(column + 3 * (2 * light - LIGHTS + 1), 0, 255)
    return np.repeat(column[:, None, :], size, axis=1).astype(np.uint16)


@cache
def _sprite(shape: str, colour: str, size: str, tilt: int) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """The share of the background that is kept (0 … 255) and what is added (times 255, with rounding), both ``(32, 32, ·)``."""
    body = _mask(shape, RADII[size], tilt)
    shade = np.roll(_blur(body), _SHADOW[::-1], axis=(0, 1)) * _SHADOW_PERCENT // 100
    keep = (255 - shade) * (255 - body) // 255
    add = body[:, :, None] * _shaded(colour, RADII[size]) + 127
    return keep[:, :, None].astype(np.uint16), add.astype(np.uint16)


def _shaded(colour: str, radius: float) -> NDArray[np.int64]:
    """A column of the colour, lighter at the top and darker at the bottom, ``(32, 1, 3)``."""
    base = np.array(_PALETTE[colour])
    height = np.clip((_SPRITE // 2 - np.arange(_SPRITE)) * 100 // int(radius), -100, 100)[:, None]
    light = (255 - base) * np.maximum(height, 0) * 22 // 10000
    dark = base * np.maximum(-height, 0) * 14 // 10000
    return np.clip(base + light - dark, 0, 255)[:, None, :]


def _blur(mask: NDArray[np.int64]) -> NDArray[np.int64]:
    """A 3 x 3 mean filter applied twice, in integers."""
    for _ in range(2):
        for axis in (0, 1):
            mask = (np.roll(mask, 1, axis) + mask + np.roll(mask, -1, axis)) // 3
    return mask


@cache
def _mask(shape: str, radius: float, tilt: int) -> NDArray[np.int64]:
    """How much of each pixel a shape covers, 0 … 255, ``(32, 32)``."""
    n = _SPRITE * _SAMPLES
    line = (np.arange(n) + 0.5) / _SAMPLES - _SPRITE / 2
    x, y = np.meshgrid(line, line)
    turn = np.deg2rad(0 if shape == "circle" else tilt)
    x, y = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    inside = _inside(shape, x / radius, y / radius)
    count = inside.reshape(_SPRITE, _SAMPLES, _SPRITE, _SAMPLES).sum(axis=(1, 3))
    return (count * 255 + _SAMPLES**2 // 2) // _SAMPLES**2


def _inside(shape: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether a shape covers each point, in units of the radius, with y pointing down."""
    if shape == "circle":
        return x * x + y * y <= 0.94**2
    if shape == "heart":
        u, v = x * 1.18, -y * 1.18 + 0.12
        return (u * u + v * v - 1) ** 3 - u * u * v**3 <= 0
    corners, rounding = {
        "square": (_ring(4, 1.0, 45), 0.12),
        "triangle": (_ring(3, 0.98, 0) + np.array([0, 0.18]), 0.12),
        "star": (_star(0.95, 0.47), 0.08),
    }[shape]
    return _distance(corners, x, y) <= rounding


def _ring(n: int, radius: float, degrees: float) -> NDArray[np.float64]:
    """Corners of a regular polygon, the first one ``degrees`` clockwise from the top."""
    angle = np.deg2rad(degrees + 360 / n * np.arange(n))
    return radius * np.stack([np.sin(angle), -np.cos(angle)], axis=1)


def _star(outer: float, inner: float) -> NDArray[np.float64]:
    corners = np.empty((10, 2))
    corners[0::2], corners[1::2] = _ring(5, outer, 0), _ring(5, inner, 36)
    return corners


def _distance(corners: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of each point to a polygon, 0 inside."""
    nearest = np.full(x.shape, np.inf)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - ax - along * ex, y - ay - along * ey))
        if ey != 0:
            inside ^= ((ay <= y) != (by <= y)) & (x < ax + (y - ay) * ex / ey)
    return np.where(inside, 0.0, nearest)
