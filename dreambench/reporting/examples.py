"""Which samples of a run a reader is shown: the worst, the best, and some that nobody chose."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dreambench.documents import JSON

__all__ = ["COUNT", "Examples", "choose", "shown_images"]

COUNT = 12
"""Samples in each part of a gallery."""
Row = Mapping[str, JSON]


@dataclass(frozen=True)
class Examples:
    """`column` is what they are ranked by, None where the rows have no scores; then `worst` and `best` are empty."""

    column: str | None
    worst: list[Row]
    best: list[Row]
    unchosen: list[Row]


def choose(rows: Sequence[Row], metric: str = "", count: int = COUNT) -> Examples:
    """The `count` worst (worst first) and best (best first) rows, and `count` by hash of their ids, which no score could steer.

    Rows are ranked by the column that is called `metric`, or else by the first that holds fractions; more is better, and of
    equals the hash decides.
    A smaller `count` gives the first of those that a larger one gives, while there are at least twice as many rows.
    """
    column = _ranking(rows, metric)
    shuffled = sorted(rows, key=lambda row: hashlib.sha256(str(row["id"]).encode()).digest())
    ranked = [] if column is None else _ranked(shuffled, column)
    half = min(count, len(ranked) // 2)
    return Examples(column, ranked[:half], ranked[::-1][:half], shuffled[:count])


def shown_images(rows: Sequence[Row]) -> list[Row]:
    """The generated rows that a gallery may show, each once: those of which a run keeps the images."""
    chosen = choose([row for row in rows if row["image"]])
    shown = {row["id"]: row for row in (*chosen.worst, *chosen.best, *chosen.unchosen)}
    return list(shown.values())


def _ranked(rows: Sequence[Row], column: str) -> list[Row]:
    return sorted((row for row in rows if _known(row[column])), key=lambda row: row[column])


def _ranking(rows: Sequence[Row], metric: str) -> str | None:
    names = rows[0].keys() if rows else ()
    columns = [name for name in names if any(_known(row[name]) for row in rows)]
    return metric if metric in columns else next(iter(columns), None)


def _known(value: JSON) -> bool:
    return isinstance(value, float) and math.isfinite(value)
