"""Scores as text, and the text of models and data made safe for where it is shown."""

from __future__ import annotations

import re

from dreambench.safety import printable
from dreambench.scores import Score

__all__ = ["headline", "interval_text", "latex", "markdown", "method_text", "number", "printable", "unscored_text"]

# --- scores -----------------------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """Four significant digits, or two decimals from 10 on; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4g}"


def interval_text(score: Score) -> str:
    return "–" if score.interval is None else f"{number(score.interval[0])} … {number(score.interval[1])}"


def method_text(score: Score) -> str:
    """The interval's confidence and method, or why there is no interval."""
    return score.interval_method if score.interval is None else f"{score.confidence:.0%}, {score.interval_method}"


def unscored_text(score: Score) -> str:
    """The number of unscored samples, and the range of the score if they are counted as wrong or as right."""
    if score.bounds is None or not score.unscored:
        return str(score.unscored)
    return f"{score.unscored} ({number(score.bounds[0])} … {number(score.bounds[1])} with them)"


def headline(score: Score) -> str:
    """``accuracy 72.78 % [70.60, 74.90] (95 %, cluster by image), n = 1500, protocol official@1-3f2a9c01``."""
    name = f"{score.metric} {score.group}" if score.group else score.metric
    value = f"{number(score.value)} {score.unit}".strip()
    if score.interval is None:
        interval = f"(no interval: {score.interval_method.removeprefix('none: ')})"
    else:
        low, high = score.interval
        interval = f"[{number(low)}, {number(high)}] ({score.confidence:.0%}, {score.interval_method})"
    unscored = f", {score.unscored} unscored" if score.unscored else ""
    if score.bounds is not None and score.unscored:
        unscored += f" (between {number(score.bounds[0])} and {number(score.bounds[1])} with them)"
    return f"{name} {value} {interval}, n = {score.n}{unscored}, protocol {score.protocol}"


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
