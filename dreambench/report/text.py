"""Scores as text, and the text of models and data made safe for where it is shown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from dreambench.documents import JSON
from dreambench.safety import printable
from dreambench.scores import Score

__all__ = ["decimals", "flat", "headline", "interval_text", "latex", "markdown", "method_text", "number", "printable"]
__all__ += ["unscored_text", "value_text"]

MOST_DECIMALS = 8

# --- scores -----------------------------------------------------------------------------------------------------------


Decimals = Mapping[tuple[str, str], int]
"""The number of decimals, by metric and unit."""


def number(value: float | None, places: int | None = None) -> str:
    """With `places` decimals; else four significant digits, or two decimals from 10 on. A dash for None."""
    if value is None:
        return "–"
    if places is not None:
        return f"{value:.{places}f}"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4g}"


def decimals(scores: Iterable[Score]) -> Decimals:
    """How many decimals a table shows of each metric, in all of its rows: two of percentages and of what reaches 10, else as many as
    four significant digits of the largest number need.
    """
    largest: dict[tuple[str, str], float] = {}
    for score in scores:
        numbers = [score.value, *(score.interval or ())]
        key = score.metric, score.unit
        largest[key] = max([largest.get(key, 0.0), *(abs(number) for number in numbers if number is not None)])
    return {
        key: min(3 - math.floor(math.log10(size)), MOST_DECIMALS) if key[1] != "%" and 0 < size < 10 else 2
        for key, size in largest.items()
    }


def value_text(score: Score, places: Decimals) -> str:
    return f"{number(score.value, places[score.metric, score.unit])} {score.unit}".strip()


def interval_text(score: Score, places: Decimals) -> str:
    if score.interval is None:
        return "–"
    low, high = (number(end, places[score.metric, score.unit]) for end in score.interval)
    return f"{low} … {high}"


def method_text(score: Score) -> str:
    """The interval's confidence and method, or why there is no interval."""
    return score.interval_method if score.interval is None else f"{score.confidence:.0%}, {score.interval_method}"


def unscored_text(score: Score, places: Decimals) -> str:
    """The number of unscored samples, and the range of the score if they are counted as wrong or as right."""
    if score.bounds is None or not score.unscored:
        return str(score.unscored)
    low, high = (number(end, places[score.metric, score.unit]) for end in score.bounds)
    return f"{score.unscored} ({low} … {high} with them)"


def headline(score: Score) -> str:
    """``accuracy 72.78 % [70.60, 74.90] (95 %, cluster by image), n = 1500, protocol official@1-3f2a9c01``."""
    name = f"{score.metric} {score.group}" if score.group else score.metric
    places = decimals([score])
    here = places[score.metric, score.unit]
    if score.interval is None:
        interval = f"(no interval: {score.interval_method.removeprefix('none: ')})"
    else:
        low, high = (number(end, here) for end in score.interval)
        interval = f"[{low}, {high}] ({score.confidence:.0%}, {score.interval_method})"
    unscored = f", {score.unscored} unscored" if score.unscored else ""
    if score.bounds is not None and score.unscored:
        unscored += f" (between {number(score.bounds[0], here)} and {number(score.bounds[1], here)} with them)"
    return f"{name} {value_text(score, places)} {interval}, n = {score.n}{unscored}, protocol {score.protocol}"


def flat(value: JSON, name: str = "") -> list[tuple[str, JSON]]:
    """Nested fields as ``outer.inner``; lists as one line."""
    if isinstance(value, dict) and value:
        return [pair for key, inner in value.items() for pair in flat(inner, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list):
        return [(name, ", ".join(str(item) for item in value) or "none")]
    if isinstance(value, bool):
        return [(name, "yes" if value else "no")]
    return [(name, "–" if value is None or value in ("", {}) else value)]


# --- escaping ---------------------------------------------------------------------------------------------------------

MARKDOWN = re.compile(r"([\\`*_{}\[\]<>~|&$#])")
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": r"\textendash{}",
    "…": r"\ldots{}",
    **{special: f"\\{special}" for special in "{}$&#_%"},
    # At the start of a row, these would be read as an option of the row before.
    **{option: f"{{{option}}}" for option in "[]*"},
}


def markdown(text: str) -> str:
    """A cell of a Markdown table that renders as `text`."""
    return MARKDOWN.sub(r"\\\1", printable(text))


def latex(text: str) -> str:
    """A cell of a LaTeX table that prints as `text`."""
    return "".join(LATEX.get(character, character) for character in printable(text))
