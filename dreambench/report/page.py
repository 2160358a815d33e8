"""The page: runs as one HTML file that loads nothing and contacts no server.

Answers and data are other people's text: the template escapes every text (autoescape), the samples stand in a block of JSON without
``<``, whose one script sets text only as text, control characters are written out, and the page's Content-Security-Policy allows only
that script, by its hash, the page's style and the images inside it. Without the script, the page shows random samples and all tables.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from dreambench.documents import JSON
from dreambench.errors import UsageError
from dreambench.files import discard, write_atomically
from dreambench.progress import say
from dreambench.report.images import captioned_sheet
from dreambench.report.runs import COUNT, SHOWN, CompleteRun
from dreambench.report.tables import Line, incomparable, lines, saved_tables
from dreambench.report.text import decimals, flat, interval_text, method_text, printable, unscored_text, value_text
from dreambench.report.viewer import ImageTable, SampleSet, clean, sample_sets
from dreambench.scores import Score

__all__ = ["page", "write_page", "write_sheet"]

WIDTH = 300
"""Units of a plot's width."""
LEAST_CAPTIONS, MOST_WORDS = 8, 16
"""Captions that a word must be in to be a stratum, and words that are shown."""
WORD_BOUNDS = {"clip_score": (0.0, 2.5), "similarity": (-1.0, 1.0)}
"""The columns whose means by word are shown, the first that a run has, and their bounds."""


def write_page(
    runs: Sequence[CompleteRun], target: Path, comparison: Any = None, *, every_sample: bool = False
) -> None:
    """``report RUN... --html FILE``: runs as one self-contained HTML file.

    With `every_sample`, all samples are written, too: as numbered pages into the folder ``FILE-samples`` beside it.
    """
    folder = target.with_name(f"{target.stem}-samples")
    pages = _sample_pages(runs, folder, target.name) if every_sample else []
    _write(target, "--html", page(runs, comparison, pages).encode())


def write_sheet(run: CompleteRun, target: Path) -> None:
    """``report RUN --sheet FILE``: the generated images of a run as one PNG."""
    _write(target, "--sheet", captioned_sheet(run))


def _write(target: Path, option: str, data: bytes, *, quiet: bool = False) -> None:
    try:
        write_atomically(target, data)
    except OSError as error:
        raise UsageError(f"{option} {target}: {error.strerror or error}") from error
    if not quiet:
        say(f"wrote {target} ({len(data) / 1e6:.1f} MB)")


def _sample_pages(runs: Sequence[CompleteRun], folder: Path, back: str) -> list[tuple[str, str]]:
    """Write the pages of all samples; their addresses from the page and what they hold. Pages of an earlier report are removed."""
    written: list[tuple[str, str]] = []
    pages = sample_sets(_labelled(runs), every=SHOWN)
    found = next(pages, None)
    while found is not None:
        number, following = len(written) + 1, next(pages, None)
        values: dict[str, Any] = {"sets": [found], "images": found.images, "number": number}
        html = _render("samples.html.j2", back=f"../{back}", more=following is not None, **values)
        _write(folder / f"{number:05d}.html", "--all", html.encode(), quiet=True)
        written.append((f"{folder.name}/{number:05d}.html", f"{found.title}: {found.part}"))
        found = following
    for old in sorted(folder.glob("[0-9][0-9][0-9][0-9][0-9].html"))[len(written) :]:
        discard(old)
    say(f"wrote {folder} ({len(written)} pages)")
    return written


def page(runs: Sequence[CompleteRun], comparison: Any = None, pages: Sequence[tuple[str, str]] = ()) -> str:
    """The HTML of one or several runs, images as ``data:`` URLs. The same runs give the same bytes.

    A `comparison` of the runs stands first; ``comparison.html.j2`` shows it under that name. `pages` are addresses of further pages of
    samples, with what they hold.
    """
    labelled, found, images = _labelled(runs), lines(runs), ImageTable()
    sets = list(sample_sets(labelled, images))
    labels = {id(run): label for label, run in labelled}
    overview, groups = _overview(found, labels), _groups(found, labels)
    groups += [board for label, run in labelled if run.has_images for board in _words(label, run)]
    return _render(
        "page.html.j2",
        decimals(score for _, boards in (*overview, *groups) for board in boards for _, _, score in board.rows),
        runs=labelled,
        dates={label: _date(run) for label, run in labelled},
        comparison=comparison,
        incomparable=incomparable(found),
        notes=_notes(labelled),
        methods=_methods(found),
        overview=overview,
        groups=groups,
        tables=_tables(labelled),
        errors=[(label, *error) for label, run in labelled for error in _errors(run)],
        protocols=_side_by_side({id_: fields for run in runs for id_, fields in run.metrics["protocols"].items()}),
        systems=_side_by_side({label: run.metrics.get("system", {}) for label, run in labelled}),
        environments=_side_by_side({label: _environment(run) for label, run in labelled}),
        sets=sets,
        images=images,
        pages=pages,
    )


