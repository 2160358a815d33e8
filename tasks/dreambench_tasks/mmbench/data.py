"""MMBench's files: the official TSV (v1.0, v1.1, EN, CN, CCBench), files of predictions, the submission to the server.

Every cell stays text: ``None``, ``NA`` and ``nan`` occur as answers and options. Only an empty cell is empty.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambench.errors import DataError, MissingExtraError, counted
from dreambench.files import read_bytes, read_json_lines
from dreambench.interfaces import unique_answers
from dreambench.requests import parse_number

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
    """The rows of one file in its order, and its distinct images (base64) by the index of the row that holds them."""

    rows: list[Row]
    images: Mapping[int, str]

    @property
    def circular(self) -> bool:
        """Whether the file has rotated copies at all; without any there is only a VanillaEval."""
        return any(row.rotation for row in self.rows)

    def image_bytes(self, row: Row) -> bytes:
        """The encoded image (JPEG or PNG) of a row. `DataError` where it is not base64."""
        try:
            return base64.b64decode(self.images[row.image], validate=True)
        except (binascii.Error, ValueError) as error:
            raise DataError(f"the image of index {row.image} is not base64: {error}") from error


def load(path: Path) -> MMBench:
    """Read an official TSV, plain or gzipped.

    Raises:
        DataError: the file is missing or malformed, an index occurs twice, an image is missing, or some rows have answers and some not.
    """
    table = _table(path, "\t")
    missing = [name for name in _REQUIRED if name not in table.columns]
    if missing:
        raise DataError(f"{path} lacks the column(s) {', '.join(missing)}: is it an MMBench TSV?")
    records: list[dict[str, str]] = table.to_dict("records")  # type: ignore[assignment]
    indices = [_index(path, record["index"]) for record in records]
    if len(set(indices)) != len(indices):
        raise DataError(f"{path}: index {Counter(indices).most_common(1)[0][0]} occurs twice")
    cells = {index: record["image"] for index, record in zip(indices, records, strict=True)}
    holders = _image_holders(path, cells)
    rows = [_row(path, index, record, holders[index]) for index, record in zip(indices, records, strict=True)]
    without = [row.index for row in rows if row.answer is None]
    if 0 < len(without) < len(rows):
        raise DataError(
            f"{path}: index {without[0]} has no answer ({len(without)} of {counted(len(rows), 'row')}): complete the file, or leave"
            " the answers of all rows out, as a file of held-back answers does"
        )
    return MMBench(rows, {index: cell for index, cell in cells.items() if holders[index] == index})


def _table(path: Path, separator: str) -> pandas.DataFrame:
    import pandas as pd

    try:
        buffer = io.BytesIO(read_bytes(path))
        frame = pd.read_csv(buffer, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except ValueError as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    return _without_repeated_columns(path, frame)


def _without_repeated_columns(path: Path, frame: pandas.DataFrame) -> pandas.DataFrame:
    """The table; `DataError` where two of its columns have one name: pandas calls the second NAME.1."""
    names = list(map(str, frame.columns))
    for name in names:
        stem, _, number = name.rpartition(".")
        if stem in names and number.isdecimal():
            raise DataError(f"{path}: the column {stem} occurs twice: remove one")
    return frame


def _index(path: Path, text: Any) -> int:
    try:
        return parse_number(text)
    except ValueError as error:
        raise DataError(f"{path}: {repr(text)[:40]} is not an index (a whole number)") from error


def _image_holders(path: Path, cells: Mapping[int, str]) -> dict[int, int]:
    """For every row the row that holds its image; equal images, which older files repeat in every copy, are kept once."""
    first: dict[str, int] = {}
    holders: dict[int, int] = {}
    for index, cell in cells.items():
        holder = index
        if len(cell) <= _REFERENCE_LENGTH:
            holder = _index(path, cell) if cell else -1
            if len(cells.get(holder, "")) <= _REFERENCE_LENGTH:
                raise DataError(f"{path}: index {index} takes its image from {cell or 'nowhere'!r}, which holds none")
        holders[index] = first.setdefault(cells[holder], holder)
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


def read_predictions(path: Path) -> dict[str, str]:
    """Replies by index from TSV, CSV, XLSX or JSON lines with `index` and `prediction`, or JSON lines with `id` and `text`.

    Raises:
        DataError: the file is missing or malformed, or an index occurs twice.
        MissingExtraError: XLSX without openpyxl.
    """
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    entries: list[Any]
    if kind in ("tsv", "csv", "txt"):
        entries = _table(path, "," if kind == "csv" else "\t").to_dict("records")
    elif kind == "xlsx":
        entries = [entry for entry in _sheet(path).to_dict("records") if any(entry.values())]
    else:
        entries = [entry for _, entry in read_json_lines(path)]
    pairs: list[tuple[str, Any]] = []
    for number, entry in enumerate(entries):
        names = ("index", "prediction") if isinstance(entry, dict) and "index" in entry else ("id", "text")
        if not isinstance(entry, dict) or any(name not in entry for name in names):
            raise DataError(f"{path}: entry {number} (from 0) has no index and prediction (or id and text)")
        pairs.append((str(_index(path, entry[names[0]])), entry[names[1]]))
    return unique_answers(path, pairs)


def _sheet(path: Path) -> pandas.DataFrame:
    """The first sheet of an XLSX file; an error value (#N/A) reads as None."""
    import pandas as pd

    try:
        # A path would stay open if it is no sheet; a buffer does not.
        frame = pd.read_excel(io.BytesIO(read_bytes(path)), dtype=str, na_filter=False, engine="openpyxl")
    except ImportError as error:
        raise MissingExtraError("openpyxl", "sheets", f"the sheet {path.name}") from error
    except DataError:
        raise
    except Exception as error:  # openpyxl lets through whatever zipfile, the XML parser and its own descriptors raise
        raise DataError(f"{path} cannot be read as a sheet: {error}") from error
    return _without_repeated_columns(path, frame).astype(object).where(frame.notna(), None)


def write_submission(path: Path, rows: list[Row], replies: Mapping[str, str]) -> None:
    """The file for the MMBench server: the rows' own cells and `prediction`. XLSX or TSV, by the suffix of `path`.

    Raises:
        MissingExtraError: XLSX without openpyxl.
    """
    import pandas as pd

    frame = pd.DataFrame([{**row.cells, "prediction": replies[str(row.index)]} for row in rows])
    frame["prediction"] = frame.pop("prediction")  # last, also where the file has the column already
    if path.suffix.lower() != ".xlsx":
        frame.to_csv(path, sep="\t", index=False, encoding="utf-8")
        return
    sheet_text = frame.map(_printable).astype({"index": int})
    try:
        with pd.ExcelWriter(path, engine="openpyxl") as writer:
            sheet_text.to_excel(writer, index=False)
            for row in next(iter(writer.sheets.values())).iter_rows(min_row=2):
                for cell in row:
                    if isinstance(cell.value, str):
                        cell.data_type = "s"  # a reply that begins with "=" is no formula
    except ImportError as error:
        raise MissingExtraError("openpyxl", "sheets", f"the sheet {path.name}") from error


def _printable(text: str) -> str:
    """Control characters, which a sheet cannot hold, in the sheet format's own escape."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", lambda match: f"_x{ord(match[0]):04X}_", text)
