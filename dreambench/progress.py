"""Progress of a run: a bar over all of it with rate and time left on a terminal, plain lines elsewhere."""

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
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        row = bar.add_task(escape(printable(title)), total=None, pace="")
        pace = Pace()

        def update(done: int, total: int) -> None:
            pace.update(done)
            bar.update(row, completed=done, total=total, pace=pace.text(total))

        yield update


class Pace:
    """The speed of this process: what an earlier start of the run did counts as done, but not for the speed."""

    SETTLED_S, SETTLED_UPDATES = 5.0, 3
    """Seconds and batches before which a time left would be a guess: the first batches also load and warm up."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun: tuple[int, float] | None = None
        self._updates = -1
        self.done, self.rate = 0, 0.0

    @property
    def resumed(self) -> int:
        """What was done before the first update."""
        return self._begun[0] if self._begun else 0

    def update(self, done: int) -> None:
        now = self._clock()
        self._begun = self._begun or (done, now)
        self._updates += 1
        self.done = done
        self.rate = (done - self._begun[0]) / max(now - self._begun[1], 1e-9)

    def text(self, total: int) -> str:
        """What was done before, the rate, and the time left once it has settled."""
        if self._begun is None:
            return ""
        parts = [f"({self.resumed} before)"] if self.resumed else []
        parts += [f"{self.rate:.1f}/s"] if self.rate else []
        settled = self._updates >= self.SETTLED_UPDATES and self._clock() - self._begun[1] >= self.SETTLED_S
        if settled and self.rate and self.done < total:
            minutes, seconds = divmod(round((total - self.done) / self.rate), 60)
            hours, minutes = divmod(minutes, 60)
            parts.append(f"{hours}:{minutes:02d}:{seconds:02d} left")
        return ", ".join(parts)


def _plain(title: str) -> Callable[[int, int], None]:
    last, pace = time.monotonic(), Pace()

    def update(done: int, total: int) -> None:
        nonlocal last
        pace.update(done)
        now = time.monotonic()
        begins = pace.resumed == done > 0
        if begins or (pace.rate and (done == total or now - last >= PLAIN_EVERY_S)):
            last = now
            text = pace.text(total)
            say(f"{title}: {done} of {total} answered{'' if text.startswith('(') else ','} {text}")

    return update
