"""Scenes in each benchmark's official format and in the formats that models are trained on.

Every function yields the files of one format and writes nothing. Benchmark files have the official names of their split: ``val`` is
COCO's val2017 and val2014 and MMBench's dev; ``test`` lacks the answers of VQAv2 and MMBench, as published. The training formats have
no official names.
"""

from __future__ import annotations

import base64
import csv
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dreambench_tasks.mmbench.data import ROTATION
from dreambench_tasks.playground.choices import CATEGORIES, LETTERS, choice, circular
from dreambench_tasks.playground.conversations import conversation
from dreambench_tasks.playground.language import captions, narrative, prompt
from dreambench_tasks.playground.open_questions import KINDS, open_question
from dreambench_tasks.playground.questions import annotators, questions
from dreambench_tasks.playground.render import CENTRES, SIDE, render
from dreambench_tasks.playground.scene import WORLD, Rng, Scene, draw_scene
from dreambench_tasks.playground.stories import Story, instruction, requested_images, similarity, story

__all__ = ["BENCHMARK_FORMATS", "DOCUMENT_FORMATS", "TRAINING_FORMATS", "File", "Pool", "images", "story_images"]

T = TypeVar("T")

QUESTIONS_PER_IMAGE = 2
PROMPTS_PER_IMAGE = 4
SECOND_NARRATIVE_PERCENT = 70  # COCO val has 8,573 narratives of 5,000 images
SECONDS_PER_WORD = 0.35
SOURCE = "dreambench playground"


class File(NamedTuple):
    """A file to write, and the bytes that identify it: pixels in place of PNG data, which depend on the version of zlib."""

    path: str
    data: bytes
    identity: bytes


