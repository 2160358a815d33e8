"""What an image of the playground shows, read without trained weights: analysis by synthesis.

Every object that the world has (shape, color, size, tilt, in each cell, shifted by up to two pixels) is rendered and compared with the
image; the smallest squared error wins. A reading is exact on rendered scenes and says by its margin how clear it is on others.

Shapes: N images, C candidates, K = 32 x 32 x 3 values of a window around a cell's center.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from dreambench_tasks.playground.render import CENTRES, SIDE, render
from dreambench_tasks.playground.scene import BACKGROUNDS, COLOURS, LIGHTS, SHAPES, SIZES, TILTS, Scene, Thing

__all__ = ["CLEAR", "Reading", "read_images"]

CLEAR = 0.1
_WINDOW = 32  # pixels; fits a large object and its shadow
_SHIFT = 2  # pixels; rendered scenes shift by one
_PAD = _WINDOW // 2 + _SHIFT
_CLIP = (
    3 * 24.0**2
)  # squared levels: no pixel counts for more when the background is chosen, so that objects do not decide it
_REACH = 2 * _SHIFT + 1
_KEPT = 8  # kinds of objects of 60 that are tried at every shift

Pixels = NDArray[np.uint8]
Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Reading:
    """The best scene of an image.

    `margin` is 1 for a rendered scene and 0 half-way between the best reading of a cell and the second best (another shape or color, or
    an empty cell); it is the smallest of the nine cells. `error` is the root mean square difference, in levels of 0 to 255, between the
    image and the reading.
    """

    scene: Scene
    margin: float
    error: float

    @property
    def clear(self) -> bool:
        """Whether the margin is at least `CLEAR`, below which people do not agree on what they see either."""
        return self.margin >= CLEAR


def read_images(images: NDArray[np.uint8]) -> list[Reading]:
    """Readings of images ``(N, 64, 64, 3)`` uint8. Raises `ValueError` for another shape."""
    if images.shape[1:] != (SIDE, SIDE, 3) or images.dtype != np.uint8:
        raise ValueError(f"images of shape (N, {SIDE}, {SIDE}, 3) uint8, not {images.shape} {images.dtype}")
    return [_read(image, *_ground_of(image)) for image in images]


@cache
def _grounds() -> Array:
    """Empty scenes' columns, ``(backgrounds, lights, 64, 1, 3)``: no ground varies along a row."""
    rows = [[render(Scene(ground, (), light=light))[:, :1] for light in range(LIGHTS)] for ground in BACKGROUNDS]
    return np.array(rows, dtype=np.float32)


def _ground_of(image: Pixels) -> tuple[str, int]:
    difference = ((image - _grounds()) ** 2).sum(axis=-1)
    errors = np.minimum(difference, _CLIP).sum(axis=(-2, -1))
    ground, light = divmod(int(errors.argmin()), LIGHTS)
    return BACKGROUNDS[ground], light


@cache
def _candidates() -> tuple[Thing, ...]:
    return tuple(
        Thing(shape, colour, size, 0, 0, tilt)
        for shape in SHAPES
        for colour in COLOURS
        for size in SIZES
        for tilt in (TILTS if shape != "circle" else (0,))
    )


@cache
def _numbers(*attributes: str) -> NDArray[np.int64]:
    """For each candidate the number of its values of some attributes, from 0."""
    values = [tuple(getattr(thing, name) for name in attributes) for thing in _candidates()]
    different = list(dict.fromkeys(values))
    return np.array([different.index(value) for value in values])


@cache
def _templates(background: str, light: int) -> tuple[Array, Array]:
    """What each candidate adds to the ground in each row of cells, ``(3, C, K)``, and its squared norm, ``(3, C)``; 9 MB per ground."""
    ground = render(Scene(background, (), light=light)).astype(np.float32)
    templates = np.empty((3, len(_candidates()), _WINDOW * _WINDOW * 3), np.float32)
    for row in range(3):
        for index, thing in enumerate(_candidates()):
            placed = Thing(thing.shape, thing.colour, thing.size, row, 1, thing.tilt)
            added = _padded(render(Scene(background, (placed,), light=light)) - ground)
            templates[row, index] = _windows(added, row, 1)[_SHIFT, _SHIFT].ravel()
    return templates, (templates**2).sum(axis=-1)


def _padded(residual: Array) -> Array:
    return np.pad(residual, ((_PAD, _PAD), (_PAD, _PAD), (0, 0)))


def _windows(padded: Array, row: int, column: int) -> Array:
    """A view of all shifted windows of a cell, ``(5, 5, 32, 32, 3)``."""
    top, left = CENTRES[row], CENTRES[column]  # of the window that is shifted most to the top left
    reach = _WINDOW + 2 * _SHIFT
    area = padded[top : top + reach, left : left + reach]
    return np.lib.stride_tricks.sliding_window_view(area, (_WINDOW, _WINDOW), axis=(0, 1)).transpose(0, 1, 3, 4, 2)


