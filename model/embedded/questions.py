"""Between stages II and III: the language model learns to compare a question with an image.

"Is there a red circle?" needs a comparison that a large language model brings along. So small a one learns it suddenly, after some hundred
steps with little else, and in no trial beside the image loss. So this is *not* a stage of DreamLLM: it has the language loss of short
questions, in four phases. In the first, what stage II taught is held: samples of its data have their language loss, and their conditions of
images are regressed to what they were. The second has questions with the answer yes or no alone, and loses that; in the third it is
restored, in few steps. A place is a row and a column, and by then the language model knows the row alone. In the last, short phase all
questions are about the places of objects, in scenes where objects share a row; it learns the column as suddenly.

Shapes: B batch, T tokens, m generated images, Q dream queries, H width of the language model, E width of the image decoder's conditions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dreambench_tasks.playground import WORLD, Rng, Scene, draw_scene, render_many
from dreambench_tasks.playground.conversations import Turn, place_questions, short_questions, yes_no_questions
from dreamllm import checkpoint
from dreamllm.data import Collator, Sample, training_dataset
from dreamllm.data.samples import conversation, generation_pair
from dreamllm.layers import find_spans
from dreamllm.recipe import Recipe
from dreamllm.training.losses import count_targets, final_states, token_losses
from loop import Settings, finish, is_finished, reproducible, train
from surrogate_diffusion import busy_scene

__all__ = ["build_places", "build_questions"]


def _shared_row(seed: int, number: int) -> Scene:
    """A training scene in which two objects are in one row."""
    scenes = (draw_scene("train", number, seed + attempt) for attempt in count())
    return next(scene for scene in scenes if len({thing.row for thing in scene.things}) < len(scene.things))


@dataclass(frozen=True)
class Phase:
    folder: str
    settings: Settings
    ask: Callable[[Scene, Rng], list[Turn]]
    holds: bool  # what stage II taught
    draw: Callable[[int, int], Scene] = busy_scene


HELD = Settings(steps=900, batch=24, learning_rate=1e-3, weight_decay=0.0, decay=False, seed=6)
PHASES = (
    Phase("questions-held", HELD, short_questions, holds=True),
    Phase("questions-free", replace(HELD, steps=400, seed=7), yes_no_questions, holds=False),
    Phase("questions-restored", replace(HELD, steps=400, seed=8, decay=True), short_questions, holds=True),
)
LAST = Phase("questions", replace(HELD, steps=160, batch=64, seed=16), place_questions, False, _shared_row)
REPLAYED = 8  # samples of stage II in a step
LANGUAGE_WEIGHT, CONDITION_WEIGHT = 0.5, 2.0  # of what is held, beside the language loss of the questions
GROUPS = 6  # of rows of similar length, which go through the language model together
MAX_LENGTH = 400


def build_questions(directory: Path, igpt: Recipe) -> None:
    """The checkpoint ``directory/questions`` from ``directory/igpt``, which ``igpt`` made."""
    start = directory / "igpt"
    for phase in PHASES:
        _train(directory, phase, start, igpt if phase.holds else None)
        start = directory / phase.folder
    build_places(directory, start)


def build_places(directory: Path, start: Path) -> None:
    """The last phase, from the checkpoint ``start``."""
    _train(directory, LAST, start)


def _train(directory: Path, phase: Phase, start: Path, igpt: Recipe | None = None) -> None:
    folder = directory / phase.folder
    if is_finished(folder):
        return
    model, processor = checkpoint.load(start, dtype="float32")
    for part in (model.vision_tower, model.image_decoder):
        part.requires_grad_(False)
    model.set_attn_implementation("eager")  # a faster backward pass on CPUs than fused attention at these lengths
    collate = Collator(processor, model.config.image_decoder_config.resolution)
    hold = None if igpt is None else _holding(model, processor, collate, directory / "igpt", igpt)

    def loss_of(step: int) -> Tensor:
        questions = collate(_conversations(processor, phase, step))
        loss = _language_loss(model, questions, _states(model, questions))
        return loss if hold is None else loss + hold(step)

    with reproducible(phase.settings.seed):
        train(folder, model, loss_of, phase.settings)
    model.config.training = f"{model.config.training}; then {phase.folder} ({phase.settings.steps} steps)"
    finish(folder, processor, model)


def _holding(model: Any, processor: Any, collate: Collator, before: Path, igpt: Recipe) -> Callable[[int], Tensor]:
    """The loss of a step by which what stage II taught is held."""
    teacher, _ = checkpoint.load(before, dtype="float32")
    teacher.requires_grad_(False).set_attn_implementation("eager")
    replay = training_dataset(igpt.data, processor, folder=before.parent)
    nothing = generation_pair(processor, "", Image.new("RGB", (1, 1)), MAX_LENGTH)  # for generation without a condition

    def loss_of(step: int) -> Tensor:
        numbers = range(step * REPLAYED, (step + 1) * REPLAYED)
        held = collate([*(replay[number] for number in numbers), nothing])
        with torch.no_grad():
            conditions = _conditions(teacher, held, _states(teacher, held))
        states = _states(model, held)
        error = F.mse_loss(_conditions(model, held, states), conditions) / conditions.var()
        return LANGUAGE_WEIGHT * _language_loss(model, held, states) + CONDITION_WEIGHT * error

    return loss_of


def _conversations(processor: Any, phase: Phase, step: int) -> list[Sample]:
    """A conversation about each of B scenes."""
    seed, batch = phase.settings.seed, phase.settings.batch
    numbers = range(step * batch, (step + 1) * batch)
    scenes = [phase.draw(seed, number) for number in numbers]
    samples: list[Sample] = []
    for number, scene, pixels in zip(numbers, scenes, render_many(scenes), strict=True):
        messages: list[dict[str, str]] = []
        for question, answer in phase.ask(scene, Rng("questions", WORLD, number)):
            start = "" if messages else "<image>"
            messages += [{"role": "user", "content": start + question}, {"role": "assistant", "content": answer}]
        samples.append(conversation(processor, messages, [Image.fromarray(pixels)], MAX_LENGTH))
    return samples


def _states(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """(B, T, H) final hidden states."""
    return final_states(
        model, batch["input_ids"], batch["attention_mask"], batch.get("pixel_values"), length_groups=GROUPS
    )


def _language_loss(model: Any, batch: dict[str, Tensor], states: Tensor) -> Tensor:
    return token_losses(states, batch["labels"], model.get_output_embeddings()) / count_targets(batch)[0]


def _conditions(model: Any, batch: dict[str, Tensor], states: Tensor) -> Tensor:
    """(m, Q, E) of the images that a batch generates."""
    return model.condition_projector(states[find_spans(batch["input_ids"], *model.config.dream_span)])
