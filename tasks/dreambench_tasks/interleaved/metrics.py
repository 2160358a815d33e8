"""Automatic metrics of one document: number and place of images, their agreement with the text and each other, repetition, faults.

`METRICS` defines each of them; docs/interleaved.md gives the sources. What needs a network (CLIP's features) is collected before, by
`collect_features`; the rest is arithmetic on text and pixels.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from dreambench.documents import JSON, Document, Image, Text, from_json
from dreambench.errors import RunError
from dreambench.files import read_arrays, write_arrays
from dreambench.images import BrokenImageError, decode_rgb
from dreambench.metrics.set_metrics import CLIP_WEIGHT, clip_scores, cosine_similarities
from dreambench.scores import Estimate
from dreambench.statistics import mean_estimate
from dreambench_tasks.playground.truth import story_truth

if TYPE_CHECKING:
    import PIL.Image

    from dreambench.metrics.encoders import ClipScorer

__all__ = ["FAULTS", "METRICS", "TRUTH", "DocumentFeatures", "Metric", "collect_features", "document_metrics"]
__all__ += ["encode_documents", "load_features", "matched_sentences", "metric_estimate", "sentences"]

NGRAM = 4
"""Words per repeated n-gram."""
_BATCH = 64

_END = re.compile(r"(?<=[.!?])[\"'”’)]*\s+")
_SPECIAL = re.compile(
    r"</?(?:s|unk|pad|bos|eos|image|dream|dream_start|dream_end|im_start|im_end|im_patch)>|<\|[^|<>\s]{1,40}\|>"
    r"|\[/?INST\]|<</?SYS>>"
)
_REFUSAL = re.compile(
    r"\b(?:i'm|i am|we are|we're) (?:very |so |really )?(?:sorry|afraid|unable|not able)\b|^sorry\b|^unfortunately\b"
    r"|\bi apologi[sz]e\b|\bi (?:can't|cannot|can not|won't|will not|must decline|am unable to|don't feel comfortable)\b"
    r"|\bas an? (?:ai|artificial intelligence|language model)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Metric:
    """What a number per document means. `low` and `high` bound it; intervals of its mean stay within."""

    about: str
    better: Literal["higher", "lower"] | None = None
    low: float = 0.0
    high: float = 1.0
    unit: str = ""


_COUNTED = float("inf")
FAULTS = {
    "empty": "neither text nor an image",
    "no_text": "images without text",
    "broken_image": "an image that cannot be decoded",
    "special_tokens": "tokens of the model's template in the text",
    "length": "cut off at the greatest length",
}
"""Reasons for which a document is malformed, each counted as ``malformed_<reason>``."""

TRUTH = {
    "shows_what_is_told": Metric(
        "images that show exactly the background and objects (count, color, shape, place) told in their sentence",
        "higher",
    ),
    "story_is_shown": Metric("every image shows exactly what is told", "higher", unit="%"),
    "told_background": Metric("images on the background that is told", "higher"),
    "told_count": Metric("images with as many objects as are told", "higher"),
    "told_objects": Metric("images with exactly the objects (color and shape) that are told", "higher"),
    "told_places": Metric("images whose told objects are all at the told place", "higher"),
    "nothing_else_changes": Metric(
        "steps between images after which the hero's shape and all that the story does not tell as changed is the same",
        "higher",
    ),
    "unparsed_sentences": Metric("images whose sentence cannot be parsed", "lower"),
    "unclear_images": Metric("images that the probe cannot read clearly", "lower"),
}
"""The playground only: the strict probe's reading of the images against what the document itself tells."""

METRICS: Mapping[str, Metric] = {
    "images": Metric("images in the document", high=_COUNTED, unit="images"),
    "image_count_match": Metric("as many images as were asked for", "higher", unit="%"),
    "layout_agreement": Metric("1 - edit distance to the reference's order of sentences and images", "higher"),
    "clip_score": Metric("mean CLIPScore of images and their matched sentences", "higher", high=CLIP_WEIGHT),
    "image_consistency": Metric("mean cosine of CLIP features of two images of the document", "higher", low=-1.0),
    "repeated_ngrams": Metric(f"share of the {NGRAM}-grams of words that occurred before", "lower"),
    "repeated_images": Metric("share of the images that are identical to an earlier one", "lower"),
    "words": Metric("length of the text", high=_COUNTED, unit="words"),
    "refusal": Metric("a refusal in place of a document", "lower", unit="%"),
    "malformed": Metric("malformed for one of the reasons below", "lower", unit="%"),
    **{f"malformed_{fault}": Metric(about, "lower", unit="%") for fault, about in FAULTS.items()},
    **TRUTH,
}

