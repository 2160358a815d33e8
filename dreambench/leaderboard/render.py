"""The tables as files: CSV, a README in Markdown and one HTML page. The same evidence gives the same bytes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dreambench.documents import JSON
from dreambench.errors import counted
from dreambench.files import write_atomically
from dreambench.leaderboard import throughput
from dreambench.leaderboard.evidence import TABLES, Evidence
from dreambench.leaderboard.rows import COLUMNS, UNSCORED, Measured, columns, measured_rows, published_rows
from dreambench.report.tables import csv_cell
from dreambench.report.text import decimals, flat, interval_text, markdown, number, printable, value_text

__all__ = ["render", "write"]

TITLES = {"comprehension": "Comprehension", "text_to_image": "Text to image", "interleaved": "Interleaved documents"}
CARD = (
    *(
        "prompt",
        "decoding",
        "guidance",
        "rescale",
        "steps",
        "sampler",
        "resolution",
        "negative_prompt",
        "prompt_rewriter",
    ),
    *("candidates", "samples_per_prompt", "seed_rule", "precision", "device", "parameters"),
)


@dataclass(frozen=True)
class Ranking:
    """The measured rows of one protocol and metric: ranked ones by rank, then the barred ones."""

    rows: Sequence[Measured]

    @property
    def of(self) -> Mapping[str, JSON]:
        """The cells that all rows share: task, protocol, metric, better."""
        return self.rows[0].cells

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """Rows as texts, with their whiskers in percent of the plot's width, which all rows span."""
        scores = [row.score for row in self.rows]
        places = decimals(scores)
        ends = [end for one in scores for end in (*(one.interval or ()), *([] if one.value is None else [one.value]))]
        if len(scores) == 1 and self.of["unit"] == "%":
            ends = [0.0, 100.0]
        first, width = min(ends, default=0.0), (max(ends, default=0.0) - min(ends, default=0.0)) or 1.0

        def x(value: float) -> float:
            return round(100 * (value - first) / width, 2)

        return [
            {
                **row.cells,
                "text": value_text(score, places),
                "interval": interval_text(score, places),
                "rank_text": _rank_text(row.cells),
                "attempts_text": _attempts_text(row.cells),
                "bar": None
                if score.interval is None or score.value is None
                else [*map(x, (*score.interval, score.value))],
                "card": [
                    (name.replace("_", " "), row.cells[name]) for name in CARD if row.cells.get(name) not in (None, "")
                ],
            }
            for row, score in zip(self.rows, scores, strict=True)
        ]


def write(out: Path, evidence: Sequence[Evidence]) -> dict[str, bytes]:
    """Write the tables; those that did not change stay untouched. Returns what changed."""
    changed = {
        name: data
        for name, data in render(out, evidence).items()
        if not (out / name).is_file() or (out / name).is_symlink() or (out / name).read_bytes() != data
    }
    for name, data in changed.items():
        write_atomically(out / name, data)
    return changed


def render(out: Path, evidence: Sequence[Evidence]) -> dict[str, bytes]:
    """Name and content of each file that follows from evidence, ``published/`` and ``throughput/``."""
    measured, published, speeds = measured_rows(evidence), published_rows(out), throughput.read_all(out)
    files: dict[str, bytes] = {}
    for table in TABLES:
        rows = [row.cells for row in (*measured, *published) if row.table == table]
        files[f"{table}.csv"] = _csv(rows, columns(table))
    files["throughput.csv"] = _csv(speeds, list(throughput.COLUMNS))
    shown = {table: list(_rankings([row for row in measured if row.table == table])) for table in TABLES}
    of_papers = {table: [row.cells for row in published if row.table == table] for table in TABLES}
    files["README.md"] = _readme(shown, of_papers, speeds).encode()
    files["index.html"] = _page(shown, of_papers, speeds, evidence).encode()
    return files


def _rankings(rows: Sequence[Measured]) -> Iterator[Ranking]:
    """Protocol by protocol, in each the metrics in the order of the run's scores, the headline first."""

    def protocol(row: Measured) -> tuple[str, str]:
        return row.cells["task"], row.cells["protocol"]

    for _, members in itertools.groupby(rows, protocol):
        metrics: dict[str, list[Measured]] = {}
        for row in sorted(members, key=lambda row: row.order):
            metrics.setdefault(row.cells["metric"], []).append(row)
        for same in metrics.values():
            same.sort(key=lambda row: (row.cells.get("rank") or math.inf, row.cells["system"], row.cells["run"]))
            yield Ranking(same)


def _csv(rows: Sequence[Mapping[str, JSON]], header: Sequence[str]) -> bytes:
    import pandas as pd

    lines = [[csv_cell(row.get(name)) for name in header] for row in rows]
    return pd.DataFrame(lines, columns=list(header), dtype=object).to_csv(index=False, lineterminator="\n").encode()


