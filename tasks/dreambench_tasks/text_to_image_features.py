"""From an image generation run's images to its scores: features collected once, then arithmetic over files.

``features/<protocol>/generated.npz`` holds ids and features of the generated images, ``real.npz`` those of the reference images, or
``real-statistics.npz`` the statistics given by ``--real``. Scoring reads these and nothing else.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dreambench.documents import JSON, Image, document_text
from dreambench.errors import DataError, RunError
from dreambench.files import read_arrays, sha256_file, write_arrays
from dreambench.metrics.compare import Reference, compare, image_notes, network_outputs, read_reference
from dreambench.metrics.features import identity_of, image_features, listing_notes
from dreambench.metrics.frechet import load_statistics, save_statistics
from dreambench.metrics.set_metrics import CLIP_WEIGHT
from dreambench.progress import say
from dreambench.report.images import nearest_reference_images, save_reference_images, saved_reference_images
from dreambench.report.runs import shown_images
from dreambench.requests import Response, Sample
from dreambench.scores import Cells, Score, TaskResult
from dreambench.store import RunFolder
from dreambench_tasks.coco import COCO_FILE_NAME

if TYPE_CHECKING:
    from dreambench.metrics.features import Extractor

__all__ = ["collect_features", "collect_reference_images", "cosine", "score_features"]


def _folder(run: RunFolder, protocol: str) -> Path:
    return run.path / "features" / protocol


def _protocols(run: RunFolder) -> dict[str, dict[str, JSON]]:
    return run.run_file()["protocols"]


def _chosen(response: Response) -> Image:
    """The chosen image of an answer, always the first."""
    return next(part for part in response.document if isinstance(part, Image))


def image_of(response: Response) -> Path:
    """Where the chosen image lies."""
    return Path(_chosen(response).path or "")


def _as_generated(response: Response) -> Path:
    """`image_of`, if the bytes there are those that were generated."""
    path = image_of(response)
    if not path.is_file() or sha256_file(path) != _chosen(response).sha256:
        raise RunError(f"{path} is missing or not as it was generated: restore it, or start again with --fresh")
    return path


def collect_features(
    run: RunFolder,
    generated: Sequence[Sample],
    responses: Mapping[str, Response],
    extractor: Callable[[], Extractor],
    reference: Path | Callable[[], list[Path]],
    real: Path | None,
) -> None:
    """Compute and store the features that are missing, of both sides under all protocols, each image decoded once.

    Args:
        generated: the samples with an image.
        extractor: loads the extractor; not called where nothing is missing.
        reference: a file of statistics, or what lists the reference images.
        real: what ``--real`` gave.
    """
    from dreambench.metrics.resize import get_resizer

    protocols = {id_: fields["name"] for id_, fields in _protocols(run).items()}
    missing = [id_ for id_ in protocols if not (_folder(run, id_) / "generated.npz").exists()]
    if missing:
        paths = [_as_generated(responses[sample.id]) for sample in generated]
        parts = [_folder(run, id_) / "parts" for id_ in missing]
        resizers = [get_resizer(protocols[id_]) for id_ in missing]
        features = image_features(paths, extractor(), resizers, parts, progress=_progress("generated"))
        captions = [document_text(sample.prompt) for sample in generated]
        keys = [str(sample.targets["image_id"]) for sample in generated]
        ids = np.array([sample.id for sample in generated])
        notes = np.array(image_notes(paths, "generated"), dtype=np.str_)
        for id_, rows in zip(missing, features, strict=True):
            outputs = {**network_outputs(extractor(), rows, captions, keys), "notes": notes}
            write_arrays(_folder(run, id_) / "generated.npz", features=rows, ids=ids, **outputs)
    for id_ in protocols:
        shutil.rmtree(_folder(run, id_) / "parts", ignore_errors=True)
    without = {
        id_: name
        for id_, name in protocols.items()
        if not any((_folder(run, id_) / file).exists() for file in ("real.npz", "real-statistics.npz"))
    }
    if without:
        _collect_real(run, without, extractor(), reference, real)


def _collect_real(
    run: RunFolder,
    protocols: Mapping[str, str],
    extractor: Extractor,
    reference: Path | Callable[[], list[Path]],
    real: Path | None,
) -> None:
    from dreambench.metrics.resize import get_resizer

    if isinstance(reference, Path):
        for id_, name in protocols.items():
            saved = read_reference(reference, extractor.dim, identity_of(extractor, get_resizer(name)))
            target = _folder(run, id_) / "real-statistics.npz"
            save_statistics(target, saved.statistics, {"notes": list(saved.notes)})
        return
    paths = reference()
    resizers = [get_resizer(name) for name in protocols.values()]
    features = image_features(paths, extractor, resizers, progress=_progress("real"))
    ids = np.array([_image_id(path) for path in paths])
    notes = np.array([*(listing_notes(real) if real else ()), *image_notes(paths, "reference")], dtype=np.str_)
    for id_, rows in zip(protocols, features, strict=True):
        write_arrays(_folder(run, id_) / "real.npz", features=rows, ids=ids, notes=notes)


def collect_reference_images(
    run: RunFolder,
    samples: Sequence[Sample],
    responses: Mapping[str, Response],
    reference: Path | Callable[[], list[Path]],
) -> None:
    """Store a thumbnail of each reference image that a report may show: the sample's own, and those nearest to the generated image.

    An image that the reference does not hold (statistics, another folder) is noted as unknown.
    """
    rows = shown_images(_sample_rows(run, samples, responses))
    wanted = {int(row["image_id"]) for row in rows}
    nearest = nearest_reference_images(run, [row["id"] for row in rows])
    wanted |= {int(key) for found in nearest.values() for key, _ in found}
    missing = sorted(wanted - {int(key) for key in saved_reference_images(run)})
    if not missing:
        return
    try:
        known = {} if isinstance(reference, Path) else {_image_id(path): path for path in reference()}
        save_reference_images(run, {image_id: known.get(image_id) for image_id in missing})
    except DataError as error:
        # Only where a run is scored again without its data. No score depends on these images.
        say(f"reports of this run will show no reference images: {error}")


def _image_id(path: Path) -> int:
    """COCO's image id by a file's name, -1 for other names."""
    match = COCO_FILE_NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def _progress(side: str) -> Any:
    def report(done: int, total: int) -> None:
        say(f"features of {side} images: {done} of {total}")

    return report


def _load(path: Path) -> dict[str, Any]:
    try:
        return read_arrays(path)
    except DataError as error:
        raise RunError(f"{path} is missing or damaged: remove it, and `dreambench score` computes it again") from error


def _reference(folder: Path) -> tuple[Reference, dict[int, Any]]:
    """The reference, and its features by image id where they are known."""
    if (folder / "real-statistics.npz").exists():
        saved = load_statistics(folder / "real-statistics.npz")
        notes = tuple((saved.identity or {}).get("notes", ()))
        return Reference(saved.statistics, None, notes), {}
    real = _load(folder / "real.npz")
    keys = [str(id_) for id_ in real["ids"].tolist()] if (real["ids"] >= 0).all() else None
    return Reference.from_features(real["features"], real.get("notes", np.array(())).tolist(), keys), _real_by_image(
        real
    )


def _real_by_image(real: Mapping[str, Any]) -> dict[int, Any]:
    return {int(id_): row for id_, row in zip(real["ids"], real["features"], strict=True) if id_ >= 0}


def score_features(run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> TaskResult:
    """Rows and scores, from the run's files alone."""
    rows: dict[str, dict[str, JSON]] = {}
    scores: list[Score] = []
    for number, (id_, fields) in enumerate(_protocols(run).items()):
        folder = _folder(run, id_)
        generated = _load(folder / "generated.npz")
        reference, by_image = _reference(folder)
        if number == 0:
            rows = _rows(run, samples, responses, generated, by_image)
        keys = [str(rows[name]["image_id"]) for name in generated["ids"].tolist()]
        extractor = fields["extractor"]["name"]
        unscored = len(samples) - len(keys)
        found = compare(generated, reference, extractor, id_, unscored=unscored, keys=keys)
        scores += _with_cells(found, rows, generated) if number == 0 else found
    return TaskResult(list(rows.values()), scores)


