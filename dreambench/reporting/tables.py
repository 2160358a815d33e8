"""The score tables of one or several runs for other programs and for papers: CSV, Markdown, LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from dreambench.report import number
from dreambench.reporting.loading import Loaded
from dreambench.reporting.text import latex, markdown, printable
from dreambench.scores import Score

__all__ = ["Line", "incomparable", "lines", "to_csv", "to_latex", "to_markdown"]

CSV_COLUMNS = (
    *("run", "task", "model", "metric", "group", "value", "unit", "interval_low", "interval_high", "confidence"),
    *("interval_method", "n", "unscored", "bounds_low", "bounds_high", "protocol", "notes"),
)
COLUMNS = ("metric", "group", "value", "interval", "interval by", "n", "unscored", "protocol")
RIGHT = frozenset({"value", "interval", "n", "unscored"})
FORMULA = ("=", "+", "-", "@")


@dataclass(frozen=True)
class Line:
    """A score and whose it is."""

    run: Loaded
    score: Score


def lines(runs: Sequence[Loaded]) -> list[Line]:
    """Every score: by protocol, within it by metric and group, within these by run; each in the order in which it first appears."""
    found = [Line(run, score) for run in runs for score in run.scores]
    protocols = {line.score.protocol: place for place, line in reversed(list(enumerate(found)))}
    metrics = {_metric(line): place for place, line in reversed(list(enumerate(found)))}
    return sorted(found, key=lambda line: (protocols[line.score.protocol], metrics[_metric(line)]))


def _metric(line: Line) -> tuple[str, str, str | None]:
    return line.score.protocol, line.score.metric, line.score.group


def incomparable(lines: Sequence[Line]) -> str | None:
    """The sentence that belongs under a table of several protocols."""
    names = list(dict.fromkeys(line.score.protocol for line in lines))
    if len(names) < 2:
        return None
    return f"Scores under different protocols are not comparable; here are {len(names)}: {', '.join(names)}."


def _notes(runs: Sequence[Loaded]) -> list[str]:
    """What belongs under a table: what each run says of its scores, then that protocols differ."""
    several = len(runs) > 1
    said = [f"{run.name}: {note}" if several else note for run in runs for note in run.notes]
    different = incomparable(lines(runs))
    return [*said, different] if different else said


def to_csv(runs: Sequence[Loaded]) -> str:
    """Every score in full precision, empty where there is none.

    Text that a spreadsheet would take for a formula begins with an apostrophe; control characters are written out.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for line in lines(runs):
        score, metrics = line.score, line.run.metrics
        cells = (
            *(line.run.name, metrics["task"], metrics["model"], score.metric, score.group, score.value, score.unit),
            *(score.interval or (None, None)),
            *(score.confidence, score.interval_method, score.n, score.unscored),
            *(score.bounds or (None, None)),
            *(score.protocol, "; ".join([*metrics["notes"], *score.notes])),
        )
        writer.writerow([_csv_text(cell) if isinstance(cell, str) else cell for cell in cells])
    return text.getvalue()


def _csv_text(text: str) -> str:
    return printable(f"'{text}" if text.startswith(FORMULA) else text)


def interval_text(score: Score) -> str:
    return "–" if score.interval is None else f"{number(score.interval[0])} … {number(score.interval[1])}"


def method_text(score: Score) -> str:
    """How the interval was made, or why there is none."""
    return score.interval_method if score.interval is None else f"{score.confidence:.0%}, {score.interval_method}"


def unscored_text(score: Score) -> str:
    """How many could not be scored, and between which values the score would lie with them."""
    if score.bounds is None or not score.unscored:
        return str(score.unscored)
    return f"{score.unscored} ({number(score.bounds[0])} … {number(score.bounds[1])} with them)"


def _table(runs: Sequence[Loaded]) -> tuple[list[str], list[tuple[Line, list[str]]]]:
    """Column names, and the cells of each line; run and model are columns where there are several."""
    several = len(runs) > 1
    columns = [*(("run", "model") if several else ()), *COLUMNS]
    found: list[tuple[Line, list[str]]] = []
    for line in lines(runs):
        score = line.score
        cells = [
            *(score.metric, score.group or "", f"{number(score.value)} {score.unit}".strip(), interval_text(score)),
            *(method_text(score), str(score.n), unscored_text(score), score.protocol),
        ]
        found.append((line, [*((line.run.name, line.run.metrics["model"]) if several else ()), *cells]))
    return columns, found


def _title(runs: Sequence[Loaded]) -> str:
    return f"{runs[0].title}, run {runs[0].name}" if len(runs) == 1 else f"{len(runs)} runs"


def to_markdown(runs: Sequence[Loaded]) -> str:
    """A table in GitHub's Markdown that can also be read as it stands, its notes below it."""
    columns, rows = _table(runs)
    escaped = [[markdown(cell) for cell in cells] for _, cells in rows]
    widths = [max(len(cell) for cell in (*column, "---")) for column in zip(columns, *escaped, strict=True)]
    pads: list[Callable[[str, int], str]] = [str.rjust if name in RIGHT else str.ljust for name in columns]
    marks = ["-" * (width - 1) + (":" if name in RIGHT else "-") for name, width in zip(columns, widths, strict=True)]
    padded = [
        [pad(cell, width) for pad, cell, width in zip(pads, cells, widths, strict=True)]
        for cells in (columns, marks, *escaped)
    ]
    table = [f"| {' | '.join(cells)} |" for cells in padded]
    below = [f"- {markdown(note)}" for note in _notes(runs)]
    return "\n".join([f"**{markdown(_title(runs))}**", "", *table, *([""] if below else []), *below]) + "\n"


def to_latex(runs: Sequence[Loaded]) -> str:
    r"""A ``tabular`` with booktabs' rules, one more of them between protocols, its notes below it."""
    columns, rows = _table(runs)
    body: list[str] = []
    for _, group in groupby(rows, key=lambda row: row[0].score.protocol):
        body.append(r"\midrule")
        body += [" & ".join(latex(cell) for cell in cells) + r" \\" for _, cells in group]
    return (
        "\n".join(
            [
                rf"% {printable(_title(runs))}; needs \usepackage{{booktabs}}",
                rf"\begin{{tabular}}{{{''.join('r' if name in RIGHT else 'l' for name in columns)}}}",
                r"\toprule",
                " & ".join(columns) + r" \\",
                *body,
                r"\bottomrule",
                r"\end{tabular}",
                *(rf"\par {latex(note)}" for note in _notes(runs)),
            ]
        )
        + "\n"
    )
