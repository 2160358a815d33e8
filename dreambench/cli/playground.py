"""playground write, playground build."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dreambench.cli.options import words
from dreambench.progress import say

__all__ = ["app"]

app = typer.Typer(
    help="The small world: scenes of coloured shapes in each benchmark's official format, and in those of training.",
    no_args_is_help=True,
)


@app.command("write")
def write(
    directory: Annotated[Path, typer.Argument(help="A folder that is new or empty.")],
    split: Annotated[str, typer.Option("--split", help="train, val or test; they share no scene.")] = "val",
    n: Annotated[int, typer.Option("--n", min=1, help="How many scenes.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="Another seed, another world.")] = 0,
    format_: Annotated[
        list[str] | None, typer.Option("--format", help="FORMAT[,FORMAT...]; default: the benchmarks'.")
    ] = None,
) -> None:
    """Write scenes as COCO captions, narratives, VQAv2, MMBench and MM-Vet files, or as what models are trained on.

    Formats: coco, localized_narratives, vqav2, mmbench, mmvet; pairs, conversations, stories, instructions.

    Example: dreambench playground write world --split val --n 1000
    """
    from dreambench_tasks import playground

    playground.write(directory, split=split, n=n, seed=seed, formats=words(format_) or None)
    say(f"wrote {n} scenes of {split} to {directory}")


@app.command("build")
def build(
    directory: Annotated[Path, typer.Argument(help="Where the stages and their checkpoints lie; goes on if stopped.")],
    stage: Annotated[str, typer.Option("--stage", help="clip.")] = "clip",
    seed: Annotated[int, typer.Option("--seed", help="Weights and order of the scenes.")] = 0,
) -> None:
    """Train a part of the embedded model on the small world.

    Example: dreambench playground build build --stage clip
    """
    from dreambench.errors import UsageError
    from dreambench_tasks import playground

    if stage not in playground.STAGES:
        raise UsageError(f"--stage {stage}: there is {', '.join(playground.STAGES)}")
    playground.STAGES[stage](directory, seed=seed)
