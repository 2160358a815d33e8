"""Plans and results on the terminal: a table of scores that fits its width, notes, and the headline in one line."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from dreambench.errors import counted
from dreambench.report.runs import CompleteRun, equal_run
from dreambench.report.tables import incomparable, lines
from dreambench.report.text import Decimals, decimals, headline, interval_text, printable, value_text
from dreambench.scores import Score
from dreambench.store import RunFolder

if TYPE_CHECKING:
    from dreambench.api import Result, RunPlan

__all__ = ["missed_thresholds", "print_plan", "print_result", "print_runs", "print_scores"]


COLUMNS = 80
"""Width of a table that is written to a file or a pipe."""
HEADS = ("value", "interval", "n", "unscored")
MOST_GROUPS = 20
"""Groups of one kind that a run prints at its end, such as topics; where there are more, `dreambench report` prints them."""


def print_result(result: Result) -> None:
    """A run's scores, without those of groups of which there are many; its notes, folder, and the commands one may want next."""
    if result.metrics is None:
        _print_line(f"{result.folder}: not complete yet")
        return
    if result.repeated:
        _print_line(f"{result.folder} is complete (--fresh starts anew)")
    _print_run(CompleteRun(RunFolder(result.folder), result.metrics), most_groups=MOST_GROUPS)
    run, other = shlex.quote(str(result.folder)), equal_run(result.folder, result.metrics)
    _print_line(f"look at it: dreambench report {run} --html report.html")
    if other is not None:
        _print_line(f"compare it: dreambench compare {shlex.quote(str(other))} {run}")
    _print_line(f"add it to the leaderboards: dreambench leaderboard {run} --out leaderboards")


def print_runs(runs: Sequence[CompleteRun]) -> None:
    """The tables of several runs; a note where they are not comparable."""
    for run in runs:
        _print_run(run)
    different = incomparable(lines(runs))
    if different and len(runs) > 1:
        _print_line(f"note: {different}")


def print_scores(title: str, scores: Sequence[Score]) -> None:
    """Scores that belong to no run."""
    _print_table(title, scores)
    _print_notes(note for score in scores for note in score.notes)
    for score in scores:
        if score.metric == scores[0].metric:
            _print_line(f"{title}: {headline(score)}")


def print_plan(plan: RunPlan) -> None:
    """What a run would do, for ``--dry-run``."""
    _print_line(
        f"{plan.task.name} of {plan.spec.model}: {counted(len(plan.samples), 'request')} in"
        f" {counted(len(plan.batches), 'batch', 'batches')} of {plan.batch_size}"
    )
    for protocol in plan.protocols:
        _print_line(f"protocol {protocol.id}: {dict(protocol.fields)}")
    _print_line(f"system: {plan.system}")
    for line in plan.task.estimate(plan.samples):
        _print_line(line)
    _print_notes(plan.model.notes())
    _print_line(f"run: {plan.folder} ({'exists' if plan.folder.exists() else 'new'})")


def missed_thresholds(result: Result, max_errors: int | None, max_unscored: int | None) -> list[str]:
    """A sentence for each threshold that the user set and the run exceeds."""
    missed: list[str] = []
    if max_errors is not None and result.errors > max_errors:
        missed.append(f"{counted(result.errors, 'sample')} ended in an error, more than --max-errors {max_errors}")
    unscored = max((score.unscored for score in result.scores), default=0)
    if max_unscored is not None and unscored > max_unscored:
        missed.append(f"{counted(unscored, 'unscored sample')}, more than --max-unscored {max_unscored}")
    return missed


def _print_run(run: CompleteRun, *, most_groups: int | None = None) -> None:
    kinds = Counter(kind for kind, _ in {(_kind(score), score.group) for score in run.scores})
    many = {kind: n for kind, n in kinds.items() if kind and most_groups is not None and n > most_groups}
    _print_table(run.title, [score for score in run.scores if _kind(score) not in many])
    for kind, n in many.items():
        _print_line(f"{n} groups {kind}=: dreambench report {run.run.path}")
    errors = run.metrics["errors"]
    if errors["n"]:
        types = ", ".join(f"{name}: {kind['n']} (first {kind['ids'][0]})" for name, kind in errors["types"].items())
        _print_line(f"{counted(errors['n'], 'sample')} ended in an error: {types}")
    _print_notes(run.notes)
    for score in run.scores:
        if score.group is None and score.metric == run.scores[0].metric:
            _print_line(f"{run.metrics['task']}: {headline(score)}")
    _print_line(f"run: {run.run.path}")


def _kind(score: Score) -> str:
    """What the groups are of: ``topic`` of ``topic=cats``."""
    return (score.group or "").partition("=")[0]


def _print_notes(notes: Iterable[str]) -> None:
    for note in dict.fromkeys(notes):
        _print_line(f"note: {note}")


def _print_line(line: str) -> None:
    """Print a line with control characters, which can command a terminal, written out."""
    print(printable(line))


def _print_table(title: str, scores: Sequence[Score]) -> None:
    """The scores under a heading for each protocol, groups below their metric, in the width of the terminal, or of 80 columns.

    Only names are folded.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=COLUMNS)  # a file or a pipe has no width to fit
    _print_line(title)
    places = decimals(scores)
    for protocol, part in groupby(scores, key=lambda score: score.protocol):
        rows = list(_table_rows(list(part), places))
        widths = (max(map(len, cells)) + 2 for cells in zip(HEADS, *(row[1:] for row in rows), strict=True))
        room = max(console.width - sum(widths), 8)
        heading = Text(f"protocol {printable(protocol)}")
        table = Table(title=heading, title_justify="left", title_style="", header_style="", box=None, pad_edge=False)
        table.add_column("metric", overflow="fold")
        for column in HEADS:
            table.add_column(column, justify="right", no_wrap=True)
        for name, *numbers in rows:
            # Text: brackets in data are not rich's markup
            table.add_row(Text(_folded(name, room)), *map(Text, numbers))
        console.print(table)


def _table_rows(scores: Sequence[Score], places: Decimals) -> Iterator[list[str]]:
    """Cells; a group has only its own name, below that of its metric."""
    metric = None
    for score in scores:
        if score.group is not None and score.metric != metric:
            yield [printable(score.metric), *([""] * len(HEADS))]
        metric = score.metric
        numbers = [value_text(score, places), interval_text(score, places), str(score.n), str(score.unscored)]
        yield [printable(metric if score.group is None else f"  {score.group}"), *map(printable, numbers)]


def _folded(name: str, width: int) -> str:
    """A name in lines that end where its words do."""
    lines = [""]
    for word in re.split(r"(?<=[=_/\] -])|(?=[\[(])", name):
        if lines[-1].strip() and len(lines[-1]) + len(word) > width:
            lines.append("    ")
        lines[-1] += word
    return "\n".join(lines)
