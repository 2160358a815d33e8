"""MMBench as its users have it: the official TSV files (v1.0, v1.1, EN, CN, CCBench), prediction files, the server submission.

Every cell stays text: ``None``, ``NA`` and ``nan`` are answers that models and questions do give. Only an empty cell is empty.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambench.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    import pandas

__all__ = ["LETTERS", "ROTATION", "MMBench", "Row", "load", "read_predictions", "write_submission"]

LETTERS = ("A", "B", "C", "D", "E")
# Copy k of question i, with its options rotated k times, has index i + k * ROTATION.
ROTATION = 1_000_000
# A cell of at most this length is the index of the row that holds the image, not the image.
_REFERENCE_LENGTH = 64
_REQUIRED = ("index", "question", "A", "B", "image")


@dataclass(frozen=True)
class Row:
    """One question with its options in one order.

    Columns that a file lacks read as empty: CCBench has no hint, l2-category or split. `answer` is None where it is held back (test).
    """

    index: int
    question: str
    hint: str
    options: Mapping[str, str]  # letter to text, two to five
    answer: str | None
    category: str
    l2_category: str
    split: str
    image: int  # index of the row that holds the image
    cells: Mapping[str, str]  # the file's own cells without the image, for the submission

    @property
    def base(self) -> int:
        """The index of the question's first order; rows of one question share it."""
        return self.index % ROTATION

    @property
    def rotation(self) -> int:
        """How many times the options were rotated."""
        return self.index // ROTATION


@dataclass(frozen=True, eq=False)
class MMBench:
    """The rows of one file in its order, and its distinct images by the index of the row that holds them (base64 text)."""

    rows: list[Row]
    images: Mapping[int, str]
    columns: list[str]

    @property
    def circular(self) -> bool:
        """Whether the file holds rotated copies at all; without any there is a VanillaEval only."""
        return any(row.rotation for row in self.rows)

    def image_bytes(self, row: Row) -> bytes:
        """The encoded image (JPEG or PNG) of a row.

        Raises:
            DataError: it is not base64.
        """
        try:
            return base64.b64decode(self.images[row.image], validate=True)
        except (binascii.Error, ValueError) as error:
            raise DataError(f"the image of index {row.image} is not base64: {error}") from error


def load(path: Path) -> MMBench:
    """Read an official TSV, plain or gzipped.

    Raises:
        DataError: the file is missing or malformed, an index occurs twice, or an image is missing.
    """
    table = _table(path, "\t")
    missing = [name for name in _REQUIRED if name not in table.columns]
    if missing:
        raise DataError(f"{path} lacks the column(s) {', '.join(missing)}: is it an MMBench TSV?")
    records: list[dict[str, str]] = table.to_dict("records")  # type: ignore[assignment]
    indices = [_index(path, record["index"]) for record in records]
    if len(set(indices)) != len(indices):
        raise DataError(f"{path}: index {Counter(indices).most_common(1)[0][0]} occurs twice")
    holder = _image_holders(path, dict(zip(indices, (record["image"] for record in records), strict=True)))
    rows = [_row(path, index, record, holder[index]) for index, record in zip(indices, records, strict=True)]
    images = {index: record["image"] for index, record in zip(indices, records, strict=True) if holder[index] == index}
    return MMBench(rows, images, [str(name) for name in table.columns if name != "image"])


def _table(path: Path, separator: str) -> pandas.DataFrame:
    import pandas as pd

    try:
        return pd.read_csv(path, sep=separator, dtype=str, na_filter=False, encoding="utf-8-sig")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error


def _index(path: Path, text: Any) -> int:
    try:
        number = int(text)
        if number < 0 or float(text) != number:
            raise ValueError(text)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: {text!r} is not an index (a whole number)") from error
    return number


def _image_holders(path: Path, cells: Mapping[int, str]) -> dict[int, int]:
    """For every row the row that holds its image; equal images, which older files repeat in every copy, are held once."""
    first: dict[str, int] = {}
    holders: dict[int, int] = {}
    for index, cell in cells.items():
        held = index
        if len(cell) <= _REFERENCE_LENGTH:
            held = _index(path, cell) if cell else -1
            if len(cells.get(held, "")) <= _REFERENCE_LENGTH:
                raise DataError(f"{path}: index {index} takes its image from {cell or 'nowhere'!r}, which holds none")
        holders[index] = first.setdefault(cells[held], held)
    return holders


