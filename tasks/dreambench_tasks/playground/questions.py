"""Questions about a scene with one short answer, as in VQAv2, and what ten annotators answer."""

from __future__ import annotations

from dataclasses import dataclass

from dreambench_tasks.playground.language import a, place, relation
from dreambench_tasks.playground.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, Rng, Scene

__all__ = ["KINDS", "Question", "annotators", "questions"]

KINDS = 8
"""The kinds of questions, of which a scene with one object lacks one."""

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
    """Two questions: about an object of the scene, and about a name that differs from it in one word: about half are "yes"."""
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
