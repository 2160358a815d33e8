"""Texts about a scene: short captions and long narratives, in American English as in the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from dreambench_tasks.playground.scene import Rng, Scene, Thing

__all__ = ["PLACES", "a", "captions", "enumerated", "fullest_caption", "narrative"]
__all__ += ["place", "placed_caption", "prompt", "relation"]

PLACES = (
    ("top left", "top center", "top right"),
    ("middle left", "center", "middle right"),
    ("bottom left", "bottom center", "bottom right"),
)
_LEADS = ("", "there is ", "we see ", "a picture of ")
_OPENINGS = (
    "In this picture we can see {count} on a plain {background} background.",
    "This is a drawing of {count} on a {background} background that is lit from above.",
    "The picture shows {count} placed on a soft {background} background.",
)
_ALONE = (
    "It is the only shape here, and it casts a soft shadow below it.",
    "There is nothing beside it, and a soft shadow can be seen just below it.",
)
_ENDINGS = (
    "The rest of the picture is empty, and only the {background} background is seen there.",
    "Nothing else is in the picture, so all other places show the {background} background.",
)


def place(thing: Thing) -> str:
    return PLACES[thing.row][thing.column]


def a(words: str) -> str:
    """The words with their indefinite article."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def enumerated(items: Sequence[str]) -> str:
    """``x``, ``x and y``, ``x, y and z``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def relation(thing: Thing, other: Thing) -> str:
    """Where ``thing`` is relative to ``other``: "above and to the left of", "below", …"""
    vertical = "above" if thing.row < other.row else "below" if thing.row > other.row else ""
    side = "to the left of" if thing.column < other.column else "to the right of" if thing.column > other.column else ""
    return " and ".join(filter(None, (vertical, side)))


def captions(scene: Scene, rng: Rng) -> list[str]:
    """Five different short captions. Each names the background and every object's colour and shape; some name more."""
    things, ground = scene.things, scene.background
    names = enumerated([a(t.name) for t in things])
    sized = enumerated([a(f"{t.size} {t.name}") for t in things])
    texts = [
        f"{rng.pick(_LEADS)}{names} on {a(ground)} background",
        f"{rng.pick(_LEADS)}{sized} on {a(ground)} background",
        f"{rng.pick(_LEADS)}{_placed(scene)}",
        _fullest(scene),
        _related(scene),
    ]
    return [_sentence(text) for text in rng.sample(texts, len(texts))]


def fullest_caption(scene: Scene) -> str:
    """The most detailed caption: the background and each object's size, colour, shape and place."""
    return _sentence(_fullest(scene))


def placed_caption(scene: Scene) -> str:
    """The caption that names the background and each object's color, shape and place."""
    return _sentence(_placed(scene))


def prompt(scene: Scene, rng: Rng) -> str:
    """A short prompt for such an image: no sentence, and often without sizes, places or the background."""
    sized, placed, grounded = (rng.chance(percent) for percent in (30, 30, 50))
    things = [f"{t.size} {t.name}" if sized else t.name for t in scene.things]
    if rng.chance(80):
        things = [a(words) for words in things]
    if placed:
        things = [f"{words} in the {place(t)}" for words, t in zip(things, scene.things, strict=True)]
    lead = rng.pick(("", "", "", "draw ", "a picture of ", "an image of "))
    ground = scene.background
    rest = rng.pick((f" on {a(ground)} background", f" on {ground}", f", {ground} background")) if grounded else ""
    return f"{lead}{enumerated(things)}{rest}"


def narrative(scene: Scene, rng: Rng) -> list[str]:
    """The sentences of a spoken description of at least 40 words that names every object in reading order.

    The first sentence describes the whole image, the next ones an object each, the rest again the whole image.
    """
    things, ground = scene.things, scene.background
    count = ("one shape", "two shapes", "three shapes")[len(things) - 1]
    sentences = [rng.pick(_OPENINGS).format(count=count, background=ground)]
    first = things[0]
    sentences.append(f"In the {place(first)} there is {a(f'{first.size} {first.name}')}.")
    for before, thing in pairwise(things):
        where = relation(thing, before)
        sentences.append(
            f"{where[0].upper()}{where[1:]} the {before.name}, in the {place(thing)}, "
            f"there is {a(f'{thing.size} {thing.name}')}."
        )
    if len(things) == 1:
        sentences.append(rng.pick(_ALONE))
    sentences.append(rng.pick(_ENDINGS).format(background=ground))
    return sentences


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _placed(scene: Scene) -> str:
    things = enumerated([f"{a(t.name)} in the {place(t)}" for t in scene.things])
    return f"{things}, on {a(scene.background)} background"


def _fullest(scene: Scene) -> str:
    things = enumerated([f"{a(f'{t.size} {t.name}')} in the {place(t)}" for t in scene.things])
    return f"on {a(scene.background)} background {'is' if len(scene.things) == 1 else 'are'} {things}"


def _related(scene: Scene) -> str:
    """A caption that says where one object is, or how two are placed relative to each other."""
    names = [a(t.name) for t in scene.things]
    if len(names) == 1:
        return f"{a(scene.background)} background with {names[0]} in the {place(scene.things[0])} and nothing else"
    pair = f"{names[0]} {relation(scene.things[0], scene.things[1])} {names[1]}"
    rest = f" with {names[2]}" if len(names) == 3 else ""
    return f"{pair}{rest} on {a(scene.background)} background"
