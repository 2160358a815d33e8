"""Reference documents: instructions, and documents of text and images with their topics, in four forms.

``documents.jsonl``, the plain form, has lines ``{"id", "topic", "instruction", "document": [{"text": ...} | {"image": PATH}]}`` and
optionally ``expected_images`` (the number that the instruction asks for), ``matched`` (for each image, the text that it illustrates)
and ``truth`` (what the images show, where that is known). The others are MMC4 (JSON Lines with ``text_list`` and ``image_info``), the
same with an ``instruction`` (the playground's ``instructions``), and OBELICS (Parquet or JSON Lines with ``texts`` and ``images``).
The form is recognised from the records.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreambench.documents import JSON, Document, Image, Part, Text, digest, from_json, parse_parts
from dreambench.errors import DataError
from dreambench.files import LINKS, inside, not_led_out, read_json, read_json_lines, sha256_file
from dreambench.requests import Sample, parse_id
from dreambench_tasks.interleaved.metrics import matched_sentences

__all__ = ["FREE", "MATCHED_TEXT", "RESIZE", "TEACHER_FORCED", "ReferenceData", "ReferenceDocument", "read_documents"]
__all__ += ["reference_documents"]

FREE, TEACHER_FORCED, MATCHED_TEXT = "free", "teacher-forced", "matched-text"
"""The protocols, which are modes of a sample."""
RESIZE = "clean"

PLAIN = "documents.jsonl"
TOPICS = "topics.json"
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zip", ".parquet")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
IMAGE_FOLDERS = (".", "images", "stories")
"""Where images lie relative to the file of documents, unless ``--images`` says so; the playground has them in ``stories``."""

Record = dict[str, Any]


@dataclass(frozen=True)
class ReferenceDocument:
    """An instruction and the document that fulfils it.

    `topic` and `instruction` are empty where the data have none. `matched` has, for each image, the text that it illustrates.
    `expected_images` is the number of images that the instruction asks for, None if it leaves the number open. `truth` is what is
    known about the images: on the playground ``{"scenes", "matched", "sentences"}``.
    """

    id: str
    topic: str
    instruction: str
    document: Document
    truth: JSON | None = None
    expected_images: int | None = None
    matched: tuple[str, ...] = ()

    @property
    def images(self) -> list[Image]:
        return [part for part in self.document if isinstance(part, Image)]


@dataclass(frozen=True)
class ReferenceData:
    """All documents with their images, in the files' order; `left_out` lists the ids of the others by reason."""

    form: str
    documents: list[ReferenceDocument]
    left_out: Mapping[str, list[str]]
    sha256: str


def read_documents(data: Path, images: Path | None = None) -> ReferenceData:
    """The documents in a file or in the files of a folder.

    Args:
        data: the file, or a folder with ``documents.jsonl`` or with files of one of the other forms.
        images: the folder of the images; by default that of the file, or ``images`` or ``stories`` in it.

    Raises:
        DataError: there is no such file, files have different forms, a record is broken, an id occurs twice, or no document has
            all of its images. The message names the file and the line.
    """
    files = _files(data)
    documents: dict[str, ReferenceDocument] = {}
    left_out: dict[str, list[str]] = {}
    forms: dict[str, Path] = {}
    for file in files:
        reader = _Reader(file, images)
        for number, record in _records(file):
            where = f"{file}, line {number}" if file.suffix != ".parquet" else f"{file}, row {number}"
            form = _form(record, where)
            if len(forms | {form: file}) > 1:
                (first,) = forms
                raise DataError(f"{where}: a record of {form} after records of {first}: give one file with --data")
            forms[form] = file
            document, missing = reader.read(FORMS[form], record, number, where)
            if document.id in documents or any(document.id in ids for ids in left_out.values()):
                raise DataError(f"{where}: a second document with the id {document.id}")
            reason = "no images" if not document.images else "missing images" if missing else None
            if reason:
                left_out.setdefault(reason, []).append(document.id)
            else:
                documents[document.id] = document
    if not documents:
        lost = ", ".join(f"{len(ids)} with {reason} (first {ids[0]})" for reason, ids in left_out.items())
        raise DataError(
            f"{data}: no document with images in it{f': {lost}; name their folder with --images' * bool(lost)}"
        )
    sha256 = digest([[file.name, sha256_file(file)] for file in files])
    return ReferenceData(next(iter(forms)), list(documents.values()), left_out, sha256)


