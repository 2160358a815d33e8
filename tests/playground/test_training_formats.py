"""Training formats: readable as the formats they are, true to their scenes, worded as the benchmarks, written only on request."""

from __future__ import annotations

import base64
import csv
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dreambench.documents import document_text
from dreambench.judges.base import contained_fraction
from dreambench.spec import RunSpec
from dreambench_tasks.mmbench.scoring import extract_choice
from dreambench_tasks.mmbench.task import MMBenchTask
from dreambench_tasks.playground import FORMATS, write
from dreambench_tasks.playground.conversations import (
    LETTER_PROMPT,
    SHORT_PROMPT,
    conversation,
    place_questions,
    yes_no_questions,
)
from dreambench_tasks.playground.formats import BENCHMARK_FORMATS
from dreambench_tasks.playground.language import PLACES, place
from dreambench_tasks.playground.open_questions import KINDS, open_question, reply
from dreambench_tasks.playground.render import render
from dreambench_tasks.playground.scene import BACKGROUNDS, Rng, Scene, draw_scene
from dreambench_tasks.playground.stories import story
from dreambench_tasks.vqav2.task import VQAv2Task

N = 40
TRAINING = ["pairs", "prompts", "conversations", "stories", "instructions"]
SCENES = [draw_scene("train", i) for i in range(500)]


