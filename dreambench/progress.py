"""What a person sees while a run goes on: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

__all__ = ["progress_bar", "say"]

PLAIN_EVERY_S = 10.0


def say(line: str) -> None:
    """One line for the user, on standard error: standard output is for results."""
    print(f"dreambench: {line}", file=sys.stderr, flush=True)


@contextmanager
def progress_bar(title: str) -> Generator[Callable[[int, int], None]]:
    """A function to be called with (done, of how many)."""
    if not sys.stderr.isatty():
        yield _plain(title)
        return
    from rich.console import Console
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
        began = time.monotonic()
        row = bar.add_task(title, total=None, rate="")

        def update(done: int, total: int) -> None:
            rate = done / max(time.monotonic() - began, 1e-9)
            bar.update(row, completed=done, total=total, rate=f"{rate:.1f}/s")

        yield update


def _plain(title: str) -> Callable[[int, int], None]:
    began = last = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last >= PLAIN_EVERY_S:
            last = now
            rate = done / max(now - began, 1e-9)
            left = (total - done) / rate
            say(f"{title}: {done} of {total} answered, {rate:.1f}/s, {left:.0f} s left")

    return update
