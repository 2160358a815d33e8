"""Scenes in the formats that models are trained on: pairs, conversations, interleaved stories and instructions.

They are written where they are asked for only, and their names are not official: data sets of these kinds come in shards of any name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dreambench_tasks.playground.conversations import conversation
from dreambench_tasks.playground.formats import File, Pool, image, image_path, json_file
from dreambench_tasks.playground.language import captions, narrative
from dreambench_tasks.playground.stories import Story, instruction, similarity, story

__all__ = ["STORY_FOLDER", "TRAINING_FORMATS", "story_images"]

STORY_FOLDER = "stories"


def pairs(pool: Pool) -> Iterator[File]:
    """``pairs_train.jsonl``: lines ``{image, caption}``, five captions and a narrative an image."""
    records: list[dict[str, Any]] = []
    for image_id, scene in pool:
        rng = pool.rng("pairs", image_id)
        texts = (*captions(scene, rng), " ".join(narrative(scene, rng)))
        records += [{"image": image_path(pool.part, image_id), "caption": text} for text in texts]
    yield _lines(f"pairs_{pool.part}.jsonl", records)


def conversations(pool: Pool) -> Iterator[File]:
    """``conversations_train.json`` as LLaVA has it, one to three turns an image. The image stands before the first words."""
    records: list[dict[str, Any]] = []
    for image_id, scene in pool:
        turns = conversation(scene, pool.rng("conversation", image_id))
        said: list[dict[str, str]] = []
        for number, turn in enumerate(turns):
            said.append({"from": "human", "value": turn.asked if number else f"<image>{turn.asked}"})
            said.append({"from": "gpt", "value": turn.answered})
        record = {"id": f"{image_id:012d}", "image": image_path(pool.part, image_id), "conversations": said}
        records.append(record)
    yield json_file(f"conversations_{pool.part}.json", records)


def story_images(pool: Pool) -> Iterator[File]:
    """``stories/000000_0.png`` …: story and number in it."""
    for index in range(pool.n):
        for number, scene in enumerate(story(pool.part, index, pool.seed).scenes):
            yield image(f"{STORY_FOLDER}/{_image_name(index, number)}", scene)


def stories(pool: Pool) -> Iterator[File]:
    """``stories_train.jsonl``: one document a line, as MMC4 has it, with its topic. Sentences are text_list, images image_info."""
    told = (story(pool.part, index, pool.seed) for index in range(pool.n))
    yield _lines(f"stories_{pool.part}.jsonl", [_document(pool, index, one) for index, one in enumerate(told)])


def instructions(pool: Pool) -> Iterator[File]:
    """``instructions_train.jsonl``: the same with an ``instruction``, which the document fulfils; its images are the stories'."""
    records: list[dict[str, Any]] = []
    for index in range(pool.n):
        asked, told = instruction(pool.part, index, pool.seed)
        records.append({"instruction": asked, **_document(pool, index, told)})
    yield _lines(f"instructions_{pool.part}.jsonl", records)


TRAINING_FORMATS: Mapping[str, Callable[[Pool], Iterator[File]]] = {
    "pairs": pairs,
    "conversations": conversations,
    "stories": stories,
    "instructions": instructions,
}


def _document(pool: Pool, index: int, told: Story) -> dict[str, Any]:
    # MMC4's similarities are CLIP's; here they are what a sentence names of a scene.
    matrix = [[round(similarity(scene, sentence), 4) for sentence in told.sentences] for scene in told.scenes]
    return {
        "url": f"playground/{pool.part}/{pool.seed}/{index}",
        "topic": told.topic,
        "text_list": list(told.sentences),
        "image_info": [
            {
                "image_name": _image_name(index, number),
                "raw_url": "",
                "matched_text_index": place,
                "matched_sim": matrix[number][place],
            }
            for number, place in enumerate(told.matched)
        ],
        "similarity_matrix": matrix,
        "could_have_url_duplicate": 0,
    }


def _image_name(index: int, number: int) -> str:
    return f"{index:06d}_{number}.png"


def _lines(path: str, records: list[dict[str, Any]]) -> File:
    data = "".join(f"{json.dumps(record)}\n" for record in records).encode()
    return File(path, data, data)
