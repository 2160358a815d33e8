"""How good the embedded model is in its world, on scenes it was not trained on: what the model card says.

Reading is asked of the test part, image generation is judged by the probe, stories are generated from requests of the val part. All
of it is a function of the weights and of the numbers below.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dreambench.requests import sample_seed
from dreambench_tasks.playground.clip_evaluation import Share
from dreambench_tasks.playground.conversations import SHORT_PROMPT
from dreambench_tasks.playground.language import PLACES, captions, place
from dreambench_tasks.playground.probe import Seen, look
from dreambench_tasks.playground.render import render, render_many
from dreambench_tasks.playground.scene import BACKGROUNDS, Rng, Scene, draw_scene
from dreambench_tasks.playground.stories import instruction
from dreamllm import DreamLLMForConditionalGeneration, DreamLLMProcessor

__all__ = ["STEPS", "Described", "comprehension", "described_scenes", "probe_accuracy", "stories", "text_to_image"]

BATCH = 64
GUIDANCE, STEPS = 3.0, 20
"""Of DDIM, for every image that is generated here."""


@dataclass(frozen=True)
class Described:
    """A scene and what is said of it to a image decoder."""

    scene: Scene
    caption: str


def described_scenes(part: str, things: int, n: int) -> list[Described]:
    """The first ``n`` scenes of a part with so many things, each with one of its captions."""

    def drawn() -> Iterator[Described]:
        for index in count():
            scene = draw_scene(part, index)
            if len(scene.things) == things:
                yield Described(scene, Rng("evaluation", part, index).pick(captions(scene, Rng("told", part, index))))

    return list(islice(drawn(), n))


def comprehension(
    model: DreamLLMForConditionalGeneration, processor: DreamLLMProcessor, n: int = 500
) -> dict[str, Share]:
    """Single things of the test part: is "What is in the <place>?" answered by their colour and shape?"""
    told = described_scenes("test", 1, n)
    right: Counter[str] = Counter()
    for start in range(0, n, BATCH):
        batch = [one.scene for one in told[start : start + BATCH]]
        asked = [f"<image>What is in the {place(scene.things[0])}?{SHORT_PROMPT}" for scene in batch]
        prompts = [processor.apply_chat_template([{"role": "user", "content": text}]) for text in asked]
        inputs = processor(prompts, images=[Image.fromarray(render(scene)) for scene in batch])
        ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        for scene, answer in zip(batch, processor.batch_decode(ids), strict=True):
            words, thing = answer.lower().strip(" .").split(), scene.things[0]
            right["colour"] += thing.colour in words
            right["shape"] += thing.shape in words
            right["colour and shape"] += words == [thing.colour, thing.shape]
    return {name: Share(right[name], n) for name in ("colour and shape", "colour", "shape")}


def probe_accuracy(probe: torch.nn.Module, n: int = 1000) -> dict[str, Share]:
    """The judge's own accuracy on real scenes of the test part."""
    scenes = [draw_scene("test", index) for index in range(n)]
    seen = look(probe, render_many(scenes))
    single = [(s, x) for s, x in zip(seen, scenes, strict=True) if len(x.things) == 1]
    return {
        "everything right (shape, colour, size, place of every thing, background)": Share(
            sum(s.things == _truth(x) and s.background == x.background for s, x in zip(seen, scenes, strict=True)), n
        ),
        "a single thing's colour and shape": Share(sum(_exact(s, x) for s, x in single), len(single)),
    }


def text_to_image(generate_images: Any, probe: torch.nn.Module, n: int = 500) -> dict[str, Share]:
    """What the probe sees in images of ``n`` scenes with one thing and ``n`` with two, all of the test part.

    ``generate images(captions, seeds)`` returns ``(N, 64, 64, 3)`` uint8.
    """
    one, two = (described_scenes("test", things, n) for things in (1, 2))
    seen_one, seen_two = (_generated(generate_images, probe, told) for told in (one, two))
    both = [*zip(seen_one, one, strict=True), *zip(seen_two, two, strict=True)]
    placed = [(s, t) for s, t in zip(seen_one, one, strict=True) if place(t.scene.things[0]) in t.caption.lower()]
    found = [_recalled(s, t.scene) for s, t in zip(seen_two, two, strict=True)]
    return {
        "background": Share(sum(s.background == t.scene.background for s, t in both), len(both)),
        "single object exactly right (colour, shape, nothing else)": Share(
            sum(_exact(s, t.scene) for s, t in zip(seen_one, one, strict=True)), n
        ),
        "single object in the place that was told": Share(
            sum(_first(t.scene) in s.things for s, t in placed), len(placed)
        ),
        "objects recalled in scenes of two": Share(sum(found), 2 * n),
        "scenes of two with both and nothing else": Share(
            sum(sorted(s.names) == sorted(_names(t.scene)) for s, t in zip(seen_two, two, strict=True)), n
        ),
    }