@dataclass(slots=True)
class _Cell:
    """The best candidate of a cell and its shift (0 … 4 down and right); `candidate` is None for an empty cell."""

    candidate: int | None
    shift: tuple[int, int] = (0, 0)
    margin: float = 0.0


_Found = dict[tuple[int, int], _Cell]


def _read(image: Pixels, background: str, light: int) -> Reading:
    """Each cell by itself, then again without the objects found in the others, whose edges and shadows reach into it."""
    templates, norms = _templates(background, light)
    residual = _padded(image - _grounds()[BACKGROUNDS.index(background), light])
    cells = [(row, column) for row in range(3) for column in range(3)]
    found: _Found = {cell: _coarse(residual, cell, templates, norms) for cell in cells}
    for cell in cells:
        near = [
            other for other in cells if other != cell and max(abs(cell[0] - other[0]), abs(cell[1] - other[1])) == 1
        ]
        _add(residual, templates, found, near, -1)
        found[cell] = _fine(residual, cell, templates, norms)
        _add(residual, templates, found, near, 1)
    _add(residual, templates, found, cells, -1)
    rest = residual[_PAD:-_PAD, _PAD:-_PAD]
    things = [
        replace(_candidates()[each.candidate], row=row, column=column)
        for (row, column), each in found.items()
        if each.candidate is not None
    ]
    margin = min(each.margin for each in found.values())
    return Reading(Scene(background, tuple(things), light=light), margin, float(np.sqrt((rest**2).mean())))


def _coarse(residual: Array, cell: tuple[int, int], templates: Array, norms: Array) -> _Cell:
    """The best candidate at every second shift."""
    errors = _errors(_windows(residual, *cell)[::2, ::2], templates[cell[0]], norms[cell[0]])
    best, shift = np.unravel_index(errors.argmin(), errors.shape)
    down, right = divmod(int(shift), _SHIFT + 1)
    return _Cell(int(best), (2 * down, 2 * right)) if errors[best, shift] < 0 else _Cell(None)


def _fine(residual: Array, cell: tuple[int, int], templates: Array, norms: Array) -> _Cell:
    """The best candidate at any shift, among the kinds that are best at every second one, and its margin."""
    windows, templates, norms = _windows(residual, *cell), templates[cell[0]], norms[cell[0]]
    rough = _errors(windows[::2, ::2], templates, norms).min(axis=1)
    kinds, names = _numbers("shape", "colour", "size"), _numbers("shape", "colour")
    first = np.full(kinds.max() + 1, np.inf)
    np.minimum.at(first, kinds, rough)
    kept = np.flatnonzero(np.isin(kinds, np.argsort(first, kind="stable")[:_KEPT]))
    errors = _errors(windows, templates[kept], norms[kept])
    shifts, lowest = errors.argmin(axis=1), errors.min(axis=1)
    best = int(lowest.argmin())
    if lowest[best] >= 0:
        return _Cell(None, margin=float(lowest[best] / norms[kept[best]]))
    others = np.flatnonzero(names[kept] != names[kept[best]])
    second = int(others[lowest[others].argmin()])
    difference = _moved(templates[kept[best]], shifts[best]) - _moved(templates[kept[second]], shifts[second])
    against_second = (lowest[second] - lowest[best]) / (difference**2).sum()
    margin = min(float(against_second), -float(lowest[best] / norms[kept[best]]), 1.0)
    return _Cell(int(kept[best]), divmod(int(shifts[best]), _REACH), margin)


def _errors(windows: Array, templates: Array, norms: Array) -> NDArray[np.floating]:
    """Squared error of each candidate at each shift, ``(C, shifts)``, less that of the empty cell."""
    flat = np.ascontiguousarray(windows).reshape(-1, templates.shape[1])
    return norms[:, None] - 2 * (templates @ flat.T)


def _moved(template: Array, shift: int) -> Array:
    """A template at its shift."""
    down, right = divmod(int(shift), _REACH)
    area = np.zeros((_WINDOW + 2 * _SHIFT, _WINDOW + 2 * _SHIFT, 3), np.float32)
    area[down : down + _WINDOW, right : right + _WINDOW] = template.reshape(_WINDOW, _WINDOW, 3)
    return area


def _add(residual: Array, templates: Array, found: _Found, cells: Sequence[tuple[int, int]], sign: int) -> None:
    """Add the objects found in some cells to the residual, or take them away."""
    for row, column in cells:
        cell = found[row, column]
        if cell.candidate is not None:
            top, left = CENTRES[row] + cell.shift[0], CENTRES[column] + cell.shift[1]
            added = templates[row, cell.candidate].reshape(_WINDOW, _WINDOW, 3)
            residual[top : top + _WINDOW, left : left + _WINDOW] += sign * added
