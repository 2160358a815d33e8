"""run, score, rerun, report, compare."""

from __future__ import annotations

import shlex
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dreambench.cli.options import with_spec_options
from dreambench.errors import DreambenchError, UsageError, refusal
from dreambench.spec import RunSpec, words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreambench.api import Result
    from dreambench.report.runs import CompleteRun

__all__ = ["compare", "report", "rerun", "run", "score"]

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for runs.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start from scratch, even if this run exists.")]
MaxErrors = Annotated[
    int | None,
    typer.Option("--max-errors", metavar="N", min=0, help="Exit with status 1 if more than N samples end in an error."),
]
MaxUnscored = Annotated[
    int | None,
    typer.Option("--max-unscored", metavar="N", min=0, help="Exit with status 1 if more than N samples are unscored."),
]


def _repeated(option: str, what: str) -> Any:
    """An option of `rerun` that only says that the user knows what the run's file names."""
    return typer.Option(option, metavar="NAME", help=f"What the run has, repeated: {what}, needs it.")


@with_spec_options(*(name for name in RunSpec.model_fields if name != "task"))
def run(
    options: dict[str, Any],
    task: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="TASK[,TASK...]", help="Benchmarks to run; see `dreambench list tasks`."),
    ] = None,
    max_errors: MaxErrors = None,
    max_unscored: MaxUnscored = None,
    out: Out = Path("runs"),
    fresh: Fresh = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan without running it.")] = False,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="SWEEP.yaml", help="Runs from a file, in place of --task and its options."),
    ] = None,
    summary: Annotated[
        Path | None,
        typer.Option("--summary", metavar="DIR", help="With --config: folder for its summary; default: in --out."),
    ] = None,
) -> None:
    """Run a model on benchmarks and score its answers.

    The same command finds the same run: an interrupted run is resumed; the scores of a complete run are printed.

    Example: dreambench run --task coco_fid --model dreamllm:DIR --data coco --features efficientnet-lite0
    """
    thresholds = max_errors, max_unscored
    if config is not None:
        unused = ["--task"] * bool(task) + [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
        if unused:
            raise UsageError(
                f"--config {config} says what runs: leave {', '.join(unused)} out, or write them into the file"
            )
        _execute_sweep(config, out, summary, thresholds, fresh=fresh, dry_run=dry_run)
        return
    tasks = words(task or [])
    if not tasks:
        raise UsageError("--task: name at least one (`dreambench list tasks` shows them), or give --config SWEEP.yaml")
    if summary is not None:
        raise UsageError("--summary is of a sweep: leave it out, or give --config SWEEP.yaml")
    specs = [RunSpec(task=name, **options) for name in tasks]
    _execute(specs, out, thresholds, fresh=fresh, dry_run=dry_run)


Thresholds = tuple[int | None, int | None]
"""--max-errors and --max-unscored."""


def _execute(
    specs: Sequence[RunSpec],
    out: Path,
    thresholds: Thresholds = (None, None),
    *,
    fresh: bool,
    dry_run: bool = False,
) -> None:
    """Execute specs in turn, after all of them have been checked."""
    from dreambench.api import check, plan
    from dreambench.progress import say
    from dreambench.report.terminal import missed_thresholds, print_plan

    for spec in specs:
        check(spec)
    missed: list[str] = []
    for spec in specs:
        if dry_run:
            print_plan(plan(spec, out))
            continue
        result = _execute_one(spec, out, fresh=fresh)
        missed += missed_thresholds(result, *thresholds)
    for line in missed:
        say(line)
    if missed:
        raise typer.Exit(1)


def _execute_one(spec: RunSpec, out: Path, *, fresh: bool) -> Result:
    from dreambench.api import execute
    from dreambench.progress import progress_bar, say
    from dreambench.report.terminal import print_result

    with progress_bar(spec.task) as progress:
        result = execute(spec, out, fresh=fresh, progress=progress, say=say)
    print_result(result)
    return result


def _execute_sweep(
    config: Path, out: Path, summary: Path | None, thresholds: Thresholds, *, fresh: bool, dry_run: bool
) -> None:
    """Execute the runs of a file in turn, after all of them have been checked. One that fails does not stop the others."""
    from dreambench.api import plan
    from dreambench.progress import say
    from dreambench.report.runs import load
    from dreambench.report.terminal import missed_thresholds, print_plan
    from dreambench.sweep import check_all, label, read_sweep

    specs = read_sweep(config)
    check_all(specs)
    complete: list[tuple[RunSpec, CompleteRun]] = []
    failed: list[str] = []
    missed: list[str] = []
    for number, spec in enumerate(specs, 1):
        say(f"{number} of {len(specs)}: {label(spec)}")
        try:
            if dry_run:
                print_plan(plan(spec, out))
                continue
            result = _execute_one(spec, out, fresh=fresh)
        except BrokenPipeError:
            raise
        except Exception as error:
            failed.append(f"{label(spec)}: {_reason(error)}")
            say(f"failed: {failed[-1]}")
            continue
        missed += [f"{label(spec)}: {line}" for line in missed_thresholds(result, *thresholds)]
        if result.metrics is not None:
            complete.append((spec, load(result.folder)))
    if complete:
        try:
            _summarize(complete, len(specs), summary or out / f"summary-{config.stem}")
        except BrokenPipeError:
            raise
        except OSError as error:
            failed.append(f"summary: {refusal(error)}")
    for line in [*missed, *(f"failed: {line}" for line in failed)]:
        say(line)
    if failed or missed:
        raise typer.Exit(2 if failed else 1)


def _reason(error: Exception) -> str:
    """An error as one line; a bug's traceback is printed before."""
    if isinstance(error, DreambenchError):
        return str(error)
    if isinstance(error, OSError):
        return refusal(error)
    if not isinstance(error, MemoryError):
        traceback.print_exception(error)
    return f"{type(error).__name__}: {error}"


def _summarize(complete: Sequence[tuple[RunSpec, CompleteRun]], n: int, folder: Path) -> None:
    """Print and write what the complete runs of a sweep say together."""
    from dreambench.progress import say
    from dreambench.report.summary import print_summary, write_summary
    from dreambench.sweep import curves, summarize

    summaries, points = summarize(complete), curves(complete)
    print_summary(summaries, points)
    for path in write_summary(folder, summaries, points):
        say(f"wrote {path}")
    if len(complete) < n:
        say(f"the summary is of {len(complete)} of {n} runs: the same command does the others")
    print(f"look at them: dreambench report {shlex.quote(str(complete[0][1].run.path.parent))} --html report.html")


@with_spec_options("data", "images", "protocol", "split", "judge", "limit", "offline")
def score(
    options: dict[str, Any],
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A run to score again from its own files.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task", metavar="TASK", help="Benchmark that the answers belong to; with RUN, its own, repeated."
        ),
    ] = None,
    responses: Annotated[
        Path | None,
        typer.Option(
            "--responses",
            metavar="FILE",
            help='Answers made elsewhere: the benchmark\'s result format, or {"id", "text"} lines.',
        ),
    ] = None,
    max_errors: MaxErrors = None,
    max_unscored: MaxUnscored = None,
    out: Out = Path("runs"),
    fresh: Fresh = False,
) -> None:
    """Score a run again, or score answers that were made elsewhere.

    Example: dreambench score --task vqav2 --data vqa --responses results.json
    """
    from dreambench.api import score_run
    from dreambench.report.terminal import print_result

    if run is not None:
        judge = options.pop("judge", None)
        given = {"--responses": responses, "--max-errors": max_errors, "--max-unscored": max_unscored}
        given["--out"] = out if out != Path("runs") else None
        unused = [name for name, value in given.items() if value is not None] + ["--fresh"] * fresh
        unused += [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not False]
        if unused:
            raise UsageError(f"score RUN takes the run's own data and protocols: leave {', '.join(unused)} out")
        print_result(score_run(run, task=task, judge=judge))
        return
    if task is None or responses is None:
        raise UsageError("score needs a run, or --task TASK --data DIR --responses FILE")
    if not responses.is_file():
        raise UsageError(f"--responses {responses}: no such file")
    spec = RunSpec(task=task, model=f"responses:{responses.absolute()}", **options)
    _execute([spec], out, (max_errors, max_unscored), fresh=fresh)