@pytest.fixture(scope="module", params=["train", "test"])
def split(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def data(split: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("training") / split, split, N, seed=3, formats=TRAINING)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def shows(path: Path, scene: Scene) -> bool:
    with Image.open(path) as image:
        return np.array_equal(np.asarray(image), render(scene))


def test_pairs(data: Path, split: str) -> None:
    records = lines(data / f"pairs_{split}.jsonl")
    assert len(records) == 6 * N
    for index in range(N):
        scene = draw_scene(split, index, 3)
        own = records[6 * index : 6 * index + 6]
        (image,) = {record["image"] for record in own}
        assert shows(data / image, scene)
        assert len({record["caption"] for record in own}) == 6
        assert all(t.name in record["caption"] for record in own for t in scene.things)
        assert len(own[-1]["caption"].split()) >= 40  # the narrative


def test_prompts_are_short_and_name_every_object(data: Path, split: str) -> None:
    records = lines(data / f"prompts_{split}.jsonl")
    assert len(records) == 4 * N
    for number, record in enumerate(records):
        scene = draw_scene(split, number // 4, 3)
        assert shows(data / record["image"], scene)
        assert all(t.name in record["caption"] for t in scene.things)
        assert not record["caption"].endswith(".")
    assert {any(ground in record["caption"] for ground in BACKGROUNDS) for record in records} == {True, False}


def test_conversations_are_llavas(data: Path, split: str) -> None:
    records = json.loads((data / f"conversations_{split}.json").read_text(encoding="utf-8"))
    assert len({record["id"] for record in records}) == len(records) == N
    for index, record in enumerate(records):
        assert set(record) == {"id", "image", "conversations"}
        assert shows(data / record["image"], draw_scene(split, index, 3))
        said = record["conversations"]
        assert [turn["from"] for turn in said] == ["human", "gpt"] * (len(said) // 2)
        assert 1 <= len(said) // 2 <= 12
        assert [turn["value"].count("<image>") for turn in said] == [1, *[0] * (len(said) - 1)]
        assert said[0]["value"].startswith("<image>")
    assert {record["conversations"][0]["value"].startswith("<image>\n") for record in records} == {True, False}


def test_documents_are_mmc4s_and_their_images_are_the_stories(data: Path, split: str) -> None:
    for name in ("stories", "instructions"):
        records = lines(data / f"{name}_{split}.jsonl")
        assert len({record["url"] for record in records}) == len(records) == N
        for index, record in enumerate(records):
            scenes = story(split, index, 3).scenes
            assert ("instruction" in record) == (name == "instructions")
            matrix = record["similarity_matrix"]
            assert len(matrix) == len(record["image_info"]) <= len(scenes)
            for info, scene, row in zip(record["image_info"], scenes, matrix, strict=False):
                assert shows(data / "stories" / info["image_name"], scene)
                assert len(row) == len(record["text_list"])
                assert row[info["matched_text_index"]] == info["matched_sim"] == 1.0
    images = list((data / "stories").iterdir())
    assert len(images) == sum(len(story(split, i, 3).scenes) for i in range(N))


def test_training_formats_are_written_only_on_request(tmp_path: Path) -> None:
    manifest = json.loads((write(tmp_path / "a", n=3) / "manifest.json").read_text(encoding="utf-8"))
    benchmarks = ["coco", "localized_narratives", "vqav2", "mmbench", "mmvet"]
    assert manifest["formats"] == benchmarks == list(BENCHMARK_FORMATS)
    assert list(FORMATS) == [*benchmarks, *TRAINING, "documents"]
    only = write(tmp_path / "b", n=3, formats=["stories"])
    assert {path.name for path in only.iterdir()} == {"manifest.json", "stories", "stories_val.jsonl"}


def turns(count: int = 1) -> list[tuple[Scene, str, str]]:
    return [
        (scene, turn.question, turn.answer)
        for k in range(count)
        for i, scene in enumerate(SCENES)
        for turn in conversation(scene, Rng("test", k, i))
    ]


def test_conversations_have_every_kind_of_turn() -> None:
    asked = [text for _, text, _ in turns()]
    kinds = Counter(
        "short" if text.endswith(SHORT_PROMPT) else "choice" if text.endswith(LETTER_PROMPT) else "free"
        for text in asked
    )
    assert kinds["short"] > 0.2 * len(asked)
    assert kinds["choice"] > 0.08 * len(asked)
    assert kinds["free"] > 0.3 * len(asked)  # questions of one word without the benchmarks' prompt, too
    places = [words for row in PLACES for words in row]
    assert sum(text.startswith("Where") or any(f"the {p}" in text for p in places) for text in asked) > 0.2 * len(asked)
    lengths = {len(conversation(scene, Rng("test", 0, i))) for i, scene in enumerate(SCENES)}
    assert lengths <= set(range(1, 13))
    assert max(lengths) == 12


def test_questions_about_places_are_about_two_objects_and_answered_truly() -> None:
    kinds: Counter[bool] = Counter()
    for i, scene in enumerate(scene for scene in SCENES if len(scene.things) > 1):
        at = {place(thing): thing for thing in scene.things}
        asked = [
            (turn.question.split("?")[0].split("in the ")[1], turn) for turn in place_questions(scene, Rng("test", i))
        ]
        assert len({words for words, _ in asked}) == 2
        for words, turn in asked:
            colour = turn.question.startswith("What color")
            kinds[colour] += 1
            assert turn.answer == (at[words].colour if colour else at[words].name)
    assert min(kinds.values()) > 0.4 * kinds.total()


def test_whether_a_color_or_a_shape_occurs_is_answered_truly_and_as_often_yes_as_no() -> None:
    found: Counter[str] = Counter()
    for i, scene in enumerate(SCENES):
        for question, answer in yes_no_questions(scene, Rng("test", i)):
            assert answer in ("yes", "no")
            if asked := re.match(r"Is there an? (\w+)( shape)?\?", question):
                shown = {t.colour if asked[2] else t.shape for t in scene.things}
                assert answer == ("yes" if asked[1] in shown else "no")
                found[answer] += 1
            elif asked := re.match(r"Is the background (\w+)\?", question):
                assert answer == ("yes" if asked[1] == scene.background else "no")
                found["background"] += 1
    assert found.pop("background") > 100
    assert 0.45 < found["yes"] / found.total() < 0.55
    assert found.total() > 200


def test_dense_questions_have_true_answers() -> None:
    places = {name for row in PLACES for name in row}
    found: Counter[str] = Counter()
    for scene, asked, answer in turns(4):
        where = re.search(r"in the ((?:top |middle |bottom )?\w+)\?\n", asked)
        if not asked.endswith(SHORT_PROMPT) or where is None or where[1] not in places:
            continue
        there = [t for t in scene.things if place(t) == where[1]]
        if asked.startswith("What is in the"):
            found["nothing" if answer == "nothing" else "named"] += 1
            assert answer == (there[0].name if there else "nothing")
        elif asked.startswith("Is there a shape"):
            found[answer] += 1
            assert answer == ("yes" if there else "no")
        else:
            (thing,) = there
            assert answer in (thing.colour, thing.shape, thing.size)
            found["attribute"] += 1
    assert min(found.values()) > 10
    assert set(found) == {"nothing", "named", "yes", "no", "attribute"}
    assert found["nothing"] < found["named"]  # always answering "nothing" must not score well


def test_prompts_are_those_of_the_tasks() -> None:
    assert VQAv2Task.presets["default"]["prompt"] == SHORT_PROMPT
    assert MMBenchTask.presets["default"]["prompt"] == LETTER_PROMPT


def test_choices_are_formatted_as_the_task_does(tmp_path: Path) -> None:
    asked = list({text: answer for _, text, answer in turns() if text.endswith(LETTER_PROMPT)}.items())
    buffer = tmp_path / "q.png"
    Image.fromarray(render(SCENES[0])).save(buffer)
    image = base64.b64encode(buffer.read_bytes()).decode()
    with (tmp_path / "MMBench_DEV_EN.tsv").open("w", newline="", encoding="utf-8") as file:
        columns = ["index", "question", "hint", *"ABCDE", "answer", "category", "image", "source", "l2-category"]
        table = csv.DictWriter(file, [*columns, "comment", "split"], delimiter="\t", lineterminator="\n", restval="")
        table.writeheader()
        for index, (text, answer) in enumerate(asked, 1):
            *head, question = text.removesuffix(LETTER_PROMPT).split("\nA. ")[0].split("\n")
            options = dict(re.findall(r"\n([A-E])\. ([^\n]+)", text))
            (letter,) = (letter for letter, option in options.items() if option == answer)
            # The rules decide unless another option is a part of this one, as "center" is of "top center".
            parts = [option for option in options.values() if option in answer]
            assert extract_choice(answer, options).letter == (letter if parts == [answer] else None)
            row = {"index": index, "question": question, "hint": "\n".join(head), **options, "answer": letter}
            table.writerow({**row, "category": "c", "l2-category": "l", "image": image, "split": "dev"})
    task = MMBenchTask(RunSpec(task="mmbench", data=tmp_path))
    said = [document_text(task.request(sample).document) for sample in task.samples()]
    assert said == [text for text, _ in asked]


@pytest.mark.parametrize("kind", range(KINDS))
def test_replies_to_open_questions_get_full_marks(kind: int) -> None:
    asked = 0
    for i, scene in enumerate(SCENES):
        question = open_question(scene, Rng("test", i), kind)
        if question is not None:
            asked += 1
            said = reply(scene, question, Rng("reply", i))
            assert contained_fraction(question.answer, said) == 1.0
            assert "<" not in said
    assert asked > 50


def test_training_reads_every_format_and_prompts_as_the_tasks_do(tmp_path: Path) -> None:
    from dreamllm import presets
    from dreamllm.data import training_dataset

    data = write(tmp_path / "train", "train", N, seed=3, formats=TRAINING)
    _, processor = presets.build("tiny", seed=0)

    def samples(kind: str, file: str, images: str = ".") -> list[Any]:
        source = {"kind": kind, "path": str(data / file), "images": str(data / images)}
        recipe = {"sources": [source], "cache": str(tmp_path / "cache"), "max_length": 2048}
        dataset = training_dataset(recipe, processor)
        samples = [dataset[index] for index in range(len(dataset))]
        assert dataset.broken.entries() == []
        return samples

    assert len(samples("pairs", "pairs_train.jsonl")) == 6 * N
    assert len(samples("pairs", "prompts_train.jsonl")) == 4 * N
    images = sum(len(story("train", i, 3).scenes) for i in range(N))
    told = samples("mmc4", "stories_train.jsonl", "stories")
    assert sum(len(sample.targets) for sample in told) == sum(len(sample.images) for sample in told) == images
    assert len(samples("instructions", "instructions_train.jsonl", "stories")) == N
    asked = samples("conversations", "conversations_train.json")
    assert [len(sample.images) for sample in asked] == [1] * N
    records = json.loads((data / "conversations_train.json").read_text(encoding="utf-8"))
    prompts = {
        tuple(processor.expand(processor.tokenizer(processor.apply_chat_template([message]))["input_ids"]))
        for record in records
        for message in [{"role": "user", "content": record["conversations"][0]["value"]}]
    }
    for sample in asked:
        learnt = next(index for index, label in enumerate(sample.labels) if label >= 0)
        assert tuple(sample.input_ids[:learnt]) in prompts
