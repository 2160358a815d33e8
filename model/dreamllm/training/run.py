"""`dreamllm train`: from a recipe to a checkpoint, resuming a run that was killed."""

from __future__ import annotations

import importlib.util
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch

from dreamllm import checkpoint
from dreamllm.configuration import DreamLLMConfig
from dreamllm.data import Collator, training_dataset
from dreamllm.data.sources import locate
from dreamllm.errors import CheckpointError, DreamLLMError, UsageError, first_line, one_line
from dreamllm.files import find_checkpoint, read_json, remove_leftovers, write_json
from dreamllm.image_decoder import make_scheduler
from dreamllm.modeling import DreamLLMForConditionalGeneration
from dreamllm.options import Resume, choose
from dreamllm.processing import DreamLLMProcessor
from dreamllm.recipe import Lora, Recipe, expand_home
from dreamllm.training.assemble import assemble, assemble_outline
from dreamllm.training.features import FeatureStore
from dreamllm.training.losses import DreamLLMForTraining, check_decoder, check_packing
from dreamllm.training.simulate import FlopsModel, SimulatedTraining
from dreamllm.training.trainer import (
    CHECKPOINTS,
    IGNORED,
    LOGS,
    TIMINGS,
    DreamLLMTrainer,
    check_fields,
    last_checkpoint,
    process_state,
    receives_weights,
)

RECIPE, RESULT, BROKEN = "recipe.json", "training.json", "broken.jsonl"
DRY_RUN = "dry-run"  # folder of the first batch that `--dry-run` writes
# Fields of the trainer that do not change the result and may differ when a run is resumed.
OBSERVING = {
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor", "disable_tqdm", "run_name"),
    *("eval_strategy", "eval_steps", "log_level", "logging_steps", "report_to", "save_steps", "save_total_limit"),
    *IGNORED,  # a run that began with one of them goes on without it
}


def train(recipe: Recipe, resume: str = "auto") -> dict[str, Any]:
    """Train as the recipe says and save the result in `recipe.output`, in our layout.

    Args:
        resume: "auto" continues a run of the same recipe in the output folder from its last complete checkpoint, and returns at once
            if the run is complete; "never" requires an empty output folder.

    Returns the contents of `training.json`. Raises UsageError if the output folder belongs to another recipe.
    """
    check_recipe(recipe)
    processes = process_state(recipe)
    with processes.main_process_first():
        previous = check_output(recipe, resume, main=processes.is_main_process)
    result = recipe.output / RESULT
    if previous == "complete":
        return _read(result)
    model, processor = start(recipe, receives=receives_weights(recipe))
    history = model.config.training
    trainer = make_trainer(recipe, model, processor)
    trainer.watch(processor, lambda: FlopsModel(simulated(recipe, model.config)))
    if processes.is_main_process:  # only now, so that a recipe that cannot start leaves no run behind
        write_json(recipe.output / RECIPE, _saved_form(recipe))
    with worker_errors_on_one_line():
        output = trainer.train(resume_from_checkpoint=previous)
    stage = f"{recipe.stage} (recipe {recipe.fingerprint})"
    model.config.training = stage if history is None else f"{history}; then {stage}"
    record = {
        "stage": recipe.stage,
        "recipe": recipe.fingerprint,
        "steps": output.global_step,
        "last": _last_losses(trainer.state.log_history),
        "broken_records": len(trainer.data.broken.entries()),
    }
    save(recipe.output, trainer, processor)
    if processes.is_main_process:  # written last, so its existence means that the run is complete
        trainer.data.broken.finish()
        write_json(result, record)
    processes.wait_for_everyone()
    return record


def check_recipe(recipe: Recipe) -> None:
    """UsageError for a wrong field of the trainer and a missing data file or image folder, before a model is loaded."""
    check_fields(recipe)
    for source in (*recipe.data.sources, *recipe.data.eval_sources):
        try:
            locate(source, Path())
        except UsageError as error:
            raise recipe.error(str(error)) from None


