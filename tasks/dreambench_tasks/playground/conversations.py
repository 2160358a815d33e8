"""Conversations about an image for supervised fine-tuning, in the wording of the benchmarks' default prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from dreambench_tasks.playground.choices import CATEGORIES, LETTERS, choice
from dreambench_tasks.playground.language import PLACES, captions, narrative, place
from dreambench_tasks.playground.open_questions import KINDS, open_question, reply
from dreambench_tasks.playground.questions import questions
from dreambench_tasks.playground.scene import Rng, Scene

__all__ = ["LETTER_PROMPT", "SHORT_PROMPT", "Turn", "conversation"]

# Repeated here, because the tasks load the playground as their default data; a test compares the two.
SHORT_PROMPT = "\nAnswer the question using a single word or phrase."
LETTER_PROMPT = "\nAnswer with the option's letter from the given choices directly."

_MIN_TURNS, _MAX_TURNS = 4, 10
_DESCRIBE = ("Describe the picture.", "What is in the picture?", "Give a short caption of the picture.")
_DESCRIBE_LONG = ("Describe the picture in detail.", "Tell me all that you see in the picture.")


class Turn(NamedTuple):
    question: str
    answer: str


def conversation(scene: Scene, rng: Rng) -> list[Turn]:
    """Up to ten different questions about a scene with their true answers; a third of them ask what is where."""
    turns: dict[str, Turn] = {}
    for _ in range(_MIN_TURNS + rng.below(_MAX_TURNS - _MIN_TURNS + 1)):
        turn = rng.pick(_SHARES)(scene, rng)
        turns.setdefault(turn.question, turn)
    return list(turns.values())


def _short(scene: Scene, rng: Rng) -> Turn:
    (question,) = questions(scene, rng, 1)
    return Turn(question.text + SHORT_PROMPT, question.answer)


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
    return Turn(question + SHORT_PROMPT, answer)


def _description(scene: Scene, rng: Rng) -> Turn:
    if rng.chance(50):
        return Turn(rng.pick(_DESCRIBE), captions(scene, rng)[0])
    return Turn(rng.pick(_DESCRIBE_LONG), " ".join(narrative(scene, rng)))


_SHARES: tuple[Callable[[Scene, Rng], Turn], ...] = (
    *[_short] * 6,
    *[_choice] * 6,
    *[_open] * 2,
    *[_dense] * 5,
    *[_description] * 1,
)
