"""Training data as records of texts and images, read in one pass: what `dreambench contamination` compares a benchmark with."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from dreambench.documents import JSON
from dreambench.errors import DataError, UsageError
from dreambench.files import files_below, inside, not_led_out, parse_json, read_json, read_text

__all__ = ["Record", "TrainingData"]

LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".jsonl.zip")
WHOLE = (".json", ".json.gz")
RECIPES = (".yaml", ".yml")
MANIFESTS = (*LINES, *WHOLE, ".parquet", ".tar")
IMAGES = (".jpg", ".jpeg", ".png", ".webp")
# The fields of docs/training-data.md, and those of chat records (`messages`, with `content`).
TEXT_FIELDS = ("caption", "text", "txt", "instruction", "text_list", "texts", "conversations", "messages", "json")
IMAGE_FIELDS = ("image", "images", "image_info", "jpg", "jpeg", "png", "webp")
BATCH = 256
"""Rows of a Parquet file that are held at a time."""


@dataclass(frozen=True)
class Record:
    """A record's texts and images; an image is its encoded bytes, a file, or None where the file is missing."""

    where: str
    texts: Sequence[str]
    images: Sequence[bytes | Path | None]


@dataclass
class TrainingData:
    """Training data as `docs/training-data.md` describes them, and folders of images with their texts.

    Attributes:
        paths: Manifests, folders, or recipes of `dreamllm train`, whose sources are read.
        images: Folder that image names are relative to; None: each manifest's own.
        texts_only: Leave the images out.
        broken: Lines that are no JSON object, so far.
        empty: Records with neither a text nor an image, so far.
    """

    paths: Sequence[Path]
    images: Path | None = None
    texts_only: bool = False
    broken: int = 0
    empty: int = 0
    files: list[str] = field(default_factory=list[str])

    def __iter__(self) -> Iterator[Record]:
        """Every record, in the order of the files.

        Raises:
            DataError: a file is missing, damaged, or of another format; or no record of it has a text or an image.
        """
        for path, images in self._sources():
            self.files.append(path.name)
            found = False
            for record in _folder(path, self.texts_only) if path.is_dir() else self._records(path, images):
                if record.texts or record.images:
                    found = True
                    yield record
                else:
                    self.empty += 1
            if not found:
                raise DataError(
                    f"{path} has no text and no image: the fields are those of docs/training-data.md ({', '.join(TEXT_FIELDS[:2])},"
                    f" {IMAGE_FIELDS[0]}, ...)"
                )

    def _sources(self) -> Iterator[tuple[Path, Path]]:
        """Manifests, each with the folder of its images; folders without a manifest."""
        for path in self.paths:
            if path.is_dir():
                manifests = [Path(file) for file in files_below(path, lambda name: _is(name, MANIFESTS))]
                # What describes the folder itself is no training data.
                manifests = [file for file in manifests if file.name != "manifest.json"]
                yield from ((file, self.images or file.parent) for file in manifests)
                if not manifests:
                    yield path, path
            elif _is(path.name, RECIPES):
                yield from self._recipe(path)
            elif path.is_file():
                yield path, self.images or path.parent
            else:
                raise UsageError(f"--train {path}: no such file or folder")

    def _recipe(self, path: Path) -> Iterator[tuple[Path, Path]]:
        """The files of a recipe's sources. A tokenised or mixed source is read as it lies, whatever its weight."""
        import yaml

        try:
            sources = yaml.safe_load(read_text(path))["data"]["sources"]
            wanted = [
                (pattern, source.get("images"))
                for source in sources
                for pattern in ([source["path"]] if isinstance(source["path"], str) else source["path"])
            ]
        except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: it is no recipe with data.sources, each with a path") from error
        for pattern, images in wanted:
            here, name = (
                (Path(pattern).parent, Path(pattern).name) if Path(pattern).is_absolute() else (path.parent, pattern)
            )
            files = sorted(file for file in here.glob(name) if file.is_file())
            if not files:
                raise DataError(f"{path}: its source {pattern} matches no file")
            yield from ((file, self.images or (path.parent / images if images else files[0].parent)) for file in files)

    def _records(self, path: Path, images: Path) -> Iterator[Record]:
        import pyarrow as pa

        read = {".parquet": _parquet, ".tar": _tar}.get(path.suffix.lower())
        if read is None and not _is(path.name, MANIFESTS):
            raise UsageError(f"--train {path}: the formats are {', '.join((*MANIFESTS, *RECIPES))}, and folders")
        rows = read(path) if read else self._lines(path) if _is(path.name, LINES) else _items(path)
        try:
            for number, row in rows:
                fields = row if isinstance(row, Mapping) else {}
                self.broken += not isinstance(row, Mapping)
                texts = [text for name in TEXT_FIELDS for text in _texts(fields.get(name)) if text.strip()]
                yield Record(f"{path.name}:{number}", texts, [] if self.texts_only else list(_images(fields, images)))
        except (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile, pa.ArrowException) as error:
            raise DataError(f"{path}: cannot be read ({error}): replace it") from error

    def _lines(self, path: Path) -> Iterator[tuple[int, JSON]]:
        with _opened(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    value = None
                    with suppress(ValueError, RecursionError):
                        value = parse_json(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                    yield number, value


def _is(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(suffixes)


def _opened(path: Path) -> io.BufferedIOBase:
    """The bytes of a plain or compressed file, or of the only file in a ``.zip``, as they are read."""
    if path.suffix.lower() == ".zip":
        archive = zipfile.ZipFile(path)
        return io.BufferedReader(archive.open(archive.namelist()[0]))  # pyright: ignore[reportArgumentType]
    return gzip.GzipFile(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _items(path: Path) -> Iterator[tuple[int, JSON]]:
    """The items of a list, or COCO's captions with the names of their images."""
    content = read_json(path)
    if isinstance(content, dict) and {"images", "annotations"} <= set(content):
        try:
            names = {image["id"]: image["file_name"] for image in content["images"]}
            content = [{**each, "image": names.get(each["image_id"])} for each in content["annotations"]]
        except (KeyError, TypeError) as error:
            raise DataError(f"{path} does not have the layout of COCO's captions ({error!r})") from error
    if not isinstance(content, list):
        raise DataError(f"{path}: neither a list of records nor COCO's captions")
    return enumerate(content, 1)


def _parquet(path: Path) -> Iterator[tuple[int, JSON]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        names = [name for name in file.schema_arrow.names if name in (*TEXT_FIELDS, *IMAGE_FIELDS)]
        rows = (
            row for batch in file.iter_batches(BATCH, columns=names, use_threads=False) for row in batch.to_pylist()
        )
        yield from enumerate(rows, 1)


def _tar(path: Path) -> Iterator[tuple[int, JSON]]:
    """WebDataset: files that follow each other and share a name up to its first dot are a record."""
    key, row, number = "", {}, 0
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is None:
                continue
            name = PurePosixPath(member.name)
            stem, _, suffix = name.name.partition(".")
            if row and key != str(name.parent / stem):
                number += 1
                yield number, row
                row = {}
            key, data = str(name.parent / stem), file.read()
            if suffix in ("txt", "json"):
                text: JSON = data.decode("utf-8", "replace")
                with suppress(ValueError, RecursionError):
                    text = parse_json(text) if suffix == "json" else text
                row[suffix] = text
            elif f".{suffix}".lower() in IMAGES:
                row[suffix.lower()] = data
    if row:
        yield number + 1, row


def _folder(folder: Path, texts_only: bool) -> Iterator[Record]:
    """Images, each with the text in the ``.txt`` of its name; texts without an image."""
    for file in map(Path, files_below(folder, lambda name: _is(name, (*IMAGES, ".txt")))):
        if file.suffix.lower() != ".txt":
            text = file.with_suffix(".txt")
            texts = [read_text(not_led_out(folder, text))] if text.is_file() else []
            if texts or not texts_only:
                yield Record(file.name, texts, [] if texts_only else [file])
        elif not any(file.with_suffix(suffix).is_file() for suffix in IMAGES):
            yield Record(file.name, [read_text(file)], [])


def _texts(value: JSON) -> Iterable[str]:
    """The texts of a field: a string, a list of them, turns of a conversation, or another record."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    if isinstance(value, Mapping):
        return [text for name in ("value", "content", *TEXT_FIELDS) for text in _texts(value.get(name))]
    return []


def _images(fields: Mapping[str, JSON], folder: Path) -> Iterator[bytes | Path | None]:
    for name in IMAGE_FIELDS:
        values = fields.get(name)
        for value in values if isinstance(values, list) else [values]:
            image = (
                value.get("bytes") or value.get("path") or value.get("image_name")
                if isinstance(value, Mapping)
                else value
            )
            if isinstance(image, bytes):
                yield image
            elif isinstance(image, str) and image:
                yield _file(image, folder)


def _file(name: str, folder: Path) -> Path | None:
    """The file of an image's name; of a URL, the file named by its sha256."""
    names = [name]
    if name.startswith(("http://", "https://")):
        names = [hashlib.sha256(name.encode()).hexdigest() + suffix for suffix in IMAGES]
    found = (inside(folder, each) for each in names)
    return next((path for path in found if path is not None and path.is_file()), None)
