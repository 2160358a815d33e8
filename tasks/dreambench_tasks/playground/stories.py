"""Short illustrated stories about one shape, and requests for such stories.

The thirty topics (six motifs for each of five shapes) take turns. Consecutive images differ in one respect, and each image follows the
sentence that names everything in it: colour, shape and place of every object, and the background.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from dreambench_tasks.playground.language import a, enumerated, place
from dreambench_tasks.playground.scene import (
    BACKGROUNDS,
    COLOURS,
    LIGHTS,
    SHAPES,
    SIZES,
    TILTS,
    WORLD,
    Rng,
    Scene,
    Thing,
    overlaps,
    split_of,
)

__all__ = ["MAX_WORDS", "TOPICS", "Story", "instruction", "requested_images", "similarity", "story"]

MAX_WORDS = 20  # per sentence

_MOTIFS = {
    "move": "that moves",
    "recolor": "that changes color",
    "resize": "that changes size",
    "meet": "that meets another shape",
    "part": "that is left alone",
    "background": "on a changing background",
}
TOPICS = tuple(f"{a(shape)} {words}" for words in _MOTIFS.values() for shape in SHAPES)

_THREE_IMAGES_PERCENT = 40
_FRIEND_PERCENT = 35
_CLOSING_PERCENT = 50
_DRAWING_PERCENT = 25
_GUESTS = 12  # candidates for a second object before the story is drawn again

_TITLES = ("This is a story about {about}.", "Here is the story of {about}.", "A story about {about}.")
_CLOSINGS = ("The end.", "And so the story ends.", "That was the story of the {shape}.")
FIRST = ("", "First, ", "At first, ")
LATER = ("", "Then ", "Now ", "Next, ", "After that, ")
SENTENCES = {
    "start": (
        "{a_hero} is in the {place}{rest} on {ground}.",
        "there is {a_hero} in the {place}{rest} on {ground}.",
        "we see {a_hero} in the {place}{rest} on {ground}.",
        "{a_hero} is in the {place}{rest} on {background}.",
    ),
    "move": (
        "the {hero} moves to the {place}{rest} on {ground}.",
        "the {hero} goes to the {place}{rest} on {ground}.",
        "the {hero} is in the {place}{rest} on {ground}.",
    ),
    "recolor": (
        "the {shape} turns {colour} in the {place}{rest} on {ground}.",
        "the {shape} becomes {a_hero} in the {place}{rest} on {ground}.",
        "{a_hero} is in the {place}{rest} on {ground}.",
    ),
    "resize": (
        "the {name} {grows} and is {size} in the {place}{rest} on {ground}.",
        "the {name} becomes {size} in the {place}{rest} on {ground}.",
        "the {name} becomes {size} in the {place}{rest} on {background}.",
        "{a_hero} is in the {place}{rest} on {ground}.",
    ),
    "meet": (
        "{a_friend} comes to the {friend_place}, with the {hero} in the {place}, on {ground}.",
        "{a_friend} appears in the {friend_place}, with the {hero} in the {place}, on {ground}.",
    ),
    "part": (
        "the {gone} leaves, and only the {hero} stays in the {place} on {ground}.",
        "the {gone} goes away, and the {hero} stays in the {place} on {ground}.",
        "only the {hero} is left in the {place} on {ground}.",
    ),
    "background": (
        "the background turns {background}, with {a_hero} in the {place}{and_friend}.",
        "the background becomes {background}, with {a_hero} in the {place}{and_friend}.",
        "{a_hero} is in the {place}{rest} on {ground}.",
    ),
}
_REQUESTS = (
    "Tell a story about {about}, with pictures.",
    "Write a story with {count} pictures about {about}.",
    "Show me {about} in {count} pictures.",
    "Make a picture story of {about}.",
    "Can you tell me a story with pictures about {about}?",
)
_DRAWINGS = ("Draw {what}.", "Make a picture of {what}.", "Show me {what}.", "Can you paint {what}?")
_COUNTS = {1: "one", 2: "two", 3: "three"}


@dataclass(frozen=True, slots=True)
class Story:
    """Sentences and images: image k shows ``scenes[k]`` and follows sentence ``matched[k]``.

    ``topic`` is one of ``TOPICS``; ``about`` is the topic with this story's hero.
    """

    topic: str
    about: str
    sentences: tuple[str, ...]
    scenes: tuple[Scene, ...]
    matched: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Moment:
    """The content of one image: the hero, possibly a second object, and the background."""

    hero: Thing
    friend: Thing | None
    background: str

    @property
    def scene(self) -> Scene:
        things = (self.hero,) if self.friend is None else (self.hero, self.friend)
        return Scene(self.background, tuple(sorted(things, key=lambda t: (t.row, t.column))))


def story(split: str, index: int, seed: int = 0) -> Story:
    """Story ``index`` of a split, a function of the arguments; every image shows a scene of that split."""
    rng = Rng("story", WORLD, split, index, seed)
    topic = index % len(TOPICS)
    motif, shape = tuple(_MOTIFS)[topic // len(SHAPES)], SHAPES[topic % len(SHAPES)]
    count = 3 if rng.chance(_THREE_IMAGES_PERCENT) else 2
    moments = _moments(rng, split, motif, shape, count)
    shift, light = (rng.below(3) - 1, rng.below(3) - 1), rng.below(LIGHTS)
    about = _about(motif, moments)
    events = _events(motif, moments)
    sentences = [
        _described(event, rng, now, before, motif == "resize")
        for event, now, before in zip(events, moments, (None, *moments), strict=False)
    ]
    closing = [rng.pick(_CLOSINGS).format(shape=shape)] if rng.chance(_CLOSING_PERCENT) else []
    return Story(
        topic=TOPICS[topic],
        about=about,
        sentences=(rng.pick(_TITLES).format(about=about), *sentences, *closing),
        scenes=tuple(replace(moment.scene, shift=shift, light=light) for moment in moments),
        matched=tuple(range(1, count + 1)),
    )


def instruction(split: str, index: int, seed: int = 0) -> tuple[str, Story]:
    """A request and the document that fulfils it: the story with that index or, in a quarter of the cases, only its first image."""
    rng = Rng("instruction", WORLD, split, index, seed)
    full = story(split, index, seed)
    if not rng.chance(_DRAWING_PERCENT):
        count = _COUNTS[len(full.scenes)]
        return rng.pick(_REQUESTS).format(about=full.about, count=count), full
    scene = full.scenes[0]
    things = enumerated([f"{a(t.name)} in the {place(t)}" for t in scene.things])
    what = f"{things} on {a(scene.background)} background"
    drawn = replace(full, about=what, sentences=(f"{what[0].upper()}{what[1:]}.",), scenes=(scene,), matched=(0,))
    return rng.pick(_DRAWINGS).format(what=what), drawn


def requested_images(request: str, document: Story) -> int | None:
    """How many images a request of `instruction` asks for; None if it leaves the number open."""
    count = len(document.scenes)
    return count if count == 1 or f"{_COUNTS[count]} pictures" in request else None


def similarity(scene: Scene, sentence: str) -> float:
    """The share of a scene's facts (background; colour, shape and place of each object) that a sentence names, 0 to 1."""
    facts = [scene.background, *(word for t in scene.things for word in (t.colour, t.shape, place(t)))]
    return sum(fact in sentence for fact in facts) / len(facts)


