"""From a run's images and documents to its scores: features collected once, then arithmetic over files.

``features/<protocol>/generated.npz`` holds the features of the generated images (with the sample and the number of the image within
its document), ``real.npz`` those of the reference images, and ``documents.npz`` CLIP's features of free documents.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter

from dreambench.documents import JSON, Document, Image, Text, canonical_json, digest, document_text
from dreambench.errors import DataError, RunError, counted
from dreambench.files import read_arrays, read_json, sha256_file, write_arrays, write_atomically
from dreambench.images import read_rgb
from dreambench.metrics.compare import Reference, compare, image_notes, network_outputs
from dreambench.metrics.features import Features, image_features, metric_name
from dreambench.metrics.frechet import GaussianStatistics, frechet_jackknife
from dreambench.metrics.set_metrics import kernel_distance
from dreambench.progress import say
from dreambench.report.images import nearest_reference_images, save_reference_images, saved_reference_images
from dreambench.report.runs import shown_documents, shown_images
from dreambench.report.tables import save_tables
from dreambench.requests import Response, Sample
from dreambench.scores import Cells, Score, TaskResult
from dreambench.store import RunFolder
from dreambench_tasks.interleaved import metrics
from dreambench_tasks.interleaved.data import FREE, RESIZE, reference_documents
from dreambench_tasks.interleaved.judging import grade_documents, grade_requests, graded, ungraded
from dreambench_tasks.interleaved.judging import metric_name as judged_as
from dreambench_tasks.interleaved.trial import recorded_trial, standing
from dreambench_tasks.interleaved.trial_output import table
from dreambench_tasks.text_to_image_features import cosine

if TYPE_CHECKING:
    from dreambench.judges import PromptedJudge
    from dreambench.metrics.encoders import ClipScorer
    from dreambench.metrics.features import Extractor

__all__ = ["collect", "score"]

Row = dict[str, JSON]
_GRADES = TypeAdapter(dict[str, dict[str, Annotated[float, Field(ge=0, le=1, strict=True)] | None]])


@dataclass(frozen=True)
class _Part:
    """A protocol's share of a run."""

    run: RunFolder
    id: str
    fields: Mapping[str, JSON]
    samples: Sequence[Sample]
    responses: Mapping[str, Response]

    @property
    def is_free(self) -> bool:
        return self.fields["name"] == FREE

    def file(self, name: str) -> Path:
        return self.run.path / "features" / self.id / name

    @property
    def answered(self) -> list[Sample]:
        return [sample for sample in self.samples if self.responses[sample.id].error is None]

    @property
    def documents(self) -> list[Document]:
        """The answers, in the order of `answered`."""
        return [self.responses[sample.id].document for sample in self.answered]

    @property
    def graded_by(self) -> Mapping[str, Mapping[str, JSON]]:
        """The judges' identities by rubric."""
        return self.fields.get("judges", {})

    def load(self, name: str) -> dict[str, Any]:
        path = self.file(name)
        try:
            return read_arrays(path)
        except DataError as error:
            raise RunError(
                f"{path} is missing or damaged: remove it, and `dreambench score` computes it again"
            ) from error


