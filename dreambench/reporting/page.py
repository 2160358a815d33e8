"""The page: runs as one HTML file that needs nothing else, runs no script and asks no server.

The template escapes every text (autoescape), control characters are written out, and the page's own policy
(Content-Security-Policy) allows nothing but its style and the images inside it: answers and data are other people's text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dreambench.documents import JSON
from dreambench.report import number
from dreambench.reporting.examples import COUNT, choose
from dreambench.reporting.gallery import Strip, strips
from dreambench.reporting.loading import Loaded
from dreambench.reporting.tables import Line, incomparable, interval_text, lines, method_text, unscored_text
from dreambench.reporting.text import printable
from dreambench.scores import Score

__all__ = ["page"]

ANSWERS = 8
SHORT = 400
"""Characters of a question or an answer that a table shows."""


def page(runs: Sequence[Loaded]) -> str:
    """The HTML of one or several runs, images as ``data:`` addresses. The same runs give the same bytes."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dreambench.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {"number": number, "interval": interval_text, "method": method_text}
    filters |= {"unscored": unscored_text, "bar": _bar}
    environment.filters.update(filters)
    text_to_image = sum(run.generates for run in runs)
    found = lines(runs)
    return environment.get_template("page.html.j2").render(
        sections=[_section(run, max(2, COUNT // max(text_to_image, 1))) for run in runs],
        overview=_overview(found),
        incomparable=incomparable(found),
    )


def _finalize(value: Any) -> Any:
    """Whatever the template prints: plain text loses its control characters before it is escaped."""
    return printable(value, keep="\n") if type(value) is str else value


@dataclass(frozen=True)
class _Section:
    """What the template shows of one run."""

    run: Loaded
    strips: list[Strip]
    examples: list[tuple[str, list[dict[str, JSON]]]]
    protocols: list[tuple[str, list[JSON]]]
    errors: list[tuple[str, int, str, str]]
    system: list[tuple[str, JSON]]
    environment: list[tuple[str, JSON]]


def _section(run: Loaded, count: int) -> _Section:
    environment = run.run.run_file()["environment"]
    return _Section(
        run=run,
        strips=strips(run, count) if run.generates else [],
        examples=[] if run.generates else _answers(run),
        protocols=_side_by_side(run.metrics["protocols"]),
        errors=_errors(run),
        system=_flat(run.metrics["system"]),
        environment=_flat({**environment["device"], **environment["machine"], **environment["versions"]}),
    )


def _overview(found: Sequence[Line]) -> dict[str, list[Line]]:
    """The scores over all samples, by protocol."""
    whole = [line for line in found if line.score.group is None]
    return {
        protocol: [line for line in whole if line.score.protocol == protocol]
        for protocol in dict.fromkeys(line.score.protocol for line in whole)
    }


def _answers(run: Loaded) -> list[tuple[str, list[dict[str, JSON]]]]:
    """The worst and the best answers of a reading run, with their questions, where its rows hold answers and scores."""
    rows = [row for row in run.rows if row.get("answer") is not None]
    examples = choose(rows, run.scores[0].metric if run.scores else "", ANSWERS)
    return [
        (
            f"{title} {len(part)} of {len(rows)} answers by {examples.column}",
            [
                {
                    "id": row["id"],
                    "question": _short(run.prompts.get(row["id"], "")),
                    "answer": _short(str(row["answer"])),
                    "score": row[examples.column or ""],
                }
                for row in part
            ],
        )
        for title, part in (("Worst", examples.worst), ("Best", examples.best))
        if part
    ]


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= SHORT else text[: SHORT - 1] + "…"


def _errors(run: Loaded) -> list[tuple[str, int, str, str]]:
    """Type, how many, the first sample of each, and what was said about it."""
    found: list[tuple[str, int, str, str]] = []
    for name, kind in run.metrics["errors"]["types"].items():
        error = run.responses[kind["ids"][0]].error
        found.append((name, kind["n"], kind["ids"][0], _short(error.message) if error else ""))
    return found


def _side_by_side(protocols: Mapping[str, Mapping[str, JSON]]) -> list[tuple[str, list[JSON]]]:
    """A line for each field, a value for each protocol; one value alone where all agree."""
    flat = {id_: dict(_flat(fields)) for id_, fields in protocols.items()}
    names = dict.fromkeys(name for fields in flat.values() for name in fields)
    found: list[tuple[str, list[JSON]]] = []
    for name in names:
        values = [fields.get(name, "–") for fields in flat.values()]
        found.append((name, values[:1] if len({str(value) for value in values}) == 1 else values))
    return found


def _flat(value: JSON, name: str = "") -> list[tuple[str, JSON]]:
    """Fields of fields as ``outer.inner``; lists of plain values in one line."""
    if isinstance(value, dict) and value:
        return [pair for key, inner in value.items() for pair in _flat(inner, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list):
        return [(name, ", ".join(str(item) for item in value) or "none")]
    if isinstance(value, bool):
        return [(name, "yes" if value else "no")]
    return [(name, "–" if value is None or value in ("", {}) else value)]


def _bar(score: Score) -> tuple[float, float, float] | None:
    """Where value and interval lie between 0 and 100 %, for scores that do."""
    if score.unit != "%" or score.value is None or not 0 <= score.value <= 100:
        return None
    low, high = score.interval or (score.value, score.value)
    return max(low, 0.0), min(high, 100.0), score.value
