"""A comparison for people and for programs: sentences and a table on the terminal, JSON, and what the page's plot needs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import floor, log10
from pathlib import Path
from typing import Any

from dreambench.compare import ALPHA, Comparison, Difference, Pair
from dreambench.documents import JSON
from dreambench.errors import UsageError, counted
from dreambench.files import write_atomically
from dreambench.progress import say
from dreambench.report.text import number, printable
from dreambench.scores import Estimate

__all__ = ["FILTERS", "Whisker", "cells", "flips", "p_text", "print_comparison", "verdict", "whiskers", "write_json"]

FIRST = 5
"""Ids of flipped samples that the terminal prints."""


def verdict(found: Difference) -> str:
    """What was found in one sentence: better, worse, or what so many samples could have shown."""
    unit = "points" if found.unit == "%" else found.unit
    estimate = found.estimate
    change = f"{_signed(estimate.value, estimate)} {unit}".strip()
    if estimate.interval is not None:
        low, high = (_signed(end, estimate) for end in estimate.interval)
        change += f" [{low}, {high}]"
    n = f"n = {estimate.n}" if found.paired else f"n = {estimate.n}, unpaired"
    test = "" if found.p_adjusted is None else f", p {p_text(found.p_adjusted, equals=True)}"
    if (
        found.p_mcnemar is not None
        and found.p_value is not None
        and (found.p_mcnemar < ALPHA) != (found.p_value < ALPHA)
    ):
        test += f" (McNemar's exact test: {p_text(found.p_mcnemar, equals=True)})"
    if found.shown:
        return f"{_outcome(found)}: {change}{test}, {n}"
    if estimate.interval is None:
        if found.paired and not found.higher and not found.lower:
            return f"all {estimate.n} samples score the same"
        return f"{change}, no test ({estimate.method.removeprefix('none: ')}), {n}"
    could = "" if not found.detectable else f"; this n could show {_could_show(found)}"
    return f"no difference is shown: {change}{test}, {n}{could}"


OUTCOMES = ("better", "worse", "different", "without a shown difference")


def _outcome(found: Difference) -> str:
    if not found.shown:
        return OUTCOMES[3]
    return OUTCOMES[2] if found.improves is None else OUTCOMES[0] if found.improves else OUTCOMES[1]


def _could_show(found: Difference) -> str:
    if found.detectable is None or found.unit != "%":
        return f"{number(found.detectable)} {found.unit}".rstrip()
    return "none" if found.detectable >= 100 else f"{found.detectable:.2f} points"


def p_text(p: float | None, *, equals: bool = False) -> str:
    """A p value with as many digits as mean something: ``0.59``, ``0.012``, ``<0.001``."""
    if p is None:
        return "–"
    if p < 0.001:
        return "< 0.001" if equals else "<0.001"
    text = f"{p:.2f}" if p >= 0.1 else f"{p:.3f}"
    return f"= {text}" if equals else text


def _signed(value: float, estimate: Estimate) -> str:
    """With two decimals of what reaches 10 or is a percentage, else as many as the largest number needs for three digits."""
    largest = max(map(abs, (estimate.value, *(estimate.interval or ()))))
    places = 2 if estimate.unit == "%" or not 0 < largest < 10 else min(2 - floor(log10(largest)), 8)
    return f"{value:+.{places}f}"


def flips(found: Difference) -> list[tuple[str, tuple[str, ...]]]:
    """(word, ids) of the samples whose score changed: ``better`` first, or ``higher`` where neither direction is better."""
    if found.better is None:
        return [("higher", found.higher), ("lower", found.lower)]
    better, worse = (found.higher, found.lower) if found.better == "higher" else (found.lower, found.higher)
    return [("better", better), ("worse", worse)]


# --- terminal -----------------------------------------------------------------------------------------------------------


def print_comparison(comparison: Comparison) -> None:
    """Each run against the first: what differs, the table of differences, and in words what is shown."""
    for index, pair in enumerate(comparison.pairs):
        if index:
            print()
        _print_pair(pair)


def _print_pair(pair: Pair) -> None:
    _say(f"{pair.second.title} against {pair.first.title}")
    _say(f"second: {pair.second.name}")
    _say(f"first:  {pair.first.name}")
    for field in pair.unequal:
        _say(f"NOT EQUAL: {field}")
    for what, fields in (("system", pair.system), ("environment", pair.environment)):
        for field in fields:
            _say(f"{what} differs: {field}")
    _print_table(pair.differences)
    for note in pair.notes:
        _say(f"note: {note}")
    for found in pair.differences:
        if found.group is None and (found.paired or found.better is not None):  # baselines stand in the table
            _print_words(found)
    groups = [found for found in pair.differences if found.group is not None and found.p_adjusted is not None]
    if groups:
        counts = Counter(_outcome(found) for found in groups)
        found = ", ".join(f"{counts[word]} {word}" for word in OUTCOMES if counts[word])
        _say(f"in {counted(len(groups), 'group')} (p values adjusted by Holm's method): {found}")
    if pair.unequal:
        _say("note: the runs do not measure the same (NOT EQUAL above): these differences are not the systems' alone")


def _print_words(found: Difference) -> None:
    _say(f"{found.metric}: {verdict(found)}")
    for word, ids in flips(found) if found.paired else ():
        if ids:
            more = ", …" if len(ids) > FIRST else ""
            _say(f"  {counted(len(ids), 'sample')} {word}: {', '.join(ids[:FIRST])}{more}")
    if found.left_out:
        _say(f"  {counted(found.left_out, 'sample')} left out, because only one of the runs scored it")


def _say(line: str) -> None:
    print(printable(line))


def _print_table(found: Sequence[Difference]) -> None:
    """Fits 80 columns: only the names of metrics and groups are folded."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=100)  # a file or a pipe has no width to fit
    table = Table(header_style="", box=None, pad_edge=False)
    table.add_column("metric, group", overflow="fold")
    for column in ("first", "second", "difference", "interval", "p", "n"):
        table.add_column(column, justify="right", no_wrap=True)
    for metric in dict.fromkeys(one.metric for one in found):
        for one in (each for each in found if each.metric == metric):
            name = f"  {one.group}" if one.group is not None else f"{one.metric}{' (%)' if one.unit == '%' else ''}"
            table.add_row(*(Text(printable(cell)) for cell in (name, *cells(one)[:6])))
    console.print(table)


