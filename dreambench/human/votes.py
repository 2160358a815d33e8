"""Pairwise votes: one row each, from a table or from a study."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dreambench.errors import DataError
from dreambench.files import read_json_lines, read_text
from dreambench.human.study import VOTES

__all__ = ["COLUMNS", "Vote", "read_votes", "systems_of"]

COLUMNS = ("prompt", "system_a", "system_b", "vote", "rater", "position")
REQUIRED = COLUMNS[:4]


@dataclass(frozen=True, slots=True)
class Vote:
    """`vote` is one of `VOTES`; `position` says which system was shown first (on the left); `rater` and `position` may be empty."""

    prompt: str
    system_a: str
    system_b: str
    vote: str
    rater: str = ""
    position: Literal["a", "b", ""] = ""

    @property
    def tie(self) -> bool:
        return self.vote not in ("a", "b")

    @property
    def score(self) -> float:
        """1 where system a wins, 0 where b wins, 1/2 for a tie of any kind."""
        return 0.5 if self.tie else float(self.vote == "a")

    @property
    def first(self) -> int:
        """1 where system a was shown first, -1 where b was, 0 where that is unknown."""
        return {"a": 1, "b": -1, "": 0}[self.position]

    @property
    def item(self) -> tuple[str, str, str]:
        """Prompt and systems, sorted: what was compared, in whatever order."""
        return self.prompt, min(self.system_a, self.system_b), max(self.system_a, self.system_b)

    def score_of(self, system: str) -> float:
        return self.score if system == self.system_a else 1 - self.score


def read_votes(path: Path) -> list[Vote]:
    """The votes of a CSV or JSON-lines file with the columns `COLUMNS`, of which rater and position may be missing or empty.

    Raises:
        DataError: a column is missing or unknown, or a row holds something else than its columns allow; the message names the row.
    """
    votes = [_vote(f"{path}, line {number}", row) for number, row in _rows(path)]
    if not votes:
        raise DataError(f"{path} holds no votes: give a table with the columns {', '.join(COLUMNS)}")
    return votes


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if path.suffix.lower() in (".jsonl", ".json", ".gz") and not path.name.lower().endswith(".csv.gz"):
        for number, row in read_json_lines(path):
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: not an object with the columns {', '.join(COLUMNS)}")
            yield number, row
        return
    reader = csv.DictReader(io.StringIO(read_text(path)), strict=True)
    try:
        columns = reader.fieldnames or ()
        if len(set(columns)) < len(columns):
            raise DataError(f"{path}: a column stands twice; the columns are {', '.join(COLUMNS)}")
        for row in reader:
            if None in row or None in row.values():
                raise DataError(f"{path}, line {reader.line_num}: not as many cells as there are columns")
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not CSV ({error})") from error


def _vote(where: str, row: Mapping[str, Any]) -> Vote:
    unknown = [name for name in row if name not in COLUMNS]
    missing = [name for name in REQUIRED if row.get(name) in (None, "")]
    if unknown or missing:
        what = f"unknown column {unknown[0]!r}" if unknown else f"no {missing[0]!r}"
        raise DataError(f"{where}: {what}; the columns are {', '.join(COLUMNS)}")
    odd = [name for name in row if not isinstance(row[name], str | None)]
    if odd:
        raise DataError(
            f"{where}: {odd[0]} is not text but {type(row[odd[0]]).__name__}: write names and ids in quotes"
        )
    values = {name: row.get(name) or "" for name in COLUMNS}
    for name, allowed in (("vote", VOTES), ("position", ("a", "b", ""))):
        if values[name] not in allowed:
            raise DataError(f"{where}: {name} {values[name]!r} is none of {', '.join(allowed).rstrip(', ')}")
    if values["system_a"] == values["system_b"]:
        raise DataError(f"{where}: {values['system_a']!r} is compared with itself")
    position: Any = values.pop("position")
    return Vote(**values, position=position)


def systems_of(votes: Iterable[Vote]) -> list[str]:
    return sorted({system for vote in votes for system in (vote.system_a, vote.system_b)})
