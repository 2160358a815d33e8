"""The files are readable by the usual loaders and show the scenes that they describe."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pycocotools.coco import COCO

from dreambench_tasks.playground import write
from dreambench_tasks.playground.choices import CATEGORIES
from dreambench_tasks.playground.render import SIDE, render
from dreambench_tasks.playground.scene import draw_scene

N = 60


@pytest.fixture(scope="module", params=["train", "val", "test"])
def split(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def data(split: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("playground") / split, split, N, seed=3)


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def pixels(path: Path | io.BytesIO) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def test_coco_captions(data: Path, split: str) -> None:
    coco = COCO(data / "annotations" / f"captions_{split}2017.json")
    assert coco.getImgIds() == list(range(1, N + 1))
    for image_id in coco.getImgIds():
        record = coco.loadImgs(image_id)[0]
        image = pixels(data / f"{split}2017" / record["file_name"])
        assert image.shape == (record["height"], record["width"], 3) == (SIDE, SIDE, 3)
        scene = draw_scene(split, image_id - 1, 3)
        assert np.array_equal(image, render(scene))
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
        assert len(annotations) == 5
        assert all(t.name in a["caption"] for a in annotations for t in scene.things)


def test_localized_narratives(data: Path, split: str) -> None:
    suffix = "-00000-of-00001" if split == "train" else ""
    text = (data / f"coco_{split}_localized_narratives{suffix}.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert {int(line["image_id"]) for line in lines} == set(range(1, N + 1))
    assert N < len(lines) < 2 * N
    for line in lines:
        keys = {"dataset_id", "image_id", "annotator_id", "caption", "timed_caption", "traces", "voice_recording"}
        assert set(line) == keys
        assert " ".join(u["utterance"] for u in line["timed_caption"]) == line["caption"]
        times = [t for u in line["timed_caption"] for t in (u["start_time"], u["end_time"])]
        assert times == sorted(times)
        scene = draw_scene(split, int(line["image_id"]) - 1, 3)
        assert len(line["traces"]) == len(scene.things)
        assert all(0 <= point[axis] <= 1 for trace in line["traces"] for point in trace for axis in "xy")
    captions = [(line["image_id"], line["caption"]) for line in lines]
    assert len(set(captions)) == len(captions)


def test_vqav2(data: Path, split: str) -> None:
    subset = {"train": "train2014", "val": "val2014", "test": "test2015"}[split]
    questions = load(data / f"v2_OpenEnded_mscoco_{subset}_questions.json")["questions"]
    assert len(questions) == 2 * N
    assert {q["image_id"] for q in questions} == set(range(1, N + 1))
    assert all(set(q) == {"image_id", "question_id", "question"} for q in questions)
    annotations = data / f"v2_mscoco_{subset}_annotations.json"
    assert annotations.exists() == (split != "test")
    if split == "test":
        return
    answers = load(annotations)["annotations"]
    assert [(a["question_id"], a["image_id"]) for a in answers] == [
        (q["question_id"], q["image_id"]) for q in questions
    ]
    assert len({a["question_id"] for a in answers}) == 2 * N
    for a in answers:
        assert len(a["answers"]) == 10
        texts = [x["answer"] for x in a["answers"]]
        assert max(set(texts), key=texts.count) == a["multiple_choice_answer"]


def test_mmbench(data: Path, split: str) -> None:
    name = {"train": "train", "val": "dev", "test": "test"}[split]
    table = pd.read_csv(data / f"MMBench_{name.upper()}_EN.tsv", sep="\t", keep_default_na=False)
    assert ("answer" in table) == (split != "test")
    assert set(table["split"]) == {name}
    assert table["index"].is_unique
    base = table[table["index"] < 1_000_000]
    assert len(base) == N * 3 // 5
    assert set(base["category"]) == set(CATEGORIES)
    by_index = {int(row["index"]): row for row in table.to_dict("records")}
    for row in base.to_dict("records"):
        options = [row[letter] for letter in "ABCDE" if row[letter]]
        image = pixels(io.BytesIO(base64.b64decode(row["image"], validate=True)))
        assert any(np.array_equal(image, render(draw_scene(split, i, 3))) for i in range(N))
        copies = [i for i in by_index if i % 1_000_000 == row["index"]]
        assert len(copies) == len(options)
        for index in copies:
            copy, k = by_index[index], index // 1_000_000
            assert copy["image"] == (row["image"] if k == 0 else str(row["index"]))
            assert (copy["question"], copy["hint"]) == (row["question"], row["hint"])
            rotated = [copy[letter] for letter in "ABCDE" if copy[letter]]
            assert rotated == options[len(options) - k :] + options[: len(options) - k]
            if split != "test":
                assert copy[copy["answer"]] == row[row["answer"]]


def test_mmvet(data: Path) -> None:
    record = load(data / "mm-vet.json")
    assert list(record) == [f"v1_{i}" for i in range(N * 3 // 5)]
    for question in record.values():
        assert set(question) == {"imagename", "question", "answer", "imagesource", "capability"}
        assert pixels(data / "images" / question["imagename"]).shape == (SIDE, SIDE, 3)
        assert question["capability"]
        assert question["answer"]