def _render(template: str, places: Mapping[tuple[str, str], int] | None = None, **values: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dreambench.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: printable(value, keep="\n") if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {"method": method_text}
    for name, text in {"value": value_text, "interval": interval_text, "unscored": unscored_text}.items():
        filters[name] = partial(text, places=places or {})
    if values.get("comparison") is not None:
        from dreambench.report.comparison import FILTERS

        filters |= FILTERS
    environment.filters.update(filters)
    script = resources.files("dreambench.report").joinpath("viewer.js").read_text(encoding="utf-8")
    hashed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    sets: Sequence[SampleSet] = values["sets"]
    data = {"sets": [found.data() for found in sets], "images": values["images"].urls}
    # No text can end the block: "<" is written as JSON's escape of it.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return environment.get_template(template).render(
        script=script, script_hash=hashed, data=text, count=COUNT, number=values.pop("number", None), **values
    )


def _labelled(runs: Sequence[CompleteRun]) -> list[tuple[str, CompleteRun]]:
    return [(chr(ord("A") + place) if place < 26 else f"R{place + 1}", run) for place, run in enumerate(runs)]


def _date(run: CompleteRun) -> str:
    return "unknown" if run.date is None else run.date[:16].replace("T", " ")


def _notes(runs: Sequence[tuple[str, CompleteRun]]) -> list[tuple[str, list[str]]]:
    """Each note once, under the labels of its runs, which are left out where it is of all."""
    labels: dict[str, list[str]] = {}
    for label, run in runs:
        for note in run.notes:
            labels.setdefault(note, []).append(label)
    found: dict[str, list[str]] = {}
    for note, of in labels.items():
        found.setdefault("" if len(of) == len(runs) else ", ".join(of), []).append(note)
    return list(found.items())


def _methods(found: Sequence[Line]) -> list[str]:
    """How the intervals over all samples were made, or why there are none."""
    methods: dict[str, list[str]] = {}
    for line in found:
        if line.score.group is None:
            methods.setdefault(method_text(line.score), []).append(line.score.metric)
    return [f"{method}: {', '.join(dict.fromkeys(names))}" for method, names in methods.items()]


def _tables(runs: Sequence[tuple[str, CompleteRun]]) -> list[tuple[str, Any]]:
    """The runs' own tables, each once."""
    found: dict[str, tuple[list[str], Any]] = {}
    for label, run in runs:
        for table in saved_tables(run.run.path):
            found.setdefault(table.model_dump_json(), ([], table))[0].append(label)
    return [(", ".join(labels), table) for labels, table in found.values()]


def _errors(run: CompleteRun) -> list[tuple[str, int, str, str]]:
    """Each type of error, its number of samples, the first of them and its message."""
    found: list[tuple[str, int, str, str]] = []
    for name, kind in run.metrics["errors"]["types"].items():
        if not kind["ids"]:
            continue
        error = run.responses[kind["ids"][0]].error
        found.append((name, kind["n"], kind["ids"][0], clean(error.message, 400) if error else ""))
    return found


def _environment(run: CompleteRun) -> JSON:
    found = run.run.run_file()["environment"]
    return {**found.get("device", {}), **found.get("machine", {}), **found.get("versions", {})}


@dataclass(frozen=True)
class SideBySide:
    """Fields of several things: those that are the same in all, and those that differ, in the order of `names`."""

    names: list[str]
    same: list[tuple[str, JSON]]
    differing: list[tuple[str, list[JSON]]]


def _side_by_side(things: Mapping[str, JSON]) -> SideBySide:
    flattened = [dict(flat(fields)) for fields in things.values()]
    same: list[tuple[str, JSON]] = []
    differing: list[tuple[str, list[JSON]]] = []
    for name in dict.fromkeys(name for fields in flattened for name in fields):
        values = [fields.get(name, "–") for fields in flattened]
        if len({str(value) for value in values}) == 1:
            same.append((name, values[0]))
        else:
            differing.append((name, values))
    return SideBySide(list(things), same, differing)


# --- plots ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """A range of values across the width of a plot, with round numbers at which it has lines."""

    low: float
    high: float
    ticks: list[float]

    @classmethod
    def of(cls, values: Iterable[float]) -> Axis | None:
        """One that all values fit on, with some room; None for a single one, of which there is nothing to see."""
        finite = [value for value in values if math.isfinite(value)]
        if len(finite) < 2:
            return None
        low, high = min(finite), max(finite)
        room = 0.06 * (high - low) or max(abs(high) * 0.1, 1e-9)
        low, high = low - room, high + room
        step = 10 ** math.floor(math.log10((high - low) / 2))
        step *= next((factor for factor in (5, 2) if (high - low) / (step * factor) >= 2), 1)
        first = math.ceil(low / step)
        return cls(low, high, [n * step for n in range(first, math.floor(high / step) + 1)])

    def x(self, value: float) -> float:
        """Where a value lies, in [0, `WIDTH`]."""
        return round(WIDTH * (min(max(value, self.low), self.high) - self.low) / (self.high - self.low), 1)

    @property
    def marks(self) -> list[tuple[float, str]]:
        """Position and text of each tick."""
        return [(self.x(tick), f"{tick:.6g}") for tick in self.ticks]


