"""Overlap of a benchmark's images and texts with training data: which samples a model may have seen before it was asked.

Texts: n-grams of words (Brown et al. 2020, appendix C), and shorter texts as a whole. Images: sha256 of the bytes and of the decoded
pixels, and a perceptual hash (the DCT hash of pHash and ImageHash, 256 bits). What many samples share, such as "What is in the image?",
is a template of the benchmark and says nothing about a sample; it is reported apart.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dreambench.documents import JSON, Image
from dreambench.errors import DataError
from dreambench.images import BrokenImageError, decode
from dreambench.interfaces import Task
from dreambench.requests import Sample
from dreambench.training_data import TrainingData

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["DISTANCE", "TEMPLATE", "Overlap", "TextIndex", "find_overlap", "perceptual_hash", "words"]

LEAST, MOST = 8, 13
TEMPLATE, DISTANCE = 10, 20
"""The defaults: samples (of different groups) that may share a text before it is a template; differing bits of 256 for similar images."""
BITS = 256
KINDS = ("same bytes", "same pixels", "similar image", "text")
COMPARED = 2000
"""Images of the benchmark that are compared with each other, to count the pairs that the threshold takes for similar."""

# Scripts without spaces between words count by characters.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
MARK = re.compile(r"<(?:image|dream)>")


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation and the places of images (``<image>``)."""
    return WORD.findall(MARK.sub(" ", text).casefold())