def _row(path: Path, index: int, record: dict[str, str], image: int) -> Row:
    options = {letter: record[letter] for letter in LETTERS if record.get(letter)}
    answer = record.get("answer") or None
    if len(options) < 2:
        raise DataError(f"{path}: index {index} has fewer than two options")
    if answer is not None and answer not in options:
        raise DataError(
            f"{path}: index {index} has the answer {answer!r}, which is none of its options {', '.join(options)}"
        )
    return Row(
        index=index,
        question=record["question"],
        hint=record.get("hint", ""),
        options=options,
        answer=answer,
        category=record.get("category", ""),
        l2_category=record.get("l2-category", ""),
        split=record.get("split", ""),
        image=image,
        cells={name: cell for name, cell in record.items() if name != "image"},
    )


def read_predictions(path: Path) -> dict[int, str]:
    """Replies by index from TSV, CSV, XLSX or JSON lines with `index` and `prediction`, or JSON lines with `id` and `text`.

    Raises:
        DataError: the file is missing or malformed, or an index occurs twice.
        MissingExtraError: XLSX without openpyxl.
    """
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if kind in ("tsv", "csv", "txt"):
        entries = _table(path, "," if kind == "csv" else "\t").to_dict("records")
    elif kind == "xlsx":
        entries = _sheet(path)
    else:
        entries = _json_lines(path)
    replies: dict[int, str] = {}
    for place, entry in enumerate(entries):
        names = ("index", "prediction") if "index" in entry else ("id", "text")
        if any(name not in entry for name in names):
            raise DataError(f"{path}: entry {place} (from 0) has no index and prediction (or id and text)")
        index, reply = _index(path, entry[names[0]]), entry[names[1]]
        if index in replies:
            raise DataError(f"{path}: index {index} is answered twice")
        if not isinstance(reply, str | int | float):
            raise DataError(f"{path}: the prediction of index {index} is not text but {reply!r}")
        replies[index] = str(reply)
    return replies


def _json_lines(path: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                entry: Any = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: not JSON: {error}") from error
            if not isinstance(entry, dict):
                raise DataError(f"{path}, line {number}: not a JSON object")
            entries.append(entry)
    return entries


def _openpyxl(path: Path) -> Any:
    try:
        import openpyxl
    except ImportError as error:
        raise MissingExtraError("openpyxl", "sheets", f"the sheet {path.name}") from error
    return openpyxl


def _sheet(path: Path) -> list[dict[str, Any]]:
    openpyxl = _openpyxl(path)
    try:
        # A path would stay open if it is no sheet; bytes do not.
        with path.open("rb") as file:
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
            rows = list(book.active.iter_rows(values_only=True))
            book.close()
    except Exception as error:  # openpyxl lets through whatever zipfile, the XML parser and its own descriptors raise
        raise DataError(f"{path} cannot be read as a sheet: {error}") from error
    names = [str(name) for name in rows[0]] if rows else []
    return [
        {name: "" if cell is None else cell for name, cell in zip(names, row, strict=False)}
        for row in rows[1:]
        if any(cell is not None for cell in row)
    ]


def write_submission(path: Path, data: MMBench, replies: Mapping[int, str]) -> None:
    """The file that the MMBench server takes: the TSV's columns without the image, and `prediction`. XLSX, or TSV by the name.

    Raises:
        DataError: replies do not cover exactly the rows.
        MissingExtraError: XLSX without openpyxl.
    """
    indices = {row.index for row in data.rows}
    if set(replies) != indices:
        missing, unknown = indices - set(replies), set(replies) - indices
        raise DataError(
            f"a submission answers every row once: {len(missing)} replies are missing and {len(unknown)} belong to no row, for "
            f"instance index {min(missing or unknown)}"
        )
    columns = [*(name for name in data.columns if name != "prediction"), "prediction"]
    cells = [[*(row.cells[name] for name in columns[:-1]), replies[row.index]] for row in data.rows]
    if path.suffix.lower() == ".xlsx":
        _write_sheet(path, columns, cells)
        return
    import pandas as pd

    pd.DataFrame(cells, columns=pd.Index(columns)).to_csv(path, sep="\t", index=False, encoding="utf-8")


def _write_sheet(path: Path, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    openpyxl = _openpyxl(path)
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet()
    sheet.append(columns)
    place = columns.index("index")
    for row in cells:
        # Text stays text: a reply that begins with "=" must not become a formula.
        written = [openpyxl.cell.WriteOnlyCell(sheet, value=_printable(text)) for text in row]
        for cell in written:
            cell.data_type = "s"
        written[place] = openpyxl.cell.WriteOnlyCell(sheet, value=int(row[place]))
        sheet.append(written)
    book.save(path)


def _printable(text: str) -> str:
    """Control characters, which a sheet cannot hold, in the sheet format's own escape."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", lambda match: f"_x{ord(match[0]):04X}_", text)
