"""Open questions about a scene with the abilities they need (as in MM-Vet).

References are written for the judge ``rule``: parts joined by ``<AND>``, each a list of alternatives joined by ``<OR>``, which binds
more tightly. There is no writing in the world, so MM-Vet's ``ocr`` does not occur.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dreambench_tasks.playground.language import a, enumerated, place
from dreambench_tasks.playground.scene import Rng, Scene, Thing

__all__ = ["AND", "KINDS", "OR", "OpenQuestion", "open_question", "reply"]

AND, OR = "<AND>", "<OR>"

_DESCRIBE = "Describe the picture and its background in a sentence."
_TOUR = "Describe each shape and where it is."
_FRUIT = {
    "red": ("apple", "cherry", "strawberry", "tomato"),
    "orange": ("orange", "apricot", "mandarin"),
    "yellow": ("banana", "lemon"),
    "green": ("lime", "pear", "kiwi", "apple"),
    "blue": ("blueberry", "blueberries"),
    "purple": ("plum", "grape", "grapes"),
}
_ALIKE = {
    "circle": ("ball", "wheel", "coin", "sun", "moon"),
    "square": ("box", "dice", "window", "tile"),
    "triangle": ("pyramid", "roof", "tent"),
    "star": ("starfish", "star"),
    "heart": ("heart",),
}
_SIDES = {"circle": 0, "square": 4, "triangle": 3, "star": 10, "heart": 0}
_TEENS = (
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
)
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_WORDS = dict(enumerate(_DIGITS + _TEENS)) | {23: "twenty three", 24: "twenty four", 30: "thirty"}


@dataclass(frozen=True, slots=True)
class OpenQuestion:
    text: str
    answer: str
    capability: tuple[str, ...]  # of "rec", "know", "gen", "spat", "math", in MM-Vet's order


def open_question(scene: Scene, rng: Rng, kind: int) -> OpenQuestion | None:
    """A question of kind 0 … KINDS - 1, or None where the scene does not allow one."""
    return _MAKERS[kind](scene, rng)


def reply(scene: Scene, question: OpenQuestion, rng: Rng) -> str:
    """An answer that the judge ``rule`` gives full marks."""
    if question.text in (_DESCRIBE, _TOUR):
        whole = enumerated([f"{a(t.name)} in the {place(t)}" for t in scene.things])
        return f"{whole[0].upper()}{whole[1:]} on {a(scene.background)} background."
    parts = [part.split(OR) for part in question.answer.split(AND)]
    free = "know" in question.capability and "math" not in question.capability
    return enumerated([rng.pick(alternatives) if free else alternatives[0] for alternatives in parts])


def _all(parts: Sequence[str]) -> str:
    return AND.join(dict.fromkeys(parts))


def _number(number: int) -> str:
    return OR.join((str(number), _WORDS[number], *(("none",) if number == 0 else ())))


def _where(thing: Thing) -> str:
    """A place other than the center, and what else it is called."""
    first, second = place(thing).split()
    other = {"top": "upper", "bottom": "lower", "middle": "center"}[first]
    return OR.join((f"{first} {second}", f"{second} {first}", f"{other} {second}"))


def _outer(scene: Scene) -> list[Thing]:
    """The things outside the center, whose name is a part of "top center" so that no rule could tell them apart."""
    return [t for t in scene.things if place(t) != "center"]


def _names(scene: Scene, rng: Rng) -> OpenQuestion:
    return OpenQuestion("Which shapes are in the picture?", _all([t.name for t in scene.things]), ("rec",))


def _at(scene: Scene, rng: Rng) -> OpenQuestion:
    thing = rng.pick(scene.things)
    return OpenQuestion(f"What is in the {place(thing)} of the picture?", thing.name, ("rec", "spat"))


def _find(scene: Scene, rng: Rng) -> OpenQuestion | None:
    outer = _outer(scene)
    if not outer:
        return None
    thing = rng.pick(outer)
    return OpenQuestion(f"Where is the {thing.name}?", _where(thing), ("rec", "spat"))


def _fruit(scene: Scene, rng: Rng) -> OpenQuestion | None:
    alone = scene.alone("shape")
    if not alone:
        return None
    thing = rng.pick(alone)
    return OpenQuestion(
        f"Name a fruit with the color of the {thing.shape}.", OR.join(_FRUIT[thing.colour]), ("rec", "know")
    )


def _alike(scene: Scene, rng: Rng) -> OpenQuestion | None:
    alone = scene.alone("colour")
    if not alone:
        return None
    thing = rng.pick(alone)
    text = f"Name something in the world with the form of the {thing.colour} shape."
    return OpenQuestion(text, OR.join(_ALIKE[thing.shape]), ("rec", "know", "gen"))


def _compass(scene: Scene, rng: Rng) -> OpenQuestion | None:
    pairs = [(x, y) for x in scene.things for y in scene.things if (x.row == y.row) != (x.column == y.column)]
    if not pairs:
        return None
    first, second = rng.pick(pairs)
    if first.row == second.row:
        side = "west" if first.column < second.column else "east"
    else:
        side = "north" if first.row < second.row else "south"
    text = f"If the picture were a map, in which direction from the {second.name} would the {first.name} lie?"
    return OpenQuestion(text, side, ("rec", "know", "spat"))


def _describe(scene: Scene, rng: Rng) -> OpenQuestion:
    parts = [*(t.name for t in scene.things), scene.background]
    return OpenQuestion(_DESCRIBE, _all(parts), ("rec", "gen"))


def _tour(scene: Scene, rng: Rng) -> OpenQuestion | None:
    if len(_outer(scene)) < len(scene.things):
        return None
    parts = [part for t in scene.things for part in (t.name, _where(t))]
    return OpenQuestion(_TOUR, _all(parts), ("rec", "gen", "spat"))


def _total(scene: Scene, rng: Rng) -> OpenQuestion:
    total = sum(_SIDES[t.shape] for t in scene.things)
    text = "How many straight sides do all shapes in the picture have together?"
    return OpenQuestion(text, _number(total), ("rec", "know", "math"))


def _row(scene: Scene, rng: Rng) -> OpenQuestion:
    row = rng.below(3)
    count = sum(t.row == row for t in scene.things)
    text = f"How many shapes are in the {('top', 'middle', 'bottom')[row]} row of the picture?"
    return OpenQuestion(text, _number(count), ("rec", "spat", "math"))


_MAKERS: tuple[Callable[[Scene, Rng], OpenQuestion | None], ...] = (
    _names,
    _at,
    _fruit,
    _describe,
    _total,
    _find,
    _alike,
    _tour,
    _row,
    _compass,
)
KINDS = len(_MAKERS)