JUDGED = Metric("a judge's grade under a rubric", "higher")

# --- the text of a document -------------------------------------------------------------------------------------------


def sentences(text: str) -> list[str]:
    """The sentences of a text: it is split after ``.``, ``!`` or ``?`` before white space."""
    return [sentence for sentence in (part.strip() for part in _END.split(text)) if sentence]


def matched_sentences(document: Document) -> list[str | None]:
    """For each image, the last sentence before it, or the first one after it where none is before; None without any text."""
    matched: list[str | None] = []
    last: str | None = None
    unmatched = 0
    for part in document:
        if isinstance(part, Image):
            matched.append(last)
            unmatched += last is None
        elif found := sentences(part.text):
            if last is None:
                matched[:unmatched] = [found[0]] * unmatched
            last = found[-1]
    return matched


def _order(document: Document) -> list[str]:
    """A letter per sentence (S) and image (I) in reading order."""
    return [
        letter
        for part in document
        for letter in (["I"] if isinstance(part, Image) else ["S"] * len(sentences(part.text)))
    ]


def _edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Levenshtein's distance: insertions, deletions and substitutions."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def _repeated(items: Sequence[Hashable]) -> float:
    """The share of items that occurred before; 0 of none."""
    return 1 - len(set(items)) / len(items) if items else 0.0


# --- features ---------------------------------------------------------------------------------------------------------

Array = NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True)
class DocumentFeatures:
    """CLIP's features of a document's images and of their matched sentences, both (images, d).

    The row of a broken image, or of a sentence that does not exist, is 0: its cosine with anything is 0.
    """

    images: Array
    texts: Array


def encode_documents(documents: Sequence[Document], scorer: ClipScorer) -> list[DocumentFeatures]:
    """Features of documents; an image file or a sentence that occurs several times is encoded once."""
    shown = [part for document in documents for part in document if isinstance(part, Image)]
    told = [sentence for document in documents for sentence in matched_sentences(document)]
    names = [image.path or image.digest() for image in shown]
    images = _looked_up(
        names, dict(zip(names, shown, strict=True)), scorer.dim, lambda some: _encode_images(some, scorer)
    )
    known = {sentence: sentence for sentence in told if sentence is not None}
    texts = _looked_up(told, known, scorer.dim, lambda some: scorer.text_features(list(some)).cpu().numpy())
    ends = np.cumsum([sum(isinstance(part, Image) for part in document) for document in documents])[:-1]
    return [DocumentFeatures(*pair) for pair in zip(np.split(images, ends), np.split(texts, ends), strict=True)]


def _looked_up(
    keys: Sequence[str | None], items: Mapping[str, T], dim: int, encode: Callable[[Sequence[T]], Array]
) -> Array:
    """A row per key: the features of its item, each item encoded once; 0 for None."""
    rows = np.zeros((len(items) + 1, dim), np.float32)
    listed = list(items.values())
    for start in range(0, len(listed), _BATCH):
        rows[start : min(start + _BATCH, len(listed))] = encode(listed[start : start + _BATCH])
    place = {key: index for index, key in enumerate(items)}
    return rows[[len(items) if key is None else place[key] for key in keys]]


def _encode_images(images: Sequence[Image], scorer: ClipScorer) -> Array:
    """One batch; images of one size go through the network together."""
    import torch
    from torchvision.transforms.functional import pil_to_tensor

    rows = np.zeros((len(images), scorer.dim), np.float32)
    decoded = [(index, image) for index, image in enumerate(map(_decoded, images)) if image is not None]
    decoded.sort(key=lambda pair: pair[1].size)
    for _, group in groupby(decoded, key=lambda pair: pair[1].size):
        members = list(group)
        pixels: Any = torch.stack([pil_to_tensor(image) for _, image in members])
        rows[[index for index, _ in members]] = scorer.image_features(pixels).cpu().numpy()
    return rows


def _decoded(image: Image) -> PIL.Image.Image | None:
    """None for a broken image. Raises `DataError` where its file is missing or changed."""
    try:
        return decode_rgb(image)
    except BrokenImageError:
        return None


def collect_features(path: Path, documents: Sequence[Document], scorer: Callable[[], ClipScorer]) -> None:
    """Store the documents' features in an ``.npz`` file unless it exists; `scorer` loads the network."""
    if path.exists() or not documents:
        return
    features = encode_documents(documents, scorer())
    counts = np.array([len(each.images) for each in features])
    stacked = {name: np.concatenate([getattr(each, name) for each in features]) for name in ("images", "texts")}
    write_arrays(path, counts=counts, **stacked)


