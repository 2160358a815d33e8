"""What ``dreambench playground build`` and ``evaluate`` do. Nothing heavy is loaded before it is needed."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from dreambench.errors import MissingWeightsError, UsageError
from dreambench.files import cache_folder
from dreambench.progress import progress_bar, say
from dreambench_tasks.playground.embedded import STEPS

__all__ = ["STAGES", "build", "build_clip_stage", "evaluate"]


def build(directory: str | Path, stage: str | None = None) -> None:
    """Run one of ``STAGES``, or all of the embedded model's steps in order, in ``directory``; UsageError where it cannot go on."""
    folder = Path(directory).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made a folder ({error.strerror}): name another") from None
    for name in STEPS if stage is None else (stage,):
        say(f"{name}: {folder}")
        with _errors_of_the_library():
            STAGES[name](folder)


def evaluate(checkpoint: str | Path | None = None, baseline: str | Path | None = None) -> dict[str, dict[str, str]]:
    """The scores of a model card, by section; of the embedded checkpoint unless another is named."""
    from dreambench_tasks.playground import card
    from dreamllm.files import embedded_checkpoint

    folder = embedded_checkpoint() if checkpoint is None else Path(checkpoint)
    if not folder.is_dir():  # before a probe is trained to measure it with
        raise MissingWeightsError(f"{folder} is not a folder: name the checkpoint's, or build one first")
    with _errors_of_the_library():
        return card.evaluate(folder, cache_folder() / "playground-probe", baseline)


def build_clip_stage(directory: str | Path, seed: int = 0) -> Path:
    """Train playground-clip into ``directory/clip`` (about 11 minutes on one core), measure it and write its model card."""
    from transformers.utils import logging

    from dreambench_tasks.playground.clip import STEPS, build_clip
    from dreambench_tasks.playground.clip_evaluation import evaluate_clip, write_card

    logging.disable_progress_bar()
    with progress_bar("playground-clip") as update:
        folder = build_clip(directory, STEPS, seed, report=lambda step, _: update(step, STEPS))
    scores = evaluate_clip(folder)
    for name, value in scores.items():
        say(f"{name}: {value}")
    say(f"wrote {write_card(folder, scores)}")
    return folder


@contextmanager
def _errors_of_the_library() -> Generator[None]:
    """What dreamllm asks the user to do is one line here too."""
    from dreamllm.errors import DreamLLMError

    try:
        yield
    except DreamLLMError as error:
        raise UsageError(str(error)) from error


STAGES: dict[str, Callable[[Path], object]] = {**STEPS, "clip": build_clip_stage}
