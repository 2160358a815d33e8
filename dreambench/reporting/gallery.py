"""A image generation run's images for the page: generated beside real, with caption, score and the candidates it was chosen from."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dreambench.documents import JSON, Image
from dreambench.errors import DataError
from dreambench.reporting.examples import COUNT, choose
from dreambench.reporting.loading import Loaded
from dreambench.reporting.thumbnails import SIDE, saved_reference_images, thumbnail

__all__ = ["Candidate", "Card", "EmbeddedImage", "Strip", "strips"]

CANDIDATE_SIDE = 96
MEANINGS = {
    "clip_score": "CLIPScore of the generated image and its caption",
    "similarity": "cosine of the features of the generated image and its image",
}


@dataclass(frozen=True)
class EmbeddedImage:
    """A ``data:`` address, or the reason why there is none."""

    source: str | None
    reason: str = ""


@dataclass(frozen=True)
class Candidate:
    """One of the images among which CLIP chose; without an image where only its score was kept."""

    score: float
    chosen: bool
    image: EmbeddedImage | None


@dataclass(frozen=True)
class Card:
    """A generated sample."""

    id: str
    caption: str
    generated: EmbeddedImage
    real: EmbeddedImage
    score: float | None
    candidates: list[Candidate]


@dataclass(frozen=True)
class Strip:
    """A part of the gallery under its own heading."""

    title: str
    column: str | None
    cards: list[Card]


def strips(run: Loaded, count: int = COUNT) -> list[Strip]:
    """Worst, best, and some that nobody chose; the candidates of the last are not shown as images, for the page's size."""
    rows = [row for row in run.rows if row.get("image")]
    examples = choose(rows, count=count)
    maker = _Cards(run, examples.column)
    meaning = MEANINGS.get(examples.column or "", examples.column or "")
    found = [
        Strip(f"Worst {len(examples.worst)} by {meaning}", examples.column, maker.cards(examples.worst)),
        Strip(f"Best {len(examples.best)} by {meaning}", examples.column, maker.cards(examples.best)),
        Strip(
            f"{len(examples.unchosen)} of {len(rows)}, by a hash of their ids",
            examples.column,
            maker.cards(examples.unchosen, candidates=False),
        ),
    ]
    return [strip for strip in found if strip.cards]


class _Cards:
    def __init__(self, run: Loaded, column: str | None) -> None:
        self._run = run
        self._column = column
        self._reference_images = saved_reference_images(run.run)

    def cards(self, rows: Sequence[Mapping[str, JSON]], candidates: bool = True) -> list[Card]:
        return [self._card(row, candidates) for row in rows]

    def _card(self, row: Mapping[str, JSON], candidates: bool) -> Card:
        response = self._run.responses[row["id"]]
        paths = [Path(part.path or "") for part in response.document if isinstance(part, Image)]
        return Card(
            id=str(row["id"]),
            caption=str(row.get("caption") or ""),
            generated=_embedded(paths[0]) if paths else EmbeddedImage(None, "no image in the answer"),
            real=self._real(row.get("image_id")),
            score=None if self._column is None else row[self._column],
            candidates=_candidates(response.details, paths, candidates),
        )

    def _real(self, image_id: JSON) -> EmbeddedImage:
        if str(image_id) not in self._reference_images:
            return EmbeddedImage(None, "the run keeps no image")
        path = self._reference_images[str(image_id)]
        return EmbeddedImage(None, "no image known") if path is None else _embedded(path)


def _candidates(details: Mapping[str, JSON], paths: Sequence[Path], images: bool) -> list[Candidate]:
    """Candidates, the chosen one first, where there was a choice. `paths` are in the order of ``details["kept"]``."""
    scores: list[float] = details.get("clip_scores") or []
    if len(scores) < 2:
        return []
    chosen = details["chosen"]
    kept = dict(zip(details["kept"], paths, strict=False)) if len(paths) > 1 and images else {}
    order = sorted(range(len(scores)), key=lambda j: (j != chosen, -scores[j]))
    return [Candidate(scores[j], j == chosen, _embedded(kept[j], CANDIDATE_SIDE) if j in kept else None) for j in order]


def _embedded(path: Path, side: int = SIDE) -> EmbeddedImage:
    """A thumbnail of a file in the run. One that was taken away since leaves a gap that says so: the scores do not need it."""
    try:
        data = thumbnail(path, side)
    except DataError:
        return EmbeddedImage(None, f"{path.name} is missing or damaged")
    return EmbeddedImage(f"data:image/jpeg;base64,{base64.b64encode(data).decode()}")
