"""Captions, narratives, questions and answers are true of their scenes."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import pytest

from dreambench.judges.base import contained_fraction
from dreambench_tasks.playground.choices import CATEGORIES, choice, circular
from dreambench_tasks.playground.language import PLACES, captions, narrative, place, relation
from dreambench_tasks.playground.open_questions import AND, KINDS, OR, open_question
from dreambench_tasks.playground.questions import Question, annotators, questions
from dreambench_tasks.playground.scene import Rng, Scene, Thing, draw_scene

SCENES = [draw_scene("val", i) for i in range(600)]
SIDES = {"circle": "none", "square": "four", "triangle": "three", "star": "ten", "heart": "none"}


def test_five_different_captions_name_everything() -> None:
    for i, scene in enumerate(SCENES):
        texts = captions(scene, Rng("test", i))
        assert len(set(texts)) == 5
        for caption in texts:
            assert scene.background in caption
            assert all(thing.name in caption for thing in scene.things)
            assert caption[0].isupper()
            assert caption.endswith(".")
            assert not re.search(r"\ba (?=[aeiou])", caption, re.IGNORECASE)


def test_narratives_have_forty_words_and_name_things_in_reading_order() -> None:
    for i, scene in enumerate(SCENES):
        sentences = narrative(scene, Rng("test", i))
        assert len(" ".join(sentences).split()) >= 40
        for thing, sentence in zip(scene.things, sentences[1:], strict=False):
            assert sentence.endswith(f"{thing.size} {thing.name}.")
            assert f"the {place(thing)}" in sentence.lower()


def test_relations_are_opposite() -> None:
    turned = {"above": "below", "below": "above", "left": "right", "right": "left"}
    for scene in SCENES:
        for x in scene.things:
            for y in scene.things:
                words = [turned.get(word, word) for word in relation(x, y).split()]
                assert " ".join(words) == relation(y, x)


def true_answer(scene: Scene, text: str) -> str:
    """The answer, derived independently of the generator."""
    at = {(t.row, t.column): t for t in scene.things}
    cells = {name: (r, c) for r, row in enumerate(PLACES) for c, name in enumerate(row)}

    def the(description: str) -> Thing:
        words = set(description.split()) - {"shape"}
        (found,) = [t for t in scene.things if words <= {t.colour, t.shape}]
        return found

    def side(first: Thing, words: str, second: Thing) -> bool:
        claims = {
            "above": first.row < second.row,
            "below": first.row > second.row,
            "left": first.column < second.column,
            "right": first.column > second.column,
        }
        return all(claims[word] for word in words.split() if word in claims)

    match text.rstrip("?").split():
        case "What", "color", "is", "the", "background":
            return scene.background
        case "What", "color", "is", "the", *what:
            return the(" ".join(what)).colour
        case "What", "is", "in", "the", *where:
            return at[cells[" ".join(where)]].name
        case "What", "is", "the", colour, "shape":
            return the(colour).shape
        case "How", "many", "shapes", "are", "there":
            return str(len(scene.things))
        case "How", "many", *what, "are", "there":
            return str(sum(what[0] in (t.colour, f"{t.shape}s") for t in scene.things))
        case "Is", "there", _, colour, shape:
            return "yes" if any((t.colour, t.shape) == (colour, shape) for t in scene.things) else "no"
        case "Where", "is", "the", *what:
            thing = the(" ".join(what))
            return next(name for name, cell in cells.items() if cell == (thing.row, thing.column))
        case "Is", "the", colour, shape, "small", "or", "large":
            return the(f"{colour} {shape}").size
        case "Is", "the", "background", colour:
            return "yes" if scene.background == colour else "no"
        case "Is", "the", colour, shape, *words, "the", other_colour, other_shape:
            first, second = the(f"{colour} {shape}"), the(f"{other_colour} {other_shape}")
            return "yes" if side(first, " ".join(words), second) else "no"
    raise AssertionError(text)


def test_answers_of_short_questions_are_true() -> None:
    types: Counter[str] = Counter()
    yes: Counter[str] = Counter()
    for i, scene in enumerate(SCENES):
        drawn = questions(scene, Rng("test", i), 4)
        assert len({q.text for q in drawn}) == 4
        for q in drawn:
            assert q.answer == true_answer(scene, q.text), (scene, q)
            assert q.text.lower().startswith(q.question_type)
            assert (q.answer_type == "number") == q.answer.isdigit()
            assert (q.answer_type == "yes/no") == (q.answer in ("yes", "no"))
            types[q.answer_type] += 1
            if q.answer_type == "yes/no":
                yes[q.answer] += 1
    assert min(types.values()) > 200
    # Always answering yes must not score well.
    assert 0.42 < yes["yes"] / yes.total() < 0.58


def test_ten_annotators_sometimes_disagree() -> None:
    question = Question("Where is the red circle?", "where is the", "other", "top left")
    unanimous = 0
    for i in range(1000):
        answers = annotators(question, Rng("ten", i))
        assert [a["answer_id"] for a in answers] == list(range(1, 11))
        assert {a["answer_confidence"] for a in answers} <= {"yes", "maybe", "no"}
        true = sum(a["answer"] == question.answer for a in answers)
        assert true >= 6
        unanimous += true == 10
    assert 400 < unanimous < 700


@pytest.mark.parametrize("category", CATEGORIES)
def test_options_differ_and_exactly_one_is_right(category: str) -> None:
    letters: Counter[int] = Counter()
    drawn = [(scene, choice(scene, Rng("test", i), category)) for i, scene in enumerate(SCENES)]
    for scene, item in drawn:
        if item is None:
            continue
        assert 2 <= len(item.options) <= 5
        assert len(set(item.options)) == len(item.options)
        right = item.options[item.answer]
        letters[item.answer] += 1
        assert is_right(scene, item.question, right), (scene, item)
        assert not any(is_right(scene, item.question, o) for o in item.options if o != right), (scene, item)
    assert letters.total() > 100
    assert max(letters.values()) < 0.65 * letters.total()


def is_right(scene: Scene, question: str, option: str) -> bool:
    """Whether an option is true of the scene, derived independently of the generator."""
    by_name = {t.name: t for t in scene.things}
    if question.startswith("Which color"):
        return option == scene.background
    if question.startswith("What does the picture show"):
        return all(name in option for name in by_name)
    if question.startswith("What color"):
        return [t.colour for t in scene.things if t.shape in question] == [option]
    if question.startswith("Where is"):
        return place(named_in(question, by_name)[0]) == option
    if question.startswith("Seen from"):
        second, first = named_in(question, by_name)
        return option == f"to the {'left' if first.column < second.column else 'right'}"
    if question.startswith("Which is larger"):
        first, second = named_in(question, by_name)
        if first.size == second.size:
            return option == "both are of one size"
        return option == f"the {(first if first.size == 'large' else second).name}"
    if question.startswith("How many straight"):
        return [SIDES[t.shape] for t in scene.things if f"in the {place(t)} have" in question] == [option]
    if question.startswith("If all shapes fell"):
        return by_name[option.removeprefix("the ")].row == max(t.row for t in scene.things)
    if question.startswith("If the"):
        (thing,) = named_in(question, by_name)
        step = -1 if "to the left" in question else 1
        return PLACES[thing.row][thing.column + step] == option
    colour = question.split("every ")[1].split()[0]
    return option == str(sum(t.colour != colour for t in scene.things))


def named_in(question: str, by_name: dict[str, Thing]) -> list[Thing]:
    """The objects that a question names, in that order."""
    return sorted(
        (t for name, t in by_name.items() if f"the {name}" in question), key=lambda t: question.index(f"the {t.name}")
    )


def test_circular_copies_rotate_the_options_and_keep_the_answer() -> None:
    for i, scene in enumerate(SCENES):
        item = choice(scene, Rng("test", i), "object_localization")
        assert item is not None
        copies = circular(item)
        assert len(copies) == len(item.options)
        assert copies[0] == item
        assert {c.answer for c in copies} == set(range(len(copies)))
        for before, after in pairwise(copies):
            assert after.options == (before.options[-1], *before.options[:-1])
        assert {c.options[c.answer] for c in copies} == {item.options[item.answer]}


@pytest.mark.parametrize("kind", range(KINDS))
def test_references_of_open_questions_can_be_graded(kind: int) -> None:
    graded = 0
    for i, scene in enumerate(SCENES):
        question = open_question(scene, Rng("test", i), kind)
        if question is None:
            continue
        graded += 1
        parts = question.answer.split(AND)
        for take in (0, -1):
            said = "I think it is " + " and ".join(part.split(OR)[take] for part in parts) + "."
            assert contained_fraction(question.answer, said) == 1.0
        assert contained_fraction(question.answer, "I cannot see it.") == 0.0
        assert set(question.capability) <= {"rec", "know", "gen", "spat", "math"}
    assert graded > 50
