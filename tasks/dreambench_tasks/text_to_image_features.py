"""From a image generation run's images to its scores: features gathered once, then arithmetic over files.

``features/<protocol>/generated.npz`` holds ids and features of the generated images, ``real.npz`` those of the images, or
``real-statistics.npz`` the given statistics. Scoring reads these and nothing else.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dreambench.documents import JSON, Image, document_text
from dreambench.errors import DataError, RunError
from dreambench.files import read_arrays, sha256_file, write_arrays
from dreambench.metrics.compare import Reference, compare, read_reference
from dreambench.metrics.features import Features, identity_of, image_features, list_images
from dreambench.metrics.frechet import load_statistics, save_statistics
from dreambench.progress import say
from dreambench.requests import Response, Sample
from dreambench.scores import Score, TaskResult
from dreambench.store import RunFolder
from dreambench_tasks.coco import COCO_FILE_NAME

if TYPE_CHECKING:
    from dreambench.metrics.features import Extractor
    from dreambench_tasks.text_to_image import TextToImageTask

__all__ = ["collect_features", "image_id_of", "reference_image_files", "sample_rows", "score_features"]


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
    task: TextToImageTask, run: RunFolder, generated: Sequence[Sample], responses: Mapping[str, Response]
) -> None:
    """Compute and keep what is missing, both sides, all protocols, each image decoded once."""
    from dreambench.metrics.resize import get_resizer

    protocols = {id_: fields["name"] for id_, fields in _protocols(run).items()}
    waiting = [id_ for id_ in protocols if not (_folder(run, id_) / "generated.npz").exists()]
    if waiting:
        paths = [_as_generated(responses[sample.id]) for sample in generated]
        parts = [_folder(run, id_) / "parts" for id_ in waiting]
        resizers = [get_resizer(protocols[id_]) for id_ in waiting]
        features = image_features(paths, task.extractor(), resizers, parts, progress=_progress("generated"))
        captions = [document_text(sample.prompt) for sample in generated]
        for id_, part, one in zip(waiting, parts, features, strict=True):
            ids = np.array([sample.id for sample in generated])
            write_arrays(
                _folder(run, id_) / "generated.npz", features=one, ids=ids, **further(task.extractor(), one, captions)
            )
            shutil.rmtree(part, ignore_errors=True)
    real = [
        id_
        for id_ in protocols
        if not any((_folder(run, id_) / name).exists() for name in ("real.npz", "real-statistics.npz"))
    ]
    if real:
        _collect_real(task, run, {id_: protocols[id_] for id_ in real})


def further(extractor: Extractor, features: Features, captions: Sequence[str]) -> dict[str, Any]:
    """What an extractor's network says beyond its features: Inception's logits, CLIP's opinion of each image and its caption."""
    import torch

    from dreambench.metrics.convolutional import InceptionExtractor
    from dreambench.metrics.encoders import ClipExtractor
    from dreambench.metrics.set_metrics import clip_scores

    if isinstance(extractor, InceptionExtractor):
        return {"logits": extractor.logits(torch.from_numpy(features)).cpu().numpy()}
    if isinstance(extractor, ClipExtractor) and extractor.has_text:
        before = extractor.truncated
        batches = (list(captions[i : i + 64]) for i in range(0, len(captions), 64))
        texts = np.concatenate([extractor.text_features(batch).cpu().numpy() for batch in batches])
        return {"clip_scores": clip_scores(features, texts), "clip_truncated": np.array(extractor.truncated - before)}
    return {}


def _collect_real(task: TextToImageTask, run: RunFolder, protocols: Mapping[str, str]) -> None:
    from dreambench.metrics.resize import get_resizer

    extractor = task.extractor()
    given = task.spec.real
    if given is not None and given.suffix == ".npz":
        for id_, name in protocols.items():
            reference = read_reference(given, extractor.dim, identity_of(extractor, get_resizer(name)))
            target = _folder(run, id_) / "real-statistics.npz"
            save_statistics(target, reference.statistics, {"notes": list(reference.notes)})
        return
    paths = reference_image_files(task)
    resizers = [get_resizer(name) for name in protocols.values()]
    features = image_features(paths, extractor, resizers, progress=_progress("real"))
    ids = np.array([image_id_of(path) for path in paths])
    for id_, one in zip(protocols, features, strict=True):
        write_arrays(_folder(run, id_) / "real.npz", features=one, ids=ids)


def reference_image_files(task: TextToImageTask) -> list[Path]:
    """The real side as files; none where only its statistics are given."""
    given = task.spec.real
    if given is None:
        return task.reference_images()
    return [] if given.suffix == ".npz" else list_images(given)


def image_id_of(path: Path) -> int:
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
    """The real side, and its features by image id where they are known."""
    if (folder / "real-statistics.npz").exists():
        saved = load_statistics(folder / "real-statistics.npz")
        notes = tuple((saved.identity or {}).get("notes", ()))
        return Reference(saved.statistics, None, notes), {}
    real = _load(folder / "real.npz")
    return Reference.from_features(real["features"]), _real_by_image(real)


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
        scores += compare(generated, reference, extractor, id_, unscored=unscored, keys=keys)
    return TaskResult(list(rows.values()), scores)


def sample_rows(run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> list[dict[str, JSON]]:
    """The rows of scores.parquet, from gathered features: similarities and CLIPScores under the first protocol."""
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
    for place, name in enumerate(generated["ids"].tolist()):
        row, feature = rows[name], generated["features"][place]
        row["similarity"] = _cosine(feature, real.get(row["image_id"]))
        if "clip_scores" in generated and row["clip_score"] is None:
            row["clip_score"] = float(generated["clip_scores"][place])
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


def _cosine(a: Any, b: Any) -> float | None:
    """Cosine between the features of a generated image and of its own image."""
    if b is None:
        return None
    a, b = a.astype(np.float64), b.astype(np.float64)
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length else None