class TextIndex:
    """The n-grams of a benchmark's texts, and its texts of fewer than n words, each with the numbers of the samples that have it."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.samples: dict[str, list[int]] = {}

    def add(self, sample: int, text: str) -> None:
        found = words(text)
        for key in self._grams(found) if len(found) >= self.n else [" ".join(found)] if found else []:
            owners = self.samples.setdefault(key, [])
            if not owners or owners[-1] != sample:
                owners.append(sample)

    def found_in(self, text: str) -> set[str]:
        """What of the benchmark a text has: n-grams anywhere, shorter texts where they are the whole text or a line of it."""
        keys = {key for key in self._grams(words(text)) if key in self.samples}
        lines = (" ".join(words(line)) for line in (text, *(text.splitlines() if "\n" in text else ())))
        return keys | {line for line in lines if line in self.samples}

    def _grams(self, found: Sequence[str]) -> Iterator[str]:
        n = self.n
        return (" ".join(found[start : start + n]) for start in range(len(found) - n + 1))


# --- images -----------------------------------------------------------------------------------------------------------


def perceptual_hash(image: PIL.Image.Image) -> NDArray[np.uint64]:
    """256 bits as four numbers: which of the 16 x 16 lowest frequencies of the image, grey and 64 x 64, are above their median.

    Equal to ``imagehash.phash(image, hash_size=16)``.
    """
    from PIL.Image import Resampling
    from scipy.fft import dctn

    grey = np.asarray(image.convert("L").resize((64, 64), Resampling.LANCZOS), dtype=np.float64)
    low = np.asarray(dctn(grey))[:16, :16]
    return np.packbits(low > np.median(low)).view(np.uint64)


def _pixels(image: PIL.Image.Image) -> str:
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


class ImageIndex:
    """A benchmark's images, each once, with the numbers of the samples that show it."""

    def __init__(self, distance: int) -> None:
        self.distance, self.broken = distance, 0
        self.samples: list[list[int]] = []
        self._bytes: dict[str, int] = {}
        self._pixels: dict[str, list[int]] = {}
        self._hashes: list[NDArray[np.uint64]] = []
        self._hashed: list[int] = []

    def add(self, sample: int, image: Image) -> None:
        data = image.read()
        digest = hashlib.sha256(data).hexdigest()
        number = self._bytes.setdefault(digest, len(self.samples))
        if number < len(self.samples):
            self.samples[number].append(sample)
            return
        self.samples.append([sample])
        try:
            decoded = decode(data, large=True)
        except BrokenImageError:
            self.broken += 1
            return
        self._pixels.setdefault(_pixels(decoded), []).append(number)
        self._hashes.append(perceptual_hash(decoded))
        self._hashed.append(number)

    def matrix(self) -> NDArray[np.uint64]:
        return np.asarray(self._hashes, dtype=np.uint64).reshape(-1, BITS // 64)

    def finder(self) -> Callable[[bytes], list[tuple[str, int, int]]]:
        """A function from an encoded image to (kind, number of the benchmark's image, differing bits).

        It raises `BrokenImageError`.
        """
        hashes = self.matrix()

        def find(data: bytes) -> list[tuple[str, int, int]]:
            exact = self._bytes.get(hashlib.sha256(data).hexdigest())
            found = [] if exact is None else [("same bytes", exact, 0)]
            if exact is not None and not len(hashes):
                return found
            decoded = decode(data, large=True)
            found += [("same pixels", number, 0) for number in self._pixels.get(_pixels(decoded), ())]
            bits = np.bitwise_count(hashes ^ perceptual_hash(decoded)).sum(axis=1)
            near = np.flatnonzero(bits <= self.distance)
            return found + [("similar image", self._hashed[place], int(bits[place])) for place in near]

        return find

    def similar_pairs(self) -> tuple[int, int]:
        """Of the benchmark's own images, so many pairs are as similar as a match must be; and of how many."""
        hashes = self.matrix()[:COMPARED]
        near = sum(
            int((np.bitwise_count(hashes[i + 1 :] ^ hashes[i]).sum(axis=1) <= self.distance).sum())
            for i in range(len(hashes))
        )
        return near, len(hashes) * (len(hashes) - 1) // 2


# --- the check ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hit:
    """What of a sample was found, and where first."""

    what: str
    train: str


@dataclass
class Overlap:
    """What `find_overlap` found. `hits` are by sample id and kind; `templates` are (text, samples, training texts)."""

    ids: Sequence[str]
    groups: Sequence[str]
    check: dict[str, JSON]
    counts: dict[str, int]
    hits: dict[str, dict[str, Hit]] = field(default_factory=dict[str, dict[str, Hit]])
    templates: list[tuple[str, int, int]] = field(default_factory=list[tuple[str, int, int]])

    def touched(self, kind: str) -> list[str]:
        return [id_ for id_ in self.ids if kind in self.hits.get(id_, {})]

    @property
    def both(self) -> int:
        """Samples of which both an image and a text were found."""
        return sum("text" in kinds and len(kinds) > 1 for kinds in self.hits.values())

    def clean(self) -> list[str]:
        """The ids of the samples whose whole group (their image, their question) is untouched: what `dreambench run --ids` can score."""
        dirty = {group for id_, group in zip(self.ids, self.groups, strict=True) if id_ in self.hits}
        return [id_ for id_, group in zip(self.ids, self.groups, strict=True) if group not in dirty]

    def to_json(self) -> JSON:
        return {
            "check": self.check,
            "counts": self.counts,
            "touched": {kind: len(self.touched(kind)) for kind in KINDS}
            | {"image and text": self.both, "any": len(self.hits)},
            "samples": {
                id_: {kind: {"found": hit.what, "train": hit.train} for kind, hit in kinds.items()}
                for id_, kinds in self.hits.items()
            },
            "templates": [{"text": text, "samples": n, "training_texts": m} for text, n, m in self.templates],
        }


def find_overlap(
    task: Task,
    samples: Sequence[Sample],
    training: TrainingData,
    *,
    n: int | None = None,
    template: int = TEMPLATE,
    distance: int = DISTANCE,
    progress: Callable[[int], None] = lambda done: None,
) -> Overlap:
    """Look for a benchmark's samples in training data, which are read once; what is held depends on the benchmark only.

    Args:
        n: Words of an n-gram. None: as in GPT-3, the 5th percentile of the words of a sample's texts, at least 8 and at most 13.
        template: A text of the benchmark that samples of more groups than this share is a template and touches no sample.
        distance: Bits, of 256, in which the hashes of similar images may differ.
        progress: Called with the number of records read so far.

    Raises:
        DataError: training data, or an image of the benchmark, cannot be read.
    """
    texts = [list(task.benchmark_texts(sample)) for sample in samples]
    lengths = [len(words(text)) for several in texts for text in several]
    n = n or int(np.clip(np.percentile(lengths or [MOST], 5), LEAST, MOST))
    text_index, image_index = TextIndex(n), ImageIndex(distance)
    ids, groups = [sample.id for sample in samples], [sample.group or sample.id for sample in samples]
    for number, sample in enumerate(samples):
        for text in texts[number]:
            text_index.add(number, text)
        for image in () if training.texts_only else task.benchmark_images(sample):
            image_index.add(number, image)
    del texts
    search = _Search(text_index, image_index)
    for done, record in enumerate(training, 1):
        search.record(record.where, record.texts, record.images)
        progress(done)
    near, pairs = image_index.similar_pairs()
    check: dict[str, JSON] = {
        "text": f"{n}-grams of words; whole texts where they are shorter",
        "template": f"in more than {template} groups of samples",
        "image": None
        if training.texts_only
        else f"sha256 of bytes and of pixels; DCT hash of {BITS} bits, at most {distance} differing",
        "similar_pairs_within_benchmark": [near, pairs],
        "training_files": training.files,
    }
    counts = {
        "samples": len(ids),
        "images": len(image_index.samples),
        "broken_images": image_index.broken,
        **search.counts,
        "broken_lines": training.broken,
        "empty_records": training.empty,
    }
    overlap = Overlap(ids, groups, check, counts)
    search.resolve(overlap, template)
    return overlap


class _Search:
    """One pass over training data: what was found of each text and image of the benchmark, and where first."""

    def __init__(self, texts: TextIndex, images: ImageIndex) -> None:
        self.texts, self.images = texts, images
        self.counts = {
            "training_records": 0,
            "training_texts": 0,
            "training_images": 0,
            "unreadable_training_images": 0,
        }
        self._texts: dict[str, tuple[str, int]] = {}
        self._images: dict[tuple[str, int], Hit] = {}
        find = images.finder()
        # Manifests name an image several times, often in a row.
        self._find_file = lru_cache(1 << 16)(lambda path: _try(lambda: find(path.read_bytes())))
        self._find = lambda data: _try(lambda: find(data))

    def record(self, where: str, texts: Sequence[str], images: Sequence[bytes | Path | None]) -> None:
        self.counts["training_records"] += 1
        for text in texts:
            self.counts["training_texts"] += 1
            for key in self.texts.found_in(text):
                first, times = self._texts.get(key, (where, 0))
                self._texts[key] = first, times + 1
        for image in images:
            self.counts["training_images"] += 1
            found = None
            if image is not None:
                found = self._find(image) if isinstance(image, bytes) else self._find_file(image)
            self.counts["unreadable_training_images"] += found is None
            for kind, number, bits in found or ():
                self._images.setdefault((kind, number), Hit(f"{bits} bits differ" if bits else kind, where))

    def resolve(self, overlap: Overlap, template: int) -> None:
        """From texts and images to samples; an image that was found exactly is not also listed as similar."""
        hits: dict[int, dict[str, Hit]] = {}
        for kind in KINDS[:3]:
            for (each, number), hit in self._images.items():
                for sample in self.images.samples[number] if each == kind else ():
                    if not hits.get(sample):
                        hits.setdefault(sample, {})[kind] = hit
        for key, (where, times) in self._texts.items():
            owners = self.texts.samples[key]
            shared = len({overlap.groups[owner] for owner in owners})
            if shared > template:
                overlap.templates.append((key, shared, times))
                continue
            for sample in owners:
                hits.setdefault(sample, {}).setdefault("text", Hit(key, where))
        overlap.hits = {overlap.ids[sample]: hits[sample] for sample in sorted(hits)}
        overlap.templates.sort(key=lambda one: (-one[1], one[0]))


def _try(find: Callable[[], Any]) -> Any:
    try:
        return find()
    except (BrokenImageError, OSError, DataError):
        return None
