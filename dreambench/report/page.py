"""The page: runs as one HTML file that loads nothing, runs no script and contacts no server.

Answers and data are other people's text: the template escapes every text (autoescape), control characters are written out, and
the page's Content-Security-Policy allows only its style and the images inside it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dreambench.documents import JSON, Image
from dreambench.errors import DataError, UsageError
from dreambench.files import write_atomically
from dreambench.progress import say
from dreambench.report.documents import document_cards
from dreambench.report.images import SIDE, captioned_sheet, saved_reference_images, thumbnail
from dreambench.report.runs import COUNT, CompleteRun, choose
from dreambench.report.tables import Line, incomparable, lines, saved_tables
from dreambench.report.text import (
    decimals,
    flat,
    interval_text,
    method_text,
    number,
    printable,
    unscored_text,
    value_text,
)
from dreambench.scores import Score

__all__ = ["page", "write_page", "write_sheet"]

ANSWERS = 8
"""Best and worst answers of a run of text generation."""
CHARACTERS = 400
"""Characters of a question or an answer that a table shows."""
CANDIDATE_SIDE = 96
"""Pixels of a candidate's longer side, at most."""
COLUMNS = {
    "clip_score": "CLIPScore of the generated image and its caption",
    "similarity": "cosine similarity of the features of the generated and the reference image",
}


def write_page(runs: Sequence[CompleteRun], target: Path, comparison: Any = None) -> None:
    """``report RUN... --html FILE``: runs as one self-contained HTML file."""
    _write(target, "--html", page(runs, comparison).encode())


def write_sheet(run: CompleteRun, target: Path) -> None:
    """``report RUN --sheet FILE``: the generated images of a run as one PNG."""
    _write(target, "--sheet", captioned_sheet(run))


def _write(target: Path, option: str, data: bytes) -> None:
    try:
        write_atomically(target, data)
    except OSError as error:
        raise UsageError(f"{option} {target}: {error.strerror or error}") from error
    say(f"wrote {target} ({len(data) / 1e6:.1f} MB)")


def page(runs: Sequence[CompleteRun], comparison: Any = None) -> str:
    """The HTML of one or several runs, images as ``data:`` URLs. The same runs give the same bytes.

    A `comparison` of the runs stands first; ``comparison.html.j2`` shows it under that name.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dreambench.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: printable(value, keep="\n") if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found = lines(runs)
    places = decimals(line.score for line in found)
    filters: dict[str, Any] = {"number": number, "method": method_text, "bar": _bar}
    for name, text in {"value": value_text, "interval": interval_text, "unscored": unscored_text}.items():
        filters[name] = partial(text, places=places)
    if comparison is not None:
        from dreambench.report.comparison import FILTERS

        filters |= FILTERS
    environment.filters.update(filters)
    with_images = sum(run.has_images for run in runs)
    return environment.get_template("page.html.j2").render(
        sections=[_section(run, max(2, COUNT // max(with_images, 1))) for run in runs],
        comparison=comparison,
        overview=_overview(found),
        incomparable=incomparable(found),
    )


def _section(run: CompleteRun, count: int) -> dict[str, Any]:
    """What the template shows of one run."""
    environment = run.run.run_file()["environment"]
    return {
        "run": run,
        "strips": _strips(run, count) if run.has_images else [],
        "documents": document_cards(run, _embedded),
        "examples": [] if run.has_images else _answers(run),
        "protocols": _side_by_side(run.metrics["protocols"]),
        "tables": saved_tables(run.run.path),
        "errors": _errors(run),
        "system": flat(run.metrics["system"]),
        "environment": flat(
            {**environment.get("device", {}), **environment.get("machine", {}), **environment.get("versions", {})}
        ),
    }


def _overview(found: Sequence[Line]) -> dict[str, list[Line]]:
    """The scores over all samples, by protocol."""
    overview: dict[str, list[Line]] = {}
    for line in found:
        if line.score.group is None:
            overview.setdefault(line.score.protocol, []).append(line)
    return overview


def _answers(run: CompleteRun) -> list[tuple[str, list[dict[str, JSON]]]]:
    """The worst and the best answers of a run of text generation, with their questions; empty if its rows have no answers."""
    rows = [row for row in run.rows if row.get("answer") is not None]
    examples = choose(rows, run.scores[0].metric if run.scores else "", ANSWERS)
    return [
        (
            f"{title} {len(part)} of {len(rows)} answers by {examples.column}",
            [
                {
                    "id": row["id"],
                    "question": _shortened(run.prompts.get(row["id"], "")),
                    "answer": _shortened(str(row["answer"])),
                    "score": row[examples.column or ""],
                }
                for row in part
            ],
        )
        for title, part in (("Worst", examples.worst), ("Best", examples.best))
        if part
    ]


def _shortened(text: str) -> str:
    text = text.strip()
    return text if len(text) <= CHARACTERS else text[: CHARACTERS - 1] + "…"


def _errors(run: CompleteRun) -> list[tuple[str, int, str, str]]:
    """Each type of error, its number of samples, the first of them and its message."""
    found: list[tuple[str, int, str, str]] = []
    for name, kind in run.metrics["errors"]["types"].items():
        error = run.responses[kind["ids"][0]].error
        found.append((name, kind["n"], kind["ids"][0], _shortened(error.message) if error else ""))
    return found


def _side_by_side(protocols: Mapping[str, Mapping[str, JSON]]) -> list[tuple[str, list[JSON]]]:
    """For each field its value in each protocol; a single value where all agree."""
    flattened = {id_: dict(flat(fields)) for id_, fields in protocols.items()}
    found: list[tuple[str, list[JSON]]] = []
    for name in dict.fromkeys(name for fields in flattened.values() for name in fields):
        values = [fields.get(name, "–") for fields in flattened.values()]
        found.append((name, values[:1] if len({str(value) for value in values}) == 1 else values))
    return found


def _bar(score: Score) -> tuple[float, float, float] | None:
    """The interval's ends and the value of a score in percent, for its bar."""
    if score.unit != "%" or score.value is None or not 0 <= score.value <= 100:
        return None
    low, high = score.interval or (score.value, score.value)
    return max(low, 0.0), min(high, 100.0), score.value


