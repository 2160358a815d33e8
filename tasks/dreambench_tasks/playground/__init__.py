"""The playground: a small world of coloured shapes, written in each benchmark's official format and in training formats.

``write`` puts scenes of a split on disk, ``ensure_default`` and ``ensure_documents`` return the embedded data, and ``clip_directory``
the folder with the weights of its feature extractor. The rest are the scenes, images and texts themselves. Nothing here loads torch.
"""

from __future__ import annotations

from pathlib import Path

from dreambench.errors import MissingWeightsError
from dreambench_tasks.playground.conversations import SHORT_PROMPT, conversation
from dreambench_tasks.playground.language import PLACES, captions, fullest_caption, narrative, place, placed_caption
from dreambench_tasks.playground.render import SIDE, render, render_many
from dreambench_tasks.playground.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, WORLD, Rng, Scene, draw_scene
from dreambench_tasks.playground.stories import instruction, story
from dreambench_tasks.playground.writing import FORMATS, ensure_default, ensure_documents, write

__all__ = ["BACKGROUNDS", "COLOURS", "FORMATS", "PLACES", "SHAPES", "SHORT_PROMPT", "SIDE", "SIZES", "WORLD"]
__all__ += ["Rng", "Scene", "captions", "clip_directory", "conversation", "draw_scene", "ensure_default"]
__all__ += [
    "ensure_documents",
    "fullest_caption",
    "instruction",
    "narrative",
    "place",
    "placed_caption",
    "render",
    "render_many",
    "story",
    "write",
]


def clip_directory() -> Path:
    """The folder of the shipped playground-clip (transformers' ``CLIPModel`` and its tokenizer).

    Raises:
        MissingWeightsError: the package was installed without it.
    """
    folder = Path(__file__).with_name("clip")
    if not (folder / "model.safetensors").is_file():
        raise MissingWeightsError(
            f"playground-clip is not in {folder}: install the package again, or train it with"
            f" `python model/embedded/build.py DIR --step clip` and copy DIR/clip there"
        )
    return folder
