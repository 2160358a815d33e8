"""Leaderboards: tables that are a pure function of the evidence committed beside them, so that anybody can compute every cell again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["update"]


def update(
    runs: Sequence[Path], out: Path, benchmarks: Path | None = None, *, say: Callable[[str], None] = lambda line: None
) -> None:
    """Add the evidence of complete runs, and speeds, to a leaderboard, and write its tables. What it holds already stays.

    Raises:
        DataError: a run does not follow from its own files, or evidence in `out` is damaged.
        RunError: a path is neither a complete run nor a folder of such runs.
    """
    from dreambench.leaderboard import collect, throughput
    from dreambench.leaderboard.evidence import evidence_folders, read
    from dreambench.leaderboard.render import write
    from dreambench.report.runs import load_all

    for run in load_all(runs) if runs else ():
        is_new = collect.add(run, out)
        say(f"{'added' if is_new else 'unchanged'}: {out / 'measured' / run.name}")
    if benchmarks is not None:
        say(f"added: {throughput.add(benchmarks, out)}")
    changed = write(out, [read(folder) for folder in evidence_folders(out)])
    say(f"wrote {', '.join(str(out / name) for name in changed)}" if changed else f"{out}: the tables are up to date")
