"""``dreambench compare``: what complete runs of the same measurement differ by, with an interval, a test and what their n could show.

Scores that are means over samples (those with `Score.cells`) are compared sample by sample. Distances between sets have no such pairs:
their difference gets the interval that follows from the two scores' own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dreambench.documents import JSON
from dreambench.errors import RunError, UsageError, counted
from dreambench.report.runs import CompleteRun, load
from dreambench.report.text import flat
from dreambench.scores import Better, Cells, Estimate, Score
from dreambench.statistics import (
    adjust_p_values,
    detectable_difference,
    mcnemar,
    normal_quantile,
    paired_difference,
    unpaired_interval,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Changed", "Comparison", "Difference", "Pair", "compare", "load_runs"]

ALPHA, POWER = 0.05, 0.8
LONGEST = 60
"""Characters of a field's value in a line."""
_ABSENT = "–"


@dataclass(frozen=True)
class Changed:
    """A field that two runs do not share: its value in the first and in the second, ``–`` where one lacks it."""

    field: str
    first: str
    second: str

    def __str__(self) -> str:
        return f"{self.field}: {_shortened(self.first)} and {_shortened(self.second)}"


def _shortened(text: str) -> str:
    if re.fullmatch("[0-9a-f]{32,}", text):  # a digest
        return f"{text[:8]}…"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


@dataclass(frozen=True)
class Difference:
    """Second run minus first run, for one metric and group.

    `first` and `second` are the runs' values over the samples that both scored, `left_out` how many only one of them did. `p_adjusted` is
    Holm's over the groups of a metric; the score over all samples is a question of its own. `p_mcnemar` is exact, for hits and misses
    without clusters. `detectable` is the smallest true difference that so many samples show with a power of 80 % at the level of 5 %.
    `higher` and `lower` are the ids of the samples whose score rose and fell. Scores of sets have no pairs: no p value and no ids.
    """

    metric: str
    group: str | None
    unit: str
    better: Better | None
    first: float
    second: float
    estimate: Estimate
    paired: bool
    detectable: float | None = None
    p_value: float | None = None
    p_adjusted: float | None = None
    p_mcnemar: float | None = None
    higher: tuple[str, ...] = ()
    lower: tuple[str, ...] = ()
    left_out: int = 0

    @property
    def shown(self) -> bool:
        """Whether the test finds a difference at the level of 5 %; of sets, whether the interval excludes 0."""
        if self.p_adjusted is not None:
            return self.p_adjusted < ALPHA
        return self.estimate.interval is not None and not self.estimate.interval[0] <= 0 <= self.estimate.interval[1]

    @property
    def improves(self) -> bool | None:
        """Whether the second run's value is the better one; None where neither direction is better, or nothing differs."""
        return (
            None
            if self.better is None or not self.estimate.value
            else (self.estimate.value > 0) == (self.better == "higher")
        )


@dataclass(frozen=True)
class Pair:
    """Two runs. `unequal` is what differs in their measurement: nothing unless ``--anyway``; `system` and `environment` what else."""

    first: CompleteRun
    second: CompleteRun
    differences: list[Difference]
    unequal: list[Changed]
    system: list[Changed]
    environment: list[Changed]
    notes: list[str]


@dataclass(frozen=True)
class Comparison:
    """Runs, each compared with the first."""

    runs: list[CompleteRun]
    pairs: list[Pair]


def load_runs(paths: Sequence[Path]) -> list[CompleteRun]:
    """At least two complete runs, each named once. Raises `UsageError` or `RunError`."""
    runs = [load(path) for path in paths]
    if len(runs) < 2:
        raise UsageError("compare needs two runs at least: a baseline, and the runs to hold against it")
    folders = [run.run.path.resolve() for run in runs]
    twice = next((path for path, folder in zip(paths, folders, strict=True) if folders.count(folder) > 1), None)
    if twice is not None:
        raise UsageError(f"{twice} is given twice: compare it with another run")
    return runs


def compare(runs: Sequence[CompleteRun], *, anyway: bool = False) -> Comparison:
    """Compare complete runs with the first of them.

    Raises:
        RunError: two runs measure different things, and `anyway` is False; the message names the fields. Or they are of different tasks,
            or have no score or sample in common.
    """
    first, *others = runs
    return Comparison(list(runs), [_pair(first, other, anyway=anyway) for other in others])


