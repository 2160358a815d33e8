"""`dreamllm train`: from a recipe to a checkpoint, and on from where a killed run was."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamllm import checkpoint
from dreamllm.data import Collator, training_dataset
from dreamllm.data.recipe import read_recipe
from dreamllm.errors import DreamLLMError, UsageError
from dreamllm.training.assemble import assemble
from dreamllm.training.recipe import Recipe, Start
from dreamllm.training.trainable import finished, make_trainable
from dreamllm.training.trainer import CHECKPOINTS, DreamLLMTrainer, last_checkpoint, processes_of

if TYPE_CHECKING:
    from dreamllm.modeling import DreamLLMForConditionalGeneration
    from dreamllm.processing import DreamLLMProcessor

RECIPE, RESULT, BROKEN = "recipe.json", "training.json", "broken.jsonl"
DRY_RUN = "dry-run"  # folder of what a look before the run leaves
# Fields of the trainer that change how a run is watched or kept, not what comes out.
HARMLESS = {
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "disable_tqdm",
    "eval_strategy",
    "eval_steps",
    "log_level",
    "logging_steps",
    "report_to",
    "run_name",
    "save_steps",
    "save_total_limit",
}


def train(recipe: Recipe, resume: str = "auto") -> dict[str, Any]:
    """Train as the recipe says and save the result in `recipe.output`, in our layout.

    Args:
        resume: "auto" goes on from the last whole checkpoint of the same recipe in the output folder, if there is one, and returns at
            once where the run is complete; "never" wants an empty output folder.

    Returns what `training.json` holds. Raises UsageError if the output folder is of another recipe.
    """
    check_data(recipe)
    processes = processes_of(recipe)
    with processes.main_process_first():
        found = prepare_output(recipe, resume, main=processes.is_main_process)
    result = recipe.output / RESULT
    if found == "complete":
        return _read_json(result)
    model, processor = start(recipe)
    before = model.config.training
    trainer = make_trainer(recipe, model, processor)
    with plain_errors():
        output = trainer.train(resume_from_checkpoint=found)
    model.config.training = describe(before, recipe)
    record = {
        "stage": recipe.stage,
        "recipe": recipe.fingerprint,
        "steps": output.global_step,
        "seconds_since_start": round(output.metrics["train_runtime"], 1),
        "last": _last_losses(trainer.state.log_history),
        "broken_records": len(trainer.data.broken.entries()),
    }
    save(recipe.output, trainer, processor)
    if processes.is_main_process:  # written last: that it is there means that the run is complete
        _write_json(result, record)
    processes.wait_for_everyone()
    return record


def check_data(recipe: Recipe) -> None:
    """UsageError for what is wrong in `data:`, before anything large is read."""
    read_recipe(recipe.data.part())
    if recipe.data.eval_sources:
        try:
            evaluation = read_recipe(recipe.data.part(evaluation=True) | {"samples": recipe.data.eval_samples})
        except UsageError as error:
            raise UsageError(str(error).replace("data.sources", "data.eval_sources", 1)) from None
        if any(source.streaming for source in evaluation.sources):
            raise UsageError("data.eval_sources: they are read as tables; leave `streaming` out")


def start(recipe: Recipe) -> tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]:
    """The model that the recipe starts from, and its processor."""
    model, processor = _read(recipe.start)
    if recipe.start.attention is not None:
        try:
            model.set_attn_implementation(recipe.start.attention)
        except (ImportError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"start.attention {recipe.start.attention}: {reason}") from None
    return model, processor


def _read(begin: Start) -> tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]:
    if begin.checkpoint is not None:
        return checkpoint.load(begin.checkpoint, clip=begin.clip, diffusion=begin.diffusion, dtype=begin.dtype)
    options = ("num_dream_queries", "vision_select_layer", "resolution", "chat_template")
    given = {name: getattr(begin, name) for name in options if getattr(begin, name) is not None}
    parts: Any = (begin.language_model, begin.clip, begin.diffusion)
    return assemble(*parts, seed=begin.seed, dtype=begin.dtype, **given)


def make_trainer(
    recipe: Recipe, model: DreamLLMForConditionalGeneration, processor: DreamLLMProcessor
) -> DreamLLMTrainer:
    resolution, data = model.config.image_decoder_config.resolution, recipe.data
    samples = training_dataset(data.part(), processor, broken_file=recipe.output / BROKEN)
    held_out = training_dataset(data.part(evaluation=True), processor) if data.eval_sources else None
    trainable = make_trainable(model, recipe)
    try:
        return DreamLLMTrainer(trainable, recipe, Collator(processor, resolution), samples, held_out)
    except DreamLLMError:
        raise
    except (ValueError, ImportError) as error:  # fields that the library does not like in company or on this machine
        raise UsageError(f"trainer: {' '.join(str(error).split())}") from None


def describe(before: str | None, recipe: Recipe) -> str:
    """`config.training`: the stages that the weights went through, each with its recipe's fingerprint."""
    stage = f"{recipe.stage} (recipe {recipe.fingerprint})"
    return stage if before is None else f"{before}; then {stage}"


