"""Documents: text and images in reading order. A prompt is one, an answer is one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

from dreambench.errors import DataError

__all__ = [
    "JSON",
    "Document",
    "Image",
    "Part",
    "Text",
    "canonical_json",
    "digest",
    "document_text",
    "from_json",
    "parse_parts",
    "to_json",
]

JSON: TypeAlias = Any
"""What `json` reads and writes: None, bool, int, float, str, lists and string-keyed dicts of these."""


@dataclass(frozen=True, slots=True)
class Text:
    """Text."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image file by path, or encoded bytes (PNG, JPEG, ...) that are not stored yet."""

    path: str | None = None
    data: bytes | None = field(default=None, repr=False)
    sha256: str | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.data is None):
            raise ValueError("an Image has either a path or data")

    def read(self) -> bytes:
        """The encoded bytes. A file that is missing or changed since its digest was noted is a `DataError`."""
        if self.data is not None:
            return self.data
        try:
            data = Path(self.path or "").read_bytes()
        except OSError as error:
            raise DataError(
                f"image {self.path}: {error.strerror or error}; name their folder with --images DIR"
            ) from error
        if self.sha256 is not None and hashlib.sha256(data).hexdigest() != self.sha256:
            raise DataError(
                f"image {self.path} has changed since it was recorded (its sha256 differs): restore it or start with --fresh"
            )
        return data

    def digest(self) -> str:
        """sha256 of the encoded bytes, in hex."""
        return self.sha256 or hashlib.sha256(self.read()).hexdigest()


Part: TypeAlias = Text | Image
Document: TypeAlias = tuple[Part, ...]


def document_text(document: Document) -> str:
    """The text parts of a document, joined."""
    return "".join(part.text for part in document if isinstance(part, Text))


def to_json(document: Document) -> JSON:
    """Plain data for a log: text as it is, images by path, or by digest where they are still bytes."""
    parts: list[JSON] = []
    for part in document:
        if isinstance(part, Text):
            parts.append({"text": part.text})
        elif part.path is not None:
            parts.append({"image": part.path} | ({"sha256": part.sha256} if part.sha256 else {}))
        else:
            parts.append({"sha256": part.digest()})
    return parts


def from_json(parts: Sequence[Mapping[str, JSON]]) -> Document:
    """The inverse of `to_json`, for documents whose images have paths."""
    document: list[Part] = []
    for part in parts:
        if "text" in part:
            document.append(Text(part["text"]))
        else:
            document.append(Image(path=part["image"], sha256=part.get("sha256")))
    return tuple(document)


def parse_parts(parts: JSON, image: Callable[[JSON], Image], where: str) -> list[Part]:
    """A document as people write it: ``[{"text": ...} | {"image": NAME}, ...]``.

    Args:
        image: finds the image of a name.
        where: what a `DataError` begins with, for instance a file and a line.
    """
    if not isinstance(parts, list):
        raise DataError(f"{where}: a document must be a list of texts and images")
    found: list[Part] = []
    for part in parts:
        if isinstance(part, dict) and set(part) == {"text"} and isinstance(part["text"], str):
            found.append(Text(part["text"]))
        elif isinstance(part, dict) and set(part) == {"image"}:
            found.append(image(part["image"]))
        else:
            raise DataError(f'{where}: a part of a document is neither {{"text": ...}} nor {{"image": ...}}')
    return found


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_json(value: JSON) -> str:
    """One string per value: sorted keys, no spaces, no NaN. Used for hashing and logging."""
    return _CANONICAL.encode(value)


def digest(value: JSON) -> str:
    """sha256, in hex, of the canonical JSON of `value`. An iterator counts as the list of its items, which are not held."""
    if not isinstance(value, Iterator):
        return hashlib.sha256(canonical_json(value).encode()).hexdigest()
    hashed, before = hashlib.sha256(), "["
    for item in cast("Iterator[JSON]", value):
        hashed.update((before + canonical_json(item)).encode())
        before = ","
    hashed.update(b"[]" if before == "[" else b"]")
    return hashed.hexdigest()
