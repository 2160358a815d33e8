"""fid, fid-stats, bench, list, doctor."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from dreambench.cli.options import with_spec_options
from dreambench.spec import RunSpec

__all__ = ["bench", "doctor", "fid", "fid_stats", "list_"]


def _checked(options: dict[str, Any]) -> RunSpec:
    """The options of a comparison of folders, validated."""
    return RunSpec(**({"task": "fid", "features": "inception"} | options))


@with_spec_options("protocol", "features", "device", "offline")
def fid(
    real: Annotated[
        Path, typer.Argument(metavar="REAL", help="Reference images: a folder, or their statistics (.npz).")
    ],
    fake: Annotated[Path, typer.Argument(metavar="FAKE", help="Generated images: a folder.")],
    options: dict[str, Any],
) -> None:
    """Compare two folders of images.

    Example: dreambench fid coco/val2017 generated --protocol clean,pytorch,tf1
    """
    from dreambench.metrics.compare import compare_folders
    from dreambench.report.terminal import print_scores

    given = _checked(options)
    names, features = list(given.protocol) or ["clean"], str(given.features)
    print_scores("fid", compare_folders(real, fake, names, features, given.device, given.offline))


@with_spec_options("features", "device", "offline")
def fid_stats(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of images.")],
    options: dict[str, Any],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.npz", help="File to write.")],
    protocol: Annotated[
        str, typer.Option("--protocol", metavar="NAME", help="How images are resized: clean, pytorch, tf1, ...")
    ] = "clean",
) -> None:
    """Save the statistics of a folder of images, for `--real` and `fid`.

    Example: dreambench fid-stats coco/val2017 --out val2017.npz --protocol pytorch
    """
    from dreambench.metrics.compare import save_folder_statistics
    from dreambench.progress import say

    given = _checked(options)
    n = save_folder_statistics(folder, out, protocol, str(given.features), given.device, given.offline)
    say(f"wrote the statistics of {n} images under {protocol} to {out}")


class Size(StrEnum):
    """How much of each benchmark is measured, and with which model."""

    tiny = "tiny"
    standard = "standard"
    seven_b = "7b"


@with_spec_options("model", "model_arg", "device", "dtype", "offline")
def bench(
    options: dict[str, Any],
    size: Annotated[
        Size,
        typer.Option(
            "--size", help="A few samples; enough for 10 to 30 s of an idle core; those of a 7B model, random weights."
        ),
    ] = Size.standard,
    task: Annotated[
        list[str] | None, typer.Option("--task", metavar="TASK[,TASK...]", help="Benchmarks to measure; default: all.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", metavar="N", min=1, help="Repetitions; default: 3, of tiny 1.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the measurements as pytest-benchmark does.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option("--compare", metavar="FILE", help="Compare with such a file of an earlier time.")
    ] = None,
) -> None:
    """Measure the speed of benchmarks, each as the whole command that a user waits for, beside the score it gives.

    Example: dreambench bench --size tiny --json bench.json
    """
    from dreambench.throughput import bench as measure_all

    measure_all(task, size.value, rounds, options, json=json, compare=compare)


class Listed(StrEnum):
    """What can be listed."""

    tasks = "tasks"
    models = "models"
    protocols = "protocols"


def list_(what: Annotated[Listed, typer.Argument(help="What to list.")]) -> None:
    """List the tasks, models or protocols that are installed.

    Example: dreambench list tasks
    """
    from dreambench.registry import list_models, list_protocols, list_tasks

    for line in {Listed.tasks: list_tasks, Listed.models: list_models, Listed.protocols: list_protocols}[what]():
        print(line)


def doctor() -> None:
    """Check this machine: what is installed, what is missing, and how to get it.

    Example: dreambench doctor
    """
    from dreambench.doctor import examine

    for line in examine():
        print(line)
