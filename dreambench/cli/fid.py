"""fid, fid-stats: two folders of images, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dreambench.cli.options import Features, Offline, Protocol, words

__all__ = ["fid", "fid_stats"]

Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda[:i].")]


def fid(
    real: Annotated[Path, typer.Argument(help="Real images, a folder, or their statistics, .npz.")],
    fake: Annotated[Path, typer.Argument(help="Generated images, a folder.")],
    protocol: Protocol = None,
    features: Features = None,
    device: Device = "auto",
    offline: Offline = False,
    infinity: Annotated[bool, typer.Option("--infinity", help="Also extrapolate to infinitely many images.")] = False,
    floor: Annotated[bool, typer.Option("--floor", help="Also compare two halves of the real images.")] = False,
) -> None:
    """Compare two folders of images.

    Example: dreambench fid images generated --protocol clean,pytorch,tf1
    """
    from dreambench.metrics.folders import compare_folders
    from dreambench.report import print_scores

    names = words(protocol) or ["clean"]
    print_scores("fid", compare_folders(real, fake, names, features or "inception", device, offline, infinity, floor))


def fid_stats(
    folder: Annotated[Path, typer.Argument(help="Images.")],
    out: Annotated[Path, typer.Option("--out", help="The .npz file to write.")],
    protocol: Annotated[str, typer.Option("--protocol", help="The resize that the statistics are for.")] = "clean",
    features: Features = None,
    device: Device = "auto",
    offline: Offline = False,
) -> None:
    """Save the statistics of a folder of images, to be used as --real.

    Example: dreambench fid-stats images --out images.npz --protocol pytorch
    """
    from dreambench.metrics.folders import save_folder_statistics
    from dreambench.progress import say

    n = save_folder_statistics(folder, out, protocol, features or "inception", device, offline)
    say(f"wrote the statistics of {n} images under {protocol} to {out}")
