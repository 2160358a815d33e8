"""Measure a DreamLLM in the small world, on scenes that it was not trained on: the scores of its model card.

    python model/embedded/evaluate.py [CHECKPOINT] [--baseline DIR/diffusion]

Comprehension is measured by the benchmarks on their embedded data (val split) and on single objects of the test split. Generated images
are judged by the probe: for captions of the test split, and in stories for requests of the val split. The scores are a function of the
weights and the constants below.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image

import dreamllm
from dreambench.api import run
from dreambench.errors import DreambenchError
from dreambench.files import cache_folder
from dreambench.requests import sample_seed
from dreambench.statistics import mean_estimate
from dreambench_tasks.playground import (
    BACKGROUNDS,
    PLACES,
    SHORT_PROMPT,
    Rng,
    Scene,
    captions,
    draw_scene,
    instruction,
    place,
    render,
    render_many,
)
from dreamllm.errors import DreamLLMError
from dreamllm.files import embedded_checkpoint
from loop import reproducible
from probe import Seen, build_probe, look

__all__ = ["Share", "as_markdown", "comprehension", "evaluate", "stories", "text_to_image"]

BATCH = 64
GUIDANCE, STEPS = 3.0, 20  # of DDIM, for every image generated here

ImageGenerator = Callable[[Sequence[str], Sequence[int]], NDArray[np.uint8]]
"""Captions and seeds to images, (N, 64, 64, 3) uint8."""
Judged = tuple[Seen, Scene, str]
"""What the probe sees in a generated image, the scene it was generated for, and the caption."""


@dataclass(frozen=True)
class Share:
    """What share of items was right, with its 95 % interval.

    Args:
        hits: how right each item was, from 0 to 1.
        contents: what each item shows or asks for. Items of equal content are no independent observations: they are a cluster.
    """

    hits: Sequence[float]
    contents: Sequence[str]

    @property
    def value(self) -> float:
        return sum(self.hits) / len(self.hits)

    def __str__(self) -> str:
        found = mean_estimate(self.hits, self.contents, cluster_name="content", unit="")
        interval = "" if found.interval is None else f" [{found.interval[0]:.3f}, {found.interval[1]:.3f}]"
        distinct = len(set(self.contents))
        of = "" if distinct == found.n else f" of {distinct:,} contents"
        return f"{found.value:.3f}{interval}, n = {found.n:,}{of}"


def evaluate(checkpoint: str | Path, work: Path, baseline: str | Path | None = None) -> dict[str, dict[str, Any]]:
    """Scores by section, as text with n and 95 % intervals.

    Args:
        checkpoint: a DreamLLM folder.
        work: the folder where the probe is, or is trained once.
        baseline: the folder of the surrogate Stable Diffusion, which then generates images for the same captions and seeds.
    """
    with reproducible(0):
        probe = build_probe(work)
        model, processor = dreamllm.load(checkpoint, dtype="float32")

        def generate(texts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.uint8]:
            images = model.generate_images(
                processor(list(texts)), seeds=list(seeds), num_inference_steps=STEPS, guidance_scale=GUIDANCE
            )
            return np.stack([np.asarray(image) for image in images])

        sections: dict[str, dict[str, Any]] = {
            "Text generation: benchmarks on the embedded data (val split)": _benchmarks(checkpoint),
            "Text generation: single objects (test split)": comprehension(model, processor),
            f"Image generation (test split, DDIM, {STEPS} steps, guidance {GUIDANCE:g})": text_to_image(
                generate, probe
            ),
            "Interleaved generation: stories (requests of the val split)": stories(model, processor, probe),
        }
        if baseline is not None:
            title = "Image generation by the baseline, the surrogate Stable Diffusion, for the same captions"
            sections[title] = text_to_image(_pipeline_generator(baseline), probe)
        sections["The probe that judges images, on rendered scenes (test split)"] = probe_accuracy(probe)
    return sections


def as_markdown(sections: dict[str, dict[str, Any]]) -> str:
    """A table per section."""
    return "\n\n".join(
        "\n".join(
            [f"### {title}", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
        )
        for title, rows in sections.items()
    )


def _benchmarks(checkpoint: str | Path) -> dict[str, str]:
    """The comprehension benchmarks, and the majority-answer (blind) baseline, measured by the harness."""
    rows: dict[str, str] = {}
    embedded = f"dreamllm:{checkpoint}"
    with tempfile.TemporaryDirectory() as out:
        for task, model, judge in (
            ("vqav2", embedded, None),
            ("vqav2", "blind", None),
            ("mmbench", embedded, None),
            ("mmbench", "blind", None),
            ("mmvet", embedded, "rule"),
        ):
            name = "majority-answer (blind) baseline" if model == "blind" else "this model"
            for score in run(task, model, judge=judge, out=out).scores:
                if score.group is None:
                    interval = f" [{score.interval[0]:.1f}, {score.interval[1]:.1f}]" if score.interval else ""
                    value = f"{score.value:.1f} {score.unit}{interval}, n = {score.n:,}, {score.protocol}"
                    rows[f"{task}, {score.metric}: {name}"] = value
    return rows


def described_scenes(split: str, objects: int, n: int) -> list[tuple[Scene, str]]:
    """The first ``n`` scenes of a split with so many objects, each with one of its captions."""
    scenes = ((index, draw_scene(split, index)) for index in count())
    return [
        (scene, Rng("evaluation", split, index).pick(captions(scene, Rng("told", split, index))))
        for index, scene in islice((pair for pair in scenes if len(pair[1].things) == objects), n)
    ]


def comprehension(model: Any, processor: Any, n: int = 500) -> dict[str, Share]:
    """Single objects of the test split: is "What is in the <place>?" answered with colour and shape?"""
    described = described_scenes("test", 1, n)
    contents = [scene.content for scene, _ in described]
    hits: dict[str, list[float]] = {"colour and shape": [], "colour": [], "shape": []}
    for start in range(0, n, BATCH):
        scenes = [scene for scene, _ in described[start : start + BATCH]]
        questions = [f"<image>What is in the {place(scene.things[0])}?{SHORT_PROMPT}" for scene in scenes]
        inputs = processor(
            [processor.apply_chat_template([{"role": "user", "content": question}]) for question in questions],
            images=[Image.fromarray(render(scene)) for scene in scenes],
        )
        ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        for scene, answer in zip(scenes, processor.batch_decode(ids), strict=True):
            words, thing = answer.lower().strip(" .").split(), scene.things[0]
            hits["colour and shape"].append(words == [thing.colour, thing.shape])
            hits["colour"].append(thing.colour in words)
            hits["shape"].append(thing.shape in words)
    return {name: Share(found, contents) for name, found in hits.items()}


def text_to_image(generate: ImageGenerator, probe: torch.nn.Module, n: int = 500) -> dict[str, Share]:
    """What the probe sees in images for captions of ``n`` test scenes with one object and ``n`` with two."""
    ones, twos = (described_scenes("test", objects, n) for objects in (1, 2))
    single, double = (
        [(seen, *pair) for seen, pair in zip(_generated(generate, probe, pairs), pairs, strict=True)]
        for pairs in (ones, twos)
    )

    def share(images: Sequence[Judged], right: Callable[[Seen, Scene], float]) -> Share:
        return Share([right(seen, scene) for seen, scene, _ in images], [scene.content for _, scene, _ in images])

    def recalled(seen: Seen, scene: Scene) -> float:
        return (Counter(seen.names) & Counter(_names(scene))).total() / 2

    placed = [image for image in single if place(image[1].things[0]) in image[2].lower()]
    return {
        "background": share(single + double, lambda seen, scene: seen.background == scene.background),
        "single object exactly right (colour, shape, nothing else)": share(
            single, lambda seen, scene: seen.names == _names(scene)
        ),
        "single object in the place named by the caption": share(
            placed, lambda seen, scene: (scene.things[0].row, scene.things[0].column) in seen.things
        ),
        "objects recalled in scenes with two": share(double, recalled),
        "scenes with two objects: both and nothing else": share(
            double, lambda seen, scene: sorted(seen.names) == sorted(_names(scene))
        ),
    }


def probe_accuracy(probe: torch.nn.Module, n: int = 1000) -> dict[str, Share]:
    """The probe's own accuracy, on rendered scenes of the test split."""
    scenes = [draw_scene("test", index) for index in range(n)]
    pairs = list(zip(look(probe, render_many(scenes)), scenes, strict=True))
    single = [(seen, scene) for seen, scene in pairs if len(scene.things) == 1]
    right = [
        seen.background == scene.background
        and seen.things == {(t.row, t.column): (t.shape, t.colour, t.size) for t in scene.things}
        for seen, scene in pairs
    ]
    return {
        "everything right (background; shape, colour, size and place of every object)": Share(
            right, [scene.content for scene in scenes]
        ),
        "colour and shape of a single object": Share(
            [seen.names == _names(scene) for seen, scene in single], [scene.content for _, scene in single]
        ),
    }


