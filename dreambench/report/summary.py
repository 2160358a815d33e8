"""What the runs of a sweep say together: a table on the terminal, summary.csv, summary.md, and a plot of each task's curves."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dreambench.documents import JSON
from dreambench.files import write_atomically
from dreambench.report.tables import csv_cell
from dreambench.report.text import markdown, number, printable
from dreambench.sweep import CurvePoint, SeedSummary

__all__ = ["print_summary", "write_summary"]

COLUMNS = ("task", "model", "settings", "metric", "mean", "within seeds", "between seeds", "seeds", "n")
RIGHT = ("Fréchet distance", "CLIPScore", "mean", "within seeds", "between seeds", "seeds", "n")
EXPLAINED = (
    "within seeds: the mean of the runs' own 95 % intervals, the uncertainty of the samples. between seeds: Student's 95 % interval of the"
    " mean over seeds, the uncertainty of generation; = where all seeds give the same value."
)


def print_summary(summaries: Sequence[SeedSummary], points: Sequence[CurvePoint]) -> None:
    """The headline scores over seeds, and the points of the curves."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)  # a file or a pipe has no width to fit
    rows = [_row(one) for one in summaries if one.headline]
    tables = [rows, [_point_row(point) for point in points]]
    for found in filter(None, tables):
        table = Table(header_style="", box=None, pad_edge=False)
        for name in found[0]:
            table.add_column(name, justify="right" if name in RIGHT else "left", overflow="fold")
        for row in found:
            table.add_row(*(Text(printable(cell)) for cell in row.values()))
        console.print(table)
    print(EXPLAINED)


def write_summary(folder: Path, summaries: Sequence[SeedSummary], points: Sequence[CurvePoint]) -> list[Path]:
    """summary.csv, summary.md and curve-TASK.png in a folder. The same runs give the same bytes."""
    files = {"summary.csv": _csv(summaries).encode(), "summary.md": _markdown(summaries, points).encode()}
    for task in dict.fromkeys(point.task for point in points):
        files[f"curve-{_file_name(task)}.png"] = plot([point for point in points if point.task == task])
    for name, data in files.items():
        write_atomically(folder / name, data)
    return [folder / name for name in files]


def _file_name(task: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in task)


def _csv(summaries: Sequence[SeedSummary]) -> str:
    """Every score in full precision."""
    import pandas as pd

    rows: list[dict[str, JSON]] = []
    for one in summaries:
        row = asdict(one)
        for name in ("within", "between"):
            low, high = row.pop(name) or (None, None)
            row |= {f"{name}_low": low, f"{name}_high": high, f"{name}_method": row.pop(f"{name}_method")}
        row |= {name: " ".join(map(str, row[name])) for name in ("seeds", "values", "n", "protocols")}
        rows.append({**row, "n_seeds": len(one.seeds)})
    return pd.DataFrame(rows, dtype=object).map(csv_cell).to_csv(index=False, lineterminator="\n")


def _markdown(summaries: Sequence[SeedSummary], points: Sequence[CurvePoint]) -> str:
    parts = [_table([_row(one) for one in summaries]), markdown(EXPLAINED)]
    if points:
        parts += [f"Fréchet distance against CLIPScore:\n\n{_table([_point_row(point) for point in points])}"]
    protocols = dict.fromkeys((one.task, id_) for one in summaries for id_ in one.protocols)
    if len(protocols) > len({one.task for one in summaries}):
        lines = "".join(f"- {markdown(task)}: `{id_}`\n" for task, id_ in protocols)
        parts += [f"Protocols:\n\n{lines.rstrip()}"]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    import pandas as pd

    frame = pd.DataFrame(list(rows), dtype=object).map(markdown)
    aligned = ["right" if name in RIGHT else "left" for name in frame.columns]
    return str(frame.to_markdown(index=False, disable_numparse=True, colalign=aligned))


def _row(one: SeedSummary) -> dict[str, str]:
    n = "/".join(map(str, one.n))
    between = "=" if one.between_method == "none: all seeds give the same" else _interval(one.between, one)
    cells = (one.task, one.model, one.settings, one.metric, f"{_number(one.mean, one)} {one.unit}".strip())
    return dict(zip(COLUMNS, (*cells, _interval(one.within, one), between, str(len(one.seeds)), n), strict=True))


def _point_row(point: CurvePoint) -> dict[str, str]:
    return {
        "task": point.task,
        "curve": point.line,
        "setting": f"{point.setting}={point.value:g}",
        "Fréchet distance": _number(point.distance.mean, point.distance),
        "CLIPScore": _number(point.clip.mean, point.clip),
        "seeds": str(len(point.distance.seeds)),
    }


def _number(value: float, one: SeedSummary) -> str:
    return number(value, 2 if one.unit == "%" else None)


def _interval(ends: tuple[float, float] | None, one: SeedSummary) -> str:
    return "–" if ends is None else " … ".join(_number(end, one) for end in ends)


def plot(points: Sequence[CurvePoint]) -> bytes:
    """A PNG of a task's curves, Fréchet distance against CLIPScore, each point with its setting and its between-seed intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), dpi=150, layout="constrained")
    axes: Any = figure.add_subplot()
    for line in dict.fromkeys(point.line for point in points):
        part = [point for point in points if point.line == line]
        clip, distance = [point.clip for point in part], [point.distance for point in part]
        x, y = ([one.mean for one in scores] for scores in (clip, distance))
        style: dict[str, Any] = {"marker": "o", "markersize": 4, "capsize": 2, "linewidth": 1.2}
        axes.errorbar(x, y, xerr=_errors(clip), yerr=_errors(distance), label=_plain(line), **style)
        for point, right, up in zip(part, x, y, strict=True):
            axes.annotate(f"{point.value:g}", (right, up), xytext=(5, 5), textcoords="offset points", fontsize=8)
    first = points[0]
    settings = ", ".join(dict.fromkeys(point.setting for point in points))
    axes.set_title(_plain(f"{first.task}: {settings}"), fontsize=10)
    axes.set_xlabel(_plain(first.clip.metric))
    axes.set_ylabel(_plain(f"{first.distance.metric} (lower is better)"))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in letters that the font lacks
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _errors(found: Sequence[SeedSummary]) -> list[list[float]] | None:
    """The between-seed intervals as matplotlib takes them; None where a point has none."""
    if any(one.between is None for one in found):
        return None
    ends = [(one.mean - one.between[0], one.between[1] - one.mean) for one in found if one.between is not None]
    return [list(side) for side in zip(*ends, strict=True)]


def _plain(text: str) -> str:
    """Text in which matplotlib sees no formula."""
    return printable(text).replace("$", r"\$")
