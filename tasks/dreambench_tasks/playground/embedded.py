"""The embedded model, from nothing: surrogates, assembly, DreamLLM's three stages, and the files that ship.

``dreambench playground build DIR`` runs these steps in order; each is skipped where its result is there, and goes on from its own
checkpoint where it was stopped. The three stages are ordinary recipes of ``dreamllm train``, in the folder ``recipes``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

from dreambench.progress import progress_bar, say
from dreambench_tasks.playground.writing import write

__all__ = ["IMAGES", "STEPS", "STORIES"]

IMAGES, STORIES = 24_000, 8_000  # of the train part, for the three stages
RECIPES = Path(__file__).parent / "recipes"
LAYOUT = "model.safetensors"


def world(directory: Path) -> None:
    """The training data: pairs, conversations, stories and instructions."""
    write(directory / "world" / "images", "train", IMAGES, 0, ["pairs", "conversations"])
    write(directory / "world" / "stories", "train", STORIES, 0, ["stories", "instructions"])


def encoder(directory: Path) -> None:
    from dreambench_tasks.playground.surrogates.encoder import SETTINGS, build_encoder

    _watched("encoder", build_encoder, SETTINGS, directory)


def autoencoder(directory: Path) -> None:
    from dreambench_tasks.playground.surrogates.autoencoder import FINE, SETTINGS, build_autoencoder, build_fine_decoder

    _watched("autoencoder", build_autoencoder, SETTINGS, directory)
    _watched("its decoder, on", build_fine_decoder, FINE, directory)


def diffusion(directory: Path) -> None:
    from dreambench_tasks.playground.surrogates.diffusion import (
        FIRST,
        FOURTH,
        SECOND,
        THIRD,
        build_image_decoder,
        build_text_tower,
        build_unet,
        build_unet_of_things,
    )

    _watched("text tower and UNet", build_text_tower, FIRST, directory)
    _watched("UNet", build_unet, SECOND, directory)
    _watched("UNet, where things are", build_unet_of_things, THIRD, directory)
    _watched("UNet, at last", build_image_decoder, FOURTH, directory)


def language(directory: Path) -> None:
    from dreambench_tasks.playground.surrogates.decoder import LANGUAGE, WARM_UP, build_language, build_warm_up

    _watched("language model", build_language, LANGUAGE, directory)
    _watched("its warm-up", build_warm_up, WARM_UP, directory)


def start(directory: Path) -> None:
    """The surrogates in one DreamLLM checkpoint, with the queries and the condition projector of the warm-up."""
    if (directory / "start" / LAYOUT).is_file():
        return
    from safetensors.torch import load_file

    from dreambench_tasks.playground.surrogates.encoder import CONTEXT
    from dreamllm import checkpoint
    from dreamllm.training.assemble import assemble

    parts = (directory / "warm", directory / "encoder", directory / "diffusion")
    model, processor = assemble(*parts, num_dream_queries=CONTEXT, chat_template="plain")
    warm = load_file(directory / "warm" / "dreams.safetensors")
    warm["condition_projector.layers.0.weight"] = warm.pop("condition_projector.weight")
    model.load_state_dict({**model.state_dict(), **warm})
    model.config.training = "surrogates trained on the dreambench playground"
    _publish(directory / "start", lambda folder: checkpoint.save(folder, model, processor))


def alignment(directory: Path) -> None:
    """Stage I in its two halves, merged."""
    from dreamllm.training.assemble import merge

    _train(directory, "alignment-comprehension")
    _train(directory, "alignment-generation")
    if not (directory / "alignment" / LAYOUT).is_file():
        halves = (directory / "alignment-comprehension", directory / "alignment-generation")
        _publish(directory / "alignment", lambda folder: merge(*halves, folder))


def igpt(directory: Path) -> None:
    _train(directory, "igpt")


def sft(directory: Path) -> None:
    _train(directory, "sft")


def ship(directory: Path) -> None:
    """The result in half precision, ``directory/embedded``."""
    if (directory / "embedded" / LAYOUT).is_file():
        return
    from dreamllm import checkpoint

    model, processor = checkpoint.load(directory / "sft", dtype="float16")
    _publish(directory / "embedded", lambda folder: checkpoint.save(folder, model, processor))


def card(directory: Path) -> None:
    """The model card, ``directory/embedded/README.md``, measured."""
    if (directory / "embedded" / "README.md").is_file():
        return
    from dreambench_tasks.playground.card import evaluate, write_card

    sections = evaluate(directory / "embedded", directory / "probe", directory / "diffusion")
    say(f"wrote {write_card(directory / 'embedded', directory, sections)}")


STEPS: dict[str, Callable[[Path], None]] = {
    step.__name__: step
    for step in (world, encoder, autoencoder, diffusion, language, start, alignment, igpt, sft, ship, card)
}


def _train(directory: Path, name: str) -> None:
    """A stage by its recipe, whose folders are relative to the build's, so that its fingerprint is the same everywhere."""
    import torch

    from dreambench_tasks.playground.surrogates.loop import one_thread
    from dreamllm.recipe import load_recipe
    from dreamllm.training.run import train

    recipe = RECIPES.resolve() / f"{name}.yaml"
    # The library takes no bf16 on a CPU without this word.
    changes = [] if torch.cuda.is_available() else ["trainer.use_cpu=true"]
    say(f"{name}: {directory / name}")
    with one_thread(), chdir(directory):
        train(load_recipe(recipe, changes))


def _publish(folder: Path, save: Callable[[Path], Any]) -> None:
    """Save beside the folder, then move: that the folder is there means that it is whole."""
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    save(temporary)
    temporary.replace(folder)


def _watched(name: str, build: Callable[..., Path], settings: Any, directory: Path) -> None:
    with progress_bar(name) as update:
        build(directory, settings, report=lambda step, _: update(step, settings.steps))
