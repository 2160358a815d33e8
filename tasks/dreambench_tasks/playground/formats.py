"""Scenes in each benchmark's official format, file by file.

Every function yields the files of one benchmark; nothing is written here. The names are the official ones of the part: ``val`` is
COCO's val2017 and val2014 and MMBench's dev; ``test`` is without the answers of VQAv2 and MMBench, as those are given out.
"""

from __future__ import annotations

import base64
import csv
import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dreambench_tasks.playground.choices import CATEGORIES, LETTERS, Choice, choice, circular
from dreambench_tasks.playground.language import captions, narrative
from dreambench_tasks.playground.open_questions import KINDS, OpenQuestion, open_question
from dreambench_tasks.playground.questions import annotators, questions
from dreambench_tasks.playground.render import CENTRES, SIDE, render
from dreambench_tasks.playground.scene import WORLD, Rng, Scene, draw_scene

__all__ = ["BENCHMARK_FORMATS", "File", "Pool", "image", "image_path", "images", "json_file", "questions_of"]

T = TypeVar("T")

QUESTIONS_PER_IMAGE = 2
SECOND_NARRATIVE_PERCENT = 70  # COCO val has 8,573 narratives of 5,000 images
SECONDS_PER_WORD = 0.35
CIRCULAR_STEP = 1_000_000
MMBENCH_COLUMNS = (
    *(
        "index",
        "question",
        "hint",
        *LETTERS,
        "answer",
        "category",
        "image",
        "source",
        "l2-category",
        "comment",
        "split",
    ),
)
SOURCE = "dreambench playground"