def load_features(path: Path, documents: Sequence[Document]) -> list[DocumentFeatures]:
    """What `collect_features` stored for the same documents. Raises `RunError` if the file is missing or of others."""
    if not documents:
        return []
    arrays = read_arrays(path, RunError)
    counts = [sum(isinstance(part, Image) for part in document) for document in documents]
    if arrays.keys() != {"counts", "images", "texts"} or arrays["counts"].tolist() != counts:
        raise RunError(f"{path} holds features of other documents: remove it, and `dreambench score` computes it again")
    ends = np.cumsum(counts)[:-1]
    pairs = zip(np.split(arrays["images"], ends), np.split(arrays["texts"], ends), strict=True)
    return [DocumentFeatures(*pair) for pair in pairs]


# --- metrics ----------------------------------------------------------------------------------------------------------


def document_metrics(
    document: Document,
    targets: Mapping[str, JSON],
    features: DocumentFeatures | None = None,
    *,
    finish_reason: str = "stop",
) -> dict[str, float | None]:
    """The metrics of one document by name, in the order of `METRICS`; None where one is undefined.

    Args:
        document: the generated (or reference) document. An image whose file is missing is a `DataError`, one that cannot be decoded
            is a fault of the document.
        targets: those of the sample: ``expected_images``, ``reference``, and ``truth`` on the playground.
        features: of this document; without them the metrics of CLIP are None.
        finish_reason: of the response; ``length`` is a fault.
    """
    images = [part for part in document if isinstance(part, Image)]
    pixels = [_decoded(image) for image in images]
    text = " ".join(part.text for part in document if isinstance(part, Text))
    wanted, reference = targets.get("expected_images"), targets.get("reference")
    words = text.split()
    grams = [tuple(word.lower() for word in words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]
    hashes = [_pixel_hash(image) for image in pixels if image is not None]
    values: dict[str, float | None] = {
        "images": len(images),
        "image_count_match": None if wanted is None else float(len(images) == wanted),
        "layout_agreement": None if reference is None else _layout(document, from_json(reference)),
        "clip_score": _clip_score(features),
        "image_consistency": _consistency(features, [image is not None for image in pixels]),
        "repeated_ngrams": _repeated(grams),
        "repeated_images": _repeated(hashes) if images else None,
        "words": len(words),
        "refusal": float(not images and _refuses(text)),
    }
    faults = {
        "empty": not images and not text.strip(),
        "no_text": bool(images) and not text.strip(),
        "broken_image": None in pixels,
        "special_tokens": _SPECIAL.search(text) is not None,
        "length": finish_reason == "length",
    }
    values["malformed"] = float(any(faults.values()))
    values |= {f"malformed_{fault}": float(found) for fault, found in faults.items()}
    truth = targets.get("truth")
    if isinstance(truth, Mapping) and "scenes" in truth:
        arrays = [None if image is None else np.asarray(image) for image in pixels]
        found = story_truth(matched_sentences(document), arrays)
        values |= {name: found[name] for name in TRUTH}
    return values


def _layout(document: Document, reference: Document) -> float:
    found, wanted = _order(document), _order(reference)
    return 1 - _edit_distance(found, wanted) / max(len(found), len(wanted), 1)


def _clip_score(features: DocumentFeatures | None) -> float | None:
    if features is None or not len(features.images) or not features.texts.any():
        return None
    return float(clip_scores(features.images, features.texts).mean())


def _consistency(features: DocumentFeatures | None, sound: Sequence[bool]) -> float | None:
    """Over all pairs of sound images."""
    if features is None or sum(sound) < 2:
        return None
    rows = features.images[np.array(sound)]
    first, second = np.triu_indices(len(rows), k=1)
    return float(cosine_similarities(rows[first], rows[second]).mean())


def _pixel_hash(image: PIL.Image.Image) -> str:
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def _refuses(text: str) -> bool:
    """Whether one of the first two sentences is a phrase of refusal."""
    return any(_REFUSAL.search(sentence.replace("’", "'")) for sentence in sentences(text)[:2])


def metric_estimate(name: str, values: Iterable[float], documents: Sequence[Hashable]) -> Estimate:
    """The mean of a metric over generated documents, with an interval that stays within the metric's range.

    `documents` names the reference document of each value: what was generated for one instruction is not independent.
    """
    metric = METRICS.get(name, JUDGED)
    scores = np.fromiter(values, np.float64)
    bounds = metric.low, metric.high
    return mean_estimate(scores, documents, cluster_name="document", unit=metric.unit, bounds=bounds)