def cells(found: Difference) -> list[str]:
    """First, second, difference, interval, p value, n, and what this n could show, as tables show them."""
    estimate = found.estimate
    interval = "–" if estimate.interval is None else " … ".join(_signed(end, estimate) for end in estimate.interval)
    return [
        *(number(value, 2 if found.unit == "%" else None) for value in (found.first, found.second)),
        _signed(estimate.value, estimate),
        interval,
        p_text(found.p_adjusted),
        str(estimate.n),
        _could_show(found).removesuffix(" points"),
    ]


# --- programs -----------------------------------------------------------------------------------------------------------


def write_json(comparison: Comparison, target: Path) -> None:
    """``compare --json FILE``. The same runs give the same bytes."""
    text = json.dumps(_to_json(comparison), indent=1, ensure_ascii=False) + "\n"
    try:
        write_atomically(target, text.encode())
    except OSError as error:
        raise UsageError(f"--json {target}: {error.strerror or error}") from error
    say(f"wrote {target}")


def _to_json(comparison: Comparison) -> JSON:
    return {
        "first": comparison.runs[0].name,
        "alpha": ALPHA,
        "comparisons": [
            {
                "task": pair.second.metrics["task"],
                "second": pair.second.name,
                "equal": not pair.unequal,
                **{
                    name: [asdict(field) for field in getattr(pair, name)]
                    for name in ("unequal", "system", "environment")
                },
                "notes": pair.notes,
                "differences": [_line(found) for found in pair.differences],
            }
            for pair in comparison.pairs
        ],
    }


def _line(found: Difference) -> JSON:
    estimate = found.estimate
    return {
        **{name: getattr(found, name) for name in ("metric", "group", "unit", "better", "first", "second")},
        "difference": estimate.value,
        "interval": None if estimate.interval is None else list(estimate.interval),
        "confidence": estimate.confidence,
        "interval_method": estimate.method,
        "n": estimate.n,
        "left_out": found.left_out,
        **{
            name: getattr(found, name)
            for name in ("paired", "p_value", "p_adjusted", "p_mcnemar", "detectable", "shown")
        },
        "verdict": verdict(found),
        "samples": {word: list(ids) for word, ids in flips(found)} if found.paired else None,
    }


# --- the page -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Whisker:
    """A row of the plot: a difference, and where 0, its value and its interval's ends lie, in percent of the plot's width."""

    found: Difference
    zero: float
    value: float
    low: float | None
    high: float | None


def whiskers(differences: Sequence[Difference]) -> list[tuple[str, list[Whisker]]]:
    """(unit, rows) of each plot: differences in the same unit share a scale; without a unit, those of the same metric."""
    scales: dict[str, list[Difference]] = {}
    for one in differences:
        scales.setdefault(one.unit or one.metric, []).append(one)
    return [("percentage points" if name == "%" else name, _scaled(members)) for name, members in scales.items()]


def _scaled(members: Sequence[Difference]) -> list[Whisker]:
    ends = [0.0, *(end for one in members for end in (one.estimate.value, *(one.estimate.interval or ())))]
    width = 1.08 * (max(ends) - min(ends)) or 1.0
    left = (max(ends) + min(ends) - width) / 2

    def at(value: float) -> float:
        return round(100 * (value - left) / width, 2)

    def row(one: Difference) -> Whisker:
        low, high = map(at, one.estimate.interval) if one.estimate.interval else (None, None)
        return Whisker(one, at(0.0), at(one.estimate.value), low, high)

    return list(map(row, members))


FILTERS: dict[str, Any] = {"verdict": verdict, "flips": flips, "cells": cells, "whiskers": whiskers}
"""For ``comparison.html.j2``."""