def check_output(recipe: Recipe, resume: str, main: bool = True) -> str | None:
    """The checkpoint to resume from, "complete" for a complete run, None for a new one.

    The main process calls it first, because it removes incomplete checkpoints and creates the output folder.
    """
    folder = recipe.output
    if choose(Resume, resume, "--resume") == Resume.auto and (folder / RECIPE).is_file():
        different = _differences(_read(folder / RECIPE), _saved_form(recipe))
        begun = [folder / name for name in (BROKEN, LOGS, TIMINGS, RECIPE)]
        if different and _files(recipe) - {*begun}:
            raise UsageError(
                f"{folder} holds a run of another recipe ({different[0]} differs): choose another output, or remove that folder"
            )
        if different and main:  # a run that has not come to a checkpoint: its recipe may be corrected
            for path in begun:
                path.unlink(missing_ok=True)
    elif main:
        remove_leftovers(folder)
        if _files(recipe):
            raise UsageError(f"{folder} exists and is not empty: choose another output")
        make_folder(folder)
    if (folder / RESULT).is_file():
        return "complete"
    last = last_checkpoint(folder / CHECKPOINTS)
    return None if last is None else str(last)


def _files(recipe: Recipe) -> set[Path]:
    """The files in the output folder, without those of a dry run, and tables and features of the data, which a failed start leaves."""
    folder = recipe.output
    named = (recipe.data.cache, recipe.data.feature_cache)
    caches = [expand_home(path).resolve() for path in named if path is not None]
    inside = [path.relative_to(folder.resolve()) for path in caches if folder.resolve() in path.parents]
    ignored = [folder / DRY_RUN, *(folder / path for path in inside)]
    files = (path for path in folder.rglob("*") if path.is_file())
    return {file for file in files if not any(file.is_relative_to(place) for place in ignored)}