@dataclass(frozen=True)
class Pool:
    """Scenes 0 … n - 1 of a split. Image ids are index + 1, because COCO has no image 0."""

    split: str
    n: int
    seed: int

    def __iter__(self) -> Iterator[tuple[int, Scene]]:
        return ((index + 1, draw_scene(self.split, index, self.seed)) for index in range(self.n))

    def rng(self, purpose: str, number: int) -> Rng:
        return Rng(purpose, WORLD, self.split, number, self.seed)

    def suitable(self, ask: Callable[[Scene, int, int], T | None]) -> Iterator[tuple[Scene, T]]:
        """Three scenes for every five images, with their questions: ``ask(scene, index, number)`` is None where a scene is unsuitable."""
        indices = itertools.count()
        for number in range(max(1, self.n * 3 // 5)):
            for index in indices:
                scene = draw_scene(self.split, index, self.seed)
                question = ask(scene, index, number)
                if question is not None:
                    yield scene, question
                    break


def images(pool: Pool) -> Iterator[File]:
    """``val2017/000000000001.png`` …: PNG where COCO has JPEG, so that the pixels survive."""
    for image_id, scene in pool:
        yield _image(_image_path(pool, image_id), scene)


def coco(pool: Pool) -> Iterator[File]:
    """``annotations/captions_val2017.json``, five captions per image."""
    records, annotations = [], []
    for image_id, scene in pool:
        records.append({"id": image_id, "file_name": _name(image_id), "width": SIDE, "height": SIDE, "license": 1})
        for caption in captions(scene, pool.rng("captions", image_id)):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "caption": caption})
    record = {
        "info": {"description": SOURCE, "version": WORLD, "year": 2017},
        "licenses": [{"id": 1, "name": "Apache License 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}],
        "images": records,
        "annotations": annotations,
    }
    yield _json(f"annotations/captions_{pool.split}2017.json", record)


def localized_narratives(pool: Pool) -> Iterator[File]:
    """``coco_val_localized_narratives.jsonl``, one or two narratives per image, without voice recordings."""
    records: list[dict[str, Any]] = []
    for image_id, scene in pool:
        rng = pool.rng("narratives", image_id)
        texts = [narrative(scene, rng)]
        if rng.chance(SECOND_NARRATIVE_PERCENT):
            while (second := narrative(scene, rng)) == texts[0]:
                pass
            texts.append(second)
        records += [_narrative(pool.split, image_id, scene, number, text, rng) for number, text in enumerate(texts)]
    suffix = "-00000-of-00001" if pool.split == "train" else ""
    yield _json_lines(f"coco_{pool.split}_localized_narratives{suffix}.jsonl", records)


def _narrative(split: str, image_id: int, scene: Scene, number: int, sentences: list[str], rng: Rng) -> dict[str, Any]:
    """One narrative: sentences are utterances, and the pointer circles an object while it is named."""
    utterances: list[dict[str, Any]] = []
    traces: list[list[dict[str, float]]] = []
    now = 0.0
    for i, sentence in enumerate(sentences):
        end = round(now + SECONDS_PER_WORD * len(sentence.split()), 2)
        utterances.append({"utterance": sentence, "start_time": now, "end_time": end})
        if 0 < i <= len(scene.things):
            thing = scene.things[i - 1]
            x, y = CENTRES[thing.column] + scene.shift[0], CENTRES[thing.row] + scene.shift[1]
            corners = ((-8, -8), (8, -8), (8, 8), (-8, 8), (-8, -8))
            step = (end - now) / (len(corners) - 1)
            traces.append(
                [
                    {"x": round((x + dx) / SIDE, 4), "y": round((y + dy) / SIDE, 4), "t": round(now + j * step, 3)}
                    for j, (dx, dy) in enumerate(corners)
                ]
            )
        now = end
    return {
        "dataset_id": f"mscoco_{split}2017",
        "image_id": str(image_id),
        "annotator_id": 2 * rng.below(40) + number,
        "caption": " ".join(sentences),
        "timed_caption": utterances,
        "traces": traces,
        "voice_recording": "",
    }


def vqav2(pool: Pool) -> Iterator[File]:
    """The official pair of questions and annotations, two questions per image; for ``test`` only the questions."""
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, scene in pool:
        rng = pool.rng("questions", image_id)
        for k, question in enumerate(questions(scene, rng, QUESTIONS_PER_IMAGE)):
            ids = {"image_id": image_id, "question_id": image_id * 1000 + k}
            records.append({**ids, "question": question.text})
            annotations.append(
                {
                    **ids,
                    "question_type": question.question_type,
                    "answer_type": question.answer_type,
                    "multiple_choice_answer": question.answer,
                    "answers": annotators(question, rng),
                }
            )
    subset = {"train": "train2014", "val": "val2014", "test": "test2015"}[pool.split]
    head = {
        "info": {"description": SOURCE, "version": WORLD},
        "license": {"name": "Apache License 2.0"},
        "data_type": "mscoco",
        "data_subtype": subset,
    }
    record = {**head, "task_type": "Open-Ended", "questions": records}
    yield _json(f"v2_OpenEnded_mscoco_{subset}_questions.json", record)
    if pool.split != "test":
        yield _json(f"v2_mscoco_{subset}_annotations.json", {**head, "annotations": annotations})


def mmbench(pool: Pool) -> Iterator[File]:
    """``MMBench_DEV_EN.tsv``: categories in turn, with circular copies; without answers in ``test``."""
    split = {"train": "train", "val": "dev", "test": "test"}[pool.split]
    answer = () if split == "test" else ("answer",)
    columns = (
        "index",
        "question",
        "hint",
        *LETTERS,
        *answer,
        "category",
        "image",
        "source",
        "l2-category",
        "comment",
    )
    data, identity = io.StringIO(), io.StringIO()
    tables: list[csv.DictWriter[str]] = [
        csv.DictWriter(
            file, (*columns, "split"), delimiter="\t", lineterminator="\n", restval="", extrasaction="ignore"
        )
        for file in (data, identity)
    ]
    for table in tables:
        table.writeheader()
    categories = tuple(CATEGORIES)
    drawn = pool.suitable(
        lambda scene, index, number: choice(scene, pool.rng("choice", index), categories[number % len(categories)])
    )
    for index, (scene, item) in enumerate(drawn, 1):
        pixels = render(scene)
        image = base64.b64encode(_png(pixels)).decode()
        for k, copy in enumerate(circular(item)):
            row = {
                "index": index + k * ROTATION,
                "question": copy.question,
                "hint": copy.hint,
                **dict(zip(LETTERS, copy.options, strict=False)),
                "answer": LETTERS[copy.answer],
                "category": copy.category,
                "source": SOURCE,
                "l2-category": CATEGORIES[copy.category],
                "split": split,
            }
            tables[0].writerow({**row, "image": index if k else image})
            tables[1].writerow({**row, "image": index if k else pixels.tobytes().hex()})
    yield File(f"MMBench_{split.upper()}_EN.tsv", data.getvalue().encode(), identity.getvalue().encode())


def mmvet(pool: Pool) -> Iterator[File]:
    """``mm-vet.json`` and its images ``images/v1_0.png`` …, kinds of questions in turn."""
    record: dict[str, dict[str, Any]] = {}
    drawn = pool.suitable(
        lambda scene, index, number: open_question(scene, pool.rng("open question", index), number % KINDS)
    )
    for index, (scene, question) in enumerate(drawn):
        record[f"v1_{index}"] = {
            "imagename": f"v1_{index}.png",
            "question": question.text,
            "answer": question.answer,
            "imagesource": SOURCE,
            "capability": list(question.capability),
        }
        yield _image(f"images/v1_{index}.png", scene)
    yield _json("mm-vet.json", record)


def pairs(pool: Pool) -> Iterator[File]:
    """``pairs_train.jsonl``: lines ``{image, caption}``, five captions and a narrative per image."""
    records: list[dict[str, Any]] = []
    for image_id, scene in pool:
        rng = pool.rng("pairs", image_id)
        texts = (*captions(scene, rng), " ".join(narrative(scene, rng)))
        records += [{"image": _image_path(pool, image_id), "caption": text} for text in texts]
    yield _json_lines(f"pairs_{pool.split}.jsonl", records)


def prompts(pool: Pool) -> Iterator[File]:
    """``prompts_train.jsonl``: the same lines with short prompts, as people type them, in place of captions, four per image."""
    records: list[dict[str, Any]] = []
    for image_id, scene in pool:
        rng, image = pool.rng("prompts", image_id), _image_path(pool, image_id)
        records += [{"image": image, "caption": prompt(scene, rng)} for _ in range(PROMPTS_PER_IMAGE)]
    yield _json_lines(f"prompts_{pool.split}.jsonl", records)


def conversations(pool: Pool) -> Iterator[File]:
    """``conversations_train.json`` in LLaVA's format, up to twelve turns per image.

    ``<image>`` is before the first question, in half of the conversations on a line of its own.
    """
    records: list[dict[str, Any]] = []
    for image_id, scene in pool:
        lead = pool.rng("lead", image_id).pick(("<image>", "<image>\n"))
        messages: list[dict[str, str]] = []
        for turn in conversation(scene, pool.rng("conversation", image_id)):
            messages.append({"from": "human", "value": turn.question if messages else f"{lead}{turn.question}"})
            messages.append({"from": "gpt", "value": turn.answer})
        image = _image_path(pool, image_id)
        records.append({"id": f"{image_id:012d}", "image": image, "conversations": messages})
    yield _json(f"conversations_{pool.split}.json", records)


def story_images(pool: Pool) -> Iterator[File]:
    """``stories/000000_0.png`` …, named by story and by image within the story."""
    for index in range(pool.n):
        for number, scene in enumerate(story(pool.split, index, pool.seed).scenes):
            yield _image(f"stories/{_story_image_name(index, number)}", scene)


def stories(pool: Pool) -> Iterator[File]:
    """``stories_train.jsonl``: one document per line in MMC4's format (``text_list``, ``image_info``), with its topic."""
    documents = (_document(pool, index, story(pool.split, index, pool.seed)) for index in range(pool.n))
    yield _json_lines(f"stories_{pool.split}.jsonl", documents)


def instructions(pool: Pool) -> Iterator[File]:
    """``instructions_train.jsonl``: the same format with an ``instruction``, which the document fulfils; images are the stories'."""
    records: list[dict[str, Any]] = []
    for index in range(pool.n):
        request, document = instruction(pool.split, index, pool.seed)
        records.append({"instruction": request, **_document(pool, index, document)})
    yield _json_lines(f"instructions_{pool.split}.jsonl", records)


def documents(pool: Pool) -> Iterator[File]:
    """``documents.jsonl``: requests and the documents that fulfil them, with what each image shows; images in ``documents/``."""
    records: list[dict[str, Any]] = []
    for index in range(pool.n):
        request, document = instruction(pool.split, index, pool.seed)
        parts: list[dict[str, str]] = []
        begin = 0
        for number, (scene, sentence) in enumerate(zip(document.scenes, document.matched, strict=True)):
            image = f"documents/{_story_image_name(index, number)}"
            parts += [{"text": " ".join(document.sentences[begin : sentence + 1])}, {"image": image}]
            begin = sentence + 1
            yield _image(image, scene)
        rest = " ".join(document.sentences[begin:])
        records.append(
            {
                "id": f"{index:06d}",
                "topic": document.topic,
                "instruction": request,
                "expected_images": requested_images(request, document),
                "document": [*parts, {"text": rest}] if rest else parts,
                "matched": [document.sentences[sentence] for sentence in document.matched],
                "truth": {
                    "scenes": [asdict(scene) for scene in document.scenes],
                    "matched": list(document.matched),
                    "sentences": list(document.sentences),
                },
            }
        )
    yield _json_lines("documents.jsonl", records)


BENCHMARK_FORMATS: dict[str, Callable[[Pool], Iterator[File]]] = {
    "coco": coco,
    "localized_narratives": localized_narratives,
    "vqav2": vqav2,
    "mmbench": mmbench,
    "mmvet": mmvet,
}
TRAINING_FORMATS: dict[str, Callable[[Pool], Iterator[File]]] = {
    "pairs": pairs,
    "prompts": prompts,
    "conversations": conversations,
    "stories": stories,
    "instructions": instructions,
}
DOCUMENT_FORMATS: dict[str, Callable[[Pool], Iterator[File]]] = {"documents": documents}


def _document(pool: Pool, index: int, document: Story) -> dict[str, Any]:
    # MMC4's similarities come from CLIP; here they are the share of a scene's facts that a sentence names.
    matrix = [[round(similarity(scene, sentence), 4) for sentence in document.sentences] for scene in document.scenes]
    return {
        "url": f"playground/{pool.split}/{pool.seed}/{index}",
        "topic": document.topic,
        "text_list": list(document.sentences),
        "image_info": [
            {
                "image_name": _story_image_name(index, number),
                "raw_url": "",
                "matched_text_index": sentence,
                "matched_sim": matrix[number][sentence],
            }
            for number, sentence in enumerate(document.matched)
        ],
        "similarity_matrix": matrix,
        "could_have_url_duplicate": 0,
    }


def _name(image_id: int) -> str:
    return f"{image_id:012d}.png"


def _image_path(pool: Pool, image_id: int) -> str:
    return f"{pool.split}2017/{_name(image_id)}"


def _story_image_name(index: int, number: int) -> str:
    return f"{index:06d}_{number}.png"


def _image(path: str, scene: Scene) -> File:
    pixels = render(scene)
    return File(path, _png(pixels), pixels.tobytes())


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def _json(path: str, record: object) -> File:
    return _json_lines(path, [record])


def _json_lines(path: str, records: Iterable[object]) -> File:
    data = "".join(f"{json.dumps(record)}\n" for record in records).encode()
    return File(path, data, data)
