"""The command that the benchmarks add to ``dreambench``: ``playground write``. Imports nothing heavy: ``dreambench --help`` loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["playground"]

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

    Benchmark formats: coco, localized_narratives, vqav2, mmbench, mmvet. Training formats: pairs, conversations, stories,
    instructions. Interleaved documents for evaluation: documents.

    Example: dreambench playground write world --split val --n 1000
    """
    from dreambench.progress import say
    from dreambench.spec import words
    from dreambench_tasks.playground import write

    write(directory, split, n, seed, words(formats or []) or None)
    say(f"wrote {n} scenes of {split} to {directory}")
