"""The rows of the tables, from evidence and published results alone; and who ranks where.

Scores rank together only under equal protocols. A system is ranked by its median attempt, the worse one of two in the middle, so that
more attempts do not lift it; where that one is barred, so is the system. Its rank interval goes from 1 + the number of systems whose
interval lies wholly on the better side of its own to N - the number of those on the worse side: these data do not show which order
holds in between. Systems whose intervals overlap may still differ: `dreambench compare` tests pairs, which is sharper.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from dreambench.documents import JSON
from dreambench.errors import DataError
from dreambench.leaderboard.evidence import TABLES, Evidence
from dreambench.report.text import number
from dreambench.scores import DISTANCES, Score

__all__ = ["COLUMNS", "Measured", "Row", "columns", "measured_rows", "published_rows"]

UNSCORED = 0.05
"""The share of unscored samples above which a score is barred: they could change it by as much."""
SHUFFLED = "-shuffled"
_IMAGES = "of generated images: "
COLUMNS = {
    "status": "`measured` here, with evidence in `measured/`, or `published` elsewhere, with its source",
    "task": "the benchmark",
    "protocol": "what defines the measurement, with its hash; `facts.json` of the run has its fields",
    "metric": "what was computed, over all samples (groups are in the run's report)",
    "system": "the model",
    "system_id": "first 8 hex digits of the sha256 of the system: weights, prompt wording, decoding, sampler",
    "seed": "the run's seed",
    "value": "in full precision",
    "unit": "of value and interval; % means percent",
    "better": "higher or lower; empty for baselines and descriptions",
    "interval_low": "lower end of the interval",
    "interval_high": "upper end of the interval",
    "confidence": "of the interval",
    "interval_method": "how the interval was computed, or why there is none",
    "n": "what was scored",
    "unscored": "what could not be scored",
    "rank": "1 is best, by value, among the systems of the same protocol and metric that are not barred",
    "rank_first": "best rank that the intervals leave open: 1 + the number of systems whose interval is wholly better",
    "rank_last": "worst rank that the intervals leave open: N - the number of systems whose interval is wholly worse",
    "ranked": "N, how many systems are ranked",
    "barred": "why the row has no rank",
    "attempts": "how many runs of this system under this protocol are here, of whatever seed",
    "attempt_best": "the best value of these attempts",
    "attempt_median": "the median of these attempts, the worse one of two in the middle",
    "attempt_worst": "the worst value of these attempts",
    "run": "folder of the evidence in `measured/`",
    "date": "when the last answer was stored (UTC)",
    "parameters": "number of weights",
    "prompt": "prompt wording",
    "decoding": "generation settings that have no column of their own",
    "guidance": _IMAGES + "scale of classifier-free guidance",
    "rescale": _IMAGES + "guidance rescale",
    "steps": _IMAGES + "number of denoising steps",
    "sampler": _IMAGES + "scheduler",
    "resolution": _IMAGES + "pixels of a side; `native` is the model's own",
    "negative_prompt": _IMAGES + "negative prompt",
    "prompt_rewriter": _IMAGES + "what rewrote the prompt",
    "candidates": _IMAGES + "images per prompt among which one was chosen, and by what",
    "samples_per_prompt": _IMAGES + "images per prompt that were scored",
    "seed_rule": "how a sample's seed follows from the run's",
    "precision": "of weights and arithmetic",
    "device": "what it ran on",
    "source": "of a published row: who says so",
    "unknown": "columns that would apply, but nobody noted",
    "notes": "what a reader must see beside the number; those of the whole run stand beside the first score of a protocol",
}
OF_IMAGES = tuple(name for name, text in COLUMNS.items() if text.startswith(_IMAGES))
PUBLISHED = ("system", "params", "benchmark", "metric", "value", "split_or_setting", "source", "confidence")
MAY_BE_UNKNOWN = (
    *("protocol", "unit", "interval_low", "n", "unscored", "seed", "date", "parameters", "prompt", "decoding"),
    *(*OF_IMAGES, "seed_rule", "precision", "device"),
)


@dataclass
class Row:
    """A row of a table."""

    table: str
    cells: dict[str, JSON]


@dataclass
class Measured(Row):
    """A row whose score was measured; `order` is the score's place in its run."""

    score: Score
    evidence: Evidence
    order: int


def columns(table: str) -> list[str]:
    """The header of a table: comprehension has no columns of generated images."""
    return [name for name in COLUMNS if table != "comprehension" or name not in OF_IMAGES]


# --- measured ---------------------------------------------------------------------------------------------------------


def measured_rows(evidence: Sequence[Evidence]) -> list[Measured]:
    """A row for each score of each run, with attempts and ranks, by task, protocol, metric, system, seed and run."""
    rows = [row for one in evidence for row in _rows(one)]
    order = ("task", "protocol", "metric", "system", "system_id", "seed", "run")
    rows.sort(key=lambda row: [str(row.cells[name]) for name in order])
    for same in _grouped(rows, order[:3]):
        for row in same:
            row.cells["barred"] = _barred(row, same)
        for attempts in _grouped(same, ("system", "system_id")):
            _note_attempts(attempts)
        _rank(same)
    return rows


