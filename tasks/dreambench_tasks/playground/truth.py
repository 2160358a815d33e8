"""Whether the images of a story show what its sentences tell, on the playground where both can be read exactly.

A story's own sentences are parsed by the forms in which stories are written, its images are read by the probe. What a sentence of another
form tells is unknown; such sentences are counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

from dreambench_tasks.playground.language import PLACES, place
from dreambench_tasks.playground.probe import Reading, read_images
from dreambench_tasks.playground.render import SIDE
from dreambench_tasks.playground.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, Thing
from dreambench_tasks.playground.stories import FIRST, LATER, SENTENCES

__all__ = ["Told", "ToldThing", "parse_sentence", "story_truth"]


@dataclass(frozen=True, slots=True)
class ToldThing:
    """An object as a sentence tells it; `size` is None where it is not told."""

    shape: str
    colour: str
    place: str
    size: str | None = None

    def is_shown_by(self, thing: Thing) -> bool:
        """Whether an object has this shape, color and place, and the size where it is told."""
        told = (self.shape, self.colour, self.place, self.size or thing.size)
        return told == (thing.shape, thing.colour, place(thing), thing.size)


@dataclass(frozen=True, slots=True)
class Told:
    """The facts of a sentence, the hero first."""

    background: str
    things: tuple[ToldThing, ...]


# --- sentences --------------------------------------------------------------------------------------------------------


def _any(*words: str) -> str:
    return f"(?:{'|'.join(sorted(words, key=len, reverse=True))})"


def _named(prefix: str) -> str:
    """A pattern of ``[size] color shape``."""
    return rf"(?:(?P<{prefix}size>{_any(*SIZES)}) )?(?P<{prefix}colour>{_any(*COLOURS)}) (?P<{prefix}shape>{_any(*SHAPES)})"


def _placed(prefix: str) -> str:
    return rf"(?P<{prefix}place>{_any(*chain(*PLACES))})"


_BACKGROUND = f"(?P<background>{_any(*BACKGROUNDS)})"
_FRIEND = rf"an? {_named('friend_')} in the {_placed('friend_')}"
_SLOTS = {
    "name": _named("hero_"),
    "hero": _named("hero_"),
    "a_hero": f"an? {_named('hero_')}",
    "shape": f"(?P<before_shape>{_any(*SHAPES)})",
    "colour": f"(?P<hero_colour>{_any(*COLOURS)})",
    "size": f"(?P<hero_size_told>{_any(*SIZES)})",
    "grows": "(?:grows|shrinks)",
    "place": _placed("hero_"),
    "background": _BACKGROUND,
    "ground": f"an? {_BACKGROUND} background",
    "rest": f"(?:, with {_FRIEND},)?",
    "and_friend": f"(?: and {_FRIEND})?",
    "a_friend": f"an? {_named('friend_')}",
    "friend_place": _placed("friend_"),
    "gone": _any(*(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)),
}
_DRAWN = re.compile(
    rf"(?P<things>.+?),? on (?:an? (?P<ground>{_any(*BACKGROUNDS)}) background|(?P<bare>{_any(*BACKGROUNDS)}))\."
)
_THING = re.compile(rf"an? {_named('')} in the {_placed('')}")


@cache
def _forms() -> tuple[re.Pattern[str], ...]:
    """A pattern for each form in which stories are written."""
    leads = _any(*(re.escape(lead) for lead in {*FIRST, *LATER}))
    forms = chain.from_iterable(SENTENCES.values())
    patterns = [re.sub(r"\\{(\w+)\\}", lambda slot: _SLOTS[slot[1]], re.escape(form)) for form in forms]
    return tuple(re.compile(f"{leads}{pattern}", re.IGNORECASE) for pattern in patterns)


def parse_sentence(sentence: str) -> Told | None:
    """What a sentence of a story, or of a drawing (``A red circle in the center on a mint background.``), tells; else None."""
    sentence = " ".join(sentence.split())
    for form in _forms():
        if match := form.fullmatch(sentence):
            return _story_facts(match)
    match = _DRAWN.fullmatch(sentence[:1].lower() + sentence[1:])
    if match is None:
        return None
    things = [_THING.fullmatch(words) for words in re.split(r", | and ", match["things"])]
    facts = tuple(
        ToldThing(one["shape"], one["colour"], one["place"], one["size"]) for one in things if one is not None
    )
    return Told(match["ground"] or match["bare"], facts) if len(facts) == len(things) else None


def _story_facts(match: re.Match[str]) -> Told | None:
    words = {key: value.lower() for key, value in match.groupdict().items() if value is not None}
    shape, before = words.get("hero_shape"), words.get("before_shape")
    sizes = {words[key] for key in ("hero_size", "hero_size_told") if key in words}
    if (shape and before and shape != before) or len(sizes) > 1:
        return None  # "the circle becomes a red square" is told of no story
    hero = ToldThing(shape or before or "", words["hero_colour"], words["hero_place"], next(iter(sizes), None))
    if "friend_shape" not in words:
        return Told(words["background"], (hero,))
    friend = ToldThing(words["friend_shape"], words["friend_colour"], words["friend_place"], words.get("friend_size"))
    return Told(words["background"], (hero, friend))


# --- images -----------------------------------------------------------------------------------------------------------


def story_truth(sentences: Sequence[str | None], images: Sequence[NDArray[np.uint8] | None]) -> dict[str, float | None]:
    """The truth metrics of one document, by name; None where it has no image.

    An image shows what is told if its reading is clear, has exactly the told objects, each at its place and on the told background.
    One that cannot be decoded, has another size than the world's 64 pixels, or follows a sentence that cannot be parsed, does not.

    Args:
        sentences: for each image the sentence that it follows, or None.
        images: uint8 ``(height, width, 3)``, or None for a broken image.
    """
    told = [None if sentence is None else parse_sentence(sentence) for sentence in sentences]
    readings = [_read(image) for image in images]
    pairs = [_facts(*pair) for pair in zip(told, readings, strict=True)]
    steps = [_step(*step) for step in zip(pairwise(told), pairwise(readings), strict=True)]
    values: dict[str, float | None] = {name: _mean([facts[name] for facts in pairs]) for name in _FACTS}
    shown = [facts["shows_what_is_told"] for facts in pairs]
    values["story_is_shown"] = float(all(shown)) if shown else None
    values["nothing_else_changes"] = _mean([kept for kept in steps if kept is not None])
    values["unparsed_sentences"] = _mean([one is None for one in told])
    values["unclear_images"] = _mean([one is None or not one.clear for one in readings])
    return values


_FACTS = ("shows_what_is_told", "told_background", "told_count", "told_objects", "told_places")


def _mean(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


@lru_cache(maxsize=2048)
def _reading(pixels: bytes) -> Reading:
    """The same image, in several documents or read by several metrics, is read once."""
    return read_images(np.frombuffer(pixels, np.uint8).reshape(1, SIDE, SIDE, 3))[0]


def _read(image: NDArray[np.uint8] | None) -> Reading | None:
    return _reading(image.tobytes()) if image is not None and image.shape == (SIDE, SIDE, 3) else None


def _facts(told: Told | None, reading: Reading | None) -> dict[str, bool]:
    """Which of the told facts an image shows."""
    if told is None or reading is None:
        return dict.fromkeys(_FACTS, False)
    scene = reading.scene
    facts = {
        "told_background": scene.background == told.background,
        "told_count": len(scene.things) == len(told.things),
        "told_objects": Counter((t.shape, t.colour) for t in scene.things)
        == Counter((t.shape, t.colour) for t in told.things),
        "told_places": all(any(one.is_shown_by(thing) for thing in scene.things) for one in told.things),
    }
    return {"shows_what_is_told": reading.clear and all(facts.values()), **facts}


def _step(told: tuple[Told | None, Told | None], readings: tuple[Reading | None, Reading | None]) -> bool | None:
    """Whether what two sentences tell in the same words is the same in their images; None where that is unknown.

    Objects are recognised by their shape: the hero keeps it through the story, and a second object has another one.
    """
    first, second = told
    if first is None or second is None or first.things[0].shape != second.things[0].shape:
        return None
    before, after = readings
    if before is None or after is None:
        return False
    if first.background == second.background and before.scene.background != after.scene.background:
        return False
    common = [(a, b) for a in first.things for b in second.things if a.shape == b.shape]
    return all(_kept(a, b, _alone(a.shape, before.scene), _alone(b.shape, after.scene)) for a, b in common)


def _alone(shape: str, scene: Scene) -> Thing | None:
    """The only object of a shape, None if there is none or another."""
    things = [thing for thing in scene.things if thing.shape == shape]
    return things[0] if len(things) == 1 else None


def _kept(told: ToldThing, later: ToldThing, before: Thing | None, after: Thing | None) -> bool:
    if before is None or after is None:
        return False
    same = [told.colour != later.colour or before.colour == after.colour]
    same.append(told.place != later.place or place(before) == place(after))
    same.append(told.size != later.size or before.size == after.size)
    return all(same)
