"""The trial of metrics and judges: does a number order reference documents above the same documents spoilt on purpose?

Every metric is computed on the references and on six corruptions of them. A metric *sees* a corruption if the interval of the paired
difference, reference minus corruption, lies on its better side; it is *blind* to it if the interval holds 0; it is *misled* if the
interval lies on the other side. `HEADLINES` and `Trial.headlines` state what a headline takes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from dreambench.documents import JSON, Document, to_json
from dreambench.errors import DataError
from dreambench.files import read_text
from dreambench.judges import GradeRequest, PromptedJudge
from dreambench.statistics import paired_difference
from dreambench_tasks.interleaved.corruptions import CORRUPTIONS, corrupted
from dreambench_tasks.interleaved.data import ReferenceData, ReferenceDocument
from dreambench_tasks.interleaved.judging import RUBRICS, grade_documents, graded, metric_name
from dreambench_tasks.interleaved.metrics import METRICS, document_metrics, encode_documents

if TYPE_CHECKING:
    from dreambench.metrics.encoders import ClipScorer

__all__ = ["HEADLINES", "Trial", "TrialRow", "automatic_values", "compare_values", "judged_values", "read_trial"]
__all__ += ["recorded_trial", "run_trial", "standing", "variants"]

REFERENCE = "references"
_VERSIONS = ("python", "dreambench", "torch", "transformers", "numpy", "pillow")

Verdict = Literal["sees", "blind", "misled", "does not apply"]

# --- headlines -------------------------------------------------------------------------------------------------------

_IMAGES = ("shuffled", "other images", "repeated", "grey")

HEADLINES: Mapping[str, tuple[str, ...]] = {
    "shows_what_is_told": (*_IMAGES, "text reversed"),
    "story_is_shown": (*_IMAGES, "text reversed"),
    "clip_score": (*_IMAGES, "text reversed"),
    "layout_agreement": ("removed",),
    "image_count_match": ("removed",),
    "nothing_else_changes": ("other images", "grey"),
    "image_consistency": ("other images",),
    "repeated_images": ("repeated", "grey"),
    metric_name("structure"): ("removed",),
    metric_name("block"): (*_IMAGES, "text reversed"),
    metric_name("image"): ("other images", "grey", "removed"),
    metric_name("whole"): tuple(CORRUPTIONS),
    metric_name("text-quality"): ("text reversed",),
    metric_name("perceptual-quality"): ("grey",),
    metric_name("image-coherence"): ("other images", "grey"),
    metric_name("text-image-coherence"): (*_IMAGES, "text reversed"),
    metric_name("helpfulness"): ("other images", "grey", "removed"),
}
"""The metrics that ask for a place in the headline, each with the corruptions that it is meant to see."""


# --- values -----------------------------------------------------------------------------------------------------------

Variants = Mapping[str, Sequence[Document | None]]
"""For the references and each corruption the documents, in one order; None where a corruption does not apply."""
Values = Sequence[Mapping[str, float | None] | None]
"""The metrics of such documents by name."""


def variants(documents: Sequence[ReferenceDocument], seed: int = 0) -> Variants:
    """The references under the name `REFERENCE`, and their corruptions."""
    return {REFERENCE: [one.document for one in documents]} | {
        name: corrupted(documents, name, seed) for name in CORRUPTIONS
    }


def automatic_values(
    documents: Sequence[ReferenceDocument], changed: Variants, scorer: ClipScorer | None
) -> dict[str, Values]:
    """The automatic metrics of each variant. Without a scorer those of CLIP are None."""
    flat = [document for listed in changed.values() for document in listed if document is not None]
    features = iter([None] * len(flat) if scorer is None else encode_documents(flat, scorer))
    targets: list[dict[str, JSON]] = [
        {"expected_images": one.expected_images, "reference": to_json(one.document), "truth": one.truth}
        for one in documents
    ]
    return {
        name: [
            None if document is None else document_metrics(document, target, next(features))
            for target, document in zip(targets, listed, strict=True)
        ]
        for name, listed in changed.items()
    }


def judged_values(
    documents: Sequence[ReferenceDocument], changed: Variants, judges: Mapping[str, PromptedJudge], log: Path
) -> dict[str, Values]:
    """The judges' grades of each variant; what the log holds is not asked again."""
    items = {
        f"{name}/{reference.id}": GradeRequest("", 0, reference.instruction, "", "", document, reference.document)
        for name, listed in changed.items()
        for reference, document in zip(documents, listed, strict=True)
        if document is not None
    }
    grade_documents(judges, items, log)
    runs = next(iter(judges.values())).runs
    grades = graded({name: judge.identity() for name, judge in judges.items()}, runs, items, log)
    return {name: [grades.get(f"{name}/{reference.id}") for reference in documents] for name in changed}