def questions_of(images: int) -> int:
    """How many questions of MMBench, and of MM-Vet, are written with so many images: 307 with the default 512."""
    return max(1, images * 3 // 5)


class File(NamedTuple):
    """A file to write, and the bytes that identify it: pixels in place of PNG, whose bytes depend on zlib's version."""

    path: str
    data: bytes
    identity: bytes


@dataclass(frozen=True)
class Pool:
    """Scenes 0 … n - 1 of a part. Image ids are index + 1: there is no image 0 in COCO."""

    part: str
    n: int
    seed: int

    def __iter__(self) -> Iterator[tuple[int, Scene]]:
        return ((index + 1, draw_scene(self.part, index, self.seed)) for index in range(self.n))

    def rng(self, purpose: str, number: int) -> Rng:
        return Rng(purpose, WORLD, self.part, number, self.seed)


def images(pool: Pool) -> Iterator[File]:
    """``val2017/000000000001.png`` …: PNG where COCO has JPEG, because the world's own pixels must survive."""
    for image_id, scene in pool:
        yield image(image_path(pool.part, image_id), scene)


def coco(pool: Pool) -> Iterator[File]:
    """``annotations/captions_val2017.json``, five captions an image."""
    images, annotations = [], []
    for image_id, scene in pool:
        images.append({"id": image_id, "file_name": _name(image_id), "width": SIDE, "height": SIDE, "license": 1})
        for caption in captions(scene, pool.rng("captions", image_id)):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "caption": caption})
    record = {
        "info": {"description": SOURCE, "version": WORLD, "year": 2017},
        "licenses": [{"id": 1, "name": "Apache License 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}],
        "images": images,
        "annotations": annotations,
    }
    yield json_file(f"annotations/captions_{pool.part}2017.json", record)


def localized_narratives(pool: Pool) -> Iterator[File]:
    """``coco_val_localized_narratives.jsonl``, one or two narratives an image, without voice recordings."""
    lines: list[str] = []
    for image_id, scene in pool:
        rng = pool.rng("narratives", image_id)
        told = [narrative(scene, rng)]
        if rng.chance(SECOND_NARRATIVE_PERCENT):
            told.append(next(text for text in _narratives(scene, rng) if text != told[0]))
        lines += [
            json.dumps(_narrative(pool.part, image_id, scene, number, text, rng)) for number, text in enumerate(told)
        ]
    suffix = "-00000-of-00001" if pool.part == "train" else ""
    data = "".join(f"{line}\n" for line in lines).encode()
    yield File(f"coco_{pool.part}_localized_narratives{suffix}.jsonl", data, data)


def vqav2(pool: Pool) -> Iterator[File]:
    """The official pair of questions and annotations, two questions an image; of ``test`` the questions only."""
    asked: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, scene in pool:
        rng = pool.rng("questions", image_id)
        for k, question in enumerate(questions(scene, rng, QUESTIONS_PER_IMAGE)):
            ids = {"image_id": image_id, "question_id": image_id * 1000 + k}
            asked.append({**ids, "question": question.text})
            annotations.append(
                {
                    **ids,
                    "question_type": question.question_type,
                    "answer_type": question.answer_type,
                    "multiple_choice_answer": question.answer,
                    "answers": annotators(question, rng),
                }
            )
    subset = {"train": "train2014", "val": "val2014", "test": "test2015"}[pool.part]
    head = {
        "info": {"description": SOURCE, "version": WORLD},
        "license": {"name": "Apache License 2.0"},
        "data_type": "mscoco",
        "data_subtype": subset,
    }
    questions_record = {**head, "task_type": "Open-Ended", "questions": asked}
    yield json_file(f"v2_OpenEnded_mscoco_{subset}_questions.json", questions_record)
    if pool.part != "test":
        yield json_file(f"v2_mscoco_{subset}_annotations.json", {**head, "annotations": annotations})


def mmbench(pool: Pool) -> Iterator[File]:
    """``MMBench_DEV_EN.tsv``: three questions for five images, categories in turn, circular copies; no answers in ``test``."""
    split = {"train": "train", "val": "dev", "test": "test"}[pool.part]
    columns = [c for c in MMBENCH_COLUMNS if not (c == "answer" and split == "test")]
    data, identity = io.StringIO(), io.StringIO()
    tables = [csv.DictWriter(f, columns, delimiter="\t", lineterminator="\n", restval="") for f in (data, identity)]
    for table in tables:
        table.writeheader()

    def asked(scene: Scene, number: int, wanted: int) -> Choice | None:
        return choice(scene, pool.rng("choice", number), tuple(CATEGORIES)[wanted % len(CATEGORIES)])

    for index, (scene, item) in enumerate(_suited(pool, asked, questions_of(pool.n)), 1):
        pixels = render(scene)
        image = base64.b64encode(_png(pixels)).decode()
        for k, copy in enumerate(circular(item)):
            row = {
                "index": index + k * CIRCULAR_STEP,
                "question": copy.question,
                "hint": copy.hint,
                **dict(zip(LETTERS, copy.options, strict=False)),
                "answer": LETTERS[copy.answer],
                "category": copy.category,
                "source": SOURCE,
                "l2-category": CATEGORIES[copy.category],
                "split": split,
            }
            row = {column: value for column, value in row.items() if column in columns}
            tables[0].writerow({**row, "image": index if k else image})
            tables[1].writerow({**row, "image": index if k else pixels.tobytes().hex()})
    yield File(f"MMBench_{split.upper()}_EN.tsv", data.getvalue().encode(), identity.getvalue().encode())


def mmvet(pool: Pool) -> Iterator[File]:
    """``mm-vet.json`` and its images ``images/v1_0.png`` …, three questions for five images, of all kinds in turn."""
    record: dict[str, dict[str, Any]] = {}

    def asked(scene: Scene, number: int, wanted: int) -> OpenQuestion | None:
        return open_question(scene, pool.rng("open question", number), wanted % KINDS)

    for index, (scene, question) in enumerate(_suited(pool, asked, questions_of(pool.n))):
        record[f"v1_{index}"] = {
            "imagename": f"v1_{index}.png",
            "question": question.text,
            "answer": question.answer,
            "imagesource": SOURCE,
            "capability": list(question.capability),
        }
        yield image(f"images/v1_{index}.png", scene)
    yield json_file("mm-vet.json", record)


BENCHMARK_FORMATS: Mapping[str, Callable[[Pool], Iterator[File]]] = {
    "coco": coco,
    "localized_narratives": localized_narratives,
    "vqav2": vqav2,
    "mmbench": mmbench,
    "mmvet": mmvet,
}


def _suited(pool: Pool, ask: Callable[[Scene, int, int], T | None], count: int) -> Iterator[tuple[Scene, T]]:
    """``count`` scenes with their questions, the kinds in turn: a scene that does not allow the kind due is passed over."""
    numbers = itertools.count()
    for wanted in range(count):
        for number in numbers:
            scene = draw_scene(pool.part, number, pool.seed)
            question = ask(scene, number, wanted)
            if question is not None:
                yield scene, question
                break


def _narratives(scene: Scene, rng: Rng) -> Iterator[list[str]]:
    while True:
        yield narrative(scene, rng)


def _narrative(part: str, image_id: int, scene: Scene, number: int, sentences: list[str], rng: Rng) -> dict[str, Any]:
    """One line: sentences are utterances, and while a thing is named the pointer circles it."""
    timed: list[dict[str, Any]] = []
    traces: list[list[dict[str, float]]] = []
    now = 0.0
    for i, sentence in enumerate(sentences):
        end = round(now + SECONDS_PER_WORD * len(sentence.split()), 2)
        timed.append({"utterance": sentence, "start_time": now, "end_time": end})
        if 0 < i <= len(scene.things):
            thing = scene.things[i - 1]
            x, y = CENTRES[thing.column] + scene.shift[0], CENTRES[thing.row] + scene.shift[1]
            around = ((-8, -8), (8, -8), (8, 8), (-8, 8), (-8, -8))
            step = (end - now) / (len(around) - 1)
            traces.append(
                [
                    {"x": round((x + dx) / SIDE, 4), "y": round((y + dy) / SIDE, 4), "t": round(now + j * step, 3)}
                    for j, (dx, dy) in enumerate(around)
                ]
            )
        now = end
    return {
        "dataset_id": f"mscoco_{part}2017",
        "image_id": str(image_id),
        "annotator_id": 2 * rng.below(40) + number,
        "caption": " ".join(sentences),
        "timed_caption": timed,
        "traces": traces,
        "voice_recording": "",
    }


def _name(image_id: int) -> str:
    return f"{image_id:012d}.png"


def image_path(part: str, image_id: int) -> str:
    """Where an image lies in the folder that is written."""
    return f"{part}2017/{_name(image_id)}"


def image(path: str, scene: Scene) -> File:
    """A scene as PNG."""
    pixels = render(scene)
    return File(path, _png(pixels), pixels.tobytes())


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def json_file(path: str, record: object) -> File:
    """A record as one line of JSON."""
    data = f"{json.dumps(record)}\n".encode()
    return File(path, data, data)
