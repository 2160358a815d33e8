"""playground write, playground build."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dreambench.progress import say
from dreambench.spec import words

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

    playground.write(directory, split=split, n=n, seed=seed, formats=words(format_ or []) or None)
    say(f"wrote {n} scenes of {split} to {directory}")


@app.command("build")
def build(
    directory: Annotated[Path, typer.Argument(help="Where the steps and their checkpoints lie; goes on if stopped.")],
    stage: Annotated[
        str | None,
        typer.Option(
            "--stage", help="One step alone, by its name; clip: the feature extractor, which is no part of it."
        ),
    ] = None,
) -> None:
    """Train the embedded model on the small world, from nothing, step by step; what is there is kept.

    Example: dreambench playground build build
    """
    from dreambench.errors import UsageError
    from dreambench_tasks import playground

    if stage is not None and stage not in playground.STAGES:
        raise UsageError(f"--stage {stage}: there are {', '.join(playground.STAGES)}")
    playground.build(directory, stage)


@app.command("evaluate")
def evaluate(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="A DreamLLM folder; the embedded one if none is given.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", help="The surrogate Stable Diffusion: DIR/diffusion of a build.")
    ] = None,
) -> None:
    """Measure a model in the small world: the scores of its model card. About ten minutes on one core.

    Example: dreambench playground evaluate
    """
    from dreambench_tasks import playground

    for section, rows in playground.evaluate(checkpoint, baseline).items():
        say(section)
        for name, value in rows.items():
            say(f"  {name}: {value}")
