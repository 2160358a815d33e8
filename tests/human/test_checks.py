"""Training items and attention checks: the expected answer is the one that the documents themselves ask for."""

from __future__ import annotations

import io
from contextlib import suppress
from typing import Any

import pytest
from PIL import Image as Pillow
from PIL import ImageColor
from pydantic import ValidationError

from dreambench.documents import Document, Image, Text
from dreambench.human.study import Question
from dreambench.human.texts import ACCEPT, COLOURS, PREFERENCE, Check, Texts, attention_checks, training_items

MOOD = Question(id="mood", text="How glad is it?", kind="likert", labels=("sad", "even", "glad"))
OFTEN = Question(id="often", text="How often?", kind="likert", labels=("never", "always"))


def shown(image: Image) -> str:
    """Colour and shape, by what is filled: a corner of the square, or a point of the circle that is outside the triangle."""
    pixels = Pillow.open(io.BytesIO(image.read())).convert("RGB")
    names = {ImageColor.getrgb(code): name for name, code in COLOURS.items()}
    filled = [pixels.getpixel(point) in names for point in ((52, 52), (160, 70))]
    shape = {(True, True): "square", (False, True): "circle"}.get((filled[0], filled[1]), "triangle")
    return f"This is a {names[pixels.getpixel((128, 150))]} {shape}."  # type: ignore[index]


def right(document: Document, labels: tuple[str, ...]) -> int | bool:
    """Whether the document is the one to choose; or, if it says which, the number of the label to choose."""
    (text, *images) = document
    assert isinstance(text, Text)
    if images:
        assert isinstance(images[0], Image)
        return shown(images[0]) == text.text
    if "document" in text.text:
        return text.text == "Choose this document."
    return next(number for number, label in enumerate(labels) if f"“{label}”" in text.text)


@pytest.mark.parametrize("question", [ACCEPT, PREFERENCE, MOOD])
def test_the_documents_of_a_check_ask_for_the_expected_answer(question: Question) -> None:
    checks: list[Check] = [*training_items([question]), *attention_checks([question], 9)]
    for check in checks:
        asked = [int(right(document, question.labels)) for document in check.documents]
        if question.kind == "pairwise":
            assert sorted(asked) == [0, 1]
            assert check.expected == {question.id: "ab"[asked.index(1)]}
        else:
            assert check.expected == {question.id: asked[0] + (question.kind == "likert")}
    for some in (checks[:2], checks[2:]):
        assert len({*(check.expected[question.id] for check in some)}) == 2  # no answer is always right
    images = [isinstance(part, Image) for check in checks for document in check.documents for part in document]
    assert any(images) == (question is not MOOD)  # what is right for questions of others, an image cannot say


def test_a_check_of_several_questions_names_each_answer() -> None:
    low, high = attention_checks([MOOD, OFTEN], 3)[1:]
    assert low.documents == ((Text("Question 1: choose “sad”.\nQuestion 2: choose “never”."),),)
    assert low.expected == {"mood": 1, "often": 1}
    assert high.documents == ((Text("Question 1: choose “glad”.\nQuestion 2: choose “always”."),),)
    assert high.expected == {"mood": 3, "often": 2}


@pytest.mark.parametrize(("kind", "allowed"), [("pairwise", {0, 1, 2}), ("accept", {2}), ("likert", {*range(2, 12)})])
def test_each_kind_of_question_has_its_numbers_of_labels(kind: Any, allowed: set[int]) -> None:
    accepted: set[int] = set()
    for count in range(14):
        labels = tuple(f"label {k}" for k in range(count))
        with suppress(ValidationError):
            accepted |= {
                len(Texts(questions=(Question(id="q", text="?", kind=kind, labels=labels),)).questions[0].labels)
            }
    assert accepted == allowed
