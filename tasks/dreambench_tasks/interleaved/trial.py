"""The trial of metrics and judges: does a number order reference documents above the same documents spoilt on purpose?

Every metric is computed on the references and on six corruptions of them. A metric *sees* a corruption if the interval of the paired
difference, reference minus corruption, lies on its better side; it is *blind* to it if the interval holds 0; it is *misled* if the
interval lies on the other side. `HEADLINES` and `Trial.headlines` state what a headline takes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from dreambench.documents import JSON, Document, Image, Part, Text, to_json
from dreambench.errors import DataError
from dreambench.files import read_text
from dreambench.images import decode_rgb, encode_png
from dreambench.judges import GradeRequest
from dreambench.requests import sample_seed
from dreambench.statistics import paired_difference
from dreambench_tasks.interleaved.data import ReferenceDocument
from dreambench_tasks.interleaved.judging import RUBRICS, metric_name
from dreambench_tasks.interleaved.metrics import METRICS, document_metrics, encode_documents, sentences

if TYPE_CHECKING:
    from dreambench.metrics.encoders import ClipScorer

__all__ = ["CORRUPTIONS", "HEADLINES", "Trial", "TrialRow", "corrupted", "document_values", "grade_requests"]
__all__ += ["recorded_trial", "run_trial"]

REFERENCE = "reference"
GREY = (128, 128, 128)

Verdict = Literal["sees", "blind", "misled", "does not apply"]

# --- corruptions ------------------------------------------------------------------------------------------------------
# Each takes a document, a generator of its own and the other documents' images, and gives the corrupted document, or None where it
# would not differ.

Corruption = Callable[[Document, np.random.Generator, Sequence[Image]], Document | None]


def _images(document: Document) -> list[Image]:
    return [part for part in document if isinstance(part, Image)]


def _with_images(document: Document, images: Sequence[Image]) -> Document:
    following = iter(images)
    return tuple(next(following) if isinstance(part, Image) else part for part in document)


def _shuffled(document: Document, rng: np.random.Generator, others: Sequence[Image]) -> Document | None:
    """No image stays where it was."""
    images = _images(document)
    if len(images) < 2:
        return None
    order = rng.permutation(len(images))
    turned = np.empty_like(order)
    turned[order] = np.roll(order, 1)  # one cycle through all images, in random order
    return _with_images(document, [images[index] for index in turned])


def _from_others(document: Document, rng: np.random.Generator, others: Sequence[Image]) -> Document | None:
    images = _images(document)
    chosen = rng.choice(len(others), len(images), replace=len(others) < len(images)) if len(others) else []
    return _with_images(document, [others[index] for index in chosen]) if len(chosen) else None


def _repeated(document: Document, rng: np.random.Generator, others: Sequence[Image]) -> Document | None:
    images = _images(document)
    if len(images) < 2:
        return None
    kept, lost = rng.choice(len(images), 2, replace=False)
    images[lost] = images[kept]
    return _with_images(document, images)


def _grey(document: Document, rng: np.random.Generator, others: Sequence[Image]) -> Document | None:
    import PIL.Image

    sizes = [decode_rgb(image).size for image in _images(document)]
    return _with_images(document, [Image(data=encode_png(PIL.Image.new("RGB", size, GREY))) for size in sizes])


def _removed(document: Document, rng: np.random.Generator, others: Sequence[Image]) -> Document | None:
    places = [place for place, part in enumerate(document) if isinstance(part, Image)]
    gone = places[int(rng.integers(len(places)))]
    return (*document[:gone], *document[gone + 1 :])


def _reversed(document: Document, rng: np.random.Generator, others: Sequence[Image]) -> Document | None:
    """Every text keeps its place and its number of sentences."""
    told = [sentences(part.text) for part in document if isinstance(part, Text)]
    backwards = [sentence for text in reversed(told) for sentence in reversed(text)]
    if backwards == [sentence for text in told for sentence in text]:
        return None
    following = iter(backwards)
    counts = iter([len(text) for text in told])
    parts: list[Part] = []
    for part in document:
        if isinstance(part, Text):
            part = Text(" ".join(next(following) for _ in range(next(counts))))
        parts.append(part)
    return tuple(parts)


CORRUPTIONS: Mapping[str, tuple[str, Corruption]] = {
    "shuffled": ("the images change places within the document", _shuffled),
    "other images": ("each image is replaced by one of another document", _from_others),
    "repeated": ("one image is replaced by a copy of another", _repeated),
    "grey": ("every image is one grey of its size", _grey),
    "removed": ("one image is missing", _removed),
    "text reversed": ("the sentences stand in reverse order", _reversed),
}
_IMAGES = ("shuffled", "other images", "repeated", "grey")

HEADLINES: Mapping[str, tuple[str, ...]] = {
    "shows_what_is_told": (*_IMAGES, "text reversed"),
    "story_is_shown": (*_IMAGES, "text reversed"),
    "clip_score": (*_IMAGES, "text reversed"),
    "layout_agreement": ("removed",),
    "image_count_match": ("removed",),
    "nothing_else_changes": ("other images", "grey"),
    "image_consistency": ("other images",),
    "repeated_images": ("repeated", "grey"),
    metric_name("structure"): ("removed",),
    metric_name("block"): (*_IMAGES, "text reversed"),
    metric_name("image"): ("other images", "grey", "removed"),
    metric_name("whole"): tuple(CORRUPTIONS),
    metric_name("text-quality"): ("text reversed",),
    metric_name("perceptual-quality"): ("grey",),
    metric_name("image-coherence"): ("other images", "grey"),
    metric_name("text-image-coherence"): (*_IMAGES, "text reversed"),
    metric_name("helpfulness"): ("other images", "grey", "removed"),
}
"""The metrics that ask for a place in the headline, each with the corruptions that it is meant to see."""


def corrupted(documents: Sequence[ReferenceDocument], name: str, seed: int = 0) -> list[Document | None]:
    """Each document under a corruption, a function of (seed, document id) and of all documents; None where it does not apply."""
    change = CORRUPTIONS[name][1]
    found: list[Document | None] = []
    for index, reference in enumerate(documents):
        rng = np.random.default_rng(sample_seed(seed, f"{name}\0{reference.id}"))
        others = [image for other in (*documents[:index], *documents[index + 1 :]) for image in other.images]
        found.append(change(reference.document, rng, others))
    return found


# --- values -----------------------------------------------------------------------------------------------------------

Values = list[dict[str, float | None] | None]
"""Metrics of each document by name; None for a document to which a corruption does not apply."""


def document_values(
    documents: Sequence[ReferenceDocument], changed: Sequence[Document | None], scorer: ClipScorer | None
) -> Values:
    """The automatic metrics of documents in the place of references."""
    present = [document for document in changed if document is not None]
    features = iter(encode_documents(present, scorer) if scorer is not None and present else [None] * len(present))
    values: Values = []
    for reference, document in zip(documents, changed, strict=True):
        targets: dict[str, JSON] = {
            "expected_images": reference.expected_images,
            "reference": to_json(reference.document),
            "truth": reference.truth,
        }
        values.append(None if document is None else document_metrics(document, targets, next(features)))
    return values


def grade_requests(
    documents: Sequence[ReferenceDocument], changed: Sequence[Document | None], name: str
) -> dict[str, GradeRequest]:
    """What judges grade, under ids ``<name>/<document id>``."""
    return {
        f"{name}/{reference.id}": GradeRequest("", 0, reference.instruction, "", "", document, reference.document)
        for reference, document in zip(documents, changed, strict=True)
        if document is not None
    }


# --- the table --------------------------------------------------------------------------------------------------------


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TrialRow(_Model):
    """A metric under a corruption. `difference` is reference minus corruption, with its interval over documents.

    `n` counts the documents on which both are defined; `undefined` those on which the corruption leaves the metric undefined.
    """

    metric: str
    corruption: str
    n: int
    undefined: int
    reference: float | None
    corrupted: float | None
    difference: float | None
    interval: tuple[float, float] | None
    verdict: Verdict


class Trial(_Model):
    """The table of a trial, and what it was of."""

    command: str
    versions: dict[str, str]
    data_sha256: str
    clip_sha256: str | None
    judges: dict[str, dict[str, JSON]]
    documents: int
    images: int
    seed: int
    rows: tuple[TrialRow, ...]

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(row.metric for row in self.rows))

    def of(self, metric: str, verdict: Verdict) -> list[str]:
        """The corruptions under which a metric has a verdict."""
        return [row.corruption for row in self.rows if row.metric == metric and row.verdict == verdict]

    def verdict(self, metric: str) -> str:
        """``orders all`` where the reference is above every corruption, else what the metric is blind to or misled by."""
        failed = {name: self.of(metric, name) for name in ("blind", "misled")}
        parts = [
            f"{'misled by' if name == 'misled' else 'blind to'} {', '.join(found)}"
            for name, found in failed.items()
            if found
        ]
        if not self.of(metric, "sees"):
            return f"fails: {'; '.join(parts)}" if parts else "fails: no corruption applies"
        return f"does not order all: {'; '.join(parts)}" if parts else "orders all"

    def enters_headline(self, metric: str) -> bool:
        """The rule: it sees every corruption that `HEADLINES` names for it, and no corruption misleads it."""
        meant = HEADLINES.get(metric, ())
        return bool(meant) and set(meant) <= set(self.of(metric, "sees")) and not self.of(metric, "misled")

    @property
    def headlines(self) -> list[str]:
        """The metrics that enter the headline, in the order of `HEADLINES`."""
        return [metric for metric in HEADLINES if metric in self.metrics and self.enters_headline(metric)]


def _row(metric: str, better: str, corruption: str, pairs: Sequence[tuple[float | None, float | None]]) -> TrialRow:
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    undefined = sum(a is not None and b is None for a, b in pairs)
    fields = {"metric": metric, "corruption": corruption, "n": len(known), "undefined": undefined}
    if len(known) < 2:
        empty = dict.fromkeys(("reference", "corrupted", "difference", "interval"))
        return TrialRow.model_validate({**fields, **empty, "verdict": "does not apply"})
    first, second = np.array(known, dtype=np.float64).T
    estimate = paired_difference(first, second, range(len(known)), cluster_name="document").estimate
    low, high = estimate.interval or (estimate.value, estimate.value)
    if better == "lower":
        low, high = -high, -low
    verdict: Verdict = "sees" if low > 0 else "misled" if high < 0 else "blind"
    return TrialRow(
        **fields,
        reference=float(first.mean()),
        corrupted=float(second.mean()),
        difference=estimate.value,
        interval=estimate.interval,
        verdict=verdict,
    )


def run_trial(reference: Values, spoilt: Mapping[str, Values]) -> list[TrialRow]:
    """A row for each metric with a better side and each corruption, from the values on the same documents in the same order."""
    better = {name: metric.better for name, metric in METRICS.items() if metric.better is not None}
    better |= dict.fromkeys(map(metric_name, RUBRICS), "higher")
    rows: list[TrialRow] = []
    for metric, side in better.items():
        if not any(values is not None and values.get(metric) is not None for values in reference):
            continue
        for corruption, changed in spoilt.items():
            pairs = [
                (a.get(metric), b.get(metric))
                for a, b in zip(reference, changed, strict=True)
                if a is not None and b is not None
            ]
            rows.append(_row(metric, side, corruption, pairs))
    return rows


def read_trial(path: Path) -> Trial:
    """A table that ``dreambench trial --out`` wrote. Raises `DataError` for another file."""
    return _parse(read_text(path), str(path))


def recorded_trial() -> Trial:
    """The trial on the playground's default documents, recorded with the package."""
    text = files("dreambench_tasks.interleaved").joinpath("recorded_trial.json").read_text(encoding="utf-8")
    return _parse(text, "recorded_trial.json")