def make_folder(folder: Path) -> None:
    """UsageError if it cannot be created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"folder {folder} cannot be created ({error.strerror}): choose another output") from None


def start(recipe: Recipe, *, receives: bool = False) -> tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]:
    """The model that the recipe starts from, and its processor. A process that `receives` the weights does not read them."""
    origin, options = _origin(recipe)
    if receives:
        config, processor = outline(recipe)
        model = checkpoint.without_weights(config, recipe.start.dtype)
    else:
        model, processor = assemble(**options) if origin is None else checkpoint.load(origin, **options)
    if (attention := recipe.start.attention) is not None:
        if attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
            # transformers would fetch a kernel from the hub in its place.
            raise recipe.error(
                "start.attention flash_attention_2: the package flash_attn is missing: install it, or choose sdpa"
            )
        try:
            model.set_attn_implementation(attention)
        except (ImportError, ValueError) as error:
            raise recipe.error(f"start.attention {attention}: {one_line(error)}") from None
    if recipe.loss.packing and not receives:
        check_packing(model)
    return model, processor


def outline(recipe: Recipe) -> tuple[DreamLLMConfig, DreamLLMProcessor]:
    """The configuration of the model that the recipe starts from, and its processor. No weights are read."""
    origin, options = _origin(recipe)
    del options["dtype"]
    return assemble_outline(**options) if origin is None else checkpoint.load_outline(origin, **options)


def _origin(recipe: Recipe) -> tuple[Path | None, dict[str, Any]]:
    """The folder of the checkpoint to start from, None if the start is its parts, and the other arguments of their loaders."""
    options = recipe.start.model_dump(exclude_none=True, exclude={"attention"})
    if (origin := options.pop("checkpoint", None)) is None:
        return None, options
    del options["seed"]  # of new weights
    try:
        return find_checkpoint(origin), options
    except CheckpointError as error:
        raise recipe.error(f"start.checkpoint: {error}") from None


def make_trainer(
    recipe: Recipe, model: DreamLLMForConditionalGeneration, processor: DreamLLMProcessor
) -> DreamLLMTrainer:
    """Raises UsageError for data that cannot be read, and for trainer options that exclude each other or need another machine."""
    data, positions = recipe.data, model.config.text_config.max_position_embeddings
    longest = data.max_length or int(processor.tokenizer.model_max_length)
    if longest > positions:
        key = "data.max_length" if data.max_length else "data.max_length is not set, and the tokenizer's"
        raise recipe.error(f"{key} {longest} exceeds the {positions} positions of the language model")
    samples = training_dataset(data, processor, broken_file=recipe.output / BROKEN)
    evaluation = data.evaluation() if data.eval_sources else None
    eval_samples = (
        None if evaluation is None else training_dataset(evaluation, processor, broken_file=recipe.output / BROKEN)
    )
    trainable = make_trainable(model, recipe)
    if data.feature_cache is not None:
        trainable.feature_store = FeatureStore(expand_home(data.feature_cache), model)
    collator = Collator(processor, model.config.image_decoder_config.resolution, keys=data.feature_cache is not None)
    try:
        return DreamLLMTrainer(trainable, recipe, collator, samples, eval_samples)
    except DreamLLMError:
        raise
    except (ValueError, ImportError) as error:
        raise recipe.error(f"trainer: {one_line(error)}") from None


def make_trainable(model: DreamLLMForConditionalGeneration, recipe: Recipe) -> DreamLLMForTraining:
    """The same object, with the parts named in `recipe.train` trainable and the others frozen."""
    check_decoder(model)
    model.requires_grad_(False)
    for name in recipe.train:
        part: Any = getattr(model, name)
        part.requires_grad_(True)
    if recipe.lora is not None:
        _add_adapters(model, recipe, recipe.lora)
    model.__class__ = DreamLLMForTraining
    trainable = cast("DreamLLMForTraining", model)
    trainable.loss_settings = recipe.loss
    trainable.noise_scheduler = make_scheduler("ddpm", model.config.image_decoder_config.scheduler)
    return trainable


def simulated(
    recipe: Recipe, config: DreamLLMConfig, dtype: torch.dtype = torch.float32, **options: Any
) -> SimulatedTraining:
    """The training of this recipe without weights. `options` are those of `SimulatedTraining`."""

    def build() -> DreamLLMForTraining:
        model = checkpoint.without_weights(config, dtype)
        if recipe.start.attention == "eager":  # the others need about the same memory
            model.set_attn_implementation("eager")
        return make_trainable(model, recipe)

    return SimulatedTraining(build, **options)


def _add_adapters(model: DreamLLMForConditionalGeneration, recipe: Recipe, lora: Lora) -> None:
    try:
        from peft import LoraConfig, get_peft_model  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise recipe.error(
            "lora needs the package peft: uv sync --extra lora, or pip install 'dreambench[lora]'"
        ) from None
    options: dict[str, Any] = {"r": lora.r, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.start.seed)  # a resumed run starts from the same adapters
        try:
            adapters = LoraConfig(**options, target_modules=list(lora.target_modules))
            model.language_model = get_peft_model(model.language_model, adapters)
        except ValueError as error:
            raise recipe.error(f"lora: {first_line(error)}") from None


def save(folder: Path, trainer: DreamLLMTrainer, processor: DreamLLMProcessor) -> None:
    """Save the trained model in our layout: gathered if it is sharded, adapters merged into the weights that they adapt."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_torch_compile=False)
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    state: Any = trainer.accelerator.get_state_dict(trainer.model_wrapped) if sharded else None
    if not trainer.args.should_save:
        return
    config: Any = model.config
    config.__dict__.pop("use_cache", None)  # set by the trainer
    if state is not None:
        generation_config = model.generation_config
        model = checkpoint.from_state(config, state)
        model.generation_config = generation_config
    else:
        if hasattr(model.language_model, "merge_and_unload"):
            model.language_model = model.language_model.merge_and_unload()
        model.__class__ = DreamLLMForConditionalGeneration
    checkpoint.save(folder, model, processor)


@contextmanager
def worker_errors_on_one_line() -> Generator[None]:
    """torch puts the traceback of a data-loader worker into the error's message, whose last line is the error itself."""
    try:
        yield
    except DreamLLMError as error:
        *traceback, last = str(error).strip().splitlines()
        if not traceback:
            raise
        raise type(error)(last.partition(": ")[2]) from None


def _saved_form(recipe: Recipe) -> dict[str, Any]:
    idle = set() if recipe.monitor.model_fields_set else {"monitor"}
    return recipe.model_dump(mode="json", exclude={"output"} | idle)


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    """The keys by which two recipes differ in their result."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            difference
            for name in dict.fromkeys([*old, *new])
            if not (key == "trainer" and name in OBSERVING)
            and (key, name) not in (("", "monitor"), ("data", "max_broken"))
            for difference in _differences(old.get(name), new.get(name), f"{key}.{name}".removeprefix("."))
        ]
    return [] if old == new else [key]


def _last_losses(history: list[dict[str, Any]]) -> dict[str, float]:
    values = ((name, value) for line in history for name, value in line.items())
    losses = {name: value for name, value in values if name.endswith("loss") and name != "train_loss"}
    return dict(sorted(losses.items()))  # a state that was read from a file has another order


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except CheckpointError as error:
        raise UsageError(f"{error}: choose another output, or remove {path.parent}") from None
