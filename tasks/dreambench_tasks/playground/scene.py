"""The small world: what a scene contains, how scenes are drawn, and which split a scene belongs to.

The *content* of a scene (background; shape, colour, size and cell of each object) decides its split by a stable hash, so no content of
``val`` or ``test`` ever occurs in ``train``. Its *look* (a shift by one pixel, tilts, light) varies freely.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

__all__ = ["BACKGROUNDS", "COLOURS", "LIGHTS", "SHAPES", "SIZES", "SPLITS", "TILTS", "WORLD"]
__all__ += ["Rng", "Scene", "Thing", "draw_scene", "overlaps", "split_of"]

WORLD = "1"
"""Version of the world. Raise it with any change to what (split, index, seed) looks like or to its texts."""

SHAPES = ("circle", "square", "triangle", "star", "heart")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
BACKGROUNDS = ("cream", "mint", "gray", "navy")
SIZES = ("small", "large")
SPLITS = ("train", "val", "test")

LIGHTS = 3
TILTS = (-12, -6, 0, 6, 12)
_SHARES = (80, 95, 100)  # percent of all contents, cumulative, in the order of SPLITS
_COUNTS = (1,) * 9 + (2,) * 7 + (3,) * 4  # one object 45 %, two 35 %, three 20 %

T = TypeVar("T")


class Rng:
    """Random integers from BLAKE2b in counter mode: a function of ``key`` alone, equal on every platform and numpy version."""

    def __init__(self, *key: object) -> None:
        self._key = "/".join(map(str, key)).encode()
        self._block = 0
        self._words: list[int] = []

    def below(self, n: int) -> int:
        """An integer in 0 … n - 1 (bias below n / 2³²)."""
        if not self._words:
            digest = hashlib.blake2b(self._key, salt=self._block.to_bytes(16, "little")).digest()
            self._words = list(struct.unpack("<16I", digest))
            self._block += 1
        return (self._words.pop() * n) >> 32

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def sample(self, items: Sequence[T], k: int) -> list[T]:
        """``k`` different items in random order."""
        pool = list(items)
        for i in range(k):
            j = i + self.below(len(pool) - i)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:k]

    def chance(self, percent: int) -> bool:
        return self.below(100) < percent


@dataclass(frozen=True, slots=True)
class Thing:
    """One object and its cell in the 3 x 3 grid (row 0 is the top, column 0 the left)."""

    shape: str
    colour: str
    size: str
    row: int
    column: int
    tilt: int = 0  # degrees, part of the look only

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class Scene:
    """One to three objects in reading order on a background; no two have the same shape and colour."""

    background: str
    things: tuple[Thing, ...]
    shift: tuple[int, int] = (0, 0)  # pixels right and down, part of the look only
    light: int = 0  # 0 … LIGHTS - 1, part of the look only

    @property
    def content(self) -> str:
        """The canonical text of what the scene contains, without its look."""
        things = (f"{t.row}{t.column} {t.size} {t.colour} {t.shape}" for t in self.things)
        return f"{self.background}: {', '.join(things)}"

    def unique(self, attribute: str) -> list[Thing]:
        """The objects whose value of an attribute no other object has."""
        values = [getattr(t, attribute) for t in self.things]
        return [t for t, value in zip(self.things, values, strict=True) if values.count(value) == 1]


def split_of(scene: Scene) -> str:
    """The split of a scene, a function of its content only."""
    digest = hashlib.blake2b(scene.content.encode(), digest_size=8, person=b"dreambench-part").digest()
    percentile = int.from_bytes(digest, "little") % 100
    return next(split for split, end in zip(SPLITS, _SHARES, strict=True) if percentile < end)


def draw_scene(split: str, index: int, seed: int = 0) -> Scene:
    """Scene ``index`` of a split: a function of the arguments, for any index.

    Contents repeat within a split, with a different look (there are only 2,160 contents with one object), but never across splits.
    """
    if split not in SPLITS:
        raise ValueError(f"split is one of {', '.join(SPLITS)}, not {split!r}")
    rng = Rng("scene", WORLD, split, index, seed)
    while True:
        scene = _draw(rng)
        if split_of(scene) == split and not overlaps(scene):
            return scene


def _draw(rng: Rng) -> Scene:
    count = rng.pick(_COUNTS)
    cells = sorted(rng.sample(range(9), count))
    kinds = rng.sample(range(len(SHAPES) * len(COLOURS)), count)
    things = tuple(
        Thing(
            shape=SHAPES[kind % len(SHAPES)],
            colour=COLOURS[kind // len(SHAPES)],
            size=rng.pick(SIZES),
            row=cell // 3,
            column=cell % 3,
            tilt=rng.pick(TILTS),
        )
        for cell, kind in zip(cells, kinds, strict=True)
    )
    return Scene(rng.pick(BACKGROUNDS), things, (rng.below(3) - 1, rng.below(3) - 1), rng.below(LIGHTS))


def overlaps(scene: Scene) -> bool:
    """Whether two large objects are in adjacent cells, where they would overlap."""
    large = [t for t in scene.things if t.size == "large"]
    return any(abs(a.row - b.row) + abs(a.column - b.column) == 1 for a, b in combinations(large, 2))
