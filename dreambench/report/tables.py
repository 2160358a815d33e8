"""The scores of one or several runs for other programs and for papers: CSV, Markdown, LaTeX."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from dreambench.errors import RunError
from dreambench.files import read_json, write_atomically
from dreambench.report.runs import CompleteRun
from dreambench.report.text import (
    decimals,
    interval_text,
    latex,
    markdown,
    method_text,
    printable,
    unscored_text,
    value_text,
)
from dreambench.scores import Score

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Line",
    "Table",
    "csv_cell",
    "incomparable",
    "lines",
    "save_tables",
    "saved_tables",
    "to_csv",
    "to_latex",
    "to_markdown",
]

COLUMNS = ("metric", "group", "value", "interval", "interval method", "n", "unscored", "protocol")
CSV_COLUMNS = [
    *("run", "task", "model", "metric", "group", "value", "unit", "interval_low", "interval_high", "confidence"),
    *("interval_method", "n", "unscored", "bounds_low", "bounds_high", "protocol", "notes"),
]

RIGHT = frozenset({"value", "interval", "n", "unscored"})
FORMULA = ("=", "+", "-", "@")


TABLES = "tables.json"
"""A run's file of further tables."""


class Table(BaseModel):
    """A table of texts that a task adds to the report of its runs, with sentences that belong under it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def save_tables(run: Path, tables: Sequence[Table]) -> None:
    """Store further tables in a run's folder; the same tables give the same bytes."""
    write_atomically(run / TABLES, (json.dumps([table.model_dump() for table in tables], indent=1) + "\n").encode())


def saved_tables(run: Path) -> list[Table]:
    """What `save_tables` stored, nothing if it never ran. Raises `RunError` for a damaged file."""
    if not (run / TABLES).exists():
        return []
    try:
        return [Table.model_validate(table) for table in read_json(run / TABLES, RunError)]
    except (ValueError, TypeError) as error:
        raise RunError(f"{run / TABLES} is damaged: remove it, and `dreambench score` writes it again") from error


@dataclass(frozen=True)
class Line:
    """A score and its run."""

    run: CompleteRun
    score: Score


def lines(runs: Sequence[CompleteRun]) -> list[Line]:
    """Every score, by protocol, then by metric and group, then by run; each in the order of its first appearance."""
    found = [Line(run, score) for run in runs for score in run.scores]
    protocols = {line.score.protocol: index for index, line in reversed(list(enumerate(found)))}
    metrics = {_metric(line): index for index, line in reversed(list(enumerate(found)))}
    return sorted(found, key=lambda line: (protocols[line.score.protocol], metrics[_metric(line)]))


def _metric(line: Line) -> tuple[str, str, str | None]:
    return line.score.protocol, line.score.metric, line.score.group


def incomparable(lines: Sequence[Line]) -> str | None:
    """The note under a table of several protocols; None for one protocol."""
    protocols = list(dict.fromkeys(line.score.protocol for line in lines))
    if len(protocols) < 2:
        return None
    return (
        f"Scores under different protocols are not comparable; this table has {len(protocols)}: {', '.join(protocols)}."
    )


def to_csv(runs: Sequence[CompleteRun]) -> str:
    """Every score in full precision; empty where there is none.

    Text that a spreadsheet would take for a formula begins with an apostrophe; control characters are written out.
    """
    import pandas as pd

    rows = [
        {
            "run": run.name,
            "task": run.metrics["task"],
            "model": run.metrics["model"],
            "metric": score.metric,
            "group": score.group,
            "value": score.value,
            "unit": score.unit,
            "interval_low": score.interval and score.interval[0],
            "interval_high": score.interval and score.interval[1],
            "confidence": score.confidence,
            "interval_method": score.interval_method,
            "n": score.n,
            "unscored": score.unscored,
            "bounds_low": score.bounds and score.bounds[0],
            "bounds_high": score.bounds and score.bounds[1],
            "protocol": score.protocol,
            "notes": "; ".join([*run.metrics["notes"], *run.blind_notes, *score.notes]),
        }
        for run, score in ((line.run, line.score) for line in lines(runs))
    ]
    return pd.DataFrame(rows, columns=CSV_COLUMNS, dtype=object).map(csv_cell).to_csv(index=False, lineterminator="\n")


def csv_cell(value: object) -> object:
    """A cell that no spreadsheet takes for a formula, its control characters written out."""
    if not isinstance(value, str):
        return value
    return printable(f"'{value}" if value.startswith(FORMULA) else value)


def to_markdown(runs: Sequence[CompleteRun]) -> str:
    """A table in GitHub's Markdown, its notes below it."""
    table = _table(runs, markdown)
    text = table.to_markdown(
        index=False,
        disable_numparse=True,
        colalign=["right" if name in RIGHT else "left" for name in table.columns],
    )
    notes = "".join(f"- {markdown(note)}\n" for note in _notes(runs))
    return f"**{markdown(_title(runs))}**\n\n{text}\n" + (f"\n{notes}" if notes else "")


def to_latex(runs: Sequence[CompleteRun]) -> str:
    r"""A ``tabular`` with booktabs' rules, protocols separated by another ``\midrule``, its notes below it."""
    table = _table(runs, latex)
    columns = "".join("r" if name in RIGHT else "l" for name in table.columns)
    text = table.to_latex(index=False, escape=False, column_format=columns).splitlines()
    first = text.index(r"\midrule") + 1
    protocols = list(table["protocol"])
    for row in range(len(protocols) - 1, 0, -1):
        if protocols[row] != protocols[row - 1]:
            text.insert(first + row, r"\midrule")
    head = rf"% {printable(_title(runs))}; needs \usepackage{{booktabs}}"
    return "\n".join([head, *text, *(rf"\par {latex(note)}" for note in _notes(runs))]) + "\n"


def _table(runs: Sequence[CompleteRun], escape: Callable[[str], str]) -> pd.DataFrame:
    """Escaped cells; run and model are columns where there are several runs."""
    import pandas as pd

    found = lines(runs)
    places = decimals(line.score for line in found)
    rows = [
        {
            **({"run": line.run.name, "model": line.run.metrics["model"]} if len(runs) > 1 else {}),
            "metric": line.score.metric,
            "group": line.score.group or "",
            "value": value_text(line.score, places),
            "interval": interval_text(line.score, places),
            "interval method": method_text(line.score),
            "n": str(line.score.n),
            "unscored": unscored_text(line.score, places),
            "protocol": line.score.protocol,
        }
        for line in found
    ]
    columns = [*(("run", "model") if len(runs) > 1 else ()), *COLUMNS]
    frame = pd.DataFrame(rows, columns=columns, dtype=object)
    return frame.map(escape) if rows else frame


def _title(runs: Sequence[CompleteRun]) -> str:
    return f"{runs[0].title}, run {runs[0].name}" if len(runs) == 1 else f"{len(runs)} runs"


def _notes(runs: Sequence[CompleteRun]) -> list[str]:
    """The notes under a table: each run's own, then that protocols differ."""
    notes = [f"{run.name}: {note}" if len(runs) > 1 else note for run in runs for note in run.notes]
    different = incomparable(lines(runs))
    return [*notes, different] if different else notes
