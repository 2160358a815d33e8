"""run, score, rerun, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreambench.cli.options import (
    Data,
    Features,
    Judge,
    Offline,
    Out,
    Protocol,
    Seed,
    absolute,
    pairs,
    read_ids,
    words,
)
from dreambench.errors import UsageError

if TYPE_CHECKING:
    from dreambench.api import RunSpec

__all__ = ["report", "rerun", "run", "score"]


def run(
    task: Annotated[list[str], typer.Option("--task", help="TASK[,TASK...]; `dreambench list tasks` names them.")],
    model: Annotated[
        str, typer.Option("--model", help="NAME[:LOCATION]; `dreambench list models` names them.")
    ] = "dreamllm",
    model_arg: Annotated[
        list[str] | None, typer.Option("--model-arg", help="KEY=VALUE for the model; may be repeated.")
    ] = None,
    data: Data = None,
    images: Annotated[Path | None, typer.Option("--images", help="Where the images are.")] = None,
    real: Annotated[
        Path | None, typer.Option("--real", help="Real images (a folder) or their statistics (.npz).")
    ] = None,
    protocol: Protocol = None,
    split: Annotated[str | None, typer.Option("--split", help="Part of the benchmark, for instance val2017.")] = None,
    features: Features = None,
    judge: Judge = None,
    generation: Annotated[
        list[str] | None,
        typer.Option("--generation", help="Preset or KEY=VALUE: prompt wording and decoding; may be repeated."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N samples.")] = None,
    ids: Annotated[
        Path | None, typer.Option("--ids", help="Only the samples whose ids stand in FILE, one a line.")
    ] = None,
    seed: Seed = 0,
    batch_size: Annotated[str, typer.Option("--batch-size", help="N or auto.")] = "auto",
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda[:i].")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")] = "auto",
    max_errors: Annotated[
        int | None, typer.Option("--max-errors", min=0, help="Exit status 1 above N failed samples.")
    ] = None,
    max_unscored: Annotated[
        int | None, typer.Option("--max-unscored", min=0, help="Exit status 1 above N unscored ones.")
    ] = None,
    out: Out = Path("runs"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget an earlier run of the same command.")] = False,
    offline: Offline = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be asked, and ask nothing.")] = False,
) -> None:
    """Ask a model the questions of a benchmark and score its answers.

    Example: dreambench run --task coco_fid --model dreamllm:DIR --data coco --features efficientnet-lite0

    The same command finds the same run: stopped anywhere it goes on, complete it is printed.
    """
    from dreambench.api import RunSpec
    from dreambench.interfaces import TaskOptions, data_place

    tasks = words(task)
    if not tasks:
        raise UsageError("--task: name at least one; `dreambench list tasks` shows them")
    place, dataset = data_place(data)
    options = TaskOptions(
        data=place,
        dataset=dataset,
        images=absolute(images),
        real=absolute(real),
        protocols=tuple(words(protocol)),
        split=split,
        features=features,
        judge=judge,
        generation=tuple(words(generation)),
        seed=seed,
        offline=offline,
        device=device,
    )
    asked = [
        RunSpec(
            task=name,
            model=model,
            model_arguments=pairs(model_arg, "--model-arg"),
            options=options,
            limit=limit,
            ids=read_ids(ids),
            batch_size=_batch_size(batch_size),
            device=device,
            dtype=dtype,
        )
        for name in tasks
    ]
    _execute(asked, out, fresh=fresh, dry_run=dry_run, max_errors=max_errors, max_unscored=max_unscored)


def _execute(
    asked: list[RunSpec], out: Path, *, fresh: bool, dry_run: bool, max_errors: int | None, max_unscored: int | None
) -> None:
    from dreambench.api import execute, prepare
    from dreambench.progress import progress_bar, say
    from dreambench.report import print_plan, print_result, thresholds

    missed: list[str] = []
    for one in asked:
        if dry_run:
            print_plan(prepare(one, out))
            continue
        with progress_bar(one.task) as progress:
            result = execute(one, out, fresh=fresh, progress=progress, say=say)
        print_result(result)
        missed += thresholds(result, max_errors, max_unscored)
    for line in missed:
        say(line)
    if missed:
        raise typer.Exit(1)


def _batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) == 0:
        raise UsageError(f"--batch-size {text}: write a number of at least 1, or auto")
    return int(text)


def score(
    run: Annotated[Path | None, typer.Argument(help="A run, to be scored again from its own files.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="The benchmark that the answers belong to.")] = None,
    data: Data = None,
    responses: Annotated[
        Path | None,
        typer.Option(
            "--responses", help='Answers made elsewhere: the benchmark\'s result format, or {"id", "text"} lines.'
        ),
    ] = None,
    images: Annotated[Path | None, typer.Option("--images", help="Where the images are.")] = None,
    protocol: Protocol = None,
    split: Annotated[str | None, typer.Option("--split", help="Part of the benchmark, for instance val2014.")] = None,
    judge: Judge = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N samples.")] = None,
    max_unscored: Annotated[
        int | None, typer.Option("--max-unscored", min=0, help="Exit status 1 above N unscored ones.")
    ] = None,
    out: Out = Path("runs"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget an earlier run of the same command.")] = False,
    offline: Offline = False,
) -> None:
    """Score a run again, or answers that were made elsewhere.

    Example: dreambench score --task vqav2 --data vqa --responses results.json
    """
    from dreambench.api import RunSpec, score_run
    from dreambench.interfaces import TaskOptions, data_place
    from dreambench.report import print_result

    if run is not None:
        if task is not None or responses is not None or data is not None:
            raise UsageError("score takes either a run, or --task with --responses")
        print_result(score_run(run))
        return
    if task is None or responses is None:
        raise UsageError("score needs a run, or --task TASK --data DIR --responses FILE")
    if not responses.is_file():
        raise UsageError(f"--responses {responses}: no such file")
    place, dataset = data_place(data)
    options = TaskOptions(
        data=place,
        dataset=dataset,
        images=absolute(images),
        protocols=tuple(words(protocol)),
        split=split,
        judge=judge,
        offline=offline,
    )
    asked = RunSpec(task=task, model=f"responses:{responses.absolute()}", options=options, limit=limit)
    _execute([asked], out, fresh=fresh, dry_run=False, max_errors=None, max_unscored=max_unscored)


def rerun(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    out: Annotated[Path | None, typer.Option("--out", help="Another folder for runs.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ask everything anew.")] = False,
) -> None:
    """Ask again what a run's run.json asked: finish an unfinished run, or repeat it with --fresh.

    Example: dreambench rerun runs/coco_fid-dreamllm-1a2b3c4d --fresh
    """
    from dreambench.api import RunSpec
    from dreambench.store import RunFolder

    asked = RunSpec.from_json(RunFolder.open(run).plan_file()["spec"])
    _execute([asked], out or run.parent, fresh=fresh, dry_run=False, max_errors=None, max_unscored=None)


def report(
    runs: Annotated[list[Path], typer.Argument(help="One or more runs.")],
    html: Annotated[Path | None, typer.Option("--html", help="Write everything to one self-contained page.")] = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Write a image generation run's images to one PNG.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the table as CSV, in full precision.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the table in Markdown.")] = False,
    as_latex: Annotated[bool, typer.Option("--latex", help="Print the table in LaTeX.")] = False,
) -> None:
    """Show the tables of runs on the terminal, or as a page, for a paper, for a program.

    Example: dreambench report runs/* --html report.html
    """
    from dreambench.report import print_runs
    from dreambench.reporting.files import write_page, write_sheet
    from dreambench.reporting.loading import load_all
    from dreambench.reporting.tables import to_csv, to_latex, to_markdown

    forms = {"--csv": (as_csv, to_csv), "--markdown": (as_markdown, to_markdown), "--latex": (as_latex, to_latex)}
    wanted = {name: form for name, (asked, form) in forms.items() if asked}
    if len(wanted) > 1:
        raise UsageError(f"{' and '.join(wanted)} print the same table: choose one")
    if sheet is not None and len(runs) > 1:
        raise UsageError("--sheet takes one run")
    for form in wanted.values():
        print(form(load_all(runs)), end="")
    if html is not None:
        write_page(runs, html)
    if sheet is not None:
        write_sheet(runs[0], sheet)
    if not wanted and html is None and sheet is None:
        print_runs(runs)