def _grouped(rows: Sequence[Measured], names: Sequence[str]) -> list[list[Measured]]:
    """The rows with equal cells of these names, which follow each other."""
    return [list(members) for _, members in groupby(rows, lambda row: [row.cells[name] for name in names])]


def _rows(evidence: Evidence) -> Iterator[Measured]:
    facts = evidence.facts
    card = _card(facts)
    headed: set[str] = set()
    for order, score in enumerate(evidence.scores):
        shuffled = score.metric.endswith(SHUFFLED)
        cells: dict[str, JSON] = {
            "status": "measured",
            "task": facts["task"],
            "protocol": score.protocol,
            "metric": score.metric.removesuffix(SHUFFLED),
            "system": f"captions shuffled ({facts['model']})" if shuffled else facts["model"],
            "system_id": evidence.system_id,
            "seed": facts["options"].get("seed"),
            "value": score.value,
            "unit": score.unit,
            "better": score.better,
            "interval_low": score.interval and score.interval[0],
            "interval_high": score.interval and score.interval[1],
            "confidence": score.confidence if score.interval else None,
            "interval_method": score.interval_method,
            "n": score.n,
            "unscored": score.unscored,
            "run": evidence.run,
            "date": facts["date"],
            "parameters": facts["parameters"],
            **card,
            "notes": "; ".join([*(facts["notes"] if score.protocol not in headed else ()), *score.notes]),
        }
        headed.add(score.protocol)
        cells["unknown"] = _unknown(cells, facts["table"], besides=("unit", "interval_low"))
        yield Measured(facts["table"], cells, score, evidence, order)


def _unknown(cells: Mapping[str, JSON], table: str, besides: Sequence[str] = ()) -> str:
    asked = [name for name in MAY_BE_UNKNOWN if name in columns(table) and name not in besides]
    return ", ".join("interval" if name == "interval_low" else name for name in asked if cells.get(name) in (None, ""))


def _card(facts: Mapping[str, JSON]) -> dict[str, JSON]:
    """How the answers were made; None where nobody noted it."""
    system = facts["system"]
    device = facts["environment"].get("device", {})
    model = system["model"] if isinstance(system.get("model"), dict) else {}
    known: dict[str, JSON] = {
        "precision": model.get("dtype") or device.get("dtype"),
        "device": device.get("device"),
    }
    settings = system.get("generation")
    if not isinstance(settings, dict):
        return known
    settings = dict(settings)
    wording = [
        f"{name}: {settings.pop(name)}"
        for name in ("system_prompt", "prompt", "assistant_prefix")
        if settings.get(name)
    ]
    known |= {"prompt": "; ".join(wording) or "as the benchmark has it", "seed_rule": "sha256 of (seed, sample id)"}
    if facts["table"] != "comprehension":
        reranker = f", chosen by {settings.get('rerank')}" if settings.get("candidates", 1) != 1 else ""
        known |= {
            "guidance": settings.pop("guidance_scale", None),
            "rescale": settings.pop("guidance_rescale", None),
            "steps": settings.pop("num_inference_steps", None),
            "sampler": settings.pop("scheduler", None),
            "resolution": settings.pop("resolution", None) or "native",
            "negative_prompt": settings.pop("negative_prompt", None) or "none",
            "prompt_rewriter": "none",
            "candidates": f"{settings.pop('candidates', 1)}{reranker}",
            "samples_per_prompt": 1,
        }
    rest = {name: value for name, value in settings.items() if value not in (None, "", False)}
    known["decoding"] = ", ".join(f"{name}={value}" for name, value in sorted(rest.items())) or "none"
    return known


def _barred(row: Measured, rows: Sequence[Measured]) -> str:
    """Why a row is not ranked; empty if it is."""
    score, evidence = row.score, row.evidence
    options, of = evidence.facts["options"], evidence.frechet(score)
    model = str(evidence.facts["model"]).partition(":")[0]
    if score.metric.endswith(SHUFFLED) or evidence.is_blind:
        return "a blind baseline"
    if model == "echo":
        return "a toy"
    if score.value is None:
        return f"no value: {score.interval_method.removeprefix('none: ')}"
    if score.better is None:
        return "neither direction is better: a baseline or a description"
    if options.get("limit") or options.get("ids"):
        return "limited: --limit or --ids chose the samples"
    if score.unscored > UNSCORED * (score.n + score.unscored):
        return f"{score.unscored} of {score.n + score.unscored} are unscored, more than {UNSCORED:.0%}"
    if of is not None and min(of["n"], of["n"] if of["reference_n"] is None else of["reference_n"]) <= of["dim"]:
        return f"singular: not more images than the {of['dim']} features"
    if score.interval is None:
        return f"no interval: {score.interval_method.removeprefix('none: ')}"
    return _at_floor(score, score.interval, evidence, rows)