def stories(
    model: DreamLLMForConditionalGeneration, processor: DreamLLMProcessor, probe: torch.nn.Module, n: int = 200
) -> dict[str, Share]:
    """Requests of the val part, generated greedily: where do the images stand, and do they show what was just told?

    A document is right where it has an image, every image follows at once a sentence that names a colour, a shape, a place and a
    background, and no such sentence lacks its image.
    """
    placed = shown = images = right_count = 0
    for start in range(0, n, 16):
        numbers = range(start, min(start + 16, n))
        asked = [instruction("val", index) for index in numbers]
        prompts = [processor.apply_chat_template([{"role": "user", "content": words}]) for words, _ in asked]
        documents = model.generate_interleaved(
            processor(prompts),
            processor,
            max_new_tokens=160,
            max_images=4,
            seeds=list(numbers),
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
        )
        for document, (_, wanted) in zip(documents, asked, strict=True):
            told = _sentences_with_images(document.parts)
            placed += bool(document.images) and all(_describes(text) == (image is not None) for text, image in told)
            right_count += len(document.images) == len(wanted.scenes)
            interleaved = [(text, image) for text, image in told if image is not None]
            images += len(interleaved)
            if interleaved:
                seen = look(probe, np.stack([np.asarray(image) for _, image in interleaved]))
                shown += sum(_names_all(text, s) for (text, _), s in zip(interleaved, seen, strict=True))
    scores = {
        "documents with every image after its sentence": Share(placed, n),
        "documents with as many images as asked for": Share(right_count, n),
    }
    if images:
        scores["images that show what their sentence names, and nothing else"] = Share(shown, images)
    return scores


def _generated(generate_images: Any, probe: torch.nn.Module, told: Sequence[Described]) -> list[Seen]:
    seen: list[Seen] = []
    for start in range(0, len(told), BATCH):
        texts = [one.caption for one in told[start : start + BATCH]]
        images: NDArray[np.uint8] = generate_images(texts, [sample_seed(0, str(start + i)) for i in range(len(texts))])
        seen += look(probe, images)
    return seen


def _sentences_with_images(parts: Sequence[Any]) -> list[tuple[str, Any]]:
    """Each sentence with the image that follows it at once, or None."""
    told: list[tuple[str, Any]] = []
    for part in parts:
        if isinstance(part, str):
            told += [(text.strip() + ".", None) for text in part.split(".") if text.strip()]
        elif told and told[-1][1] is None:
            told[-1] = (told[-1][0], part)
        else:
            told.append(("", part))
    return told


def _describes(sentence: str) -> bool:
    """Whether a sentence names a background and a place, as those that have an image do, and titles and closings do not."""
    places = (words for row in PLACES for words in row)
    return any(ground in sentence for ground in BACKGROUNDS) and any(words in sentence for words in places)


def _names_all(sentence: str, seen: Seen) -> bool:
    """Whether something is seen, and the sentence names it all: "the star turns blue" names a blue star."""
    words = [seen.background, *(word for name in seen.names for word in name)]
    return bool(seen.names) and all(word in sentence for word in words)


def _names(scene: Scene) -> list[tuple[str, str]]:
    return [(t.shape, t.colour) for t in scene.things]


def _exact(seen: Seen, scene: Scene) -> bool:
    return seen.names == _names(scene)


def _first(scene: Scene) -> tuple[int, int]:
    return scene.things[0].row, scene.things[0].column


def _recalled(seen: Seen, scene: Scene) -> int:
    return (Counter(seen.names) & Counter(_names(scene))).total()


def _truth(scene: Scene) -> dict[tuple[int, int], tuple[str, str, str]]:
    return {(t.row, t.column): (t.shape, t.colour, t.size) for t in scene.things}
