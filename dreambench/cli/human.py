"""human plan, export, serve, import, analyse."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dreambench.safety import printable

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
    half_width: Annotated[
        float | None, typer.Option("--half-width", metavar="POINTS", help="Wanted half-width of a rate's interval.")
    ] = None,
    difference: Annotated[
        float | None,
        typer.Option(
            "--difference", metavar="POINTS", help="Difference to find: of two rates, or of a win rate from 50."
        ),
    ] = None,
    documents: Annotated[
        int | None, typer.Option("--documents", metavar="N", min=1, help="Instead: the precision of N prompts.")
    ] = None,
    systems: Annotated[
        int, typer.Option("--systems", metavar="N", min=1, help="Systems, the references among them.")
    ] = 2,
    raters: Annotated[
        int | None, typer.Option("--raters", metavar="N", min=1, help="Raters; default: the fewest possible.")
    ] = None,
    votes_per_document: Annotated[
        int,
        typer.Option("--votes-per-document", metavar="N", min=1, help="Votes for a document (pairwise: for a prompt)."),
    ] = 5,
    rate: Annotated[
        float, typer.Option("--rate", metavar="PERCENT", help="Expected rate of acceptance, or win rate.")
    ] = 50,
    ties: Annotated[float, typer.Option("--ties", metavar="PERCENT", help="Expected ties of a pairwise study.")] = 0,
    document_share: Annotated[
        float, typer.Option("--document-share", metavar="F", help="Share of the variance that lies in documents.")
    ] = 0.2,
    rater_share: Annotated[
        float, typer.Option("--rater-share", metavar="F", help="Share of the variance that lies in raters.")
    ] = 0.02,
    design_effect: Annotated[
        float | None,
        typer.Option("--design-effect", metavar="F", help="Instead of the shares: 1 if votes were independent."),
    ] = None,
    confidence: Annotated[float, typer.Option("--confidence", metavar="F", help="Of the intervals.")] = 0.95,
    power: Annotated[float, typer.Option("--power", metavar="F", help="Probability of finding a difference.")] = 0.8,
) -> None:
    """Compute the documents, raters and votes that a study needs, and print the command that exports it.

    Example: dreambench human plan --half-width 5
    """
    from dreambench.human.plan import Assumptions, lines, plan_study

    planned = plan_study(
        mode=mode.value,
        half_width=None if half_width is None else half_width / 100,
        difference=None if difference is None else difference / 100,
        documents=documents,
        systems=systems,
        raters=raters,
        votes_per_document=votes_per_document,
        assumed=Assumptions(rate / 100, ties / 100, document_share, rater_share, design_effect),
        confidence=confidence,
        power=power,
    )
    for line in lines(planned):
        print(printable(line))


@human.command("export")
def export(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Complete runs on the same samples.")],
    out: Annotated[Path, typer.Option("--out", metavar="STUDY", help="Folder of the study.")],
    mode: Annotated[Mode, typer.Option("--mode", help="One document at a time, or two to compare.")] = Mode.rating,
    references: Annotated[
        int,
        typer.Option(
            "--references", metavar="N", min=0, help="Add N reference documents as one more system: N prompts."
        ),
    ] = 0,
    documents: Annotated[
        int | None,
        typer.Option("--documents", metavar="N", min=1, help="Prompts, equally from all topics; default: all."),
    ] = None,
    raters: Annotated[
        int | None, typer.Option("--raters", metavar="N", min=1, help="Raters; default: the fewest possible.")
    ] = None,
    votes_per_document: Annotated[
        int,
        typer.Option("--votes-per-document", metavar="N", min=1, help="Votes for a document (pairwise: for a prompt)."),
    ] = 5,
    attention: Annotated[
        int | None,
        typer.Option("--attention", metavar="N", min=0, help="Attention checks for a rater; default: one in 20 items."),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option("--repeats", metavar="N", min=0, help="Items that a rater sees twice; default: one in 20."),
    ] = None,
    questions: Annotated[
        Path | None, typer.Option("--questions", metavar="FILE", help="Questions and texts (YAML or JSON).")
    ] = None,
    title: Annotated[str | None, typer.Option("--title", metavar="TEXT", help="What raters see as title.")] = None,
    consent: Annotated[
        Path | None, typer.Option("--consent", metavar="FILE", help="Text that raters agree to at the start.")
    ] = None,
    warning: Annotated[
        Path | None, typer.Option("--warning", metavar="FILE", help="Warning of the documents' content.")
    ] = None,
    stopping_rule: Annotated[
        str | None, typer.Option("--stopping-rule", metavar="TEXT", help="When the study ends; part of the key.")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option("--size", metavar="PX", min=16, max=4096, help="Crop images to a square of PX × PX pixels."),
    ] = None,
    form: Annotated[
        Form, typer.Option("--form", help="A folder, a zip archive or one HTML file for each rater.")
    ] = Form.folder,
    images_url: Annotated[
        str | None, typer.Option("--images-url", metavar="URL", help="Where other tools will find the images.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Seed for choice, order and names.")] = 0,
) -> None:
    """Write a blind, balanced study: what each rater gets and, apart, the organiser's key.

    The same command writes the same files. Prompts that a system failed at are left out for all systems, and named.

    Example: dreambench human export runs/interleaved-dreamllm-1a2b3c4d --references 150 --out study
    """
    from dreambench.errors import UsageError
    from dreambench.files import read_text
    from dreambench.human.export import export_study, summary

    texts = {
        "title": title,
        "consent": None if consent is None else read_text(consent, UsageError),
        "warning": None if warning is None else read_text(warning, UsageError),
        "stopping_rule": stopping_rule,
    }
    done = export_study(
        runs,
        out,
        mode=mode.value,
        references=references,
        documents=documents,
        raters=raters,
        votes_per_document=votes_per_document,
        attention=attention,
        repeats=repeats,
        questions=questions,
        texts=texts,
        size=size,
        form=form.value,
        images_url=images_url,
        seed=seed,
    )
    for line in summary(done):
        print(printable(line))


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


class Ties(StrEnum):
    """What a tie is in a table of votes: an answer of its own, half a win for each system, or nothing."""

    davidson = "davidson"
    half = "half"
    drop = "drop"


@human.command("analyse")
def analyse(
    study: Annotated[Path | None, typer.Argument(metavar="[STUDY]", help="A study with imported ratings.")] = None,
    votes: Annotated[
        Path | None,
        typer.Option(
            "--votes", metavar="FILE", help="A table prompt,system_a,system_b,vote,rater,position (CSV or JSON lines)."
        ),
    ] = None,
    judge_votes: Annotated[
        list[Path] | None, typer.Option("--judge-votes", metavar="FILE", help="A judge's votes, in the same columns.")
    ] = None,
    judge: Annotated[
        list[str] | None, typer.Option("--judge", metavar="NAME", help="A rater in the table who is a judge.")
    ] = None,
    ties: Annotated[
        Ties, typer.Option("--ties", help="An answer of its own (Davidson), half a win for each, or dropped.")
    ] = Ties.davidson,
    accept_from: Annotated[
        int | None,
        typer.Option(
            "--accept-from", metavar="N", help="The lowest Likert answer that accepts. Default: above the middle."
        ),
    ] = None,
    everyone: Annotated[
        bool, typer.Option("--everyone", help="Also score the ratings of raters whom the import left out.")
    ] = False,
    without_careless: Annotated[
        bool, typer.Option("--without-careless", help="Score without the raters named careless.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures as JSON.")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a report page.")] = None,
) -> None:
    """Analyse a study's ratings, or a table of votes: acceptance, strengths, win rates, agreement, raters, judges.

    Example: dreambench human analyse study --html study.html
    """
    from dreambench.human.analyse import analyse as run_analysis

    run_analysis(
        study,
        votes,
        judge_votes=judge_votes or (),
        judges=judge or (),
        ties=ties.value,
        accept_from=accept_from,
        everyone=everyone,
        without_careless=without_careless,
        json_file=json_file,
        html_file=html_file,
    )
