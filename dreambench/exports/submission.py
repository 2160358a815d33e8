"""The benchmark's own result file, from any complete run: what its server or official evaluator takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dreambench.errors import RunError, UsageError, counted
from dreambench.exports import one
from dreambench.registry import load_task
from dreambench.report.runs import CompleteRun
from dreambench.trust import obeying

__all__ = ["write"]


def write(runs: Sequence[CompleteRun], out: Path, settings: Mapping[str, str]) -> list[str]:
    """Write the file of one run by its task's `write_submission`.

    Raises:
        RunError: a sample has no answer, or the run did not ask a model for text.
    """
    run = one(runs, "submission")
    for name in sorted(set(settings) - {"task"}):
        raise UsageError(f"--set {name}: submission has only task=package.module:Class, the run's own, repeated")
    spec = run.run.spec()
    try:
        with obeying(run.run.path, spec, task=settings.get("task"), model=None, judge=None):
            task = load_task(spec)
    except RunError as error:  # it names code that is not installed as a task
        raise RunError(str(error).replace("--task ", "--set task=")) from None
    if not task.submission:
        raise UsageError(f"--to submission: {task.name} has no result file of its own; every-eval-ever has its samples")
    if out.suffix.lower() not in task.submission:
        raise UsageError(f"--out {out}: the result file of {task.name} is called *{' or *'.join(task.submission)}")
    samples = run.run.samples()
    task.write_submission(run.run, samples, run.responses, out)
    lines = [f"wrote {counted(len(samples), 'answer')} to {out}"]
    if spec.limit is not None or spec.ids is not None:
        lines.append("this run has a part of its split only: servers take whole splits")
    return lines
