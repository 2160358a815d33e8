"""What raters read and are asked: questions, consent, training and attention checks. A file replaces what is said here."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from dreambench.documents import JSON, Document, Image, Text, canonical_json
from dreambench.errors import UsageError
from dreambench.files import parse_yaml, read_text
from dreambench.human.design import Mode
from dreambench.human.study import Answer, Question

__all__ = ["Check", "Texts", "attention_checks", "read_texts", "training_items"]

ACCEPT = Question(
    id="accept",
    text="Do you accept this document? Judge it as a whole: the text, the images, how they fit each other and the instruction.",
)
PREFERENCE = Question(
    id="preference", text="Which document fulfils the instruction better?", kind="pairwise", labels=()
)
CONSENT = """\
You will see documents of text and images, one page after the other, and answer the same questions about each. Some pages check \
attention, and some come twice.

Your answers and the time you take for each are stored under a number, without your name. Taking part is voluntary; you may stop at any \
time by closing this page."""
WARNING = """\
The texts and images were made by programs or collected from the web. Nobody has filtered them: some may be false, disturbing or \
offensive. Stop whenever you want."""
STOPPING_RULE = (
    "The study ends when every rater has rated every item. Nothing is analysed before, and no rater is added after."
)


class Texts(BaseModel):
    """What a file given by ``--questions`` may say, all of it optional."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    title: str = "Documents of text and images"
    consent: str = CONSENT
    warning: str = WARNING
    stopping_rule: str = STOPPING_RULE
    questions: tuple[Question, ...] = ()

    @model_validator(mode="after")
    def _distinct(self) -> Texts:
        ids = [question.id for question in self.questions]
        if len(set(ids)) < len(ids):
            raise ValueError("two questions have one id")
        for question in self.questions:
            wanted = {"accept": (2, 2), "likert": (2, 11), "pairwise": (0, 2)}[question.kind]
            if not wanted[0] <= len(question.labels) <= wanted[1]:
                raise ValueError(f"question {question.id} ({question.kind}) has {len(question.labels)} labels")
            if len({label.strip() for label in question.labels} - {""}) < len(question.labels):
                raise ValueError(f"question {question.id} has an empty label, or one label twice")
        return self


def read_texts(file: Path | None, mode: Mode, **given: str | None) -> Texts:
    """The defaults, replaced by a YAML or JSON file, replaced by what is `given`.

    Raises:
        UsageError: the file is missing, is neither YAML nor JSON, or asks something else than `Texts` can hold, or than `mode` shows.
    """
    known: JSON = {} if file is None else _parsed(file)
    known = {"questions": known} if isinstance(known, list) else known
    if not isinstance(known, dict):
        raise UsageError(f"{file}: give an object with `questions`, or the list of questions")
    known |= {name: text for name, text in given.items() if text is not None}
    try:
        canonical_json(known).encode()
        texts = Texts.model_validate_json(json.dumps(known))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "questions"
        raise UsageError(f"{file or 'the texts'}: {where}: {first['msg']}") from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"{file or 'the texts'}: not plain Unicode text ({error})") from error
    if not texts.questions:
        texts = texts.model_copy(update={"questions": (ACCEPT if mode == "rating" else PREFERENCE,)})
    for question in texts.questions:
        if (question.kind == "pairwise") != (mode == "pairwise"):
            raise UsageError(f"{file}: question {question.id} is {question.kind}, which --mode {mode} cannot ask")
    return texts


def _parsed(file: Path) -> JSON:
    if not file.is_file():
        raise UsageError(f"--questions {file}: no such file")
    text = read_text(file, UsageError)
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise UsageError(f"--questions {file}: neither YAML nor JSON ({error})") from error


# --- training and attention -------------------------------------------------------------------------------------------
# Drawn here and written here, so that they belong to no system and their answers are beyond doubt. What is right cannot be known of
# questions that others wrote: there, the document says what to answer.

COLOURS = {"red": "#c8281e", "blue": "#2846c8", "green": "#1e8c3c", "yellow": "#e6c81e"}
SHAPES = ("circle", "square", "triangle")
READING = "This page checks that you read: it is no document to judge."


@dataclass(frozen=True)
class Check:
    """An item with known answers."""

    instruction: str
    documents: tuple[Document, ...]
    expected: dict[str, Answer]


def training_items(questions: Sequence[Question]) -> list[Check]:
    """Two items that show how to answer, one of each kind of answer."""
    if tuple(questions) in ((ACCEPT,), (PREFERENCE,)):
        return [_shapes(questions[0], 0, right=True), _shapes(questions[0], 1, right=False)]
    return [_told(questions, high=True), _told(questions, high=False)]


def attention_checks(questions: Sequence[Question], n: int) -> list[Check]:
    """`n` items: in turn one that says what to answer and, for the questions that come with the package, one with a wrong image."""
    own = tuple(questions) in ((ACCEPT,), (PREFERENCE,))
    return [
        _shapes(questions[0], 2 + k, right=questions[0].kind == "pairwise" and k % 4 == 1)
        if own and k % 2
        else _told(questions, high=k % 4 == 2)
        for k in range(n)
    ]


def _told(questions: Sequence[Question], *, high: bool) -> Check:
    """A document that says which answers to give: the highest or lowest ones, or the first or second document."""
    if questions[0].kind == "pairwise":
        this, other = Text("Choose this document."), Text("Choose the other document.")
        documents = ((this,), (other,)) if high else ((other,), (this,))
        return Check(READING, documents, {question.id: "a" if high else "b" for question in questions})
    labels = [question.labels[-1 if high else 0] for question in questions]
    text = f"Choose “{labels[0]}”."
    if len(labels) > 1:
        text = "\n".join(f"Question {number}: choose “{label}”." for number, label in enumerate(labels, 1))
    expected: dict[str, Answer] = {}
    for question in questions:
        expected[question.id] = (0 if question.kind == "accept" else 1) + (len(question.labels) - 1 if high else 0)
    return Check(READING, ((Text(text),),), expected)


def _shapes(question: Question, number: int, *, right: bool) -> Check:
    """A sentence about a shape, with an image of it or of another one; in a pairwise study both, the fitting one first if `right`."""
    colours = list(COLOURS)
    colour, shape = colours[number % len(colours)], SHAPES[number % len(SHAPES)]
    other = colours[(number + 2) % len(colours)], SHAPES[(number + 1) % len(SHAPES)]
    sentence = Text(f"This is a {colour} {shape}.")
    fitting, wrong = (sentence, _drawn(colour, shape)), (sentence, _drawn(*other))
    instruction = f"Show a {colour} {shape}, and write one sentence about it."
    if question.kind == "pairwise":
        documents = (fitting, wrong) if right else (wrong, fitting)
        return Check(instruction, documents, {question.id: "a" if right else "b"})
    return Check(instruction, (fitting if right else wrong,), {question.id: int(right)})


def _drawn(colour: str, shape: str) -> Image:
    from PIL import Image as Pillow
    from PIL import ImageDraw

    image = Pillow.new("RGB", (256, 256), "white")
    draw = ImageDraw.Draw(image)
    if shape == "circle":
        draw.ellipse((48, 48, 208, 208), fill=COLOURS[colour])
    elif shape == "square":
        draw.rectangle((48, 48, 208, 208), fill=COLOURS[colour])
    else:
        draw.polygon([(128, 40), (216, 208), (40, 208)], fill=COLOURS[colour])
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return Image(data=buffer.getvalue())
