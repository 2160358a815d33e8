"""Complete runs in the forms that others read. Each form is a function of runs, a path and settings that returns what it wrote."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from pydantic import AfterValidator

from dreambench.documents import JSON, canonical_json
from dreambench.errors import RunError, UsageError, counted
from dreambench.leaderboard.collect import cleaned
from dreambench.report.runs import CompleteRun
from dreambench.safety import holds_secret

__all__ = ["FORMS", "export", "like", "one"]

Form = Callable[[Sequence[CompleteRun], Path, Mapping[str, str]], list[str]]

FORMS = {
    "every-eval-ever": "every_eval_ever:write",
    "model-card": "model_card:write",
    "eval-results": "model_card:write_eval_results",
    "mlflow": "tracking:write_mlflow",
    "trackio": "tracking:write_trackio",
    "submission": "submission:write",
}
"""The forms, each with its module here and the function that writes it."""


def export(runs: Sequence[CompleteRun], form: str, out: Path, settings: Mapping[str, str]) -> list[str]:
    """Write complete runs in a form; what was written and what the form has no place for, a line each.

    Of absolute paths in metrics.json, forms get the last step only.

    Raises:
        UsageError: the form is unknown, takes fewer runs, or does not have a setting.
        RunError: a run lacks what the form needs, or holds a secret.
    """
    if form not in FORMS:
        raise UsageError(f"--to {form}: the forms are {', '.join(FORMS)}")
    for run in runs:
        _refuse_secrets(run.run.path, run.metrics)
    shown = [replace(run, metrics=cleaned(dict(run.metrics))) for run in runs]
    module, _, name = FORMS[form].partition(":")
    write: Form = getattr(import_module(f"dreambench.exports.{module}"), name)
    return write(shown, out, settings)


def like(pattern: str, words: str) -> AfterValidator:
    """A setting's text has to match all of `pattern` (ASCII); the error says `words`."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value, re.ASCII):
            raise ValueError(f"write {words}")
        return value

    return AfterValidator(check)


def one(runs: Sequence[CompleteRun], form: str) -> CompleteRun:
    """The only run. `UsageError` where there are several."""
    if len(runs) != 1:
        raise UsageError(f"--to {form} takes one run, not {counted(len(runs), 'run')}")
    return runs[0]


def _refuse_secrets(path: Path, value: JSON) -> None:
    """`RunError` where metrics.json, of which every form is made, has a password or a known key in it."""
    if holds_secret(canonical_json(value)):
        raise RunError(
            f"{path}/metrics.json holds a password or the value of a secret environment variable: it is not exported"
        )