def stories(model: Any, processor: Any, probe: torch.nn.Module, n: int = 200) -> dict[str, Share]:
    """Requests of the val split, decoded greedily: where do the images stand, and do they show what the sentence says?

    The images of a document stand correctly if there are any, each directly follows a sentence that names a place and a background, and
    no such sentence lacks its image.
    """
    placed: list[float] = []
    right_count: list[float] = []
    shown: list[float] = []
    asked: list[str] = []
    illustrated_for: list[str] = []
    for start in range(0, n, 16):
        numbers = range(start, min(start + 16, n))
        requests = [instruction("val", index) for index in numbers]
        documents = model.generate_interleaved(
            processor([processor.apply_chat_template([{"role": "user", "content": text}]) for text, _ in requests]),
            processor,
            max_new_tokens=160,
            max_images=4,
            seeds=list(numbers),
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
        )
        for document, (request, expected) in zip(documents, requests, strict=True):
            sentences = sentences_with_images(document.parts)
            asked.append(request)
            placed.append(
                bool(document.images) and all(describes(text) == (image is not None) for text, image in sentences)
            )
            right_count.append(len(document.images) == len(expected.scenes))
            illustrated = [(text, image) for text, image in sentences if image is not None]
            if illustrated:
                seen = look(probe, np.stack([np.asarray(image) for _, image in illustrated]))
                shown += [names_all(text, s) for (text, _), s in zip(illustrated, seen, strict=True)]
                illustrated_for += [request] * len(illustrated)
    scores = {
        "documents with every image after its sentence": Share(placed, asked),
        "documents with as many images as requested": Share(right_count, asked),
    }
    if shown:
        scores["images that show what their sentence names, and nothing else"] = Share(shown, illustrated_for)
    return scores