def _pair(first: CompleteRun, second: CompleteRun, *, anyway: bool) -> Pair:
    tasks = first.metrics["task"], second.metrics["task"]
    if tasks[0] != tasks[1]:
        raise RunError(f"{first.name} is of {tasks[0]}, {second.name} of {tasks[1]}: compare runs of one task")
    protocols = _protocols(first, second)
    unequal = [field for a, b in protocols for field in _unequal(first, second, a, b)] + _samples(first, second)
    if unequal and not anyway:
        raise RunError(
            f"{first.name} and {second.name} do not measure the same ({'; '.join(map(str, dict.fromkeys(unequal)))}):"
            " run them with the same options, or let --anyway compare the samples that they share"
        )
    notes: list[str] = []
    differences = [found for a, b in protocols for found in _differences(first, second, a, b, notes)]
    if not differences:
        raise RunError(f"{first.name} and {second.name} have no scored sample in common: there is nothing to compare")
    system, environment = (_changed(side(first), side(second)) for side in (_system, _environment))
    return Pair(first, second, differences, list(dict.fromkeys(unequal)), system, environment, notes)


# --- what differs beside the scores -----------------------------------------------------------------------------------


def _protocols(first: CompleteRun, second: CompleteRun) -> list[tuple[str, str]]:
    """Protocols of the same id; else of the same name; else the two that give the headlines."""
    ours, theirs = first.metrics["protocols"], second.metrics["protocols"]
    names = {fields["name"]: id_ for id_, fields in theirs.items()}
    return (
        [(id_, id_) for id_ in ours if id_ in theirs]
        or [(id_, names[fields["name"]]) for id_, fields in ours.items() if fields["name"] in names]
        or list(zip(list(ours)[:1], list(theirs)[:1], strict=False))
    )


def _unequal(first: CompleteRun, second: CompleteRun, a: str, b: str) -> list[Changed]:
    """The protocols' fields that differ. Where two have the same fields by this rule, their ids."""
    if a == b:
        return []
    fields = _changed(first.metrics["protocols"][a], second.metrics["protocols"][b])
    return [field for field in fields if field.field != "hash"] or [Changed("protocol", a, b)]


def _samples(first: CompleteRun, second: CompleteRun) -> list[Changed]:
    ours, theirs = (set(_ids(run)) for run in (first, second))
    if ours == theirs:
        return []
    shared = counted(len(ours & theirs), "common one")
    return [Changed("samples", str(len(ours)), f"{len(theirs)}, with {shared}")]


def _ids(run: CompleteRun) -> list[str]:
    if "id" not in run.table or not run.table["id"].is_unique:
        raise _damaged(run, "the ids of the samples")
    return run.table["id"].tolist()


def _damaged(run: CompleteRun, what: str) -> RunError:
    return RunError(
        f"{run.run.path}/scores.parquet is damaged ({what}): `dreambench score {run.run.path}` writes it again"
    )


def _system(run: CompleteRun) -> Mapping[str, JSON]:
    """What is measured. The seed is part of it: each sample's noise follows from it."""
    run_file = run.run.run_file()
    return {**run_file["system"], "seed": run_file["spec"].get("seed")}


def _environment(run: CompleteRun) -> Mapping[str, JSON]:
    run_file = run.run.run_file()
    return {**run_file["environment"], "batch_size": run_file["plan"].get("batch_size")}


def _changed(first: Mapping[str, JSON], second: Mapping[str, JSON]) -> list[Changed]:
    """The flattened fields that differ."""
    a, b = ({name: str(value) for name, value in flat(dict(fields))} for fields in (first, second))
    fields = [Changed(name, a.get(name, _ABSENT), b.get(name, _ABSENT)) for name in dict.fromkeys([*a, *b])]
    return [field for field in fields if field.first != field.second]


# --- differences ------------------------------------------------------------------------------------------------------


def _differences(first: CompleteRun, second: CompleteRun, a: str, b: str, notes: list[str]) -> Iterator[Difference]:
    """The differences of the scores that both runs have; `notes` gets a sentence about the others."""
    ours = {(score.metric, score.group): score for score in first.scores if score.protocol == a}
    theirs = {(score.metric, score.group): score for score in second.scores if score.protocol == b}
    by_metric: dict[str, list[Difference]] = {}
    without: list[str] = []
    for key in dict.fromkeys([*ours, *theirs]):
        found = _difference(first, second, ours.get(key), theirs.get(key))
        if found is None:
            without.append(" ".join(filter(None, key)))
        else:
            by_metric.setdefault(key[0], []).append(found)
    if without:
        some = ", ".join(without[:3]) + (f" and {len(without) - 3} more" if len(without) > 3 else "")
        notes.append(f"without a value in both runs, and so without a difference: {some}")
    for found in by_metric.values():
        yield from _adjusted(found)