# --- the table --------------------------------------------------------------------------------------------------------


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TrialRow(_Model):
    """A metric under a corruption. `difference` is reference minus corruption, with its interval over documents.

    `n` counts the documents on which both are defined; `undefined` those on which the corruption leaves the metric undefined.
    """

    metric: str
    corruption: str
    n: int
    undefined: int
    reference: float | None
    corrupted: float | None
    difference: float | None
    interval: tuple[float, float] | None
    verdict: Verdict


class Trial(_Model):
    """The table of a trial, and what it was of."""

    command: str
    versions: dict[str, str]
    data_sha256: str
    clip_sha256: str | None
    judges: dict[str, dict[str, JSON]]
    documents: int
    images: int
    seed: int
    rows: tuple[TrialRow, ...]

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(row.metric for row in self.rows))

    def of(self, metric: str, verdict: Verdict) -> list[str]:
        """The corruptions under which a metric has a verdict."""
        return [row.corruption for row in self.rows if row.metric == metric and row.verdict == verdict]

    def verdict(self, metric: str) -> str:
        """``orders all`` where the reference is above every corruption, else what the metric is blind to or misled by."""
        failed = {name: self.of(metric, name) for name in ("blind", "misled")}
        parts = [
            f"{'misled by' if name == 'misled' else 'blind to'} {', '.join(found)}"
            for name, found in failed.items()
            if found
        ]
        if not self.of(metric, "sees"):
            return f"fails: {'; '.join(parts)}" if parts else "fails: no corruption applies"
        return f"does not order all: {'; '.join(parts)}" if parts else "orders all"

    def enters_headline(self, metric: str) -> bool:
        """The rule: it sees every corruption that `HEADLINES` names for it, and no corruption misleads it."""
        meant = HEADLINES.get(metric.partition("[")[0], ())
        return bool(meant) and set(meant) <= set(self.of(metric, "sees")) and not self.of(metric, "misled")

    @property
    def headlines(self) -> list[str]:
        """The metrics that enter the headline, in the order of `HEADLINES`."""
        order = list(HEADLINES)
        found = [metric for metric in self.metrics if self.enters_headline(metric)]
        return sorted(found, key=lambda metric: order.index(metric.partition("[")[0]))


def _row(metric: str, better: str, corruption: str, pairs: Sequence[tuple[float | None, float | None]]) -> TrialRow:
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    undefined = sum(a is not None and b is None for a, b in pairs)
    fields: dict[str, Any] = {"metric": metric, "corruption": corruption, "n": len(known), "undefined": undefined}
    if len(known) < 2:
        empty = dict.fromkeys(("reference", "corrupted", "difference", "interval"))
        return TrialRow(**fields, **empty, verdict="does not apply")
    first, second = np.array(known, dtype=np.float64).T
    estimate = paired_difference(first, second).estimate
    low, high = interval = estimate.interval or (estimate.value, estimate.value)
    if better == "lower":
        low, high = -high, -low
    verdict: Verdict = "sees" if low > 0 else "misled" if high < 0 else "blind"
    return TrialRow(
        **fields,
        reference=float(first.mean()),
        corrupted=float(second.mean()),
        difference=estimate.value,
        interval=interval,
        verdict=verdict,
    )


