"""Progress of a run: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from dreambench.safety import printable

__all__ = ["progress_bar", "say"]

PLAIN_EVERY_S = 10.0


def say(line: str) -> None:
    """One line for the user, on standard error: standard output is for results."""
    print(f"dreambench: {printable(line)}", file=sys.stderr, flush=True)


@contextmanager
def progress_bar(title: str) -> Generator[Callable[[int, int], None]]:
    """Yields a function to call with (done, total)."""
    if not sys.stderr.isatty():
        yield _plain(title)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        row = bar.add_task(escape(printable(title)), total=None, rate="")
        rate = _rate()

        def update(done: int, total: int) -> None:
            per_second = rate(done)
            bar.update(row, completed=done, total=total, rate=f"{per_second:.1f}/s" if per_second else "")

        yield update


def _rate() -> Callable[[int], float]:
    """Items per second since the first call: what an earlier start of the run did does not count."""
    first: tuple[int, float] | None = None

    def rate(done: int) -> float:
        nonlocal first
        now = time.monotonic()
        first = first or (done, now)
        return (done - first[0]) / max(now - first[1], 1e-9)

    return rate


def _plain(title: str) -> Callable[[int, int], None]:
    last, rate = time.monotonic(), _rate()

    def update(done: int, total: int) -> None:
        nonlocal last
        now, per_second = time.monotonic(), rate(done)
        if per_second and (done == total or now - last >= PLAIN_EVERY_S):
            last = now
            left = (total - done) / per_second
            say(f"{title}: {done} of {total} answered, {per_second:.1f}/s, {left:.0f} s left")

    return update