def _difference(first: CompleteRun, second: CompleteRun, ours: Score | None, theirs: Score | None) -> Difference | None:
    if ours is None or theirs is None or ours.value is None or theirs.value is None:
        return None
    if ours.cells is not None and theirs.cells is not None:
        return _paired(
            ours, ours.cells, _values(first, ours.metric, ours.cells), _values(second, theirs.metric, theirs.cells)
        )
    return _of_sets(ours, ours.value, theirs, theirs.value)


def _values(run: CompleteRun, metric: str, cells: Cells) -> pd.DataFrame:
    """The columns `value` and `cluster` (None where there is none) of a score's cells, by sample id."""
    import pandas as pd

    try:
        # Without the texts, which every selection would copy.
        needed = dict.fromkeys(["id", cells.column, *filter(None, [cells.cluster]), *cells.where])
        rows = cells.select(run.table.filter(items=list(needed)))
        values = rows[cells.column].to_numpy(dtype=np.float64)
        clusters = None if cells.cluster is None else rows[cells.cluster].to_numpy()
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(run, f"no numbers in the column {cells.column} of {metric}") from error
    return pd.DataFrame({"value": values, "cluster": clusters}, index=rows["id"].to_numpy())


def _paired(score: Score, cells: Cells, ours: pd.DataFrame, theirs: pd.DataFrame) -> Difference | None:
    """The difference over the samples that both runs scored."""
    both = ours.join(theirs.filter(items=["value"]).add_prefix("second_"), how="inner")
    if both.empty:
        return None
    scale = 100.0 if score.unit == "%" else 1.0
    first, second = scale * both["value"].to_numpy(), scale * both["second_value"].to_numpy()
    cluster, (low, high) = cells.cluster, cells.bounds
    found = paired_difference(
        second,
        first,
        None if cluster is None else both["cluster"].tolist(),
        cluster_name=(cluster or "").removesuffix("_id"),
        bounds=None if high is None else (scale * low, scale * high),
        confidence=score.confidence,
    )
    error, hits = found.estimate.standard_error, scale if set(first) | set(second) <= {0.0, scale} else None
    return Difference(
        score.metric,
        score.group,
        score.unit,
        score.better,
        float(first.mean()),
        float(second.mean()),
        replace(found.estimate, unit=score.unit),
        paired=True,
        detectable=detectable_difference(error, found.degrees, alpha=ALPHA, power=POWER) if error else None,
        p_value=found.p_value,
        p_adjusted=found.p_value,
        p_mcnemar=mcnemar(second / hits, first / hits).exact_p if hits and cluster is None else None,
        higher=tuple(map(str, both.index[second > first])),
        lower=tuple(map(str, both.index[second < first])),
        left_out=len(ours) + len(theirs) - 2 * len(both),
    )


def _of_sets(score: Score, first: float, other: Score, second: float) -> Difference:
    """The difference of two scores that are no means over samples, such as distances between sets."""
    interval = detectable = None
    method = "none: one of the scores has no interval"
    if score.interval is not None and other.interval is not None:
        method = "none: the scores' intervals have different confidences"
        if score.confidence == other.confidence:
            method = "unpaired, from the intervals of both (MOVER)"
            interval = unpaired_interval(first, score.interval, second, other.interval)
            # As for a normal estimate with an interval of this width.
            error = (interval[1] - interval[0]) / 2 / normal_quantile(score.confidence)
            detectable = detectable_difference(error, alpha=ALPHA, power=POWER)
    estimate = Estimate(
        second - first, interval, method, min(score.n, other.n), confidence=score.confidence, unit=score.unit
    )
    return Difference(
        *(score.metric, score.group, score.unit, score.better, first, second, estimate),
        paired=False,
        detectable=detectable,
    )


def _adjusted(found: Sequence[Difference]) -> Iterator[Difference]:
    """Holm's adjustment over the groups of a metric."""
    tested = [one for one in found if one.group is not None and one.p_value is not None]
    p_values = adjust_p_values([one.p_value or 0.0 for one in tested]).tolist() if tested else []
    adjusted = dict(zip((one.group for one in tested), p_values, strict=True))
    for one in found:
        yield replace(one, p_adjusted=adjusted[one.group]) if one.group in adjusted else one
