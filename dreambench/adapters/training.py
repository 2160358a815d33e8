"""Benchmark scores of a DreamLLM while it is trained: `monitor.callbacks.benchmarks` in a recipe of ``dreamllm train``."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from accelerate import PartialState

from dreambench.adapters.dreamllm import LiveDreamLLM
from dreambench.api import Result, check, execute
from dreambench.documents import canonical_json
from dreambench.errors import DreambenchError
from dreambench.files import read_json_lines, write_atomically
from dreambench.spec import RunSpec
from dreamllm.errors import UsageError

if TYPE_CHECKING:
    from dreamllm.training.callbacks import Monitored

__all__ = ["Benchmarks"]


class Benchmarks:
    """Runs benchmarks on the model that is being trained, in all processes of the training, each as a run of its own.

    The runs are in `benchmarks/step-N/` of the training's output, and their scores in `scores.jsonl`, one line each; the terminal and the
    trackers show the values. The option `tasks` is a list of what ``dreambench run`` takes, by the names of `RunSpec`:
    ``[{task: vqav2, limit: 200}]``.
    """

    file: ClassVar[str] = "scores.jsonl"

    def __init__(self, options: Mapping[str, Any], monitored: Monitored) -> None:
        self.monitored = monitored
        # A copy, because the harness completes the tokenizer, which the data loader uses.
        self.processor = copy.deepcopy(monitored.processor)
        self.output = monitored.recipe.output
        try:
            self.specs = [self._spec(entry) for entry in _entries(options)]
            for spec in self.specs:
                check(spec, data=True)
        except (DreambenchError, UsageError) as error:
            raise self._error(error) from None

    def _spec(self, entry: Mapping[str, Any]) -> RunSpec:
        chosen = [name for name in ("model", "model_arg", "device", "dtype") if name in entry]
        if chosen:
            raise UsageError(f"{chosen[0]} cannot be set: the model is the one that is being trained")
        return RunSpec(**entry, model=f"dreamllm:{self.output.absolute()}")

    def _error(self, error: Exception) -> UsageError:
        return self.monitored.recipe.error(f"monitor.callbacks.benchmarks: {error}")

    def __call__(self, model: Any, step: int) -> None:
        processes = PartialState()
        try:
            live = LiveDreamLLM(model, self.processor, f"measured after {step:,} steps of training")
            results = [self._result(spec, live, step, processes) for spec in self.specs]
        except DreambenchError as error:
            raise self._error(error) from None
        if self.monitored.main:
            self._write(step, results)

    def _result(self, spec: RunSpec, live: LiveDreamLLM, step: int, processes: PartialState) -> Result:
        folder = self.output / "benchmarks" / f"step-{step:08d}"
        result = execute(spec, folder, model=live)
        processes.wait_for_everyone()
        # The last process to finish has scored; the others read what it wrote.
        return execute(spec, folder, model=live) if result.metrics is None else result

    def _write(self, step: int, results: Sequence[Result]) -> None:
        path = self.output / self.file
        # Without the lines of steps that a killed run took after its last checkpoint, and takes again now.
        before = [line for _, line in read_json_lines(path) if line["step"] < step] if path.is_file() else []
        new = [
            {"step": step, "task": spec.task, "run": str(result.folder.relative_to(self.output)), **score.to_json()}
            for spec, result in zip(self.specs, results, strict=True)
            for score in result.scores
        ]
        write_atomically(path, "".join(canonical_json(line) + "\n" for line in [*before, *new]).encode())
        self.monitored.report(
            {
                f"{spec.task}/{score.metric}": score.value
                for spec, result in zip(self.specs, results, strict=True)
                for score in result.scores
                if score.group is None and score.value is not None
            }
        )


def _entries(options: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    tasks = options.get("tasks")
    if set(options) != {"tasks"} or not isinstance(tasks, list) or not tasks:
        raise UsageError(f"it takes every and tasks, a list such as [{{task: vqav2, limit: 200}}], not {dict(options)}")
    wrong = [entry for entry in tasks if not isinstance(entry, dict) or "task" not in entry]
    if wrong:
        raise UsageError(f"tasks: {wrong[0]!r} names no task; write {{task: vqav2, limit: 200}}")
    return tasks