def _files(data: Path) -> list[Path]:
    if data.is_file():
        return [data]
    if not data.is_dir():
        raise DataError(f"{data}: no such file or folder of documents")
    if (data / PLAIN).is_file():
        return [not_led_out(data, data / PLAIN)]
    found = sorted(
        not_led_out(data, path)
        for path in data.iterdir()
        if path.name.endswith(SUFFIXES) and not path.name.startswith(".")
    )
    if not found:
        raise DataError(
            f"{data}: no {PLAIN} and no {', '.join(SUFFIXES)} in it: give the folder or the file of documents"
        )
    return found


def _records(file: Path) -> Iterator[tuple[int, Any]]:
    if file.suffix != ".parquet":
        yield from read_json_lines(file)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        for batch in pq.ParquetFile(file).iter_batches():
            for record in batch.to_pylist():
                number += 1
                yield number, record
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: cannot be read as Parquet ({type(error).__name__})") from error


def _form(record: Any, where: str) -> str:
    keys: set[str] = set(record) if isinstance(record, dict) else set()
    for form, wanted in KEYS.items():
        if wanted <= keys:
            return form
    ways = "; ".join(f"{form}: {', '.join(sorted(wanted))}" for form, wanted in KEYS.items())
    raise DataError(f"{where}: not a document of a known form ({ways})")


def reference_documents(samples: Sequence[Sample]) -> dict[str, list[Image]]:
    """The images of the samples' reference documents, by document id in order of appearance."""
    documents: dict[str, list[Image]] = {}
    for sample in samples:
        if sample.targets["document_id"] not in documents:
            parts = from_json(sample.targets["reference"])
            documents[sample.targets["document_id"]] = [part for part in parts if isinstance(part, Image)]
    return documents


# --- records ----------------------------------------------------------------------------------------------------------


@dataclass
class _Reader:
    """Reads the records of one file."""

    file: Path
    images: Path | None
    missing: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        folder = self.file.parent
        within = (not_led_out(folder, folder / name) for name in IMAGE_FOLDERS)
        self.roots = list(within) if self.images is None else [self.images]
        self.topics: dict[str, str] = {}
        path = folder / TOPICS
        if os.path.lexists(path):  # a folder or a link to nowhere is an error, not a folder without topics
            topics = read_json(not_led_out(folder, path))
            if not isinstance(topics, dict) or not all(isinstance(topic, str) for topic in topics.values()):
                raise DataError(f"{path}: not an object of topics by document id or url")
            self.topics = topics

    def read(self, parse: Parser, record: Record, number: int, where: str) -> tuple[ReferenceDocument, list[str]]:
        """The document of a record, and the names of its missing images."""
        self.missing = []
        parts, matched = parse(self, record, where)
        try:
            id_ = parse_id(record.get("id", f"{self.file.name.partition('.')[0]}-{number}"))
        except ValueError as error:
            raise DataError(f"{where}: id must be a text or a number ({error})") from error
        expected = record.get("expected_images")
        if expected is not None and (not isinstance(expected, int) or isinstance(expected, bool) or expected < 0):
            raise DataError(f"{where}: expected_images must be a number of images")
        topic = record.get("topic") or self.topics.get(id_) or self.topics.get(str(record.get("url")), "")
        document = ReferenceDocument(
            id=id_,
            topic=_text(topic, "topic", where),
            instruction=_text(record.get("instruction") or "", "instruction", where).strip(),
            document=tuple(
                part for part in parts if isinstance(part, Image) or _text(part.text, "text", where).strip()
            ),
            truth=record.get("truth"),
            expected_images=expected,
            matched=matched,
        )
        if "instruction" in record and not document.instruction:
            raise DataError(f"{where}: its instruction is empty")
        return document, self.missing

    def image(self, name: Any, where: str) -> Image:
        """The image of that name or URL; noted as missing where there is no such file."""
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: an image must be a file name or a URL, not {name!r}")
        names = [name]
        if name.startswith(("http://", "https://")):
            names = [hashlib.sha256(name.encode()).hexdigest() + suffix for suffix in IMAGE_SUFFIXES]
        paths = [_inside(root, one, where) for root in self.roots for one in names]
        found = next((path for path in paths if path.is_file()), None)
        if found is None:
            self.missing.append(name)
        return Image(path=str(found or paths[0]))