def _with_cells(
    scores: list[Score], rows: Mapping[str, Mapping[str, JSON]], generated: Mapping[str, Any]
) -> list[Score]:
    """The scores, CLIPScore with its cells unless the rows have those of the CLIP that chose among candidates."""
    if "clip_scores" not in generated:
        return scores
    pairs = zip(generated["ids"].tolist(), generated["clip_scores"].tolist(), strict=True)
    in_rows = all(rows[name]["clip_score"] == value for name, value in pairs)
    cells = Cells("clip_score", "image_id", bounds=(0.0, CLIP_WEIGHT))
    own = [score.metric.startswith("clip_score[") and score.better is not None and in_rows for score in scores]
    return [replace(score, cells=cells) if mine else score for score, mine in zip(scores, own, strict=True)]


def _sample_rows(run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> list[dict[str, JSON]]:
    """The rows of scores.parquet, from stored features: similarities and CLIPScores under the first protocol."""
    folder = _folder(run, next(iter(_protocols(run))))
    real = _real_by_image(_load(folder / "real.npz")) if (folder / "real.npz").exists() else {}
    return list(_rows(run, samples, responses, _load(folder / "generated.npz"), real).values())


def _rows(
    run: RunFolder,
    samples: Sequence[Sample],
    responses: Mapping[str, Response],
    generated: Mapping[str, Any],
    real: Mapping[int, Any],
) -> dict[str, dict[str, JSON]]:
    rows = {sample.id: _row(run, sample, responses[sample.id]) for sample in samples}
    for index, name in enumerate(generated["ids"].tolist()):
        row, feature = rows[name], generated["features"][index]
        row["similarity"] = cosine(feature, real.get(row["image_id"]))
        if "clip_scores" in generated and row["clip_score"] is None:
            row["clip_score"] = float(generated["clip_scores"][index])
    return rows


def _row(run: RunFolder, sample: Sample, response: Response) -> dict[str, JSON]:
    clip = response.details.get("clip_scores")
    failed = response.error is not None
    return {
        "id": sample.id,
        "image_id": sample.targets["image_id"],
        "caption_id": sample.targets["caption_id"],
        "caption": document_text(sample.prompt),
        "image": None if failed else image_of(response).relative_to(run.path.resolve()).as_posix(),
        "error": response.error.type if response.error else None,
        "clip_score": None if clip is None else clip[response.details["chosen"]],
        "similarity": None,
    }


def cosine(a: Any, b: Any) -> float | None:
    """Cosine between the features of a generated image and of the image that its caption describes."""
    if b is None:
        return None
    a, b = a.astype(np.float64), b.astype(np.float64)
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length else None
