"""Questions about a scene with options, as in MMBench."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain, permutations

from dreambench_tasks.playground.language import PLACES, a, enumerated, place
from dreambench_tasks.playground.scene import BACKGROUNDS, COLOURS, SHAPES, Rng, Scene

__all__ = ["CATEGORIES", "LETTERS", "Choice", "choice", "circular"]

LETTERS = "ABCDE"
CATEGORIES = {  # MMBench's category -> its l2-category
    "image_scene": "coarse_perception",
    "image_topic": "coarse_perception",
    "attribute_recognition": "finegrained_perception (instance-level)",
    "object_localization": "finegrained_perception (instance-level)",
    "spatial_relationship": "finegrained_perception (cross-instance)",
    "attribute_comparison": "finegrained_perception (cross-instance)",
    "physical_property_reasoning": "attribute_reasoning",
    "physical_relation": "relation_reasoning",
    "future_prediction": "logic_reasoning",
    "structuralized_imagetext_understanding": "logic_reasoning",
}
_SIDE_WORDS = {"circle": "none", "square": "four", "triangle": "three", "star": "ten", "heart": "none"}
_GRID = "The picture is a grid of three rows and three columns."


@dataclass(frozen=True, slots=True)
class Choice:
    """A question with two to five different options; ``answer`` is the index of the right one."""

    category: str
    question: str
    options: tuple[str, ...]
    answer: int
    hint: str = ""


def choice(scene: Scene, rng: Rng, category: str) -> Choice | None:
    """A question of a category, or None where the scene does not allow one (a single object cannot be compared)."""
    drawn = _CHOICES[category](scene, rng)
    if drawn is None:
        return None
    question, right, wrong, hint = drawn
    options = rng.sample((right, *wrong), 1 + len(wrong))
    return Choice(category, question, tuple(options), options.index(right), hint)


def circular(item: Choice) -> list[Choice]:
    """The item and its circular copies: in copy k the options are rotated to the right k times, and the answer with them."""
    options, n = item.options, len(item.options)
    return [
        replace(item, options=(*options[n - k :], *options[: n - k]), answer=(item.answer + k) % n) for k in range(n)
    ]


_Drawn = tuple[str, str, list[str], str]  # question, right option, wrong options, hint


def _scene(scene: Scene, rng: Rng) -> _Drawn:
    wrong = [b for b in BACKGROUNDS if b != scene.background]
    return "Which color is the background of the picture?", scene.background, wrong, ""


def _topic(scene: Scene, rng: Rng) -> _Drawn:
    """The wrong options change the colour or the shape of one object to a name that is not in the scene."""
    names = [t.name for t in scene.things]
    index = rng.below(len(names))
    thing = scene.things[index]
    recoloured = [name for c in COLOURS if (name := f"{c} {thing.shape}") not in names]
    reshaped = [name for s in SHAPES if (name := f"{thing.colour} {s}") not in names]
    versions = (names, *([*names[:index], rng.pick(new), *names[index + 1 :]] for new in (recoloured, reshaped)))
    right, *wrong = (enumerated([a(name) for name in version]) for version in versions)
    return "What does the picture show?", right, wrong, ""


def _recognition(scene: Scene, rng: Rng) -> _Drawn | None:
    candidates = scene.unique("shape")
    if not candidates:
        return None
    thing = rng.pick(candidates)
    others = rng.sample([c for c in COLOURS if c != thing.colour], 4)
    return f"What color is the {thing.shape}?", thing.colour, others, ""


def _localization(scene: Scene, rng: Rng) -> _Drawn:
    thing = rng.pick(scene.things)
    return f"Where is the {thing.name}?", place(thing), _other_places(place(thing), rng), _GRID


def _relationship(scene: Scene, rng: Rng) -> _Drawn | None:
    apart = [(x, y) for x, y in permutations(scene.things, 2) if x.column != y.column]
    if not apart:
        return None
    first, second = rng.pick(apart)
    words = ["to the left", "to the right"]
    right = words.pop(0 if first.column < second.column else 1)
    return f"Seen from the {second.name}, on which side is the {first.name}?", right, words, ""


def _comparison(scene: Scene, rng: Rng) -> _Drawn | None:
    if len(scene.things) < 2:
        return None
    first, second = rng.sample(scene.things, 2)
    options = [f"the {first.name}", f"the {second.name}", "both are of one size"]
    right = options.pop(2 if first.size == second.size else 0 if first.size == "large" else 1)
    return f"Which is larger, the {first.name} or the {second.name}?", right, options, ""


def _property(scene: Scene, rng: Rng) -> _Drawn:
    thing = rng.pick(scene.things)
    wrong = sorted(set(_SIDE_WORDS.values()) - {_SIDE_WORDS[thing.shape]})
    return f"How many straight sides does the shape in the {place(thing)} have?", _SIDE_WORDS[thing.shape], wrong, _GRID


def _nearest(scene: Scene, rng: Rng) -> _Drawn | None:
    lowest = max(t.row for t in scene.things)
    fallen = [t for t in scene.things if t.row == lowest]
    if len(scene.things) < 2 or len(fallen) > 1:
        return None
    wrong = [f"the {t.name}" for t in scene.things if t.row != lowest]
    question = "If all shapes fell down at the same moment and speed, which would be the first to reach the bottom?"
    return question, f"the {fallen[0].name}", wrong, ""


def _prediction(scene: Scene, rng: Rng) -> _Drawn | None:
    moves = [(t, -1, "left") for t in scene.things if t.column > 0]
    moves += [(t, 1, "right") for t in scene.things if t.column < 2]
    thing, step, word = rng.pick(moves)
    right = PLACES[thing.row][thing.column + step]
    question = f"If the {thing.name} moves by one column to the {word}, where will it be?"
    return question, right, _other_places(right, rng), _GRID


def _structured(scene: Scene, rng: Rng) -> _Drawn:
    colour = rng.pick(scene.things).colour
    left = str(sum(t.colour != colour for t in scene.things))
    wrong = [n for n in "0123" if n != left]
    return f"How many shapes would be left if every {colour} shape were taken away?", left, wrong, ""


_CHOICES: dict[str, Callable[[Scene, Rng], _Drawn | None]] = {
    "image_scene": _scene,
    "image_topic": _topic,
    "attribute_recognition": _recognition,
    "object_localization": _localization,
    "spatial_relationship": _relationship,
    "attribute_comparison": _comparison,
    "physical_property_reasoning": _property,
    "physical_relation": _nearest,
    "future_prediction": _prediction,
    "structuralized_imagetext_understanding": _structured,
}


def _other_places(right: str, rng: Rng) -> list[str]:
    return rng.sample([p for p in chain.from_iterable(PLACES) if p != right], 3)