# --- the gallery ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EmbeddedImage:
    """A ``data:`` URL, or the reason why there is none."""

    source: str | None
    reason: str = ""


@dataclass(frozen=True)
class Candidate:
    """One of the images from which CLIP chose; without an image where only its score was kept."""

    score: float
    chosen: bool
    image: EmbeddedImage | None


@dataclass(frozen=True)
class Card:
    """A generated image beside its reference image, with caption, score and candidates."""

    id: str
    caption: str
    generated: EmbeddedImage
    reference: EmbeddedImage
    score: float | None
    candidates: list[Candidate]


@dataclass(frozen=True)
class Strip:
    """A part of the gallery under its own heading."""

    title: str
    column: str | None
    cards: list[Card]


def _strips(run: CompleteRun, count: int) -> list[Strip]:
    """The worst, the best and random samples; of the random samples' candidates only the scores, to keep the page small."""
    rows = [row for row in run.rows if row.get("image")]
    examples = choose(rows, count=count)
    column = examples.column
    by = COLUMNS.get(column or "", column or "")
    references = saved_reference_images(run.run)
    parts = [
        (f"Worst {len(examples.worst)} by {by}", examples.worst, True),
        (f"Best {len(examples.best)} by {by}", examples.best, True),
        (f"{len(examples.random)} random samples of {len(rows)}", examples.random, False),
    ]
    return [
        Strip(title, column, [_card(run, row, column, references, show) for row in part])
        for title, part, show in parts
        if part
    ]


def _card(
    run: CompleteRun,
    row: Mapping[str, JSON],
    column: str | None,
    references: Mapping[str, Path | None],
    show_candidates: bool,
) -> Card:
    response = run.responses[row["id"]]
    paths = [Path(part.path or "") for part in response.document if isinstance(part, Image)]
    image_id = str(row.get("image_id"))
    reference = references.get(image_id)
    if reference is not None:
        shown = _embedded(reference)
    else:
        shown = EmbeddedImage(None, "no reference image" if image_id in references else "not kept in the run")
    return Card(
        id=str(row["id"]),
        caption=str(row.get("caption") or ""),
        generated=_embedded(paths[0]) if paths else EmbeddedImage(None, "no image in the answer"),
        reference=shown,
        score=None if column is None else row[column],
        candidates=_candidates(response.details, paths, show_candidates),
    )


def _candidates(details: Mapping[str, JSON], paths: Sequence[Path], show: bool) -> list[Candidate]:
    """The candidates, the chosen one first, if there were several. `paths` are in the order of ``details["kept"]``."""
    scores: list[float] = details.get("clip_scores") or []
    if len(scores) < 2:
        return []
    chosen = details["chosen"]
    kept = dict(zip(details["kept"], paths, strict=False)) if len(paths) > 1 and show else {}
    order = sorted(range(len(scores)), key=lambda j: (j != chosen, -scores[j]))
    return [Candidate(scores[j], j == chosen, _embedded(kept[j], CANDIDATE_SIDE) if j in kept else None) for j in order]


def _embedded(path: Path | None, side: int = SIDE) -> EmbeddedImage:
    """A thumbnail of a file in the run, or the reason why there is none."""
    if path is None:
        return EmbeddedImage(None, "not kept in the run")
    try:
        data = thumbnail(path, side)
    except DataError:
        return EmbeddedImage(None, f"{path.name} is missing or damaged")
    return EmbeddedImage(f"data:image/jpeg;base64,{base64.b64encode(data).decode()}")
