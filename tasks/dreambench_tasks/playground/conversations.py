"""Conversations about an image for supervised fine-tuning, in the wording of the benchmarks' default prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from dreambench_tasks.playground.choices import CATEGORIES, LETTERS, choice
from dreambench_tasks.playground.language import PLACES, a, captions, narrative, place
from dreambench_tasks.playground.open_questions import KINDS, open_question, reply
from dreambench_tasks.playground.questions import KINDS as QUESTION_KINDS
from dreambench_tasks.playground.questions import questions
from dreambench_tasks.playground.scene import BACKGROUNDS, COLOURS, SHAPES, Rng, Scene

__all__ = [
    "LETTER_PROMPT",
    "SHORT_PROMPT",
    "Turn",
    "conversation",
    "place_questions",
    "short_questions",
    "yes_no_questions",
]

# Repeated here, because the tasks load the playground as their default data; a test compares the two.
SHORT_PROMPT = "\nAnswer the question using a single word or phrase."
LETTER_PROMPT = "\nAnswer with the option's letter from the given choices directly."

_DESCRIBE = ("Describe the picture.", "What is in the picture?", "Give a short caption of the picture.")
_DESCRIBE_LONG = ("Describe the picture in detail.", "Tell me all that you see in the picture.")


class Turn(NamedTuple):
    question: str
    answer: str


def conversation(scene: Scene, rng: Rng) -> list[Turn]:
    """Different questions about a scene with their true answers: short ones in seven of ten conversations, others in the rest."""
    return short_questions(scene, rng) if rng.chance(70) else _draw(scene, rng, _LONG, 6)


def short_questions(scene: Scene, rng: Rng) -> list[Turn]:
    """Up to twelve questions that one word or phrase answers, half of them about a place."""
    return _draw(scene, rng, _SHORT, 12)


def place_questions(scene: Scene, rng: Rng) -> list[Turn]:
    """What two of the objects are, or which color they have, by their places."""
    turns: list[Turn] = []
    for thing in rng.sample(scene.things, 2):
        kinds = (("What is in the {}?", thing.name), ("What color is the shape in the {}?", thing.colour))
        question, answer = rng.pick(kinds)
        turns.append(Turn(question.format(place(thing)) + _prompt(rng), answer))
    return turns


def yes_no_questions(scene: Scene, rng: Rng) -> list[Turn]:
    """Up to twelve questions with the answer yes or no."""
    return _draw(scene, rng, (*[_yes_or_no] * 2, *[_existence] * 3), 12)


def _draw(scene: Scene, rng: Rng, kinds: Sequence[Callable[[Scene, Rng], Turn]], count: int) -> list[Turn]:
    turns: dict[str, Turn] = {}
    for _ in range(count):
        turn = rng.pick(kinds)(scene, rng)
        turns.setdefault(turn.question, turn)
    return list(turns.values())


def _short(scene: Scene, rng: Rng) -> Turn:
    (question,) = questions(scene, rng, 1)
    return Turn(question.text + _prompt(rng), question.answer)


def _yes_or_no(scene: Scene, rng: Rng) -> Turn:
    question = rng.pick([one for one in questions(scene, rng, QUESTION_KINDS) if one.answer_type == "yes/no"])
    return Turn(question.text + _prompt(rng), question.answer)


def _existence(scene: Scene, rng: Rng) -> Turn:
    """Whether a color, a shape or a background occurs, as often as not: the first step to names, which combine two words."""
    shown, values, question = rng.pick(
        (
            ({thing.colour for thing in scene.things}, COLOURS, "Is there {} shape?"),
            ({thing.shape for thing in scene.things}, SHAPES, "Is there {}?"),
            ({scene.background}, BACKGROUNDS, "Is the background {}?"),
        )
    )
    exists = rng.chance(50)
    value = rng.pick([value for value in values if (value in shown) == exists])
    asked = question.format(value if values is BACKGROUNDS else a(value))
    return Turn(asked + _prompt(rng), "yes" if exists else "no")


def _choice(scene: Scene, rng: Rng) -> Turn:
    """Formatted as MMBench's default prompt: hint, question and lettered options, one line each.

    The answer is the option's text, from which MMBench's rules find the letter, unless another option is a part of it. So small a language
    model does not learn in hours to find the letter itself: trained on letters, it gave the right one of 2 to 5 in 35 % of questions.
    """
    while (item := choice(scene, rng, rng.pick(tuple(CATEGORIES)))) is None:
        pass
    options = [f"{letter}. {option}" for letter, option in zip(LETTERS, item.options, strict=False)]
    lines = [*([item.hint] if item.hint else []), item.question, *options]
    return Turn("\n".join(lines) + LETTER_PROMPT, item.options[item.answer])


def _open(scene: Scene, rng: Rng) -> Turn:
    while (question := open_question(scene, rng, rng.below(KINDS))) is None:
        pass
    return Turn(question.text, reply(scene, question, rng))


def _dense(scene: Scene, rng: Rng) -> Turn:
    """A question about an occupied or an empty place."""
    taken = [place(t) for t in scene.things]
    thing = rng.pick(scene.things)
    empty = rng.pick([name for row in PLACES for name in row if name not in taken])
    question, answer = rng.pick(
        (
            (f"What is in the {empty}?", "nothing"),
            (f"What is in the {place(thing)}?", thing.name),
            (f"Is there a shape in the {empty}?", "no"),
            (f"Is there a shape in the {place(thing)}?", "yes"),
            (f"What color is the shape in the {place(thing)}?", thing.colour),
            (f"Which shape is in the {place(thing)}?", thing.shape),
            (f"What size is the shape in the {place(thing)}?", thing.size),
        )
    )
    return Turn(question + _prompt(rng), answer)


def _prompt(rng: Rng) -> str:
    """The benchmarks' prompt for short answers after a third of such questions: in a chat nobody types it."""
    return SHORT_PROMPT if rng.chance(33) else ""


def _description(scene: Scene, rng: Rng) -> Turn:
    if rng.chance(50):
        return Turn(rng.pick(_DESCRIBE), captions(scene, rng)[0])
    return Turn(rng.pick(_DESCRIBE_LONG), " ".join(narrative(scene, rng)))


_SHORT: tuple[Callable[[Scene, Rng], Turn], ...] = (*[_short] * 3, *[_yes_or_no] * 2, *[_existence] * 1, *[_dense] * 6)
_LONG: tuple[Callable[[Scene, Rng], Turn], ...] = (*[_choice] * 6, *[_open] * 2, *[_description] * 1)
