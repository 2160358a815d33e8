"""Questions about a scene: with one short answer as in VQAv2, with options as in MMBench, and open ones as in MM-Vet.

References of open questions are written for the judge ``rule``: parts joined by ``<AND>``, each a list of alternatives joined by
``<OR>``, which binds more tightly. There is no text in the images, so MM-Vet's capability ``ocr`` does not occur.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, permutations

from dreambench_tasks.playground.language import PLACES, a, enumerated, place, relation
from dreambench_tasks.playground.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, Rng, Scene, Thing

__all__ = ["AND", "CATEGORIES", "KINDS", "LETTERS", "OR", "Choice", "OpenQuestion", "Question"]
__all__ += ["annotators", "choice", "circular", "open_question", "questions", "reply"]

_SLIPS = {
    "red": ("orange", "pink"),
    "orange": ("red", "yellow"),
    "yellow": ("gold", "orange"),
    "green": ("dark green", "teal"),
    "blue": ("light blue", "purple"),
    "purple": ("violet", "blue"),
    "cream": ("beige", "white"),
    "mint": ("green", "light green"),
    "gray": ("grey", "silver"),
    "navy": ("blue", "dark blue"),
    "circle": ("ball", "round"),
    "square": ("box", "rectangle"),
    "triangle": ("cone", "arrow"),
    "star": ("stars", "starfish"),
    "heart": ("hearts", "love"),
    "small": ("little", "tiny"),
    "large": ("big", "huge"),
    "center": ("middle", "in the middle"),
    "yes": ("no", "yes it is"),
    "no": ("yes", "no it isn't"),
}
_UNANIMOUS_PERCENT = 40
_SLIP_PERCENT = 12
_MOST_SLIPS = 4  # so at least six of ten annotators give the true answer


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its true answer and VQAv2's two types: the question's first words and the type of the answer."""

    text: str
    question_type: str
    answer_type: str  # "yes/no", "number" or "other"
    answer: str


def questions(scene: Scene, rng: Rng, count: int) -> list[Question]:
    """``count`` different questions of random kinds, each with exactly one true answer."""
    kinds = [_colours(scene), _shapes(scene), _counts(scene, rng), _present(scene, rng), _places(scene)]
    kinds += [_sizes(scene), _sides(scene, rng), _ground(scene, rng)]
    pool = [rng.pick(kind) for kind in kinds if kind]
    return rng.sample(pool, min(count, len(pool)))


def annotators(question: Question, rng: Rng) -> list[dict[str, str | int]]:
    """Ten answers as in VQAv2. Annotators agree on at least four questions in ten; the true answer is always the most frequent."""
    unanimous = rng.chance(_UNANIMOUS_PERCENT)
    slips = 0
    answers: list[dict[str, str | int]] = []
    for number in range(1, 11):
        answer, confidence = question.answer, "yes"
        if not unanimous and slips < _MOST_SLIPS and rng.chance(_SLIP_PERCENT):
            answer, confidence = rng.pick(_slips(question.answer)), rng.pick(("yes", "maybe", "no"))
            slips += 1
        answers.append({"answer": answer, "answer_confidence": confidence, "answer_id": number})
    return answers


def _slips(answer: str) -> tuple[str, ...]:
    """Plausible wrong or differently worded answers."""
    if answer in _SLIPS:
        return _SLIPS[answer]
    if answer.isdigit():
        number = int(answer)
        return str(number + 1), str(abs(number - 1)), ("zero", "one", "two", "three")[number]
    first, *_, last = answer.split()
    return first, last


def _colours(scene: Scene) -> list[Question]:
    return [
        Question(f"What color is the {t.shape}?", "what color is the", "other", t.colour) for t in scene.unique("shape")
    ]


def _shapes(scene: Scene) -> list[Question]:
    return [Question(f"What is the {t.colour} shape?", "what is the", "other", t.shape) for t in scene.unique("colour")]


def _counts(scene: Scene, rng: Rng) -> list[Question]:
    def how_many(what: str, number: int) -> Question:
        return Question(f"How many {what} are there?", "how many", "number", str(number))

    colour = rng.pick((rng.pick(scene.things).colour, rng.pick(COLOURS)))
    shape = rng.pick((rng.pick(scene.things).shape, rng.pick(SHAPES)))
    return [
        how_many("shapes", len(scene.things)),
        how_many(f"{colour} shapes", sum(t.colour == colour for t in scene.things)),
        how_many(f"{shape}s", sum(t.shape == shape for t in scene.things)),
    ]


def _present(scene: Scene, rng: Rng) -> list[Question]:
    """Two questions: about an object of the scene, and about a name that differs from it in one word, so half of the answers are "yes"."""
    thing = rng.pick(scene.things)
    colour, shape = thing.colour, thing.shape
    if rng.chance(50):
        colour = rng.pick([c for c in COLOURS if c != colour])
    else:
        shape = rng.pick([s for s in SHAPES if s != shape])
    names = (thing.name, f"{colour} {shape}")
    return [
        Question(
            f"Is there {a(name)}?",
            f"is there {a(name).split()[0]}",
            "yes/no",
            _yes(any(t.name == name for t in scene.things)),
        )
        for name in names
    ]


def _places(scene: Scene) -> list[Question]:
    places = [Question(f"Where is the {t.name}?", "where is the", "other", place(t)) for t in scene.things]
    contents = [Question(f"What is in the {place(t)}?", "what is in the", "other", t.name) for t in scene.things]
    return places + contents


def _sizes(scene: Scene) -> list[Question]:
    return [Question(f"Is the {t.name} {SIZES[0]} or {SIZES[1]}?", "is the", "other", t.size) for t in scene.things]


def _sides(scene: Scene, rng: Rng) -> list[Question]:
    """A true relation of two objects, and the same with the objects exchanged, which is false."""
    if len(scene.things) < 2:
        return []
    first, second = rng.sample(scene.things, 2)
    words = relation(first, second)
    return [
        Question(f"Is the {x.name} {words} the {y.name}?", "is the", "yes/no", _yes(x is first))
        for x, y in ((first, second), (second, first))
    ]


def _ground(scene: Scene, rng: Rng) -> list[Question]:
    others = [b for b in BACKGROUNDS if b != scene.background]
    colour = scene.background if rng.chance(50) else rng.pick(others)
    return [
        Question("What color is the background?", "what color is the", "other", scene.background),
        Question(f"Is the background {colour}?", "is the", "yes/no", _yes(colour == scene.background)),
    ]


def _yes(true: bool) -> str:
    return "yes" if true else "no"


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
