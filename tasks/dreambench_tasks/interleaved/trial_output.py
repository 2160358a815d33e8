"""``dreambench trial`` and its table, for the terminal, for a report, and as JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dreambench.errors import UsageError
from dreambench.files import write_atomically
from dreambench.progress import say
from dreambench.report.tables import Table
from dreambench.report.text import printable
from dreambench_tasks.interleaved.corruptions import CORRUPTIONS
from dreambench_tasks.interleaved.data import read_documents
from dreambench_tasks.interleaved.judging import rubric_judges
from dreambench_tasks.interleaved.trial import HEADLINES, Trial, TrialRow, run_trial

if TYPE_CHECKING:
    from dreambench.metrics.encoders import ClipScorer

__all__ = ["TrialOptions", "conduct", "table", "to_csv", "to_json", "to_markdown", "to_text"]


def table(trial: Trial) -> Table:
    """A row per metric: the mean over the references, the difference under each corruption, and the verdict."""
    cells = {(row.metric, row.corruption): row for row in trial.rows}
    means = {row.metric: row.reference for row in reversed(trial.rows) if row.reference is not None}
    rows = [
        (
            metric,
            "–" if means.get(metric) is None else f"{means[metric]:.3f}",
            *(_cell(cells.get((metric, corruption))) for corruption in CORRUPTIONS),
            trial.verdict(metric),
            "yes" if trial.enters_headline(metric) else "no" if metric in HEADLINES else "–",
        )
        for metric in trial.metrics
    ]
    notes = (
        f"{trial.documents} documents with {trial.images} images; each cell is reference minus corruption with its 95 % interval over"
        " documents. ✓ the metric sees the corruption, ✗ the corruption misleads it, neither: it is blind to it.",
        "A metric enters the headline if it sees every corruption that it is meant to see and none misleads it. Meant: "
        + "; ".join(f"{metric}: {', '.join(HEADLINES[metric])}" for metric in trial.metrics if metric in HEADLINES)
        + ".",
    )
    return Table(
        title="Trial of the metrics on corrupted references",
        columns=("metric", "references", *CORRUPTIONS, "verdict", "headline"),
        rows=tuple(rows),
        notes=notes,
    )


def _cell(row: TrialRow | None) -> str:
    if row is None or row.difference is None or row.interval is None:
        return "–"
    mark = {"sees": " ✓", "misled": " ✗"}.get(row.verdict, "")
    return f"{row.difference:+.3f} [{row.interval[0]:+.3f}, {row.interval[1]:+.3f}]{mark}"


def to_csv(trial: Trial) -> str:
    """Every row in full precision."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["metric", "corruption", "n", "undefined", "reference", "corrupted", "difference", "low", "high", "verdict"]
    )
    for row in trial.rows:
        low, high = row.interval or (None, None)
        means = (row.reference, row.corrupted, row.difference, low, high)
        writer.writerow([row.metric, row.corruption, row.n, row.undefined, *means, row.verdict])
    return buffer.getvalue()


def to_json(trial: Trial) -> str:
    """What `read_trial` reads back."""
    return trial.model_dump_json(indent=1) + "\n"


def to_text(trial: Trial) -> str:
    """For the terminal: a line per metric with its marks, then the rule and the headline."""
    shown = table(trial)
    width = max(len(metric) for metric in trial.metrics)
    lines = [f"{'metric':{width}s}  references  {'  '.join(CORRUPTIONS)}  verdict"]
    for metric, mean, *cells, verdict, _ in shown.rows:
        marks = [
            (cell[-1] if cell[-1] in "✓✗–" else "·").center(len(name))
            for name, cell in zip(CORRUPTIONS, cells, strict=True)
        ]
        lines.append(f"{metric:{width}s}  {mean:>10s}  {'  '.join(marks)}  {verdict}")
    lines += [
        f"{trial.documents} documents, {trial.images} images: ✓ sees the corruption, · blind to it, ✗ misled by it"
    ]
    lines += [f"headline: {', '.join(trial.headlines) or 'no metric passed'}"]
    return "\n".join(lines)


def to_markdown(trial: Trial) -> str:
    """The table with its notes."""
    shown = table(trial)
    lines = [shown.columns, ("---",) * len(shown.columns), *shown.rows]
    return "\n".join(
        ["\n".join(f"| {' | '.join(line)} |" for line in lines), "", *(f"{note}\n" for note in shown.notes)]
    )


# --- the command ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrialOptions:
    """What ``dreambench trial`` was asked for."""

    task: str
    data: Path | None = None
    images: Path | None = None
    clip: Path | None = None
    judges: tuple[str, ...] = ()
    limit: int | None = None
    seed: int = 0
    device: str = "auto"
    offline: bool = False
    out: Path | None = None

    @property
    def command(self) -> str:
        """The command that repeats the trial, without folders and servers, which are the user's."""
        words = ["dreambench trial --task", self.task]
        words += [f"--limit {self.limit}"] * (self.limit is not None) + [f"--seed {self.seed}"] * (self.seed != 0)
        return " ".join(words + [f"--{name} …" for name in ("data", "clip", "judges") if getattr(self, name)])


def conduct(options: TrialOptions) -> None:
    """``dreambench trial``: run it, print the verdicts, write the tables.

    Raises:
        UsageError: another task, or judges without a folder for their grades.
    """
    from dreambench_tasks.playground import clip_directory, ensure_documents

    if options.task != "interleaved":
        raise UsageError(f"--task {options.task}: only the metrics of the task interleaved have a trial")
    if options.judges and options.out is None:
        raise UsageError("--judge: give --out DIR too; the grades are kept there, so that none is asked for twice")
    judges = [rubric_judges(spec, offline=options.offline, device=options.device) for spec in options.judges]
    data = read_documents(options.data or ensure_documents(), options.images)
    data = replace(data, documents=data.documents[: options.limit])
    clip = options.clip or (clip_directory() if options.data is None else None)
    if clip is None:
        say("no --clip DIR: the metrics that need CLIP are left out")
    log = None if options.out is None else options.out / "judgements.jsonl"
    trial = run_trial(
        data, clip and _scorer(clip, options.device), judges, log, seed=options.seed, command=options.command
    )
    print(printable(to_text(trial), keep="\n"))
    if options.out is not None:
        for name, text in (("json", to_json(trial)), ("csv", to_csv(trial)), ("md", to_markdown(trial))):
            write_atomically(options.out / f"trial.{name}", text.encode())
        say(f"wrote trial.json, trial.csv and trial.md to {options.out}")


def _scorer(folder: Path, device: str) -> ClipScorer:
    from dreambench.adapters.torch_tools import resolve_device
    from dreambench.metrics.encoders import ClipScorer

    return ClipScorer(folder, device=resolve_device(device))