@dataclass(frozen=True)
class Board:
    """Scores of one metric on one axis: a row for each run, or for each group and run."""

    protocol: str
    axis: Axis | None
    arrow: str
    """Which direction is better, where it is not already said of each metric."""
    rows: list[tuple[str, str, Score]]
    """Metric or group, label of the run, score."""

    @classmethod
    def of(cls, protocol: str, rows: list[tuple[str, str, Score]], *, arrow: bool) -> Board:
        scores = [score for _, _, score in rows]
        ends = (end for score in scores for end in (score.value, *(score.interval or ())) if end is not None)
        return cls(protocol, Axis.of(ends), _arrow(scores) if arrow else "", rows)

    def points(self, score: Score) -> tuple[float, float, float] | None:
        """Where the interval's ends and the value of a score lie on the axis."""
        if self.axis is None or score.value is None or not math.isfinite(score.value):
            return None
        low, high = score.interval or (score.value, score.value)
        return self.axis.x(low), self.axis.x(high), self.axis.x(score.value)


def _arrow(scores: Sequence[Score]) -> str:
    return {"higher": "↑", "lower": "↓"}.get(next((score.better for score in scores if score.better), ""), "")


Titled = tuple[str, list[Board]]


def _overview(found: Sequence[Line], labels: Mapping[int, str]) -> list[Titled]:
    """The scores over all samples: a table for each task and protocol, a board for each metric."""
    boards: dict[tuple[str, str], dict[str, list[tuple[str, str, Score]]]] = {}
    for line in found:
        if line.score.group is None:
            rows = boards.setdefault((line.run.metrics["task"], line.score.protocol), {})
            rows.setdefault(line.score.metric, []).append((line.score.metric, labels[id(line.run)], line.score))
    return [
        (task, [Board.of(protocol, rows, arrow=True) for rows in by_metric.values()])
        for (task, protocol), by_metric in boards.items()
    ]


def _groups(found: Sequence[Line], labels: Mapping[int, str]) -> list[Titled]:
    """The scores of groups: a table with one board for each protocol, metric and kind of group."""
    boards: dict[tuple[str, str, str, str], list[tuple[str, str, Score]]] = {}
    for line in found:
        if line.score.group is not None:
            kind, _, name = line.score.group.partition("=")
            key = line.run.metrics["task"], line.score.protocol, line.score.metric, kind
            boards.setdefault(key, []).append((name or kind, labels[id(line.run)], line.score))
    return [_by(*key, rows) for key, rows in boards.items()]


def _by(task: str, protocol: str, metric: str, kind: str, rows: list[tuple[str, str, Score]]) -> Titled:
    title = f"{task} · {metric} by {kind} {_arrow([score for _, _, score in rows])}"
    return title, [Board.of(protocol, rows, arrow=False)]


def _words(label: str, run: CompleteRun) -> Iterator[Titled]:
    """The mean of the samples' score by the words of their captions: the most frequent words that are not in most captions."""
    from dreambench.statistics import mean_estimate

    columns = (name for name in WORD_BOUNDS if run.count(name))
    if (column := next(columns, None)) is None or not run.count("caption"):
        return
    table = run.table[run.table[column].notna() & run.table["caption"].notna()]
    words = [frozenset(re.findall(r"[^\W\d_]{3,}", str(caption).casefold())) for caption in table["caption"]]
    counts = Counter(word for caption in words for word in caption)
    frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    chosen = [word for word, n in frequent if LEAST_CAPTIONS <= n <= len(words) / 2][:MOST_WORDS]
    task, protocol = str(run.metrics["task"]), str(run.metrics.get("protocol", ""))
    rows: list[tuple[str, str, Score]] = []
    for word in chosen:
        part = table[[word in caption for caption in words]]
        values, clusters = part[column].tolist(), part["image_id"].tolist()
        estimate = mean_estimate(values, clusters, cluster_name="image", unit="", bounds=WORD_BOUNDS[column])
        rows.append((word, label, Score.of(f"mean {column}", estimate, protocol, better="higher")))
    if rows:
        rows.sort(key=lambda row: -(row[2].value or 0.0))
        yield _by(task, protocol, f"mean {column}", "word of the caption", rows)
