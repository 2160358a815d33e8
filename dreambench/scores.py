"""Protocols and scores: a number never travels without what it measures and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from dreambench.documents import JSON, digest

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DISTANCES", "FRECHET_DISTANCES", "Better", "Cells", "Estimate", "Protocol", "Score", "TaskResult"]

Better = Literal["higher", "lower"]
FRECHET_DISTANCES = ("fid", "fd[")
"""How the names of metrics begin that are Fréchet distances, which are never negative."""
DISTANCES = (*FRECHET_DISTANCES, "kid", "kd[")
"""The same for all distances between sets of images; the unbiased kernel distance may fall below 0."""


@dataclass(frozen=True)
class Protocol:
    """What defines a measurement: split, data, sample choice, metric, reference set, resize, extractor or judge.

    Two scores may be ranked together only if their protocols' ids are equal. Bump `version` when the meaning of a field changes.
    """

    name: str
    version: int
    fields: Mapping[str, JSON]

    @property
    def hash(self) -> str:
        """First 8 hex digits of the sha256 of name, version and fields."""
        return digest({"name": self.name, "version": self.version, "fields": dict(self.fields)})[:8]

    @property
    def id(self) -> str:
        """For instance ``official@1-3f2a9c01``."""
        return f"{self.name}@{self.version}-{self.hash}"

    def to_json(self) -> JSON:
        return {"name": self.name, "version": self.version, "hash": self.hash, **self.fields}

    @classmethod
    def from_json(cls, line: Mapping[str, JSON]) -> Protocol:
        fields = {name: value for name, value in line.items() if name not in ("name", "version", "hash")}
        return cls(line["name"], line["version"], fields)


@dataclass(frozen=True)
class Estimate:
    """A value with its uncertainty, as a statistic gives it: no protocol yet.

    `interval` and `standard_error` are None where they are undefined; `method` then begins with ``none:`` and says why.
    """

    value: float
    interval: tuple[float, float] | None
    method: str
    n: int
    standard_error: float | None = None
    confidence: float = 0.95
    unit: str = ""


@dataclass(frozen=True)
class Cells:
    """The cells of scores.parquet whose mean a score is: `column`, where it is not null, in the rows that have the values of `where`.

    Rows with equal values in the column `cluster` belong together. All cells lie within `bounds`; an upper bound of None is none.
    """

    column: str
    cluster: str | None = None
    where: Mapping[str, JSON] = field(default_factory=dict[str, JSON])
    bounds: tuple[float, float | None] = (0.0, 1.0)

    def select(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of scores.parquet whose cells these are."""
        chosen = table[self.column].notna()
        for name, value in self.where.items():
            chosen &= table[name] == value
        return table.loc[chosen]

    def to_json(self) -> JSON:
        return {"column": self.column, "cluster": self.cluster, "where": dict(self.where), "bounds": list(self.bounds)}

    @classmethod
    def from_json(cls, line: Mapping[str, JSON]) -> Cells:
        low, high = line["bounds"]
        return cls(line["column"], line["cluster"], line["where"], (low, high))


@dataclass(frozen=True)
class Score:
    """One number of a table.

    `n` counts the units that were scored; `unscored` counts those that could not be (errors, undecided answers, failed judgements),
    whose possible effect is in `bounds`. `interval` is None only where `interval_method` says why. `notes` are sentences a reader must
    see beside the number. `better` is None where neither direction is better, as for baselines and lengths. `cells` let others compute the
    score again from scores.parquet; it is None for a score that is no mean of cells, such as a distance between sets.
    """

    metric: str
    value: float | None
    unit: str
    n: int
    protocol: str
    group: str | None = None
    unscored: int = 0
    interval: tuple[float, float] | None = None
    confidence: float = 0.95
    interval_method: str = ""
    bounds: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()
    better: Better | None = None
    cells: Cells | None = None

    @classmethod
    def of(cls, metric: str, estimate: Estimate, protocol: str, **fields: Any) -> Score:
        """An estimate under a protocol; `fields` are the score's others."""
        known: dict[str, Any] = {
            "value": estimate.value,
            "unit": estimate.unit,
            "n": estimate.n,
            "interval": estimate.interval,
            "confidence": estimate.confidence,
            "interval_method": estimate.method,
        }
        return cls(metric=metric, protocol=protocol, **(known | fields))

    def to_json(self) -> JSON:
        order = (
            "metric",
            "group",
            "value",
            "unit",
            "n",
            "unscored",
            "interval",
            "confidence",
            "interval_method",
            "protocol",
        )
        line: dict[str, JSON] = {name: getattr(self, name) for name in order}
        line["interval"] = None if self.interval is None else list(self.interval)
        if self.bounds is not None:
            line["bounds"] = list(self.bounds)
        if self.notes:
            line["notes"] = list(self.notes)
        if self.better is not None:
            line["better"] = self.better
        if self.cells is not None:
            line["cells"] = self.cells.to_json()
        return line

    @classmethod
    def from_json(cls, line: Mapping[str, JSON]) -> Score:
        pairs: dict[str, Any] = {name: tuple(line[name]) if line.get(name) else None for name in ("interval", "bounds")}
        cells = Cells.from_json(line["cells"]) if line.get("cells") else None
        known: dict[str, Any] = {**line, **pairs, "notes": tuple(line.get("notes", ())), "cells": cells}
        return cls(**known)


@dataclass(frozen=True)
class TaskResult:
    """What a task's `score` returns: one row per sample (plain scalars by column; a list, or, for many, a data frame) and the table's
    scores, headline first.
    """

    rows: list[dict[str, JSON]] | pd.DataFrame
    scores: list[Score]
    notes: list[str] = field(default_factory=list[str])
