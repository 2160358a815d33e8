"""Small studies on disk, with the page and images that raters get."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from dreambench.human.page import render_page
from dreambench.human.study import Item, Question, Rater, Rating, Study

ACCEPT = Question(id="accept", text="Would you accept this document as an answer?")
QUALITY = Question(
    id="quality", text="How good is it?", kind="likert", labels=("very bad", "bad", "fair", "good", "very good")
)
PREFER = Question(id="prefer", text="Which document is better?", kind="pairwise")
TRAINED = {"accept": 1, "quality": 5, "prefer": "a"}
"""The expected answers of the training item."""


def webp(color: str, side: int = 96) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), color).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def document(text: str, image: str | None = "red.webp") -> tuple[dict[str, Any], ...]:
    return ({"text": text}, *([{"image": image, "width": 96, "height": 96}] if image else []))


def make_study(
    folder: Path,
    *,
    questions: tuple[Question, ...] = (ACCEPT,),
    items: int = 4,
    raters: int = 3,
    documents: tuple[tuple[dict[str, Any], ...], ...] | None = None,
    title: str = "Illustrated stories",
    consent: str = "You will rate documents.\nYou can stop at any time.",
    warning: str = "Some documents may be unpleasant.",
    instruction: str = "Write story {k} and illustrate it.",
) -> Study:
    """A study of one training item and `items` others, all shown to every rater, and its folder.

    `documents` are those of all items that are not for training.
    """
    ids = tuple(question.id for question in questions)
    systems = ("one", "two") if PREFER in questions else ("one",)

    def item(k: int) -> Item:
        shown = documents or tuple(document(f"Story {k} as {name} tells it.") for name in systems)
        training: dict[str, Any] = {"expected": {name: TRAINED[name] for name in ids}} if k == 0 else {}
        return Item(
            id=f"item-{k}",
            purpose="training" if k == 0 else "study",
            prompt=f"prompt-{k}",
            topic="weather",
            instruction=instruction.replace("{k}", str(k)),
            systems=systems,
            documents=tuple(document("An example.", "green.webp") for _ in systems) if k == 0 else shown,
            questions=ids,
            **training,
        )

    every = tuple(item(k) for k in range(items + 1))
    study = Study(
        title=title,
        consent=consent,
        warning=warning,
        design={"mode": "pairwise" if len(systems) == 2 else "rating", "seed": 0},
        questions=questions,
        systems={name: {"run": f"runs/secret-{name}"} for name in systems},
        items=every,
        raters=tuple(
            Rater(id=f"rater-{k}", token=f"token-{k}-0123456789abcdef", items=tuple(each.id for each in every))
            for k in range(1, raters + 1)
        ),
    )
    study.write(folder)
    for rater in study.raters:
        images = folder / "raters" / rater.id / "images"
        images.mkdir(parents=True)
        for color in ("red", "green"):
            (images / f"{color}.webp").write_bytes(webp(color))
        (images.parent / "index.html").write_text(render_page(study.public(rater)), encoding="utf-8")
    return study


def chain(study: Study, rater: Rater, answers: list[tuple[str, str, int | str]]) -> list[Rating]:
    """Sealed ratings from (item, question, answer)."""
    ratings: list[Rating] = []
    for item, question, answer in answers:
        rating = Rating(
            study=study.id, rater=rater.id, item=item, question=question, answer=answer, seconds=1.5 * len(ratings)
        )
        seal = rating.sealed(rater.token, ratings[-1].seal if ratings else "")
        ratings.append(rating.model_copy(update={"seal": seal}))
    return ratings
