"""Results on the terminal: the headline in one line, the rest as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dreambench.documents import JSON
from dreambench.reporting.text import printable
from dreambench.scores import Score

if TYPE_CHECKING:
    from dreambench.api import Result, RunPlan

__all__ = ["headline", "number", "print_plan", "print_result", "print_runs", "print_scores", "thresholds"]


def number(value: float | None) -> str:
    """Four significant digits, and two decimals where those are more."""
    if value is None:
        return "–"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4g}"


def headline(score: Score) -> str:
    """``vqav2 accuracy 72.78 % [70.60, 74.90] (95 %, cluster by image), n = 1500, protocol official@1-3f2a9c01``."""
    group = f" {score.group}" if score.group else ""
    unit = f" {score.unit}" if score.unit else ""
    if score.interval is None:
        sure = f"(no interval: {score.interval_method.removeprefix('none: ')})"
    else:
        low, high = score.interval
        sure = f"[{number(low)}, {number(high)}] ({score.confidence:.0%}, {score.interval_method})"
    unscored = f", {score.unscored} unscored" if score.unscored else ""
    if score.bounds is not None and score.unscored:
        unscored += f" (between {number(score.bounds[0])} and {number(score.bounds[1])} with them)"
    return (
        f"{score.metric}{group} {number(score.value)}{unit} {sure}, n = {score.n}{unscored}, protocol {score.protocol}"
    )


def print_result(result: Result) -> None:
    """The scores of a run, the warnings that belong to them, and where everything lies."""
    if result.metrics is None:
        print(f"{result.folder}: not complete yet")
        return
    if result.repeated:
        print(f"{result.folder} is complete (--fresh asks anew)")
    _print_metrics(result.folder, result.metrics)


def _print_metrics(folder: Path, metrics: Mapping[str, JSON]) -> None:
    scores = [Score.from_json(line) for line in metrics["scores"]]
    _print_table(f"{metrics['task']} of {metrics['model']}", scores)
    errors = metrics["errors"]
    if errors["n"]:
        kinds = ", ".join(f"{name}: {kind['n']} (first {kind['ids'][0]})" for name, kind in errors["types"].items())
        _show(f"{errors['n']} samples ended in an error: {kinds}")
    for note in [*metrics["notes"], *dict.fromkeys(note for score in scores for note in score.notes)]:
        _show(f"note: {note}")
    for score in scores:
        if score.group is None and score.metric == scores[0].metric:
            _show(f"{metrics['task']}: {headline(score)}")
    _show(f"run: {folder}")


def _show(line: str) -> None:
    """One line on standard output. Names and answers in it command no terminal."""
    print(printable(line))


def _print_table(title: str, scores: Sequence[Score]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(printable(title)), title_justify="left", box=None, pad_edge=False, header_style="")
    for column in ("metric", "group", "protocol"):
        table.add_column(column, no_wrap=column != "group")
    for column in ("value", "interval", "n", "unscored"):
        table.add_column(column, justify="right", no_wrap=True)
    for score in scores:
        interval = "–" if score.interval is None else f"{number(score.interval[0])} … {number(score.interval[1])}"
        value = f"{number(score.value)} {score.unit}".strip()
        cells = (score.metric, score.group or "", score.protocol, value, interval, str(score.n), str(score.unscored))
        # Brackets of a metric's name, or of a category in the data, are not rich's markup; nor do they command the terminal.
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console = Console()
    if not console.is_terminal:
        # Not to be folded where nobody looks at a width.
        console = Console(width=200)
    console.print(table)


def print_scores(title: str, scores: Sequence[Score]) -> None:
    """Scores that belong to no run."""
    _print_table(title, scores)
    for note in dict.fromkeys(note for score in scores for note in score.notes):
        _show(f"note: {note}")
    for score in scores:
        if score.metric == scores[0].metric:
            _show(f"{title}: {headline(score)}")


def print_runs(folders: Sequence[Path]) -> None:
    """The tables of complete runs; one that is not complete is an error that says how to finish it."""
    from dreambench.reporting.loading import load_all
    from dreambench.reporting.tables import incomparable, lines

    runs = load_all(folders)
    for run in runs:
        _print_metrics(run.run.path, run.metrics)
    different = incomparable(lines(runs))
    if different and len(runs) > 1:
        _show(f"note: {different}")


def print_plan(plan: RunPlan) -> None:
    """What a run would ask, for ``--dry-run``."""
    count = len(plan.requests)
    batches = -(-count // plan.batch_size)
    _show(f"{plan.task.name} of {plan.spec.model}: {count} requests in {batches} batches of {plan.batch_size}")
    for protocol in plan.protocols:
        _show(f"protocol {protocol.id}: {dict(protocol.fields)}")
    _show(f"system: {plan.system}")
    for line in plan.task.estimate(plan.samples):
        _show(line)
    for note in plan.model.notes():
        _show(f"note: {note}")
    _show(f"run: {plan.folder} ({'exists' if plan.folder.exists() else 'new'})")


def thresholds(result: Result, max_errors: int | None, max_unscored: int | None) -> list[str]:
    """Sentences about each threshold that the user set and the run did not meet."""
    missed: list[str] = []
    if max_errors is not None and result.errors > max_errors:
        missed.append(f"{result.errors} samples ended in an error, more than --max-errors {max_errors}")
    unscored = max((score.unscored for score in result.scores), default=0)
    if max_unscored is not None and unscored > max_unscored:
        missed.append(f"{unscored} samples are unscored, more than --max-unscored {max_unscored}")
    return missed
