"""Documents spoilt on purpose: six corruptions of reference documents, each a function of (seed, document id).

A corruption takes a document, a random generator of its own and a function that draws images of the other documents. It gives the
corrupted document, or None where that would not differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dreambench.documents import Document, Image, Part, Text
from dreambench.errors import DataError
from dreambench.images import BrokenImageError, decode_rgb, encode_png
from dreambench.requests import sample_seed
from dreambench_tasks.interleaved.data import ReferenceDocument
from dreambench_tasks.interleaved.metrics import sentences

__all__ = ["CORRUPTIONS", "corrupted"]

GREY = (128, 128, 128)

Draw = Callable[[int], list[Image]]
Corruption = Callable[[Document, np.random.Generator, Draw], Document | None]


def _images(document: Document) -> list[Image]:
    return [part for part in document if isinstance(part, Image)]


def _with_images(document: Document, images: Sequence[Image]) -> Document:
    following = iter(images)
    return tuple(next(following) if isinstance(part, Image) else part for part in document)


def _shuffled(document: Document, rng: np.random.Generator, draw: Draw) -> Document | None:
    """No image stays where it was."""
    images = _images(document)
    if len(images) < 2:
        return None
    order = rng.permutation(len(images))
    turned = np.empty_like(order)
    turned[order] = np.roll(order, 1)  # one cycle through all images, in random order
    return _with_images(document, [images[index] for index in turned])


def _from_others(document: Document, rng: np.random.Generator, draw: Draw) -> Document | None:
    images = draw(len(_images(document)))
    return _with_images(document, images) if images else None


def _repeated(document: Document, rng: np.random.Generator, draw: Draw) -> Document | None:
    images = _images(document)
    if len(images) < 2:
        return None
    kept, lost = rng.choice(len(images), 2, replace=False)
    images[lost] = images[kept]
    return _with_images(document, images)


def _grey(document: Document, rng: np.random.Generator, draw: Draw) -> Document | None:
    import PIL.Image

    try:
        sizes = [decode_rgb(image).size for image in _images(document)]
    except BrokenImageError as error:
        raise DataError(f"a reference document: {error}; replace the file") from error
    return _with_images(document, [Image(data=encode_png(PIL.Image.new("RGB", size, GREY))) for size in sizes])


def _removed(document: Document, rng: np.random.Generator, draw: Draw) -> Document | None:
    places = [place for place, part in enumerate(document) if isinstance(part, Image)]
    gone = places[int(rng.integers(len(places)))]
    return (*document[:gone], *document[gone + 1 :])


def _reversed(document: Document, rng: np.random.Generator, draw: Draw) -> Document | None:
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


def corrupted(documents: Sequence[ReferenceDocument], name: str, seed: int = 0) -> list[Document | None]:
    """Each document under a corruption, a function of (seed, document id) and of all documents; None where it does not apply."""
    change = CORRUPTIONS[name][1]
    images = [image for reference in documents for image in reference.images]
    found: list[Document | None] = []
    begin = 0
    for reference in documents:
        rng, own = np.random.default_rng(sample_seed(seed, f"{name}\0{reference.id}")), len(reference.images)
        found.append(change(reference.document, rng, _drawing(images, begin, own, rng)))
        begin += own
    return found


def _drawing(images: Sequence[Image], begin: int, own: int, rng: np.random.Generator) -> Draw:
    """Draws images that are not among those from `begin` on that are the document's own; different ones as far as they suffice."""
    rest = len(images) - own

    def draw(count: int) -> list[Image]:
        if rest == 0:
            return []
        chosen = [int(index) for index in rng.choice(rest, count, replace=rest < count)]
        return [images[index if index < begin else index + own] for index in chosen]

    return draw
