"""VQAv2 from files to scores: prompts, images, protocols, answers that are missing, references that are held back."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from benchmarks import vqa_oracle
from PIL import Image as PILImage

import dreambench
from dreambench.api import Result, execute, score_run
from dreambench.documents import Image, Text
from dreambench.errors import DataError
from dreambench.interfaces import Model, ModelOptions
from dreambench.requests import Request, Response
from dreambench.spec import RunSpec
from dreambench_tasks.vqav2.scoring import RULES, accuracy, percent, rounded
from dreambench_tasks.vqav2.task import VQAv2Task, clip_answer

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "vqa_v2_subset" / "train"
PROTOCOLS = ["official", "normalised", "dreamllm-evaluator"]
WORDS = ["red", "Two", "a dog", "on the table", "yes", "it's", "1,000"]


def annotation(number: int) -> dict[str, Any]:
    rng = random.Random(number)
    pool = WORDS[:1] if number % 4 == 0 else rng.sample(WORDS, 3)
    return {
        "question_id": number,
        "image_id": number // 3,
        "question_type": ["what is", "how many", "is the"][number % 3],
        "answer_type": ["other", "number", "yes/no"][number % 3],
        "answers": [{"answer": rng.choice(pool), "answer_id": place} for place in range(10)],
    }


ANNOTATIONS = [annotation(number) for number in range(40)]
ANSWERS = {
    number: random.Random(-number - 1).choice([*WORDS, "Red", "the RED.", "red, or two"]) for number in range(40)
}
# Of every fourth question all references say "red".
ANSWERS |= dict.fromkeys(range(0, 20, 4), "Red")


class Constant(Model):
    """Gives one answer to everything."""

    capabilities = frozenset({"generate_text"})
    sees = False

    def identity(self) -> Mapping[str, object]:
        return {"name": "constant"}

    def answer(self, requests: Sequence[Request]) -> Iterator[Response]:
        for request in requests:
            yield Response(request.id, (Text('RED, "perhaps".'),))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    questions = [
        {"question_id": one["question_id"], "image_id": one["image_id"], "question": f"What is {one['question_id']}?"}
        for one in ANNOTATIONS
    ]
    (data / "questions.json").write_text(json.dumps({"questions": questions}))
    (data / "annotations.json").write_text(json.dumps({"annotations": ANNOTATIONS}))
    return data


def results(path: Path, answers: dict[int, str]) -> str:
    path.write_text(json.dumps([{"question_id": id_, "answer": text} for id_, text in answers.items()]))
    return f"responses:{path}"


def headline(result: Result) -> dict[str, dreambench.Score]:
    return {score.protocol.partition("@")[0]: score for score in result.scores if score.group is None}


def accuracies(protocol: str) -> dict[int, float]:
    """The accuracy of each of `ANSWERS`."""
    return {
        one["question_id"]: accuracy(
            [a["answer"] for a in one["answers"]], ANSWERS[one["question_id"]], RULES[protocol]
        )
        for one in ANNOTATIONS
    }


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.new("RGB", (8, 8), (200, 10, 10)).save(path)


def test_several_protocols_from_the_same_answers_each_equal_to_its_rule(folder: Path, tmp_path: Path) -> None:
    model = results(tmp_path / "answers.json", ANSWERS)
    result = dreambench.run("vqav2", model, data=folder, protocol=PROTOCOLS, out=tmp_path / "runs")
    rows = pd.read_parquet(result.folder / "scores.parquet")
    found = headline(result)
    assert list(found) == PROTOCOLS
    for number, name in enumerate(PROTOCOLS):
        expected = accuracies(name)
        column = "accuracy" if number == 0 else f"accuracy[{name}]"
        assert rows[column].tolist() == list(expected.values())
        assert found[name].value == percent(list(expected.values()))
        assert found[name].interval_method == "wilson, clustered by image"
        assert f"{rounded(found[name].value or 0, RULES[name]):.2f}" in found[name].notes[0]
        groups = {s.group: s.value for s in result.scores if s.group and s.protocol.startswith(name)}
        assert groups == {
            f"{kind}={value}": percent([expected[one["question_id"]] for one in ANNOTATIONS if one[kind] == value])
            for kind in ("answer_type", "question_type")
            for value in {one[kind] for one in ANNOTATIONS}
        }
    assert len({found[name].value for name in PROTOCOLS}) == 3
    assert {"id", "image_id", "question_type", "answer_type", "answer"} <= set(rows.columns)


def test_a_question_without_an_answer_is_counted_and_bounded_not_scored(folder: Path, tmp_path: Path) -> None:
    given = {number: text for number, text in ANSWERS.items() if number % 5}
    result = dreambench.run("vqav2", results(tmp_path / "a.json", given), data=folder, out=tmp_path / "runs")
    score = headline(result)["official"]
    expected = [value for number, value in accuracies("official").items() if number in given]
    assert (score.n, score.unscored, score.value) == (32, 8, percent(expected))
    total = sum(expected)
    assert score.bounds == pytest.approx((100 * total / 40, 100 * (total + 8) / 40))
    assert sum(s.unscored for s in result.scores if s.group and s.group.startswith("answer_type")) == 8
    assert result.errors == 8
    assert pd.read_parquet(result.folder / "scores.parquet")["accuracy"].isna().sum() == 8


def test_scoring_again_needs_no_data(folder: Path, tmp_path: Path) -> None:
    result = dreambench.run("vqav2", results(tmp_path / "a.json", ANSWERS), data=folder, out=tmp_path / "runs")
    before = (result.folder / "metrics.json").read_bytes()
    (result.folder / "metrics.json").unlink()
    shutil.rmtree(folder)
    score_run(result.folder)
    assert (result.folder / "metrics.json").read_bytes() == before


def test_records_that_are_equal_without_ids_and_the_annotations_order_survive_in_the_run(
    folder: Path, tmp_path: Path
) -> None:
    """What scoring needs beyond the answers' texts: which records are left out together, and the order of summation."""
    file = folder / "annotations.json"
    stripped = [one | {"answers": [{"answer": a["answer"]} for a in one["answers"]]} for one in reversed(ANNOTATIONS)]
    file.write_text(json.dumps({"annotations": stripped}))
    result = dreambench.run("vqav2", results(tmp_path / "a.json", ANSWERS), data=folder, out=tmp_path / "runs")
    expected = vqa_oracle.evaluate(stripped, ANSWERS)
    assert pd.read_parquet(result.folder / "scores.parquet")["accuracy"].tolist() == expected[::-1]
    assert result.scores[0].value == percent(expected)