def _moments(rng: Rng, split: str, motif: str, shape: str, count: int) -> list[_Moment]:
    """A first moment and its changes, drawn again until every image belongs to the split and no objects overlap."""

    def fits(moment: _Moment) -> bool:
        return split_of(moment.scene) == split and not overlaps(moment.scene)

    while True:
        moments = [_beginning(rng, motif, shape)]
        while fits(moments[-1]) and len(moments) < count:
            options = list(_changes(motif, moments[-1], rng))
            following = next((option for option in rng.sample(options, len(options)) if fits(option)), None)
            if following is None:
                break
            moments.append(following)
        if len(moments) == count and fits(moments[-1]):
            return moments


def _beginning(rng: Rng, motif: str, shape: str) -> _Moment:
    cell, other = rng.sample(range(9), 2)
    hero = _thing(rng, shape, cell)
    alone = motif == "meet" or (motif != "part" and not rng.chance(_FRIEND_PERCENT))
    friend = None if alone else _thing(rng, rng.pick([s for s in SHAPES if s != shape]), other)
    return _Moment(hero, friend, rng.pick(BACKGROUNDS))


def _thing(rng: Rng, shape: str, cell: int) -> Thing:
    return Thing(shape, rng.pick(COLOURS), rng.pick(SIZES), cell // 3, cell % 3, rng.pick(TILTS))


def _changes(motif: str, now: _Moment, rng: Rng) -> Iterator[_Moment]:
    """The possible next moments, which differ from this one in what the motif is about."""
    hero, friend = now.hero, now.friend
    taken = [(t.row, t.column) for t in now.scene.things]
    if motif == "move":  # along its row or its column
        cells = [(hero.row, c) for c in range(3)] + [(r, hero.column) for r in range(3)]
        yield from (replace(now, hero=replace(hero, row=r, column=c)) for r, c in cells if (r, c) not in taken)
    elif motif == "recolor":
        yield from (replace(now, hero=replace(hero, colour=c)) for c in COLOURS if c != hero.colour)
    elif motif == "resize":
        yield from (replace(now, hero=replace(hero, size=s)) for s in SIZES if s != hero.size)
    elif motif == "background":
        yield from (replace(now, background=b) for b in BACKGROUNDS if b != now.background)
    elif friend is not None:
        yield replace(now, friend=None)
    else:
        free = [cell for cell in range(9) if divmod(cell, 3) not in taken]
        for _ in range(_GUESTS):
            shape = rng.pick([s for s in SHAPES if s != hero.shape])
            yield replace(now, friend=_thing(rng, shape, rng.pick(free)))


def _events(motif: str, moments: list[_Moment]) -> list[str]:
    """The event that each image's sentence tells; meeting and parting alternate."""
    if motif not in ("meet", "part"):
        return ["start", *[motif] * (len(moments) - 1)]
    return ["start", *("part" if moment.friend is None else "meet" for moment in moments[1:])]


def _about(motif: str, moments: list[_Moment]) -> str:
    first = moments[0]
    name = a(first.hero.name)
    if motif != "move":
        return f"{name} {_MOTIFS[motif]}"
    ways = [_way(x.hero, y.hero) for x, y in pairwise(moments)]
    return f"{name} that moves {' and then '.join(ways)}"


def _way(before: Thing, after: Thing) -> str:
    if before.row != after.row:
        return "up" if after.row < before.row else "down"
    return "to the left" if after.column < before.column else "to the right"


def _described(event: str, rng: Rng, now: _Moment, before: _Moment | None, sized: bool) -> str:
    """A random sentence that names everything in the image, among those that are short enough."""
    hero, friend = now.hero, now.friend
    name = f"{hero.size} {hero.name}" if sized else hero.name
    company = "" if friend is None else f"{a(friend.name)} in the {place(friend)}"
    words = {
        "name": hero.name,
        "hero": name,
        "a_hero": a(name),
        "shape": hero.shape,
        "colour": hero.colour,
        "size": hero.size,
        "grows": "grows" if hero.size == "large" else "shrinks",
        "place": place(hero),
        "background": now.background,
        "ground": f"{a(now.background)} background",
        "rest": company and f", with {company},",
        "and_friend": company and f" and {company}",
        "a_friend": "" if friend is None else a(friend.name),
        "friend_place": "" if friend is None else place(friend),
        "gone": before.friend.name if before and before.friend else "",
    }
    leads = FIRST if before is None else LATER
    texts = [lead + sentence.format(**words) for lead in leads for sentence in SENTENCES[event]]
    text = rng.pick([text for text in texts if len(text.split()) <= MAX_WORDS])
    return text[0].upper() + text[1:]