def prepare_output(recipe: Recipe, resume: str, main: bool = True) -> str | None:
    """The checkpoint to go on from, "complete" if there is nothing left to do, None for a new run.

    The main process comes first, removes what a kill left half-written, and writes the recipe down.
    """
    if resume not in ("auto", "never"):
        raise UsageError(f"--resume {resume!r} is not known; there are auto and never")
    folder = recipe.output
    ours = recipe.model_dump(mode="json", exclude={"output"})
    kept = folder / RECIPE
    if kept.is_file() and resume == "auto":
        different = _differences(_read_json(kept), ours)
        if different:
            raise UsageError(
                f"{folder} holds a run of another recipe ({different[0]} differs): give another output, or remove that folder"
            )
    elif main:
        if folder.is_dir() and {path.name for path in folder.iterdir()} - {DRY_RUN}:
            raise UsageError(f"{folder} exists and is not empty: give another output")
        make_folder(folder)
        _write_json(kept, ours)
    if (folder / RESULT).is_file():
        return "complete"
    last = last_checkpoint(folder / CHECKPOINTS)
    return None if last is None else str(last)


def make_folder(folder: Path) -> None:
    """UsageError where there is something else in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made a folder ({error.strerror}): give another output") from None


@contextmanager
def plain_errors() -> Generator[None]:
    """An error of a data-loader worker comes with that process's traceback; its last line is the error itself."""
    try:
        yield
    except DreamLLMError as error:
        *traceback, last = str(error).strip().splitlines()
        if not traceback:
            raise
        raise type(error)(last.partition(": ")[2]) from None


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    """The places where two recipes differ in what decides the result."""
    if key.removeprefix("trainer.") in HARMLESS and key.startswith("trainer."):
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return [
            place
            for name in names
            for place in _differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
        ]
    return [] if old == new else [key]


def save(folder: Path, trainer: DreamLLMTrainer, processor: DreamLLMProcessor) -> None:
    """The trained model in our layout, gathered first where it is sharded."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_torch_compile=False)
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    state: Any = trainer.accelerator.get_state_dict(trainer.model_wrapped) if sharded else None
    if not trainer.args.should_save:
        return
    config: Any = model.config
    config.__dict__.pop("use_cache", None)  # the trainer's, no part of the model
    whole = finished(model) if state is None else checkpoint.from_state(config, state)
    checkpoint.save(folder, whole, processor)


def _last_losses(history: list[dict[str, Any]]) -> dict[str, float]:
    last: dict[str, float] = {}
    for line in history:
        last.update({name: value for name, value in line.items() if name.endswith("loss") and name != "train_loss"})
    return last


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}): give another output, or remove that folder") from None


def _write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