def test_images_are_found_by_coco_id_and_a_missing_one_is_named_before_any_request(
    folder: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    for number in range(0, 13):
        image(photos / "val2014" / f"COCO_val2014_{number:012d}.jpg")
    with pytest.raises(DataError, match=r"1 of 14 images are missing, the first .*000000000013.jpg.*--images"):
        dreambench.run("vqav2", "echo", data=folder, images=photos, out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    few = dreambench.run("vqav2", "echo", data=folder, images=photos, limit=39, out=tmp_path / "runs")
    assert few.scores[0].n == 39
    image(photos / "val2017" / "000000000013.png")
    assert dreambench.run("vqav2", "echo", data=folder, images=photos, out=tmp_path / "runs").scores[0].n == 40


@pytest.mark.parametrize(("limit", "n"), [(1, 3), (3, 3), (4, 6), (38, 39), (40, 40), (99, 40)])
def test_a_limit_cuts_no_image(folder: Path, limit: int, n: int) -> None:
    task = VQAv2Task(RunSpec(task="vqav2", data=folder))
    samples = list(task.samples())
    assert list(task.first(samples, limit)) == samples[:n]
    scattered = samples[::2] + samples[1::2]
    taken = task.first(scattered, limit)
    assert list(taken[:limit]) == scattered[:limit]
    whole = {sample.group for sample in scattered[:limit]}
    assert {sample.id for sample in taken} == {sample.id for sample in samples if sample.group in whole}


def test_the_prompts(folder: Path) -> None:
    task = VQAv2Task(RunSpec(task="vqav2", data=folder))
    sample = list(task.samples())[7]
    request = task.request(sample)
    image, text = request.document
    assert isinstance(image, Image)
    assert text == Text("What is 7?\nAnswer the question using a single word or phrase.")
    assert request.settings == {"max_new_tokens": 16, "num_beams": 1}
    assert request.group == "2"
    published = VQAv2Task(RunSpec(task="vqav2", data=folder, generation=("dreamllm",))).request(sample)
    assert published.document == (
        Text("Based on the image, please answer the question."),
        image,
        Text("What is 7?Please provide an accurate answer within one word."),
    )
    assert published.settings == {
        "max_new_tokens": 1024,
        "num_beams": 5,
        "assistant_prefix": "The short answer '(one word)' is:",
    }


def test_the_published_finish_of_an_answer_belongs_to_its_preset(folder: Path, tmp_path: Path) -> None:
    assert clip_answer('"Red". It is, or so') == "red it is"
    model = Constant(ModelOptions("constant"))
    plain, clipped = (
        execute(RunSpec(task="vqav2", model="echo", data=folder, generation=preset), tmp_path, model=model)
        for preset in ((), ("dreamllm",))
    )
    assert set(pd.read_parquet(plain.folder / "scores.parquet")["answer"]) == {'RED, "perhaps".'}
    assert set(pd.read_parquet(clipped.folder / "scores.parquet")["answer"]) == {"red"}


def test_held_back_references_leave_an_upload_instead_of_a_score(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "test"
    data.mkdir()
    shutil.copy(folder / "questions.json", data / "v2_OpenEnded_mscoco_test-dev2015_questions.json")
    model = results(tmp_path / "a.json", ANSWERS)
    result = dreambench.run("vqav2", model, data=data, out=tmp_path / "runs")
    assert result.scores == []
    assert result.metrics is not None
    assert "evalai.json" in " ".join(result.metrics["notes"])
    assert json.loads((result.folder / "evalai.json").read_text()) == [
        {"question_id": number, "answer": ANSWERS[number]} for number in range(40)
    ]
    partly = dreambench.run("vqav2", results(tmp_path / "b.json", {1: "red"}), data=data, out=tmp_path / "runs")
    assert not (partly.folder / "evalai.json").exists()
    assert partly.metrics is not None
    assert "39 questions ended in an error" in " ".join(partly.metrics["notes"])


@pytest.mark.skipif(not REAL.is_dir(), reason="the real questions are not beside this checkout")
def test_every_real_question_equals_the_plain_rule(tmp_path: Path) -> None:
    annotations = json.loads(gzip.decompress((REAL / "annotations.json.gz").read_bytes()))["annotations"]
    rng = random.Random(0)
    spoil = [
        str,
        str.upper,
        str.title,
        "the {}".format,
        "{}.".format,
        "{}, maybe".format,
        " {}\n".format,
        "a-{}".format,
    ]
    answers = {one["question_id"]: rng.choice(spoil)(rng.choice(one["answers"])["answer"]) for one in annotations}
    result = dreambench.run("vqav2", results(tmp_path / "a.json", answers), data=REAL, out=tmp_path / "runs")
    rows = pd.read_parquet(result.folder / "scores.parquet").set_index("id")["accuracy"]
    expected = vqa_oracle.evaluate(annotations, answers)
    assert len(expected) > 40_000
    assert [rows[str(one["question_id"])] for one in annotations] == expected
