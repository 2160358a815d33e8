"""Generated documents on the page: random ones, each with its instruction and its reference document."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambench.documents import JSON, Image, Text
from dreambench.report.images import saved_reference_images
from dreambench.report.runs import CompleteRun, shown_documents

__all__ = ["DocumentCard", "document_cards"]

SIDE = 160
"""Pixels of an image's longer side, at most."""
CHARACTERS = 4000
"""Characters of one text that the page shows."""


@dataclass(frozen=True)
class DocumentCard:
    """Parts are texts, or images as the page embeds them. `facts` are what the scores say of the document."""

    id: str
    topic: str
    instruction: str
    generated: list[Any]
    reference: list[Any]
    facts: str


def document_cards(run: CompleteRun, embedded: Callable[[Path | None, int], Any]) -> list[DocumentCard]:
    """Random documents of a run, the same in every call; empty for a run without documents."""
    thumbnails = saved_reference_images(run.run)
    return [_card(run, row, thumbnails, embedded) for row in shown_documents(run.rows)]


def _card(
    run: CompleteRun,
    row: Mapping[str, JSON],
    thumbnails: Mapping[str, Path | None],
    embedded: Callable[[Path | None, int], Any],
) -> DocumentCard:
    response, targets = run.responses[row["id"]], run.samples[row["id"]].targets
    images = sum(isinstance(part, Image) for part in response.document)
    wanted = targets.get("expected_images")
    return DocumentCard(
        id=str(row["id"]),
        topic=str(targets.get("topic") or ""),
        instruction=_shortened(run.prompts[row["id"]]),
        generated=[
            _shortened(part.text) if isinstance(part, Text) else embedded(Path(part.path or ""), SIDE)
            for part in response.document
        ],
        reference=list(_reference(targets, thumbnails, embedded)),
        facts=f"{images} images{'' if wanted is None else f', {wanted} requested'}; ended by {response.finish_reason}",
    )


def _reference(
    targets: Mapping[str, JSON],
    thumbnails: Mapping[str, Path | None],
    embedded: Callable[[Path | None, int], Any],
) -> Iterable[Any]:
    number = 0
    for part in targets.get("reference") or ():
        if "text" in part:
            yield _shortened(part["text"])
        else:
            yield embedded(thumbnails.get(f"{targets['document_id']}/{number}"), SIDE)
            number += 1


def _shortened(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[: CHARACTERS - 1] + "…"
