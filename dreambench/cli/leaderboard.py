"""leaderboard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dreambench.errors import UsageError

__all__ = ["leaderboard"]


def leaderboard(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN]...", help="Runs, or folders that hold runs; default: runs/, if it is there."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the leaderboards.")] = Path(
        "leaderboards"
    ),
    benchmarks: Annotated[
        Path | None,
        typer.Option(
            "--benchmarks", metavar="FILE.json", help="Speeds that `dreambench bench` saved, for throughput.csv."
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compute every cell again from what is committed in --out; no run needed.")
    ] = False,
) -> None:
    """Add runs to the leaderboards, or verify these. Runs that were added stay, without their folders.

    Example: dreambench leaderboard runs/vqav2-dreamllm-1a2b3c4d --out leaderboards
    """
    from dreambench.errors import counted
    from dreambench.progress import say

    if not verify:
        from dreambench.leaderboard import update

        default = [Path("runs")] if benchmarks is None and Path("runs").is_dir() else []
        if not (runs or default or benchmarks or out.is_dir()):
            raise UsageError(f"there is neither runs/ nor {out}: give the runs to add")
        update(runs or default, out, benchmarks, say=say)
        return
    if runs or benchmarks is not None:
        raise UsageError("--verify needs neither runs nor --benchmarks: leave them out")
    from dreambench.leaderboard.verify import verify as verify_all

    found = verify_all(out)
    for problem in found.problems:
        say(problem)
    print(f"{out}: {counted(found.recomputed, 'number')} computed again, {found.hashed} with their hash only")
    for why, n in sorted(found.why.items()):
        print(f"  {n}: {why}")
    if found.problems:
        advice = (
            f"`dreambench leaderboard --out {out}` writes tables again; evidence is restored, or added from its run"
        )
        say(f"{counted(len(found.problems), 'difference')} ({advice})")
        raise typer.Exit(1)
