"""Answers made elsewhere: texts in a file (``responses``), image files by name (``folder``), and documents (``documents``)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from dreambench.documents import JSON, Document, Image, Part, Text, canonical_json, digest, parse_parts
from dreambench.errors import DataError, UsageError
from dreambench.files import LINKS, files_below, inside, not_led_out, read_json_lines, sha256_file
from dreambench.images import BrokenImageError, decode_rgb, image_suffix
from dreambench.interfaces import Model, ModelOptions
from dreambench.requests import Kind, Request, Response

__all__ = ["Documents", "Folder", "Responses"]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
_COCO = re.compile(r"(?:COCO_[a-z]+[0-9]{4}_)?([0-9]{12})(_[0-9]+)?")
_MATCHES = ("any", "id", "image")


class Responses(Model):
    """``responses:FILE``, for ``score --responses``: the task reads the file (`Task.read_responses`) and passes the texts to `bind`."""

    capabilities: ClassVar[frozenset[Kind]] = frozenset({"generate_text"})
    generates: ClassVar[bool] = False
    sees: ClassVar[bool] = False

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        options.only()
        options.without_weights()
        if not options.location:
            raise UsageError("--model responses: write responses:FILE")
        self.path = Path(options.location)
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file of answers")
        self._sha256 = sha256_file(self.path)
        self._texts: Mapping[str, str] | None = None

    def bind(self, texts: Mapping[str, str]) -> None:
        """Set the answers, by sample id."""
        self._texts = texts

    def identity(self) -> Mapping[str, JSON]:
        return {"name": "responses", "sha256": self._sha256}

    def batch_size(self, kind: Kind) -> int:
        return 4096

    def answer(self, requests: Sequence[Request]) -> Iterator[Response]:
        if self._texts is None:
            raise UsageError(f"{self.path}: answers from a file serve `score --responses` only")
        for request in requests:
            text = self._texts.get(request.id)
            if text is None:
                yield Response.failed(request.id, "no-answer", f"{self.path.name} has no answer to {request.id}")
            else:
                yield Response(request.id, (Text(text),))


class Folder(Model):
    """``folder:DIR``: answers with the unchanged bytes of image files.

    A file belongs to a sample if its name without suffix is the sample's id, or else its image's id (the request's `group`), as it
    is or in COCO's form (``000000000139`` or ``COCO_val2014_000000000139`` for 139). ``--model-arg match=id`` or ``match=image``
    allows only one of the two. Candidate j (from 0) of several is ``NAME_j``.
    """

    capabilities: ClassVar[frozenset[Kind]] = frozenset({"generate_image"})
    generates: ClassVar[bool] = False

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        options.only("match")
        options.without_weights()
        self.match = options.arguments.get("match", "any")
        if self.match not in _MATCHES:
            raise UsageError(f"--model-arg match={self.match}: the values are {', '.join(_MATCHES)}")
        if not options.location:
            raise UsageError("--model folder: write folder:DIR")
        self.path = Path(options.location)
        if not self.path.is_dir():
            raise DataError(f"--model folder:{options.location}: no such folder of images")
        self.files = _by_name(self.path)
        self._digest = digest(
            [[name, sha256_file(path)] for name, path in sorted(self.files.items()) if not name.startswith("#")]
        )

    def identity(self) -> Mapping[str, JSON]:
        return {"name": "folder", "files_sha256": self._digest, "match": self.match}

    def batch_size(self, kind: Kind) -> int:
        return 64

    def answer(self, requests: Sequence[Request]) -> Iterator[Response]:
        for request in requests:
            yield self._answer(request)

    def _answer(self, request: Request) -> Response:
        count = int(request.settings.get("candidates") or 1)
        matched_by, names = self._names(request, count)
        if not names:
            name = f"{request.id}" + (f" or {request.group}" if request.group and self.match != "id" else "")
            suffix = "" if count == 1 else f" with the candidates _0 to _{count - 1}"
            message = f"{self.path.name} has no image named {name}{suffix}"
            return Response.failed(request.id, "no-image", message)
        images = [Image(data=self.files[name].read_bytes()) for name in names]
        bad = [self.files[name].name for name, image in zip(names, images, strict=True) if not _is_sound(image)]
        if bad:
            message = f"{', '.join(bad)}: no PNG, JPEG or WebP that can be decoded"
            return Response.failed(request.id, "broken-image", message)
        details = {"files": [self.files[name].name for name in names], "matched_by": matched_by}
        return Response(request.id, tuple(images), details=details)

    def _names(self, request: Request, count: int) -> tuple[str, list[str]]:
        """How the request was matched, and the keys of its `count` files; no keys if one is missing."""
        for matched_by, key in (("id", request.id), ("image", request.group)):
            if key is None or self.match not in ("any", matched_by):
                continue
            for stem in (key, f"#{int(key)}") if key.isascii() and key.isdecimal() else (key,):
                candidates = [f"{stem}_{j}" for j in range(count)]
                for names in ([stem], candidates) if count == 1 else (candidates,):
                    if all(name in self.files for name in names):
                        return matched_by, names
        return "", []


def _by_name(folder: Path) -> dict[str, Path]:
    """Image files under a folder by stem, and COCO's names also by ``#NUMBER``. Raises `DataError` for duplicate names."""
    found: dict[str, Path] = {}
    names = files_below(folder, lambda name: Path(name).suffix.lower() in _SUFFIXES)
    for path in sorted(map(Path, names)):
        if not path.is_file():
            continue
        coco = _COCO.fullmatch(path.stem)
        for name in (path.stem, *((f"#{int(coco[1])}{coco[2] or ''}",) if coco else ())):
            if name in found:
                other = found[name].relative_to(folder)
                raise DataError(f"{folder}: {other} and {path.relative_to(folder)} have the same name; remove one")
            found[name] = path
    if not found:
        raise DataError(f"{folder}: no image files in it ({', '.join(sorted(_SUFFIXES))})")
    return found


class Documents(Model):
    """``documents:DIR``: answers with documents made elsewhere, their images unchanged.

    ``DIR/documents.jsonl`` has lines ``{"id", "document": [{"text": ...} | {"image": PATH}]}``, with paths within the folder. A document
    belongs to a sample if its id is the sample's, or else that of the sample's reference document (the request's `group`).
    """

    capabilities: ClassVar[frozenset[Kind]] = frozenset({"generate_interleaved"})
    generates: ClassVar[bool] = False
    sees: ClassVar[bool] = False

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        options.only()
        options.without_weights()
        if not options.location:
            raise UsageError("--model documents: write documents:DIR")
        self.path = Path(options.location) / "documents.jsonl"
        if not self.path.is_file():
            raise DataError(f"--model documents:{options.location}: no documents.jsonl in this folder")
        self.documents: dict[str, Document] = {}
        for number, line in read_json_lines(not_led_out(self.path.parent, self.path)):
            where = f"{self.path}, line {number}"
            if not (isinstance(line, dict) and isinstance(line.get("id"), str) and "document" in line):
                raise DataError(f'{where}: not of the form {{"id": "...", "document": [...]}}')
            if line["id"] in self.documents:
                raise DataError(f"{where}: a second document with the id {line['id']}")
            self.documents[line["id"]] = _document(line["document"], self.path.parent, where)
        images = sorted(
            {part.path or "" for each in self.documents.values() for part in each if isinstance(part, Image)}
        )
        found = [sha256_file(Path(path)) if Path(path).is_file() else None for path in images]
        self._digest = digest([sha256_file(self.path), found])

    def identity(self) -> Mapping[str, JSON]:
        return {"name": "documents", "files_sha256": self._digest}

    def batch_size(self, kind: Kind) -> int:
        return 64

    def answer(self, requests: Sequence[Request]) -> Iterator[Response]:
        for request in requests:
            yield self._answer(request)

    def _answer(self, request: Request) -> Response:
        matched_by, key = ("id", request.id) if request.id in self.documents else ("document", request.group)
        if key not in self.documents:
            names = request.id + (f" or {request.group}" if request.group else "")
            return Response.failed(request.id, "no-answer", f"{self.path.name} has no document with the id {names}")
        parts: list[Part] = []
        for part in self.documents[key]:
            if isinstance(part, Image):
                path = Path(part.path or "")
                if not path.is_file():
                    return Response.failed(request.id, "no-image", f"{path.name} of the document {key} is missing")
                part = Image(data=path.read_bytes())
                if not _is_sound(part):
                    message = f"{path.name} of the document {key} is no PNG, JPEG or WebP that can be decoded"
                    return Response.failed(request.id, "broken-image", message)
            parts.append(part)
        return Response(request.id, tuple(parts), details={"matched_by": matched_by})


def _is_sound(image: Image) -> bool:
    """Whether a run can store the image and decode it."""
    try:
        decode_rgb(image)
    except BrokenImageError:
        return False
    return image_suffix(image.read()) is not None


def _document(parts: JSON, folder: Path, where: str) -> Document:
    def image(name: JSON) -> Image:
        path = inside(folder, name) if isinstance(name, str) else None
        if path is None or path == folder.resolve():
            raise DataError(f"{where}: image {name!r} is not a path within the folder{LINKS}")
        return Image(path=str(path))

    document = tuple(parse_parts(parts, image, where))
    try:
        canonical_json([part.text for part in document if isinstance(part, Text)]).encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: a text has half of a surrogate pair, which is no character") from None
    return document
