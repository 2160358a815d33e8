"""human plan, export, serve, import, analyse."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["human"]

human = typer.Typer(
    help="Human evaluation: plan a study, export it for raters, serve it, import the ratings, analyse them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Study = Annotated[Path, typer.Argument(metavar="STUDY", help="The folder of a study, from `human export`.")]


class Mode(StrEnum):
    """What a rater sees at once: one document, or two of the same prompt."""

    rating = "rating"
    pairwise = "pairwise"


class Form(StrEnum):
    """What a rater receives."""

    folder = "folder"
    zip = "zip"
    html = "html"


@human.command("plan")
def plan(
    mode: Annotated[Mode, typer.Option("--mode", help="One document at a time, or two to compare.")] = Mode.rating,
) -> None:
    """Compute the documents, raters and votes that a study needs.

    Example: dreambench human plan --mode rating
    """
    from dreambench.human.plan import plan_study

    plan_study(mode=mode.value)


@human.command("export")
def export(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Complete runs on the same samples.")],
    out: Annotated[Path, typer.Option("--out", metavar="STUDY", help="Folder of the study.")],
) -> None:
    """Write a blind, balanced study: what each rater gets, and the organiser's key.

    Example: dreambench human export runs/interleaved-dreamllm-1a2b3c4d --references 150 --out study
    """
    from dreambench.human.export import export_study

    export_study(runs, out)


@human.command("serve")
def serve(
    study: Study,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8000,
    url: Annotated[
        str | None, typer.Option("--url", help="Address that raters open, where it is another: of a proxy with TLS.")
    ] = None,
    completion_code: Annotated[
        str | None,
        typer.Option("--completion-code", metavar="CODE", help="Shown to a rater who has answered everything."),
    ] = None,
    prolific: Annotated[
        bool, typer.Option("--prolific", help="Hand out links at /join?PROLIFIC_PID=..., one per participant.")
    ] = False,
) -> None:
    """Serve a study to raters over HTTP and store their ratings. Prints the link of each rater.

    Example: dreambench human serve study --port 8000 --completion-code C1A2B3
    """
    from dreambench.human.serve import serve_study

    serve_study(study, host=host, port=port, url=url, completion_code=completion_code, prolific=prolific)


@human.command("import")
def import_(
    study: Study,
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE...]", help="Ratings in any form that came back. Default: those of `human serve`."
        ),
    ] = None,
    max_failed_checks: Annotated[
        int | None,
        typer.Option("--max-failed-checks", min=0, help="Leave out raters who fail more attention checks; at first 1."),
    ] = None,
    min_seconds: Annotated[
        float | None,
        typer.Option("--min-seconds", min=0, help="Leave out raters whose median item takes less; at first 2."),
    ] = None,
    complete_only: Annotated[
        bool | None,
        typer.Option("--complete-only/--incomplete-too", help="Leave out raters who have not finished, or keep them."),
    ] = None,
    report: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the whole report.")] = None,
) -> None:
    """Import ratings into a study; what is unknown, repeated or edited is counted and named, and so are votes still needed.

    The rules for raters hold for everything imported so far, and until they are changed.

    Example: dreambench human import study rater-01.jsonl label-studio-export.json --json import.json
    """
    from dreambench.files import write_atomically
    from dreambench.human.importing import import_ratings

    imported = import_ratings(
        study, files or (), max_failed_checks=max_failed_checks, min_seconds=min_seconds, complete_only=complete_only
    )
    print("\n".join(imported.lines()))
    if report is not None:
        write_atomically(report, (json.dumps(imported.to_json(), indent=1, ensure_ascii=False) + "\n").encode())


@human.command("analyse")
def analyse(
    study: Annotated[Path | None, typer.Argument(metavar="[STUDY]", help="A study with imported ratings.")] = None,
    votes: Annotated[
        Path | None,
        typer.Option(
            "--votes", metavar="FILE", help="A table prompt,system_a,system_b,vote,rater,position (CSV or JSON lines)."
        ),
    ] = None,
) -> None:
    """Analyse a study's ratings, or a table of votes: acceptance, agreement, strengths, win rates.

    Example: dreambench human analyse study
    """
    from dreambench.human.analyse import analyse as run_analysis  # pyright: ignore

    run_analysis(study, votes)
