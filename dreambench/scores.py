"""Protocols and scores: a number never travels without what it measures and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dreambench.documents import JSON, digest

__all__ = ["Protocol", "Score", "TaskResult"]


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


@dataclass(frozen=True)
class Score:
    """One score of a table.

    `n` counts the units that were scored; `unscored` counts those that
    could not be (errors, undecided answers, failed judgements), whose possible effect is in `bounds`. `interval` is None only where
    `interval_method` says why. `notes` are sentences a reader must see beside the number.
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

    def to_json(self) -> JSON:
        line: dict[str, JSON] = {
            "metric": self.metric,
            "group": self.group,
            "value": self.value,
            "unit": self.unit,
            "n": self.n,
            "unscored": self.unscored,
            "interval": None if self.interval is None else list(self.interval),
            "confidence": self.confidence,
            "interval_method": self.interval_method,
            "protocol": self.protocol,
        }
        if self.bounds is not None:
            line["bounds"] = list(self.bounds)
        if self.notes:
            line["notes"] = list(self.notes)
        return line

    @classmethod
    def from_json(cls, line: Mapping[str, JSON]) -> Score:
        interval, bounds = line["interval"], line.get("bounds")
        return cls(
            metric=line["metric"],
            value=line["value"],
            unit=line["unit"],
            n=line["n"],
            protocol=line["protocol"],
            group=line["group"],
            unscored=line["unscored"],
            interval=None if interval is None else (interval[0], interval[1]),
            confidence=line["confidence"],
            interval_method=line["interval_method"],
            bounds=None if bounds is None else (bounds[0], bounds[1]),
            notes=tuple(line.get("notes", ())),
        )


@dataclass(frozen=True)
class TaskResult:
    """What a task's scorer returns: one row per sample (plain scalars by column) and the table's scores, headline first."""

    rows: list[dict[str, JSON]]
    scores: list[Score]
    notes: list[str] = field(default_factory=list[str])
