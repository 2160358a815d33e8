"""A study: who rates which document of which system, in which order. The key that unblinds it stays with the organiser.

STUDY/raters/<rater>/    what a rater gets: a page, images under opaque names, `study.json` (`Study.public`)
STUDY/organiser/key.json the `Study`: systems, purposes and expected answers of all items
STUDY/organiser/ratings/ one JSON-lines file of `Rating` for each imported source
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from dreambench.documents import JSON, digest
from dreambench.errors import DataError
from dreambench.files import read_json, write_atomically

__all__ = ["Answer", "Item", "Purpose", "Question", "Rater", "Rating", "Study"]

FORMAT = 1
KEY = Path("organiser/key.json")
RATINGS = Path("organiser/ratings")
VOTES = ("a", "b", "tie", "both_good", "both_bad")
"""Answers to a pairwise question; ``a`` is the document shown first (on the left)."""

Answer: TypeAlias = int | str
"""accept: 0 or 1; likert: 1 (lowest) to the number of labels; pairwise: one of `VOTES`."""
Purpose: TypeAlias = Literal["training", "attention", "study", "repeat"]
Id: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Question(_Frozen):
    """A question about an item. `labels` are the answers in words, lowest first; ``pairwise`` questions need none."""

    id: Id
    text: str
    kind: Literal["accept", "likert", "pairwise"] = "accept"
    labels: tuple[str, ...] = ("reject", "accept")

    def allows(self, answer: Answer) -> bool:
        if self.kind == "pairwise":
            return answer in VOTES
        first = 0 if self.kind == "accept" else 1
        return type(answer) is int and first <= answer < first + len(self.labels)


class Item(_Frozen):
    """What a rater sees at once: one document, or two to compare, in the order shown.

    A document is a list of ``{"text": ...}`` and ``{"image": NAME, "width": ..., "height": ...}``, NAME a file under ``images/``.
    The id says nothing about the prompt or the systems.
    """

    id: Id
    purpose: Purpose
    prompt: str
    topic: str | None
    instruction: str
    systems: tuple[str, ...] = Field(min_length=1, max_length=2)
    documents: tuple[tuple[dict[str, str | int], ...], ...]
    questions: tuple[Id, ...]
    expected: dict[Id, Answer] = {}
    """Answers to training and attention items."""
    repeats: Id | None = None
    """The item that this one shows a second time."""

    @model_validator(mode="after")
    def _one_document_per_system(self) -> Item:
        if len(self.documents) != len(self.systems):
            raise ValueError(f"item {self.id} has {len(self.documents)} documents of {len(self.systems)} systems")
        return self


class Rater(_Frozen):
    """A rater's link and the items, in the order shown."""

    id: Id
    token: Id
    """Opens the rater's link and seals the ratings; unguessable."""
    items: tuple[Id, ...]


class Rating(_Frozen):
    """One answer. A rater's ratings form a chain: `seal` hashes the rater's token, the seal before it and the answer."""

    study: str
    rater: Id
    item: Id
    question: Id
    answer: Answer
    seconds: float = Field(ge=0, allow_inf_nan=False)
    """Time that the item was visible before this answer."""
    seal: str = ""

    def sealed(self, token: str, before: str = "") -> str:
        """The seal of this rating after the seal `before`: the first 32 hex digits of a sha256. It shows edits; it stops no forger."""
        parts = [
            token,
            before,
            self.study,
            self.rater,
            self.item,
            self.question,
            str(self.answer),
            f"{self.seconds:.3f}",
        ]
        return digest(parts)[:32]


class Study(_Frozen):
    """The key: everything about a study, before the first rating."""

    format: Literal[1] = FORMAT
    title: str
    consent: str
    warning: str
    design: dict[str, JSON]
    """Mode, seed, counts, the rule for stopping: fixed before the first rating."""
    questions: tuple[Question, ...]
    systems: dict[str, JSON]
    """By name: the run (path, id, protocol) or ``references``."""
    items: tuple[Item, ...]
    raters: tuple[Rater, ...]

    @model_validator(mode="after")
    def _refers_to_itself(self) -> Study:
        items, questions = {item.id for item in self.items}, {question.id for question in self.questions}
        named = {id_ for rater in self.raters for id_ in rater.items} | {
            item.repeats for item in self.items if item.repeats is not None
        }
        asked = {id_ for item in self.items for id_ in (*item.questions, *item.expected)}
        for what, missing in (("item", named - items), ("question", asked - questions)):
            if missing:
                raise ValueError(f"{what} {min(missing)} is named but not given")
        return self

    @cached_property
    def id(self) -> str:
        """First 16 hex digits of the sha256 of the key: another design or another item makes another study."""
        return digest(self.model_dump(mode="json"))[:16]

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        copy = super().model_copy(update=update, deep=deep)
        vars(copy).pop("id", None)  # another study has another id
        return copy

    @classmethod
    def read(cls, folder: Path) -> Study:
        """The key of a study's folder. Raises `DataError` where it is missing or damaged."""
        path = folder / KEY
        if not path.is_file():
            raise DataError(f"{folder} is not a study (no {KEY} in it): make one with `dreambench human export`")
        try:
            return cls.model_validate_json(json.dumps(read_json(path)))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "key"
            raise DataError(f"{path} is damaged ({where}: {first['msg']}): export the study again") from error

    def write(self, folder: Path) -> None:
        text = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
        write_atomically(folder / KEY, text.encode())

    def public(self, rater: Rater) -> JSON:
        """What the rater's page knows. Neither systems nor prompts, topics, purposes or expected answers, but those of training items."""
        by_id: Mapping[str, Item] = {item.id: item for item in self.items}

        def shown(item: Item) -> JSON:
            known: dict[str, JSON] = {
                name: getattr(item, name) for name in ("id", "instruction", "documents", "questions")
            }
            if item.purpose == "training":
                known |= {"training": True, "expected": item.expected}
            return known

        return {
            "format": self.format,
            "study": self.id,
            "title": self.title,
            "consent": self.consent,
            "warning": self.warning,
            "rater": rater.id,
            "token": rater.token,
            "questions": [question.model_dump(mode="json") for question in self.questions],
            "items": [shown(by_id[id_]) for id_ in rater.items],
        }