def _at_floor(score: Score, interval: tuple[float, float], evidence: Evidence, rows: Sequence[Measured]) -> str:
    """Where a score shows nothing: it reaches that of a blind one of `rows`, or no distance from real images is shown."""
    real = f"{score.metric}-real-vs-real"
    value = score.value or 0.0
    for other in evidence.scores:
        is_real = other.metric == real and other.protocol == score.protocol
        if is_real and other.interval and value <= other.interval[1]:
            low, high = map(number, other.interval)
            return f"no difference from real images is shown: these get {low} to {high} at this n"
    if score.metric.startswith(DISTANCES) and interval[0] <= 0:
        return "no difference from real images is shown: the interval reaches 0"
    if score.better != "higher":
        return ""  # who sees no caption, or copies real images, may have the lowest distance
    for row in rows:
        other, theirs = row.score, row.evidence
        is_shuffled = other.metric.endswith(SHUFFLED)
        is_blind = theirs.run == evidence.run if is_shuffled else theirs.is_blind
        if is_blind and other.value is not None and interval[0] <= other.value:
            return f"not shown to be better than {row.cells['system']}, {number(other.value)}"
    return ""


def _note_attempts(rows: Sequence[Measured]) -> None:
    """Attempts of one system under one protocol: how many, best, median, worst. Only the median is ranked, unless it is barred."""
    better, valued = rows[0].score.better, [row for row in rows if row.score.value is not None]
    for row in rows:
        row.cells["attempts"] = len(rows)
    if better is None or not valued:
        return
    sign = 1 if better == "higher" else -1
    worst_first = sorted(valued, key=lambda row: (sign * (row.score.value or 0.0), row.cells["run"]))
    median = worst_first[(len(valued) - 1) // 2]
    of = {"attempt_best": worst_first[-1], "attempt_median": median, "attempt_worst": worst_first[0]}
    for row in rows:
        row.cells |= {name: attempt.score.value for name, attempt in of.items()}
        if row is not median and not row.cells["barred"]:
            row.cells["barred"] = f"another attempt, {median.cells['run']}, is this system's median"


def _rank(rows: Sequence[Measured]) -> None:
    ranked = [row for row in rows if not row.cells["barred"]]

    def oriented(row: Measured) -> tuple[float, float, float]:
        """(low, value, high) with higher as better."""
        low, value, high = (row.cells[name] for name in ("interval_low", "value", "interval_high"))
        return (low, value, high) if row.cells["better"] == "higher" else (-high, -value, -low)

    for row in ranked:
        low, value, high = oriented(row)
        others = [oriented(other) for other in ranked if other is not row]
        row.cells |= {
            "rank": 1 + sum(theirs > value for _, theirs, _ in others),
            "rank_first": 1 + sum(least > high for least, _, _ in others),
            "rank_last": len(ranked) - sum(most < low for _, _, most in others),
            "ranked": len(ranked),
        }


# --- published --------------------------------------------------------------------------------------------------------


def published_rows(out: Path) -> list[Row]:
    """The rows of ``published/<table>.csv``, as they stand there; never ranked with measured ones.

    Raises:
        DataError: a file has other columns, or a value that is no number.
    """
    import pandas as pd

    rows: list[Row] = []
    for table in TABLES:
        path = out / "published" / f"{table}.csv"
        if path.is_symlink() or not path.is_file():
            continue
        try:
            found = pd.read_csv(path, dtype=str, keep_default_na=False)
        except (ValueError, OSError) as error:
            raise DataError(f"{path}: not a CSV file ({error})") from error
        if missing := [name for name in PUBLISHED if name not in found]:
            raise DataError(f"{path} has no column {missing[0]}; it needs {', '.join(PUBLISHED)}")
        for number_, line in enumerate(found.to_dict("records"), 2):
            rows.append(
                _published(table, {str(name): str(value) for name, value in line.items()}, f"{path}, row {number_}")
            )
    rows.sort(key=lambda row: (row.cells["task"], row.cells["metric"], row.cells["system"]))
    return rows


def _published(table: str, line: Mapping[str, str], where: str) -> Row:
    try:
        value = float(line["value"])
        if not math.isfinite(value):
            raise ValueError
    except ValueError:
        raise DataError(f"{where}: the value {line['value'][:40]!r} is no number") from None
    cells: dict[str, JSON] = {
        "status": "published",
        "task": line["benchmark"],
        "metric": line["metric"],
        "system": line["system"],
        "value": value,
        "barred": "published: not measured here",
        "parameters": line["params"],
        "source": line["source"],
        "notes": "; ".join(filter(None, [line["split_or_setting"], f"confidence of the copy: {line['confidence']}"])),
    }
    return Row(table, {**cells, "unknown": _unknown(cells, table)})
