"""Open questions about a scene, as in MM-Vet.

References are written for the judge ``rule``: parts joined by ``<AND>``, each a list of alternatives joined by ``<OR>``, which binds more
tightly. There is no text in the images, so MM-Vet's capability ``ocr`` does not occur.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations

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
_SIMILAR = {
    "circle": ("ball", "wheel", "coin", "sun", "moon"),
    "square": ("box", "dice", "window", "tile"),
    "triangle": ("pyramid", "roof", "tent"),
    "star": ("starfish", "star"),
    "heart": ("heart",),
}
_SIDE_COUNTS = {"circle": 0, "square": 4, "triangle": 3, "star": 10, "heart": 0}
_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen "
    "twenty"
)
_NUMBER_WORDS = dict(enumerate(_NUMBERS.split())) | {23: "twenty three", 24: "twenty four", 30: "thirty"}


@dataclass(frozen=True, slots=True)
class OpenQuestion:
    text: str
    answer: str
    capability: tuple[str, ...]  # of "rec", "know", "gen", "spat", "math", in MM-Vet's order


def open_question(scene: Scene, rng: Rng, kind: int) -> OpenQuestion | None:
    """A question of kind 0 … KINDS - 1, or None where the scene does not allow one."""
    return _OPEN[kind](scene, rng)


def reply(scene: Scene, question: OpenQuestion, rng: Rng) -> str:
    """An answer to which the judge ``rule`` gives full marks."""
    if question.text in (_DESCRIBE, _TOUR):
        text = enumerated([f"{a(t.name)} in the {place(t)}" for t in scene.things])
        return f"{text[0].upper()}{text[1:]} on {a(scene.background)} background."
    parts = [part.split(OR) for part in question.answer.split(AND)]
    free = "know" in question.capability and "math" not in question.capability
    return enumerated([rng.pick(alternatives) if free else alternatives[0] for alternatives in parts])


def _all(parts: Sequence[str]) -> str:
    return AND.join(dict.fromkeys(parts))


def _number(number: int) -> str:
    return OR.join((str(number), _NUMBER_WORDS[number], *(("none",) if number == 0 else ())))


def _where(thing: Thing) -> str:
    """Alternative names of a place other than the center."""
    first, second = place(thing).split()
    other = {"top": "upper", "bottom": "lower", "middle": "center"}[first]
    return OR.join((f"{first} {second}", f"{second} {first}", f"{other} {second}"))


def _outer(scene: Scene) -> list[Thing]:
    """The objects outside the center: a rule cannot distinguish "center" from a part of "top center"."""
    return [t for t in scene.things if place(t) != "center"]


def _naming(scene: Scene, rng: Rng) -> OpenQuestion:
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
    candidates = scene.unique("shape")
    if not candidates:
        return None
    thing = rng.pick(candidates)
    return OpenQuestion(
        f"Name a fruit with the color of the {thing.shape}.", OR.join(_FRUIT[thing.colour]), ("rec", "know")
    )


def _similar(scene: Scene, rng: Rng) -> OpenQuestion | None:
    candidates = scene.unique("colour")
    if not candidates:
        return None
    thing = rng.pick(candidates)
    text = f"Name something in the world with the form of the {thing.colour} shape."
    return OpenQuestion(text, OR.join(_SIMILAR[thing.shape]), ("rec", "know", "gen"))


def _compass(scene: Scene, rng: Rng) -> OpenQuestion | None:
    pairs = [(x, y) for x, y in permutations(scene.things, 2) if (x.row == y.row) != (x.column == y.column)]
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
    total = sum(_SIDE_COUNTS[t.shape] for t in scene.things)
    text = "How many straight sides do all shapes in the picture have together?"
    return OpenQuestion(text, _number(total), ("rec", "know", "math"))


def _row(scene: Scene, rng: Rng) -> OpenQuestion:
    row = rng.below(3)
    count = sum(t.row == row for t in scene.things)
    text = f"How many shapes are in the {('top', 'middle', 'bottom')[row]} row of the picture?"
    return OpenQuestion(text, _number(count), ("rec", "spat", "math"))


_OPEN: tuple[Callable[[Scene, Rng], OpenQuestion | None], ...] = (
    *(_naming, _at, _fruit, _describe, _total),
    *(_find, _similar, _tour, _row, _compass),
)
KINDS = len(_OPEN)
