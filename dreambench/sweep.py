"""``run --config SWEEP.yaml``: many runs from one file, and what they say together.

The file is a list of runs. Each has the fields of `RunSpec`, which are the options of ``dreambench run`` with underscores; under ``each``,
fields with lists of values are multiplied out::

    - task: vqav2
      each: {model: [dreamllm, blind], seed: [0, 1, 2]}
    - task: coco_fid
      each: {generation: [guidance_scale=2, guidance_scale=5], seed: [0, 1, 2]}
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambench.api import check
from dreambench.documents import JSON, canonical_json
from dreambench.errors import DreambenchError, UsageError, counted
from dreambench.files import parse_yaml, read_text
from dreambench.report.runs import CompleteRun
from dreambench.scores import FRECHET_DISTANCES, Better, Score
from dreambench.spec import RunSpec
from dreambench.statistics import student_quantile

__all__ = ["CurvePoint", "SeedSummary", "check_all", "curves", "label", "read_sweep", "summarize"]

MOST_RUNS, MOST_CHARACTERS, MOST_VALUES = 10_000, 1_000_000, 100_000
OF_A_MODEL = {"model", "model_arg", "generation", "seed", "batch_size", "device", "dtype"}
"""Fields with which neither the data nor the protocols can turn out unreadable."""
EXAMPLE = "for instance `- task: vqav2` (docs/sweeps.md)"

Sweep = Sequence[tuple[RunSpec, CompleteRun]]


# --- the file -----------------------------------------------------------------------------------------------------------


def read_sweep(path: Path) -> list[RunSpec]:
    """The runs of a sweep file, in its order. Nothing is loaded yet.

    Raises:
        UsageError: the file is no list of runs, a field is unknown or has a value that is not accepted, or two runs are the same.
    """
    text = read_text(path, UsageError)
    if len(text) > MOST_CHARACTERS:
        raise UsageError(f"--config {path}: more than {MOST_CHARACTERS:,} characters; split the sweep")
    try:
        entries = parse_yaml(text)
    except ValueError as error:
        raise UsageError(f"--config {path}: not YAML ({error})") from error
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"--config {path}: write a list of runs, {EXAMPLE}")
    _require_plain(entries, f"--config {path}")
    specs: dict[str, RunSpec] = {}
    for number, entry in enumerate(entries, 1):
        where = f"--config {path}, run {number}"
        for fields in _multiplied(entry, where):
            try:
                spec = RunSpec(**fields)
            except UsageError as error:
                raise UsageError(f"{where}: {error}") from error
            key = canonical_json(spec.to_json())
            if key in specs:
                raise UsageError(f"{where}: {label(spec)} is listed twice; list each run once")
            specs[key] = spec
            if len(specs) > MOST_RUNS:
                raise UsageError(f"--config {path}: more than {MOST_RUNS:,} runs; split the sweep")
    return list(specs.values())


def _require_plain(entries: Sequence[JSON], where: str) -> None:
    """Refuse what no field can be, before anything expands it: deep nesting, other types, and aliases of aliases that multiply."""
    left = MOST_VALUES

    def visit(value: JSON, depth: int) -> None:
        nonlocal left
        left -= 1
        if left < 0 or depth > 6:
            raise UsageError(f"{where}: more than {MOST_VALUES:,} values, or nested too deeply: split the sweep")
        if isinstance(value, dict):
            for name, inner in value.items():
                visit(name, depth + 1)
                visit(inner, depth + 1)
        elif isinstance(value, list):
            for inner in value:
                visit(inner, depth + 1)
        elif not isinstance(value, str | int | float | None):
            raise UsageError(f"{where}: {str(value)[:40]} is a {type(value).__name__}; put it into quotes")

    visit(list(entries), 0)


def _multiplied(entry: JSON, where: str) -> Iterator[Mapping[str, Any]]:
    """The fields of each run that an entry stands for."""
    if not isinstance(entry, dict) or not all(isinstance(name, str) for name in entry):
        raise UsageError(f"{where}: write the fields of a run, {EXAMPLE}")
    each = entry.get("each", {})
    fixed = {name: value for name, value in entry.items() if name != "each"}
    if not isinstance(each, dict) or not all(
        isinstance(name, str) and isinstance(values, list) and values for name, values in each.items()
    ):
        raise UsageError(f"{where}: `each` has fields with lists of values, for instance `seed: [0, 1, 2]`")
    both = next((name for name in each if name in fixed), None)
    if both is not None:
        raise UsageError(f"{where}: {both} stands in the run and under `each`; choose one of them")
    if math.prod(map(len, each.values())) > MOST_RUNS:
        raise UsageError(f"{where}: `each` stands for more than {MOST_RUNS:,} runs; split the sweep")
    for values in itertools.product(*each.values()):
        yield {**fixed, **dict(zip(each, values, strict=True))}


def label(spec: RunSpec) -> str:
    """``vqav2 of dreamllm, guidance_scale=2, seed 1``: a run of a sweep, for people."""
    return ", ".join(filter(None, [f"{spec.task} of {spec.model}", settings_text(spec), f"seed {spec.seed}"]))


def settings_text(spec: RunSpec) -> str:
    """What a spec sets beside task, model and seed. Of paths only the last step, of ids only their number: tables are passed on."""
    found: list[str] = []
    for name, value in spec.to_json().items():
        if name in ("task", "model", "seed", "offline", "batch_size") or not value or value == "auto":
            continue
        if name == "generation":
            found += value
        elif name == "model_arg":
            found += [f"{key}={text}" for key, text in value.items()]
        elif name == "ids":
            found.append(counted(len(value), "id"))
        else:
            words = value if isinstance(value, list) else [str(value).rstrip("/").rpartition("/")[2]]
            found.append(f"{name}={','.join(words)}")
    return " ".join(found)


def check_all(specs: Sequence[RunSpec]) -> None:
    """Every run's options, and that its data can be read and its protocols made: before the first run starts.

    Raises:
        UsageError: a run cannot be; names it.
    """
    read: set[str] = set()
    for number, spec in enumerate(specs, 1):
        of_data = canonical_json({name: value for name, value in spec.to_json().items() if name not in OF_A_MODEL})
        try:
            check(spec, data=of_data not in read)
        except DreambenchError as error:
            raise UsageError(f"run {number} of {len(specs)}, {label(spec)}: {error}") from error
        read.add(of_data)


# --- what the runs say together -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeedSummary:
    """One score over all samples, of runs that differ by their seed alone.

    `within` is the mean of the ends of the runs' own intervals: the uncertainty of the samples. `between` is Student's interval of the
    mean over seeds: the uncertainty of generation. Either is None where `within_method` or `between_method` says why.
    """

    task: str
    model: str
    settings: str
    metric: str
    unit: str
    better: Better | None
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float
    within: tuple[float, float] | None
    within_method: str
    between: tuple[float, float] | None
    between_method: str
    n: tuple[int, ...]
    protocols: tuple[str, ...]
    headline: bool


def summarize(runs: Sweep) -> list[SeedSummary]:
    """The scores over all samples, for each task, model and settings over its seeds; in the order of the runs."""
    return [summary for group in _by_settings(runs) for summary in _summaries(group)]


def _by_settings(runs: Sweep) -> list[list[tuple[RunSpec, CompleteRun]]]:
    groups: dict[str, list[tuple[RunSpec, CompleteRun]]] = {}
    for spec, run in runs:
        groups.setdefault(canonical_json({**spec.to_json(), "seed": None}), []).append((spec, run))
    return list(groups.values())


def _summaries(group: Sweep) -> Iterator[SeedSummary]:
    spec = group[0][0]
    by_seed = [(one.seed, _overall(run)) for one, run in group]
    for place, metric in dict.fromkeys(key for _, scores in by_seed for key in scores):
        found = [(seed, scores[place, metric]) for seed, scores in by_seed if (place, metric) in scores]
        scores = [score for _, score in found]
        values = tuple(float(score.value or 0.0) for score in scores)
        intervals = [score.interval for score in scores if score.interval is not None]
        whole = len(intervals) == len(scores)
        between, method = _between(values, scores[0].confidence, _range(scores[0]))
        yield SeedSummary(
            *(spec.task, spec.model, settings_text(spec), metric, scores[0].unit, scores[0].better),
            seeds=tuple(seed for seed, _ in found),
            values=values,
            mean=statistics.fmean(values),
            within=tuple(map(statistics.fmean, zip(*intervals, strict=True))) if whole else None,  # type: ignore[arg-type]
            within_method=scores[0].interval_method if whole else "none: not every run has an interval",
            between=between,
            between_method=method,
            n=tuple(dict.fromkeys(score.n for score in scores)),
            protocols=tuple(dict.fromkeys(score.protocol for score in scores)),
            headline=metric == next(iter(by_seed[0][1]), (0, ""))[1] and place == 0,
        )


def _overall(run: CompleteRun) -> dict[tuple[int, str], Score]:
    """The scores over all samples, by the place of their protocol in the run."""
    places = list(run.metrics["protocols"])
    return {
        (places.index(score.protocol), score.metric): score
        for score in run.scores
        if score.group is None and score.value is not None
    }


def _range(score: Score) -> tuple[float, float]:
    """Within which a mean of the score's values lies."""
    if score.cells is not None and score.unit != "%":
        low, high = score.cells.bounds
        return low, math.inf if high is None else high
    if score.unit == "%":
        return 0.0, 100.0
    if score.metric.startswith(("precision[", "recall[", "coverage[")):
        return 0.0, 1.0
    return (0.0 if score.metric.startswith((*FRECHET_DISTANCES, "clip_score", "density[")) else -math.inf), math.inf