def rerun(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder for runs; default: the folder that holds RUN.")
    ] = None,
    fresh: Fresh = False,
    task: Annotated[str | None, _repeated("--task", "a task given as package.module:Class")] = None,
    model: Annotated[
        str | None, _repeated("--model", "a model given as package.module:Class, or on another machine")
    ] = None,
    judge: Annotated[str | None, _repeated("--judge", "a judge on another machine")] = None,
) -> None:
    """Execute a run's run.json again: resume an interrupted run, or repeat it with --fresh.

    Example: dreambench rerun runs/coco_fid-dreamllm-1a2b3c4d --fresh
    """
    from dreambench.store import RunFolder
    from dreambench.trust import obeying

    spec = RunFolder.open(run).spec()
    with obeying(run, spec, task=task, model=model, judge=judge):
        _execute([spec], out or run.parent, fresh=fresh)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...|RUNS_DIR", help="Runs, or folders that hold runs.")],
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write one self-contained HTML page.")
    ] = None,
    every_sample: Annotated[
        bool,
        typer.Option("--all", help="With --html: write every sample, as numbered pages into the folder FILE-samples."),
    ] = False,
    sheet: Annotated[
        Path | None,
        typer.Option("--sheet", metavar="FILE", help="Write up to 48 random generated images of a run to a PNG."),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the table as CSV, in full precision.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the table in Markdown.")] = False,
    as_latex: Annotated[bool, typer.Option("--latex", help="Print the table in LaTeX.")] = False,
) -> None:
    """Show runs as tables on the terminal, as an HTML page, or as CSV, Markdown or LaTeX.

    Example: dreambench report runs --html report.html
    """
    from dreambench.report.page import write_page, write_sheet
    from dreambench.report.runs import load_all
    from dreambench.report.tables import to_csv, to_latex, to_markdown
    from dreambench.report.terminal import print_runs

    forms = {"--csv": (as_csv, to_csv), "--markdown": (as_markdown, to_markdown), "--latex": (as_latex, to_latex)}
    chosen = {name: form for name, (wanted, form) in forms.items() if wanted}
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} print the same table: choose one")
    if every_sample and html is None:
        raise UsageError("--all writes the samples beside a page: give --html FILE, too")
    found = load_all(runs)
    if sheet is not None and len(found) > 1:
        raise UsageError("--sheet takes one run")
    for form in chosen.values():
        print(form(found), end="")
    if html is not None:
        write_page(found, html, every_sample=every_sample)
    if sheet is not None:
        write_sheet(found[0], sheet)
    if not chosen and html is None and sheet is None:
        print_runs(found)


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN...", help="Runs; each is compared with the first, the baseline.")
    ],
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Compare the common samples of runs that do not measure the same.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write one self-contained HTML page.")
    ] = None,
    as_json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the differences as JSON.")
    ] = None,
) -> None:
    """Compare runs of the same measurement sample by sample: difference, interval, test, and what their n could show.

    Example: dreambench compare runs/vqav2-blind-1a2b3c4d runs/vqav2-dreamllm-5e6f7a8b
    """
    from dreambench.compare import compare, load_runs
    from dreambench.report.comparison import print_comparison, write_json

    comparison = compare(load_runs(runs), anyway=anyway)
    print_comparison(comparison)
    if as_json is not None:
        write_json(comparison, as_json)
    if html is not None:
        from dreambench.report.page import write_page

        write_page(comparison.runs, html, comparison)
