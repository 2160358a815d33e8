"""An analysis as text of at most 80 columns, and as one HTML file that loads nothing and runs no script."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dreambench.documents import JSON
from dreambench.errors import counted
from dreambench.report.text import number, printable

__all__ = ["page", "print_analysis"]

WIDTH = 80


def interval(value: Mapping[str, JSON] | None) -> str:
    """``57.1 … 64.0``, or a dash."""
    ends = value.get("interval") if value else None
    return f"{number(ends[0])} … {number(ends[1])}" if ends else "–"


def ranks(value: Mapping[str, JSON]) -> str:
    """``1-3``, or the single rank."""
    ends = value["rank_interval"]
    return "–" if not ends else str(ends[0]) if ends[0] == ends[1] else f"{ends[0]}-{ends[1]}"


def of(value: Sequence[int]) -> str:
    """A count of a rater's checks: ``3/4``, or a dash where there were none."""
    return f"{value[0]}/{value[1]}" if value[1] else "–"


# --- terminal ---------------------------------------------------------------------------------------------------------


def print_analysis(found: Mapping[str, JSON]) -> None:
    """The tables of each question and the notes."""
    source = found["source"]
    _line(f"{source.get('title') or source.get('votes')}: {counted(source['rows'], 'answer')}")
    for part in [found, *found.get("other_questions", {}).values()]:
        _line(f"\nquestion {part['question']}")
        _print_scores(part)
        _print_agreement(part["agreement"])
        for name, judge in part.get("judges", {}).items():
            _print_judge(name, judge)
        _print_raters(part["raters"], part["kind"] == "pairwise")
        for note in part["notes"]:
            _line(f"note: {note}")


def _print_scores(part: Mapping[str, JSON]) -> None:
    if "acceptance" in part:
        rows = [
            [name, number(row["value"]), interval(row), ranks(row), row["n"], row["raters"], row["documents"]]
            for name, row in part["acceptance"].items()
        ]
        rows += [[f"{row['system']} (published)", number(row["value"]), *["–"] * 5] for row in part["published"]]
        _table(["acceptance, %", "value", "interval", "ranks", "n", "raters", "documents"], rows)
        return
    rows = [[n, number(r["value"]), interval(r), ranks(r)] for n, r in part["strengths"].items()]
    _table([f"strength ({part['model']})", "value", "interval", "ranks"], rows)
    rows = [
        [n, number(r["value"]), interval(r), r["wins"], r["ties"], r["games"]] for n, r in part["win_rates"].items()
    ]
    _table(["win rate, %", "value", "interval", "wins", "ties", "votes"], rows)
    first = part["position"]["first"]
    if first:
        _line(
            f"shown first wins {number(first['value'])} % [{interval(first)}] of {counted(first['n'], 'decisive vote')}"
        )


def _print_agreement(found: Mapping[str, JSON]) -> None:
    rows = [
        [f"Krippendorff's alpha, {name}", number(row["value"]), interval(row), row["n"]]
        for name, row in found["krippendorff"].items()
    ]
    for name in ("fleiss", "randolph"):
        row = found[f"{name}_kappa"]
        rows.append(
            [
                f"{name.capitalize()}' kappa" if name == "fleiss" else "Randolph's kappa",
                number(row["value"]),
                "–",
                row["n"],
            ]
        )
    _table(["agreement", "value", "interval", "items"], rows)


def _print_judge(name: str, judge: Mapping[str, JSON]) -> None:
    for words, key in (("with ties", "with_ties"), ("without ties", "without_ties")):
        between = judge["between_humans"][key]
        humans = f"; humans with each other {number(between[0])} %" if between else ""
        value = judge[key]
        if value:
            _line(
                f"judge {name} agrees {words} {number(value['value'])} % [{interval(value)}], n = {value['n']}{humans}"
            )
    if judge["first"]:
        _line(f"judge {name} prefers the first {number(judge['first']['value'])} % [{interval(judge['first'])}]")
    rows = [
        [
            system,
            number(row["judge"]["value"]),
            number((row["humans"] or {}).get("value")),
            number((row["corrected"] or {}).get("value")),
            interval(row["corrected"]),
            worth(row),
        ]
        for system, row in judge["win_rates"].items()
    ]
    _table([f"win rate, % ({name})", "judge", "humans", "corrected", "interval", "labels worth"], rows)


def worth(row: Mapping[str, JSON]) -> str:
    """``100 = 142``: labels, and the number of labels that would do as well without the judge."""
    corrected = row["corrected"]
    if not corrected:
        return "–"
    return f"{corrected['labels']} = {corrected['worth']:.0f}" if corrected["worth"] else str(corrected["labels"])


def _print_raters(raters: Mapping[str, JSON], pairwise: bool) -> None:
    rows = [
        [
            name + (" (careless)" if row["careless"] else ""),
            row["answers"],
            of(row["attention"]),
            of(row["repeats"]),
            of(row["consensus"]),
            number((row["bias"] or {}).get("value")),
            number(row["median_seconds"]),
        ]
        for name, row in raters.items()
    ]
    _table(["rater", "n", "checks", "repeats", "majority", "first, %" if pairwise else "lenient", "seconds"], rows)


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="", padding=(0, 2, 0, 0))
    for place, name in enumerate(columns):
        table.add_column(name, overflow="fold", justify="right" if place else "left", no_wrap=bool(place))
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    if table.row_count:
        Console(width=WIDTH).print(table)


def _line(text: str) -> None:
    import textwrap

    for line in text.split("\n"):
        print(textwrap.fill(printable(line), WIDTH, subsequent_indent="  ", break_on_hyphens=False))


# --- page -------------------------------------------------------------------------------------------------------------


def page(found: Mapping[str, JSON]) -> str:
    """The HTML of an analysis. Names are other people's text: the template escapes every value."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader("dreambench.report", ""), PackageLoader("dreambench.human", "")]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: printable(value, keep="\n") if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {"number": number, "interval": interval, "ranks": ranks, "of": of, "worth": worth}
    environment.filters.update(filters)
    parts = [found, *found.get("other_questions", {}).values()]
    return environment.get_template("analysis.html.j2").render(
        title=found["source"].get("title") or found["source"].get("votes"),
        source=found["source"],
        confidence=found["confidence"],
        parts=[{**part, "scale": _scale(part["strengths"].values())} for part in parts],
    )


def _scale(strengths: Iterable[Mapping[str, JSON]]) -> tuple[float, float] | None:
    """The ends of the axis of a plot of strengths: those of all intervals."""
    rows = list(strengths)
    ends = [end for row in rows for end in row["interval"] or (row["value"],) if end is not None]
    return (min(ends), max(ends)) if ends and min(ends) < max(ends) else None