def _between(
    values: Sequence[float], confidence: float, bounds: tuple[float, float]
) -> tuple[tuple[float, float] | None, str]:
    """Student's interval of the mean over seeds, ended at the metric's range, and its method."""
    if len(values) < 2:
        return None, "none: a single seed"
    deviation = statistics.stdev(values)
    if not deviation:
        return None, "none: all seeds give the same"
    mean, degrees = statistics.fmean(values), len(values) - 1
    half = student_quantile(confidence, degrees) * deviation / math.sqrt(len(values))
    method = f"Student's t, {counted(degrees, 'degree')} of freedom"
    return (max(mean - half, bounds[0]), min(mean + half, bounds[1])), method


# --- curves -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CurvePoint:
    """Fréchet distance and CLIPScore of a task and model at one value of a setting."""

    task: str
    line: str
    setting: str
    value: float
    distance: SeedSummary
    clip: SeedSummary


_Member = tuple[dict[str, float], SeedSummary, SeedSummary]
"""The numeric generation settings of runs, their Fréchet distance, and their CLIPScore."""


def curves(runs: Sweep) -> list[CurvePoint]:
    """The points of every curve: along a numeric generation setting that varies among runs which are otherwise the same, by its value.

    Of several settings that vary, the one with the most values runs along the curve; each value of the others has a curve of its own.
    """
    families: dict[str, list[_Member]] = {}
    for group in _by_settings(runs):
        spec, run = group[0]
        scores = list(_summaries(group))
        distance = next(
            (one for one in scores if one.better == "lower" and one.metric.startswith(FRECHET_DISTANCES)), None
        )
        clip = next((one for one in scores if one.better == "higher" and one.metric.startswith("clip_score")), None)
        if distance is not None and clip is not None:
            generation: Any = run.metrics["system"].get("generation", {})
            numbers = {name: float(value) for name, value in generation.items() if _is_number(value)}
            rest = {name: value for name, value in generation.items() if name not in numbers and name != "preset"}
            family = canonical_json({**spec.to_json(), "generation": rest, "seed": None})
            families.setdefault(family, []).append((numbers, distance, clip))
    return [point for members in families.values() for point in _curve(members)]


def _is_number(value: JSON) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _curve(members: Sequence[_Member]) -> list[CurvePoint]:
    values: dict[str, set[float]] = {}
    for numbers, *_ in members:
        for name, value in numbers.items():
            values.setdefault(name, set()).add(value)
    along, *others = sorted(
        (name for name in values if len(values[name]) > 1), key=lambda name: -len(values[name])
    ) or [""]
    if not along:
        return []
    found = [
        CurvePoint(
            distance.task,
            " ".join([distance.model, *(f"{name}={numbers[name]:g}" for name in others)]),
            *(along, numbers[along], distance, clip),
        )
        for numbers, distance, clip in members
    ]
    return sorted(found, key=lambda point: (point.line, point.value))