def _rank_text(row: Mapping[str, JSON]) -> str:
    if row.get("rank") is None:
        return "–"
    same = row["rank_first"] == row["rank_last"]
    span = f"{row['rank_first']}" if same else f"{row['rank_first']}–{row['rank_last']}"
    return f"{row['rank']} ({span} of {row['ranked']})"


def _attempts_text(row: Mapping[str, JSON]) -> str:
    if row["attempts"] == 1 or row.get("attempt_best") is None:
        return str(row["attempts"])
    best, median, worst = (number(row[f"attempt_{name}"]) for name in ("best", "median", "worst"))
    return f"{row['attempts']}: best {best}, median {median}, worst {worst}"


Shown = Mapping[str, Sequence[Ranking]]
Published = Mapping[str, Sequence[Mapping[str, JSON]]]

# --- Markdown ---------------------------------------------------------------------------------------------------------


def _readme(shown: Shown, published: Published, speeds: Sequence[Mapping[str, JSON]]) -> str:
    text = [
        "# Leaderboards",
        "Written by `dreambench leaderboard`; `dreambench leaderboard --verify` computes every cell again from `measured/`,"
        " `published/` and `throughput/`. [docs/leaderboards.md](../docs/leaderboards.md) says how rows are ranked and barred."
        " This page has the first score of each protocol; the CSV files have all, in full precision, and [index.html](index.html)"
        " shows them.",
    ]
    for table, title in TITLES.items():
        text += [f"## {title}", f"[{table}.csv]({table}.csv): {_counts(shown[table], published[table])}."]
        for ranking in _headlines(shown[table]):
            text += [f"### {' '.join(markdown(ranking.of[name]) for name in ('task', 'metric', 'protocol'))}"]
            header = ("rank", "system", "seed", "value", "interval", "n", "attempts", "barred", "run")
            lines = [
                [
                    line[name]
                    for name in (
                        "rank_text",
                        "system",
                        "seed",
                        "text",
                        "interval",
                        "n",
                        "attempts_text",
                        "barred",
                        "run",
                    )
                ]
                for line in ranking.lines
            ]
            text.append(_markdown_table(header, lines))
    text += ["## Throughput", "[throughput.csv](throughput.csv): speed beside the score that it gave."]
    header = ("task", "model", "size", "rate", "unit", "p50_s", "p95_s", "peak_mb", "metric", "value", "device", "date")
    if speeds:
        text.append(_markdown_table(header, [[row.get(name) for name in header] for row in speeds]))
    text += [
        "## Columns",
        "Empty cells do not apply, or are listed in `unknown`. A row is barred as unscored-heavy above",
    ]
    text[-1] += f" {UNSCORED:.0%} unscored samples."
    text += ["\n".join(f"- `{name}`: {meaning}" for name, meaning in COLUMNS.items())]
    text += ["Columns of throughput.csv:", "\n".join(f"- `{name}`: {of}" for name, of in throughput.COLUMNS.items())]
    return "\n\n".join(text) + "\n"


def _headlines(rankings: Sequence[Ranking]) -> list[Ranking]:
    """The first of each protocol."""
    return list({_protocol(one): one for one in reversed(rankings)}.values())[::-1]


def _counts(rankings: Sequence[Ranking], published: Sequence[object]) -> str:
    runs = {row.cells["run"] for ranking in rankings for row in ranking.rows}
    return f"{counted(len(runs), 'run')} measured, {counted(len(published), 'row')} published"


def _markdown_table(header: Sequence[str], lines: Sequence[Sequence[JSON]]) -> str:
    rows = [header, ["---"] * len(header), *([_text(cell) for cell in line] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _text(cell: JSON) -> str:
    return "" if cell is None else markdown(number(cell) if isinstance(cell, float) else str(cell))


# --- HTML -------------------------------------------------------------------------------------------------------------


def _page(
    shown: Shown, published: Published, speeds: Sequence[Mapping[str, JSON]], evidence: Sequence[Evidence]
) -> str:
    """The page loads nothing and runs no script; all text is escaped, and control characters are written out."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dreambench.leaderboard", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: "" if value is None else printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": _percent, "flat": _flat_text}
    by_task: dict[str, dict[str, list[Mapping[str, JSON]]]] = {table: {} for table in TABLES}
    for table, rows in published.items():
        for row in rows:
            by_task[table].setdefault(row["task"], []).append(row)
    return environment.get_template("page.html.j2").render(
        titles=TITLES,
        counts={table: _counts(shown[table], published[table]) for table in TABLES},
        tables={table: _by_protocol(shown[table]) for table in TABLES},
        published=by_task,
        speeds=speeds,
        meanings=COLUMNS,
        fields={id_: fields for one in evidence for id_, fields in one.facts["protocols"].items()},
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def _flat_text(value: JSON) -> str:
    return ", ".join(f"{name} {text}".strip() for name, text in flat(value))


def _by_protocol(rankings: Sequence[Ranking]) -> list[list[Ranking]]:
    return [list(members) for _, members in itertools.groupby(rankings, _protocol)]


def _protocol(ranking: Ranking) -> tuple[str, str]:
    return ranking.of["task"], ranking.of["protocol"]