def sentences_with_images(parts: Sequence[Any]) -> list[tuple[str, Any]]:
    """Each sentence with the image that directly follows it, or None."""
    pairs: list[tuple[str, Any]] = []
    for part in parts:
        if isinstance(part, str):
            pairs += [(text.strip() + ".", None) for text in part.split(".") if text.strip()]
        elif pairs and pairs[-1][1] is None:
            pairs[-1] = (pairs[-1][0], part)
        else:
            pairs.append(("", part))
    return pairs


def describes(sentence: str) -> bool:
    """Whether a sentence names a background and a place, which titles and closings do not."""
    places = (words for row in PLACES for words in row)
    return any(ground in sentence for ground in BACKGROUNDS) and any(words in sentence for words in places)


def names_all(sentence: str, seen: Seen) -> bool:
    """Whether there is an object, and the sentence names everything seen: "the star turns blue" names a blue star."""
    words = [seen.background, *(word for name in seen.names for word in name)]
    return bool(seen.names) and all(word in sentence for word in words)


def _generated(generate: ImageGenerator, probe: torch.nn.Module, pairs: Sequence[tuple[Scene, str]]) -> list[Seen]:
    seen: list[Seen] = []
    for start in range(0, len(pairs), BATCH):
        texts = [text for _, text in pairs[start : start + BATCH]]
        seen += look(probe, generate(texts, [sample_seed(0, str(start + i)) for i in range(len(texts))]))
    return seen


def _pipeline_generator(folder: str | Path) -> ImageGenerator:
    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)

    def generate(texts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.uint8]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        result = pipeline(list(texts), num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators)
        return np.stack([np.asarray(image) for image in result.images])

    return generate


def _names(scene: Scene) -> list[tuple[str, str]]:
    return [(t.shape, t.colour) for t in scene.things]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint", type=Path, nargs="?", help="a DreamLLM folder; default: the embedded checkpoint")
    parser.add_argument("--baseline", type=Path, help="the surrogate Stable Diffusion: DIR/diffusion of a build")
    options = parser.parse_args()
    try:
        folder = options.checkpoint or embedded_checkpoint()
        if not folder.is_dir():  # checked before a probe is trained
            parser.error(f"{folder} is not a folder")
        print(as_markdown(evaluate(folder, cache_folder() / "playground-probe", options.baseline)))
    except (DreambenchError, DreamLLMError) as error:
        parser.exit(2, f"error: {error}\n")
