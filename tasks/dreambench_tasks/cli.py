"""The commands that the benchmarks add to ``dreambench``. Imports nothing heavy: ``dreambench --help`` loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["playground", "trial"]

playground = typer.Typer(
    help="Scenes of colored shapes, written in each benchmark's official format or in training formats.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@playground.command("write")
def write(
    directory: Annotated[Path, typer.Argument(help="Folder to write: new, empty, or with these same data.")],
    split: Annotated[str, typer.Option("--split", help="train, val or test; no scene is in two splits.")] = "val",
    n: Annotated[
        int, typer.Option("--n", min=1, help="Number of scenes (of documents for stories, instructions, documents).")
    ] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="Seed for the scenes.")] = 0,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="FORMAT[,FORMAT...]; default: all benchmark formats.")
    ] = None,
) -> None:
    """Write scenes as benchmark or training data.

    Benchmark formats: coco, localized_narratives, vqav2, mmbench, mmvet. Training formats: pairs, prompts, conversations,
    stories, instructions. Interleaved documents for evaluation: documents.

    Example: dreambench playground write world --split val --n 1000
    """
    from dreambench.progress import say
    from dreambench.spec import words
    from dreambench_tasks.playground import write

    write(directory, split, n, seed, words(formats or []) or None)
    say(f"wrote {n} scenes of {split} to {directory}")


trial = typer.Typer(rich_markup_mode=None, subcommand_metavar="")


@trial.callback(invoke_without_command=True)
def try_metrics(
    task: Annotated[str, typer.Option("--task", help="The task whose metrics are tried: interleaved.")],
    data: Annotated[
        Path | None, typer.Option("--data", help="Reference documents; default: the embedded playground's.")
    ] = None,
    images: Annotated[Path | None, typer.Option("--images", help="Folder of the documents' images.")] = None,
    clip: Annotated[
        Path | None, typer.Option("--clip", help="CLIP folder for CLIPScore; default: the playground's for its data.")
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option("--judge", help="openai:MODEL@BASE_URL or model:NAME[:LOCATION], as in run; may be repeated."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=2, help="Only the first N documents.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the corruptions.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda[:i], for CLIP and local judges.")] = "auto",
    offline: Annotated[bool, typer.Option("--offline", help="Only servers and models on this machine.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for trial.json, trial.csv, trial.md and the judges' grades.")
    ] = None,
) -> None:
    """Score reference documents and six corruptions of them with every metric and judge, and say which orders them right.

    Example: dreambench trial --task interleaved --limit 60 --out trial
    """
    from dreambench_tasks.interleaved.trial_output import TrialOptions, conduct

    conduct(TrialOptions(task, data, images, clip, tuple(judge or ()), limit, seed, device, offline, out))