def _parse(text: str, name: str) -> Trial:
    try:
        return Trial.model_validate_json(text)
    except ValueError as error:
        raise DataError(f"{name}: not the table of a trial; write one with `dreambench trial --out DIR`") from error


# --- for people -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Columns and rows of text, with sentences that belong under them."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def table(trial: Trial) -> Table:
    """A row per metric: the mean over the references, the difference under each corruption, and the verdict."""
    cells = {(row.metric, row.corruption): row for row in trial.rows}
    means = {row.metric: row.reference for row in reversed(trial.rows) if row.reference is not None}
    rows = [
        [
            metric,
            "–" if means.get(metric) is None else f"{means[metric]:.3f}",
            *(_cell(cells.get((metric, corruption))) for corruption in CORRUPTIONS),
            trial.verdict(metric),
            "yes" if trial.enters_headline(metric) else "no" if metric in HEADLINES else "–",
        ]
        for metric in trial.metrics
    ]
    notes = [
        f"{trial.documents} documents with {trial.images} images; each cell is reference minus corruption with its 95 % interval over"
        " documents. ✓ the metric sees the corruption, ✗ the corruption misleads it, neither: it is blind to it.",
        "A metric enters the headline if it sees every corruption that it is meant to see and none misleads it. Meant: "
        + "; ".join(f"{metric}: {', '.join(HEADLINES[metric])}" for metric in trial.metrics if metric in HEADLINES)
        + ".",
    ]
    return Table(
        "Trial of the metrics on corrupted references",
        ["metric", "references", *CORRUPTIONS, "verdict", "headline"],
        rows,
        notes,
    )


def _cell(row: TrialRow | None) -> str:
    if row is None or row.difference is None or row.interval is None:
        return "–"
    mark = {"sees": " ✓", "misled": " ✗"}.get(row.verdict, "")
    return f"{row.difference:+.3f} [{row.interval[0]:+.3f}, {row.interval[1]:+.3f}]{mark}"


def to_csv(trial: Trial) -> str:
    """Every row in full precision."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["metric", "corruption", "n", "undefined", "reference", "corrupted", "difference", "low", "high", "verdict"]
    )
    for row in trial.rows:
        low, high = row.interval or (None, None)
        means = (row.reference, row.corrupted, row.difference, low, high)
        writer.writerow([row.metric, row.corruption, row.n, row.undefined, *means, row.verdict])
    return buffer.getvalue()


def to_markdown(trial: Trial) -> str:
    """The table with its notes."""
    shown = table(trial)
    lines = [shown.columns, ["---"] * len(shown.columns), *shown.rows]
    return "\n".join(
        ["\n".join(f"| {' | '.join(line)} |" for line in lines), "", *(f"{note}\n" for note in shown.notes)]
    )
