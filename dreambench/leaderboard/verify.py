"""``leaderboard --verify``: every cell of the tables, computed again from what is committed beside them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from dreambench.errors import DataError
from dreambench.leaderboard import throughput
from dreambench.leaderboard.evidence import FACTS, Evidence, evidence_folders, read
from dreambench.leaderboard.render import render
from dreambench.scores import Score
from dreambench.statistics import recompute

__all__ = ["Check", "check", "verify"]

CLOSE = 1e-9
"""Relative difference that the order of summation and another processor's linear algebra may cause. Anything larger is an alteration;
smaller ones are found by the hashes."""
SINGULAR = 1e-6
"""The same for the roots of eigenvalues that are 0 but for rounding, as a share of the traces."""


@dataclass
class Check:
    """What was computed again, what only has its hash, and what is wrong: a line each, with file, row, column, found and wanted."""

    problems: list[str] = field(default_factory=list[str])
    recomputed: int = 0
    hashed: int = 0
    why: dict[str, int] = field(default_factory=dict[str, int])
    """Numbers that only have their hash, by reason."""

    def only_hashed(self, n: int, why: str) -> None:
        self.hashed += n
        self.why[why] = self.why.get(why, 0) + n

    def add(self, other: Check) -> None:
        self.problems += other.problems
        self.recomputed += other.recomputed
        for why, n in other.why.items():
            self.only_hashed(n, why)


def verify(out: Path) -> Check:
    """Check a leaderboard without runs or network.

    Raises:
        DataError: there is no leaderboard.
    """
    if not (out / "measured").is_dir() and not (out / "published").is_dir() and not (out / "throughput").is_dir():
        raise DataError(f"{out} is no leaderboard: it has neither measured/ nor published/ nor throughput/")
    found = Check()
    evidence: list[Evidence] = []
    for folder in evidence_folders(out):
        try:
            evidence.append(read(folder))
            found.add(check(evidence[-1]))
        except DataError as error:
            found.problems.append(str(error))
    speeds = throughput.read_all(out)
    if speeds:
        numbers = (cell for row in speeds for cell in row.values() if isinstance(cell, (int, float)))
        found.only_hashed(sum(1 for _ in numbers), "speeds, and the scores beside them, of runs that are not here")
    wanted = render(out, evidence)
    for name, data in wanted.items():
        path = out / name
        if path.is_symlink() or not path.is_file():
            found.problems.append(f"{path} is missing or a link")
        elif path.read_bytes() != data:
            found.problems += list(_differences(path, data))[:3]
    return found


def check(evidence: Evidence) -> Check:
    """Compute the scores of one run again."""
    found = Check()
    for score in evidence.scores:
        numbers = 1 + (score.value is not None) + 2 * (score.interval is not None)
        where = f"{evidence.folder / FACTS}, {score.metric} under {score.protocol}"
        try:
            if score.cells is not None:
                found.problems += _check_mean(score, evidence, where)
                found.recomputed += numbers
            elif (of := evidence.frechet(score)) is None:
                kind = "no mean of cells and no Fréchet distance" if score.value is not None else "without a value"
                found.only_hashed(numbers, kind)
            elif (sides := evidence.statistics(of)) is None:
                found.only_hashed(numbers, f"{of['file']} is not here")
            else:
                from dreambench.metrics.frechet import frechet_distance

                distance = max(0.0, frechet_distance(*sides))
                scale = sides[0].trace + sides[1].trace
                known = (score.value, score.n, of["dim"], of["n"], of["reference_n"])
                again = (distance, sides[0].n, sides[0].dim, sides[0].n, sides[1].n)
                slack = SINGULAR if min(side.rank_bound for side in sides) < of["dim"] else CLOSE
                found.problems += _compare(
                    where, ("value", "n", "dim", "n", "reference_n"), known, again, slack * scale
                )
                found.recomputed += 2
                found.only_hashed(numbers - 2, "intervals of Fréchet distances, a jackknife over the features")
        except (DataError, ValueError, OSError, KeyError, TypeError) as error:
            found.problems.append(f"{where}: cannot be computed again ({error})")
    return found


def _check_mean(score: Score, evidence: Evidence, where: str) -> list[str]:
    again = recompute(score, evidence.table)
    names = ("value", "n", "interval low", "interval high")
    found, wanted = ((one.value, one.n, *(one.interval or (None, None))) for one in (score, again))
    problems = _compare(where, names, found, wanted, 0.0)
    # The task names what the clusters are, the evidence does not.
    ours, theirs = (one.partition(", clustered")[0] for one in (score.interval_method, again.method))
    if ours != theirs and not ours.startswith("none"):
        problems.append(f"{where}, interval method: found {ours}, wanted {theirs}")
    return problems


def _compare(
    where: str, names: Sequence[str], found: Sequence[object], wanted: Sequence[object], slack: float
) -> list[str]:
    """A line for each number that is not what it should be."""
    return [
        f"{where}, {name}: found {ours}, wanted {theirs}"
        for name, ours, theirs in zip(names, found, wanted, strict=True)
        if not _equal(ours, theirs, slack)
    ]


def _equal(ours: object, theirs: object, slack: float) -> bool:
    if isinstance(ours, (int, float)) and isinstance(theirs, (int, float)):
        return math.isclose(ours, theirs, rel_tol=CLOSE, abs_tol=max(slack, 1e-12))
    return ours == theirs


def _differences(path: Path, wanted: bytes) -> Iterator[str]:
    """What a table on disk has instead of what follows from the evidence."""
    data = path.read_bytes()
    try:
        ours, theirs = data.decode(), wanted.decode()
    except UnicodeDecodeError:
        yield f"{path} is not UTF-8 text"
        return
    if path.suffix != ".csv":
        for number, (one, other) in enumerate(zip_longest(ours.splitlines(), theirs.splitlines()), 1):
            if one != other:
                yield f"{path}, line {number}: found {_short(one)}, wanted {_short(other)}"
        if ours.splitlines() == theirs.splitlines():
            yield f"{path}: its line breaks are not as written"
        return
    rows, others = (list(csv.reader(io.StringIO(text))) for text in (ours, theirs))
    if len(rows) != len(others):
        yield f"{path}: found {len(rows) - 1} rows, wanted {len(others) - 1}"
    header = others[0]
    different = False
    for number, (row, other) in enumerate(zip(rows, others, strict=False), 1):
        name_of_row = _row_name(dict(zip(header, other, strict=False)))
        for name, one, two in zip_longest(header, row, other, fillvalue=""):
            if one != two:
                different = True
                yield f"{path}, line {number} ({name_of_row}), {name}: found {_short(one)}, wanted {_short(two)}"
    if not different and len(rows) == len(others):
        yield f"{path}: its quotes or line breaks are not as written"


def _row_name(row: Mapping[str, str]) -> str:
    return " ".join(row[name] for name in ("task", "metric", "system", "run") if row.get(name))


def _short(text: str | None) -> str:
    return "nothing" if text is None else repr(text if len(text) < 80 else f"{text[:77]}…")