Parsed = tuple[list[Part], tuple[str, ...]]
Parser = Callable[[_Reader, Record, str], Parsed]


def _inside(root: Path, name: str, where: str) -> Path:
    path = inside(root, name)
    if path is None or "\\" in name:
        raise DataError(f"{where}: image {name[:100]!r} is not a path within its folder{LINKS}")
    return path


def _plain(reader: _Reader, record: Record, where: str) -> Parsed:
    if "id" not in record:
        raise DataError(f"{where}: it has no id")
    parts = parse_parts(record["document"], lambda name: reader.image(name, where), where)
    matched = record.get("matched")
    if matched is None:
        return parts, _nearest(parts)
    matched = _list(matched, str, "matched", where)
    if len(matched) != sum(isinstance(part, Image) for part in parts):
        raise DataError(f"{where}: matched must have one text for each image")
    return parts, tuple(matched)


def _mmc4(reader: _Reader, record: Record, where: str) -> Parsed:
    """Each image after the sentence that it is matched to; the sentences before it are joined by a space, as in training."""
    texts = _list(record["text_list"], str, "text_list", where)
    infos = _list(record["image_info"], dict, "image_info", where)
    places = [info.get("matched_text_index") for info in infos]
    if not all(type(place) is int and 0 <= place < len(texts) for place in places):
        raise DataError(f"{where}: matched_text_index must be the number of one of its {len(texts)} sentences")
    parts: list[Part] = []
    begin = 0
    ordered = sorted(zip(places, infos, strict=True), key=lambda pair: pair[0])
    for place, info in ordered:
        parts += [_joined(texts[begin : place + 1]), reader.image(info.get("image_name"), where)]
        begin = max(begin, place + 1)
    return [*parts, _joined(texts[begin:])], tuple(texts[place].strip() for place, _ in ordered)


def _joined(texts: list[str]) -> Text:
    return Text(" ".join(stripped for text in texts if (stripped := text.strip())))


def _obelics(reader: _Reader, record: Record, where: str) -> Parsed:
    """At each index there is either a text or an image."""
    texts, names = record["texts"], record["images"]
    if not isinstance(texts, list) or not isinstance(names, list) or len(texts) != len(names):
        raise DataError(f"{where}: texts and images must be lists of equal length")
    if any((text is None) == (name is None) for text, name in zip(texts, names, strict=True)):
        raise DataError(f"{where}: at each index there must be either a text or an image")
    parts: list[Part] = [
        reader.image(name, where) if text is None else Text(_text(text, "text", where).strip())
        for text, name in zip(texts, names, strict=True)
    ]
    return parts, _nearest(parts)


def _nearest(parts: list[Part]) -> tuple[str, ...]:
    return tuple(sentence or "" for sentence in matched_sentences(tuple(parts)))


def _list(value: Any, kind: type, name: str, where: str) -> list[Any]:
    if not isinstance(value, list) or not all(isinstance(one, kind) for one in value):
        raise DataError(f"{where}: {name} must be a list of {'texts' if kind is str else 'objects'}")
    return value


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} must be a text, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: {name} has half of a surrogate pair, which is no character") from None
    return value


KEYS: dict[str, set[str]] = {
    "documents": {"document"},
    "instructions": {"text_list", "image_info", "instruction"},
    "mmc4": {"text_list", "image_info"},
    "obelics": {"texts", "images"},
}
FORMS: dict[str, Parser] = {"documents": _plain, "instructions": _mmc4, "mmc4": _mmc4, "obelics": _obelics}