def compare_values(values: Mapping[str, Values]) -> list[TrialRow]:
    """A row for each metric with a better side and each corruption."""
    better = {name: metric.better for name, metric in METRICS.items() if metric.better is not None}
    better |= dict.fromkeys(map(metric_name, RUBRICS), "higher")
    rows: list[TrialRow] = []
    reference = values[REFERENCE]
    for metric, side in better.items():
        if not any(one is not None and one.get(metric) is not None for one in reference):
            continue
        for corruption in CORRUPTIONS:
            changed = values[corruption]
            pairs = [
                (a.get(metric), b.get(metric))
                for a, b in zip(reference, changed, strict=True)
                if a is not None and b is not None
            ]
            rows.append(_row(metric, side, corruption, pairs))
    return rows


def run_trial(
    data: ReferenceData,
    scorer: ClipScorer | None,
    judges: Sequence[Mapping[str, PromptedJudge]] = (),
    log: Path | None = None,
    *,
    seed: int = 0,
    command: str = "",
) -> Trial:
    """The whole trial on reference documents.

    `judges` are dicts of judges by rubric, as `rubric_judges` gives them, which grade into `log`. With several, the metrics of the
    second are named ``judge_<rubric>[2]``, and so on.
    """
    from dreambench.environment import versions

    changed = variants(data.documents, seed)
    rows = compare_values(automatic_values(data.documents, changed, scorer))
    identities: dict[str, dict[str, JSON]] = {}
    for number, rubrics in enumerate(judges, 1):
        if log is None:
            raise ValueError("judges need a log")
        suffix = f"[{number}]" if number > 1 else ""
        found = compare_values(judged_values(data.documents, changed, rubrics, log))
        rows += [row.model_copy(update={"metric": row.metric + suffix}) for row in found]
        identities |= {metric_name(name) + suffix: dict(judge.identity()) for name, judge in rubrics.items()}
    return Trial(
        command=command,
        versions={name: version for name, version in versions().items() if version and name in _VERSIONS},
        data_sha256=data.sha256,
        clip_sha256=None if scorer is None else scorer.identity["clip_sha256"],
        judges=identities,
        documents=len(data.documents),
        images=sum(len(one.images) for one in data.documents),
        seed=seed,
        rows=tuple(rows),
    )


def read_trial(path: Path) -> Trial:
    """A table that ``dreambench trial --out`` wrote. Raises `DataError` for another file."""
    return _parse(read_text(path), str(path))


@cache
def recorded_trial() -> Trial:
    """The trial on the playground's default documents, recorded with the package."""
    text = files("dreambench_tasks.interleaved").joinpath("recorded_trial.json").read_text(encoding="utf-8")
    return _parse(text, "recorded_trial.json")


def _parse(text: str, name: str) -> Trial:
    try:
        return Trial.model_validate_json(text)
    except ValueError as error:
        raise DataError(f"{name}: not the table of a trial; write one with `dreambench trial --out DIR`") from error


def standing(metrics: Collection[str], clip: Mapping[str, JSON] | None) -> list[str]:
    """Sentences about a run's metrics: which passed the recorded trial, which did not, and which it says nothing about.

    `clip` is the identity of the run's CLIP. The trial of another CLIP, or of a judge, is the user's to make.
    """
    trial = recorded_trial()
    untried = [name for name in metrics if name.startswith("judge_")]
    if clip is not None and clip["clip_sha256"] != trial.clip_sha256:
        untried += [name for name in ("clip_score", "image_consistency") if name in metrics]
    asked = [name for name in HEADLINES if name in metrics and name not in untried]
    passed, failed = ([name for name in asked if trial.enters_headline(name) is wanted] for wanted in (True, False))
    lines = (
        [f"headline metrics of documents, which passed their trial on corrupted references: {', '.join(passed)}"]
        if passed
        else []
    )
    lines += [f"{name} did not pass its trial: {trial.verdict(name)}" for name in failed]
    if untried:
        lines.append(
            f"no trial is recorded for {', '.join(sorted(untried))}; try them with `dreambench trial --task interleaved`"
            " before they enter a headline"
        )
    return lines
