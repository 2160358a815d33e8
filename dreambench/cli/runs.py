"""run, score, rerun, report, compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dreambench.cli.options import with_spec_options
from dreambench.errors import UsageError
from dreambench.spec import RunSpec, words

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    task: Annotated[
        list[str],
        typer.Option("--task", metavar="TASK[,TASK...]", help="Benchmarks to run; see `dreambench list tasks`."),
    ],
    options: dict[str, Any],
    max_errors: MaxErrors = None,
    max_unscored: MaxUnscored = None,
    out: Out = Path("runs"),
    fresh: Fresh = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan without running it.")] = False,
) -> None:
    """Run a model on benchmarks and score its answers.

    The same command finds the same run: an interrupted run is resumed; the scores of a complete run are printed.

    Example: dreambench run --task coco_fid --model dreamllm:DIR --data coco --features efficientnet-lite0
    """
    tasks = words(task)
    if not tasks:
        raise UsageError("--task: name at least one; `dreambench list tasks` shows them")
    specs = [RunSpec(task=name, **options) for name in tasks]
    _execute(specs, out, fresh=fresh, dry_run=dry_run, max_errors=max_errors, max_unscored=max_unscored)


def _execute(
    specs: Sequence[RunSpec],
    out: Path,
    *,
    fresh: bool,
    dry_run: bool = False,
    max_errors: int | None = None,
    max_unscored: int | None = None,
) -> None:
    """Execute specs in turn, after all of them have been checked."""
    from dreambench.api import check, execute, plan
    from dreambench.progress import progress_bar, say
    from dreambench.report.terminal import missed_thresholds, print_plan, print_result

    for spec in specs:
        check(spec)
    missed: list[str] = []
    for spec in specs:
        if dry_run:
            print_plan(plan(spec, out))
            continue
        with progress_bar(spec.task) as progress:
            result = execute(spec, out, fresh=fresh, progress=progress, say=say)
        print_result(result)
        missed += missed_thresholds(result, max_errors, max_unscored)
    for line in missed:
        say(line)
    if missed:
        raise typer.Exit(1)


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
    _execute([spec], out, fresh=fresh, max_errors=max_errors, max_unscored=max_unscored)


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