def _parts(run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> list[_Part]:
    protocols: dict[str, dict[str, JSON]] = run.run_file()["protocols"]
    return [
        _Part(run, id_, fields, [s for s in samples if s.targets["mode"] == fields["name"]], responses)
        for id_, fields in protocols.items()
    ]


# --- features ---------------------------------------------------------------------------------------------------------


def collect(
    run: RunFolder,
    samples: Sequence[Sample],
    responses: Mapping[str, Response],
    extractor: Callable[[], Extractor],
    clip: Callable[[], ClipScorer | None],
    judges: Callable[[], Mapping[str, PromptedJudge]],
) -> None:
    """Compute and store the features and grades that are missing, the trial's table and thumbnails that a report may show."""
    parts = _parts(run, samples, responses)
    for part in parts:
        if part.graded_by:
            _collect_grades(part, judges)
        if part.is_free:
            save_tables(run.path, [table(recorded_trial())])
        if not part.file("generated.npz").exists():
            _collect_generated(part, extractor())
        shutil.rmtree(part.file("parts"), ignore_errors=True)
        if not part.file("real.npz").exists():
            _collect_real(part, extractor())
        if part.is_free and part.fields["clip"] is not None:
            _collect_documents(part, clip)
    _collect_reference_images(run, samples, [row for part in parts for row in _shown_rows(part)])


def _collect_generated(part: _Part, extractor: Extractor) -> None:
    from dreambench.metrics.resize import get_resizer

    found = [
        (sample, number, path)
        for sample in part.answered
        for number, path in enumerate(_images(part.responses[sample.id]))
        if _readable(path)
    ]
    outputs: dict[str, Any] = {"features": np.zeros((0, extractor.dim), np.float32)}
    if found:
        chunks = part.file("parts")
        paths = [path for _, _, path in found]
        (outputs["features"],) = image_features(paths, extractor, [get_resizer(RESIZE)], [chunks], progress=_progress)
        if not part.is_free:
            captions, keys = zip(
                *((s.targets["matched"], str(s.targets["document_id"])) for s, _, _ in found), strict=True
            )
            outputs |= network_outputs(extractor, outputs["features"], captions, keys)
        outputs["notes"] = np.array(image_notes(paths, "generated"), np.str_)
    ids, numbers = np.array([s.id for s, _, _ in found], dtype=np.str_), np.array([n for _, n, _ in found], np.int64)
    write_arrays(part.file("generated.npz"), ids=ids, numbers=numbers, **outputs)


def _images(response: Response) -> Iterator[Path]:
    """The images of an answer, as they were generated."""
    for image in response.document:
        if isinstance(image, Image):
            path = Path(image.path or "")
            if not path.is_file() or sha256_file(path) != image.sha256:
                raise RunError(f"{path} is missing or not as it was generated: restore it, or start again with --fresh")
            yield path


def _readable(path: Path) -> bool:
    """False for bytes that are no image, in a document made elsewhere: the document is malformed, and the image unscored."""
    try:
        read_rgb(path)
    except DataError:
        return False
    return True


def _progress(done: int, total: int) -> None:
    say(f"features of images: {done} of {total}")


def _collect_real(part: _Part, extractor: Extractor) -> None:
    from dreambench.metrics.resize import get_resizer

    images = [
        (f"{document}/{number}", Path(image.path or ""))
        for document, images in reference_documents(part.samples).items()
        for number, image in enumerate(images)
    ]
    paths = [path for _, path in images]
    (features,) = image_features(paths, extractor, [get_resizer(RESIZE)], progress=_progress)
    notes = np.array(image_notes(paths, "reference"), np.str_)
    write_arrays(part.file("real.npz"), features=features, ids=np.array([key for key, _ in images]), notes=notes)


def _collect_documents(part: _Part, clip: Callable[[], ClipScorer | None]) -> None:
    def scorer() -> ClipScorer:
        found = clip()
        assert found is not None  # noqa: S101 - the protocol names it
        return found

    metrics.collect_features(part.file("documents.npz"), part.documents, scorer)


def _collect_grades(part: _Part, judges: Callable[[], Mapping[str, PromptedJudge]]) -> None:
    """``grades.json``, by document and rubric. It holds for these answers, so scoring them again needs neither judge nor data."""
    answers = digest(
        [
            [sample.id, *(one.text if isinstance(one, Text) else one.digest() for one in document)]
            for sample, document in zip(part.answered, part.documents, strict=True)
        ]
    )
    path, log, runs = part.file("grades.json"), part.run.path / "judgements.jsonl", part.fields["grading_runs"]
    if path.exists() and read_json(path, RunError).get("answers") == answers:
        return
    requests = grade_requests(
        part.answered, {sample.id: part.responses[sample.id].document for sample in part.answered}
    )
    if ungraded(part.graded_by, runs, requests, log):
        grade_documents(judges(), requests, log)
    grades = graded(part.graded_by, runs, requests, log)
    write_atomically(path, (canonical_json({"answers": answers, "grades": grades}) + "\n").encode())


def _shown_rows(part: _Part) -> list[Row]:
    """What the choice of samples to show depends on: of documents, not their metrics."""
    if not part.is_free:
        return _rows(part)
    return [{"id": s.id, "document_id": s.targets["document_id"], "image": None, "images": 1} for s in part.answered]


def _collect_reference_images(run: RunFolder, samples: Sequence[Sample], rows: Sequence[Row]) -> None:
    documents = reference_documents(samples)
    images = shown_images(rows)
    nearest = nearest_reference_images(run, [row["id"] for row in images])
    wanted = {str(row["image_id"]) for row in images} | {key for found in nearest.values() for key, _ in found}
    for row in shown_documents(rows):
        wanted |= {f"{row['document_id']}/{k}" for k in range(len(documents[str(row["document_id"])]))}
    paths: dict[str, Path | None] = {}
    for key in sorted(wanted):
        id_, _, k = key.rpartition("/")
        paths[key] = Path(documents[id_][int(k)].path or "")
    missing = paths.keys() - saved_reference_images(run).keys()
    if not missing:
        return
    try:
        save_reference_images(run, {key: paths[key] for key in sorted(missing)})
    except DataError as error:
        # Only where a run is scored again without its data. No score depends on these images.
        say(f"reports of this run will show no reference images: {error}")


# --- scores -----------------------------------------------------------------------------------------------------------


def score(run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> TaskResult:
    """Rows and scores, from the run's files alone."""
    rows: list[Row] = []
    scores: list[Score] = []
    parts = _parts(run, samples, responses)
    for part in parts:
        found = _rows(part)
        rows += found
        images, by_topic = _image_scores(part)
        scores += [*images, *(_document_scores(part, found) if part.is_free else ()), *by_topic]
    notes = [
        f"{counted(gone['n'], 'document')} left out of the data, {reason} (first {gone['first']})"
        for reason, gone in (parts[0].fields["left_out"] if parts else {}).items()
    ]
    notes += [
        note
        for part in parts
        if part.is_free
        for note in standing({score.metric for score in scores}, part.fields["clip"])
    ]
    return TaskResult(rows, scores, notes)


def _rows(part: _Part) -> list[Row]:
    """One row per sample. `images` is set for documents only, `image` for single images only."""
    if part.is_free:
        return _document_rows(part)
    generated, real = part.load("generated.npz"), part.load("real.npz")
    place = {id_: index for index, id_ in enumerate(generated["ids"].tolist())}
    reference = dict(zip(real["ids"].tolist(), real["features"], strict=True))
    rows: list[Row] = []
    for sample in part.samples:
        row = _row(part, sample)
        if sample.id in place:
            index = place[sample.id]
            if "clip_scores" in generated:
                row["clip_score"] = float(generated["clip_scores"][index])
            row["similarity"] = cosine(generated["features"][index], reference.get(row["image_id"]))
        rows.append(row)
    return rows


def _row(part: _Part, sample: Sample) -> Row:
    targets, response = sample.targets, part.responses[sample.id]
    number, image = targets.get("image"), None
    if number is not None and response.error is None:
        (path,) = (Path(one.path or "") for one in response.document if isinstance(one, Image))
        image = path.relative_to(part.run.path.resolve()).as_posix()
    return {
        "id": sample.id,
        "mode": targets["mode"],
        "document_id": targets["document_id"],
        "topic": targets["topic"],
        "image": image,
        "image_id": None if number is None else f"{targets['document_id']}/{number}",
        "caption": targets.get("matched"),
        "text": document_text(response.document) if number is None else None,
        "finish_reason": response.finish_reason,
        "error": response.error.type if response.error else None,
        "similarity": None,
        **dict.fromkeys(metrics.METRICS),
    }


def _document_rows(part: _Part) -> list[Row]:
    features: Sequence[metrics.DocumentFeatures | None] = [None] * len(part.answered)
    if part.fields["clip"] is not None:
        features = metrics.load_features(part.file("documents.npz"), part.documents)
    by_id = dict(zip([sample.id for sample in part.answered], features, strict=True))
    grades: Mapping[str, Mapping[str, float | None]] = {}
    if part.graded_by:
        grades = _read_grades(part.file("grades.json"))
    rows: list[Row] = []
    for sample in part.samples:
        row, response = _row(part, sample), part.responses[sample.id]
        row |= dict.fromkeys(map(judged_as, part.graded_by))
        if sample.id in by_id:
            row |= metrics.document_metrics(
                response.document, sample.targets, by_id[sample.id], finish_reason=response.finish_reason
            )
            row |= grades.get(sample.id, {})
        rows.append(row)
    return rows


def _read_grades(path: Path) -> Mapping[str, Mapping[str, float | None]]:
    try:
        return _GRADES.validate_python(read_json(path, RunError)["grades"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{path} is damaged: remove it, and `dreambench score` makes it again from judgements.jsonl and the run's data"
        ) from error


def _image_scores(part: _Part) -> tuple[list[Score], list[Score]]:
    """The distances of all images, and of each topic's."""
    generated, real = part.load("generated.npz"), part.load("real.npz")
    samples = {sample.id: sample for sample in part.samples}
    documents = [str(samples[id_].targets["document_id"]) for id_ in generated["ids"].tolist()]
    extractor = part.fields["extractor"]["name"]
    shown = sum(isinstance(image, Image) for document in part.documents for image in document)
    unscored = len(part.samples) - len(part.answered) + shown - len(documents)
    if len(documents) < 2:
        why = f"none: {counted(len(documents), 'image')}, too few for a distance"
        name = metric_name("frechet", extractor)
        return [Score(name, None, "", len(documents), part.id, unscored=unscored, interval_method=why)], []
    arrays = {name: array for name, array in generated.items() if name not in ("ids", "numbers")}
    of_documents = [key.rpartition("/")[0] for key in real["ids"].tolist()]
    reference = Reference.from_features(real["features"], real.get("notes", np.array(())).tolist(), of_documents)
    scores = compare(arrays, reference, extractor, part.id, unscored=unscored, keys=documents, cluster_name="document")
    topics = {str(sample.targets["document_id"]): str(sample.targets["topic"]) for sample in part.samples}
    ours = np.array([topics[document] for document in documents])
    theirs = np.array([topics[document] for document in of_documents])
    by_topic: list[Score] = []
    for topic in sorted(set(topics.values()) - {""}):
        keys = [document for document in documents if topics[document] == topic]
        features = generated["features"][ours == topic], real["features"][theirs == topic]
        by_topic.append(_topic_score(*features, keys, extractor, part.id, f"topic={topic}"))
    return scores, by_topic


def _topic_score(
    generated: Features, reference: Features, keys: Sequence[str], extractor: str, protocol: str, group: str
) -> Score:
    """The Fréchet distance of one topic; of few images the kernel distance, which their number does not bias."""
    n, dim = len(generated), generated.shape[1]
    name = metric_name("frechet", extractor)
    if min(n, len(reference)) > dim:
        estimate = frechet_jackknife(generated, GaussianStatistics.from_features(reference), keys=keys)
        return Score.of(name, estimate, protocol, group=group, better="lower")
    kernel = metric_name("kernel", extractor)
    if min(n, len(reference)) < 2:
        why = f"none: {n} generated and {len(reference)} reference images are too few for a distance"
        return Score(kernel, None, "", n, protocol, group=group, interval_method=why)
    note = (
        f"topics with at most {dim} images have {kernel} instead of {name}, which so few images bias for {dim} features; it is below 0"
        " where images are closer to the references of their own document than these are to each other"
    )
    return Score.of(kernel, kernel_distance(generated, reference), protocol, group=group, notes=(note,), better="lower")


def _document_scores(part: _Part, rows: Sequence[Row]) -> Iterator[Score]:
    """The mean over documents of each metric that is defined for some, headlines first; undefined ones count as unscored."""
    names = [*metrics.METRICS, *map(judged_as, part.graded_by)]
    first = [name for name in recorded_trial().headlines if name in names]
    for name in dict.fromkeys([*first, *names]):
        scored = [row for row in rows if row[name] is not None]
        if scored:
            values, documents = [row[name] for row in scored], [row["document_id"] for row in scored]
            estimate, metric = (
                metrics.metric_estimate(name, values, documents),
                metrics.METRICS.get(name, metrics.JUDGED),
            )
            high = None if math.isinf(metric.high) else metric.high
            cells = Cells(name, "document_id", {"mode": part.fields["name"]}, (metric.low, high))
            unscored = len(rows) - len(scored)
            yield Score.of(name, estimate, part.id, unscored=unscored, better=metric.better, cells=cells)
        elif name not in metrics.METRICS:
            why = "none: no document has a grade; judgements.jsonl has the reasons"
            yield Score(name, None, "", 0, part.id, unscored=len(rows), interval_method=why)
