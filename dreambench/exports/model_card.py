"""Hugging Face: evaluation results in the front matter of a model card, and the files of ``.eval_results/``.

Both are made by `huggingface_hub`'s own types. Sources: the Hub's documentation, "Model cards" and "Evaluation results".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict

from dreambench.documents import JSON, Image, Text
from dreambench.errors import RunError, UsageError, counted
from dreambench.exports import like, one
from dreambench.files import write_atomically
from dreambench.report.runs import CompleteRun
from dreambench.report.text import decimals, headline, printable
from dreambench.scores import Score
from dreambench.spec import parse_arguments

__all__ = ["CardSettings", "EntrySettings", "write", "write_eval_results"]

HubId = Annotated[str, like(r"[\w.-]+(/[\w.-]+)?", "OWNER/NAME, as the Hub has it")]


class CardSettings(BaseModel):
    """`model` is the model's name, `dataset` the Hub's name of the benchmark; `task_type` one of the Hub's pipelines."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = None
    dataset: HubId | None = None
    task_type: str | None = None


class EntrySettings(BaseModel):
    """A benchmark of the Hub: the dataset and the id of the task in its eval.yaml; where the run's files can be looked at."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: HubId
    task_id: Annotated[str, like(r"[\w.-]+", "the id of a task in the dataset's eval.yaml")]
    revision: str | None = None
    source: (
        Annotated[str, like(r"https?://[^\s@]+", "an address that begins with https://, without a password")] | None
    ) = None


def write(runs: Sequence[CompleteRun], out: Path, settings: Mapping[str, str]) -> list[str]:
    """The front matter of a model card with the scores over all samples of runs of one model, without baselines such as real-vs-real.

    Raises:
        UsageError: the runs are of several models.
    """
    from huggingface_hub import EvalResult, ModelCardData

    known = parse_arguments(CardSettings, settings, "--set")
    models = {str(run.metrics["model"]): run.metrics.get("system", {}).get("model") for run in runs}
    if len({str(identity) for identity in models.values()}) > 1:
        raise UsageError(f"--to model-card: a card is of one model, and these are runs of {', '.join(models)}")
    results = [
        EvalResult(
            task_type=known.task_type or _task_type(run),
            dataset_type=known.dataset or str(run.metrics["task"]),
            dataset_name=f"{run.metrics['task']} ({run.metrics['protocols'][score.protocol].get('split') or 'as given'})",
            metric_type=score.metric,
            metric_name=f"{score.metric}{' (%)' if score.unit == '%' else ''}, protocol {score.protocol}",
            metric_value=score.value,
            metric_args=_args(run, score),
        )
        for run in runs
        for score in run.scores
        if score.group is None and score.value is not None and score.better is not None
    ]
    if not results:
        raise RunError(f"{runs[0].run.path} has no score of which higher or lower is better")
    card = ModelCardData(model_name=known.model or next(iter(models)), eval_results=results)
    write_atomically(out, f"---\n{card.to_yaml().strip()}\n---\n".encode())
    return [f"wrote {counted(len(results), 'result')} to {out}; scores of groups, and baselines, are left out"]


def _args(run: CompleteRun, score: Score) -> dict[str, JSON]:
    fields: dict[str, JSON] = {
        "n": score.n,
        "unscored": score.unscored,
        "interval": None if score.interval is None else list(score.interval),
        "confidence": score.confidence,
        "interval_method": score.interval_method,
        "protocol": score.protocol,
        "run": run.name,
        "date": run.date,
        "notes": list(score.notes),
    }
    return {name: value for name, value in fields.items() if value not in (None, [])}


def _task_type(run: CompleteRun) -> str:
    """The Hub's name of what the run's first answer is: text, an image, or both."""
    first = next((response for response in run.responses.values() if response.error is None), None)
    kinds: set[Any] = {type(part) for part in first.document} if first else set()
    if kinds == {Image}:
        return "text-to-image"
    return "any-to-any" if Image in kinds and Text in kinds else "image-text-to-text"


def write_eval_results(runs: Sequence[CompleteRun], out: Path, settings: Mapping[str, str]) -> list[str]:
    """A file for ``.eval_results/`` of a model's repository: the headline score of a run on a benchmark of the Hub."""
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    run = one(runs, "eval-results")
    for name in ("dataset", "task_id"):
        if name not in settings:
            raise UsageError(
                f"--to eval-results needs --set {name}=...: the Hub's benchmark, dataset=OWNER/NAME task_id=ID"
            )
    known = parse_arguments(EntrySettings, settings, "--set")
    score = run.scores[0] if run.scores else None
    if score is None or score.value is None:
        raise RunError(f"{run.run.path} has no headline score")
    entry = EvalResultEntry(
        dataset_id=known.dataset,
        task_id=known.task_id,
        value=round(score.value, decimals([score])[score.metric, score.unit]),
        dataset_revision=known.revision,
        date=run.date,
        source_url=known.source,
        source_name=None if known.source is None else "dreambench run",
        notes=printable(f"{headline(score)}, run {run.name}"),
    )
    entries: list[dict[str, JSON]] = eval_result_entries_to_yaml([entry])
    write_atomically(out, yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=1000).encode())
    return [f"wrote {score.metric} to {out}: put it into .eval_results/ of the model's repository"]
