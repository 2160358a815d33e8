"""What a training run leaves beside its weights: `logs.jsonl` and `curves.png`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

LOGS, CURVES = "logs.jsonl", "curves.png"
PLOTTED = (("loss", "eval_loss"), ("lm_loss", "eval_lm_loss"), ("vm_loss", "eval_vm_loss"), ("learning_rate",))
SECONDS_BETWEEN_PLOTS = 60.0


class Records(TrainerCallback):
    """Writes each log line as it comes, and the curves now and then and at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.plotted = folder, 0.0

    def on_step_end(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        # A checkpoint closes the stretch that a log line is the mean of, so that a resumed run logs the same means.
        if control.should_save:
            control.should_log = True
        return control

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            # After a kill there may be lines from after the checkpoint that the run goes on from; they will come again.
            text = "".join(json.dumps(line) + "\n" for line in state.log_history)
            (self.folder / LOGS).write_text(text, encoding="utf-8")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        with (self.folder / LOGS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(state.log_history[-1]) + "\n")
        if time.monotonic() - self.plotted > SECONDS_BETWEEN_PLOTS:
            plot(state.log_history, self.folder / CURVES)
            self.plotted = time.monotonic()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            plot(state.log_history, self.folder / CURVES)


def plot(history: list[dict[str, Any]], path: Path) -> None:
    """Losses and learning rate over steps, one panel for each that occurs."""
    from matplotlib.figure import Figure

    panels = [names for names in PLOTTED if any(name in line for line in history for name in names)]
    if not panels:
        return
    mean_score = Figure(figsize=(4.5 * len(panels), 3.2), layout="constrained")
    for index, names in enumerate(panels):
        axes = mean_score.add_subplot(1, len(panels), index + 1)
        for name in names:
            points = [(line["step"], line[name]) for line in history if name in line]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else None)
        axes.set_xlabel("step")
        axes.legend(frameon=False)
    mean_score.savefig(path, dpi=110)
