"""MM-Vet: the aggregation by its definition, what a missing grade does, and the files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from dreambench.errors import DataError
from dreambench_tasks.mmvet import data
from dreambench_tasks.mmvet.scoring import aggregate, integration_name

CAPABILITIES = {"v1_0": ("ocr", "math"), "v1_1": ("math", "ocr"), "v1_2": ("ocr",), "v1_3": ("rec",)}
GRADES: dict[str, list[float | None]] = {"v1_0": [1.0, 0.5], "v1_1": [0.0, 0.5], "v1_2": [0.4, 0.6], "v1_3": [1.0, 1.0]}
NAMES = some.lists(
    some.sampled_from(["rec", "ocr", "know", "gen", "spat", "math"]), min_size=1, max_size=4, unique=True
)
TENTHS = some.integers(0, 10).map(lambda tenth: tenth / 10)


def test_a_known_set() -> None:
    scores = aggregate(CAPABILITIES, GRADES, 2)
    assert scores.total.per_run == pytest.approx((60.0, 65.0))
    assert scores.total.value == pytest.approx(62.5)
    assert scores.std == pytest.approx(2.5)
    assert scores.capabilities["ocr"].value == pytest.approx(50.0)
    assert scores.capabilities["math"].n == 2
    assert {name: group.n for name, group in scores.integrations.items()} == {"math_ocr": 2, "ocr": 1, "rec": 1}
    assert list(scores.capabilities) == ["ocr", "math", "rec"]


@given(
    some.lists(some.tuples(NAMES, some.lists(TENTHS, min_size=3, max_size=3)), min_size=1, max_size=30), some.randoms()
)
def test_groups_partition_and_order_does_not_matter(items: list[tuple[list[str], list[float]]], random: Any) -> None:
    capabilities = {f"v1_{number}": names for number, (names, _) in enumerate(items)}
    grades = {f"v1_{number}": given for number, (_, given) in enumerate(items)}
    scores = aggregate(capabilities, grades, 3)
    weighted = sum((group.value or 0) * group.n for group in scores.integrations.values()) / len(items)
    assert weighted == pytest.approx(scores.total.value)
    assert scores.total.value == pytest.approx(100 * np.mean([given for _, given in items]))
    for name, group in scores.capabilities.items():
        assert group.value == pytest.approx(100 * np.mean([given for names, given in items if name in names]))
    assert (scores.total.lower, scores.total.upper) == pytest.approx((scores.total.value, scores.total.value))
    mixed = list(grades.items())
    random.shuffle(mixed)
    assert aggregate(capabilities, dict(mixed), 3).total.value == pytest.approx(scores.total.value)


@given(some.lists(some.lists(some.none() | TENTHS, min_size=2, max_size=2), min_size=1, max_size=12))
def test_missing_grades_are_counted_and_bounded_never_zero(graded: list[list[float | None]]) -> None:
    capabilities = {f"v1_{number}": ("rec",) for number in range(len(graded))}
    scores = aggregate(capabilities, {f"v1_{number}": given for number, given in enumerate(graded)}, 2)
    total, missing = scores.total, sum(grade is None for given in graded for grade in given)
    assert total.unscored == missing
    filled = [
        aggregate(
            capabilities, {f"v1_{n}": [fill if g is None else g for g in given] for n, given in enumerate(graded)}, 2
        ).total.value
        for fill in (0.0, 1.0)
    ]
    assert (total.lower, total.upper) == pytest.approx(filled)
    assert scores.question_means == {
        f"v1_{number}": pytest.approx(np.mean([g for g in given if g is not None])) if given != [None, None] else None
        for number, given in enumerate(graded)
    }


def test_a_question_without_any_grade_is_unscored() -> None:
    scores = aggregate(CAPABILITIES, {"v1_0": [0.5], "v1_2": [0.7]}, 1)
    assert scores.total.unscored == 2
    assert scores.total.value == pytest.approx(60)
    assert (scores.capabilities["rec"].value, scores.capabilities["rec"].lower, scores.capabilities["rec"].upper) == (
        None,
        0,
        100,
    )


def test_only_the_first_runs_count() -> None:
    assert aggregate(CAPABILITIES, GRADES, 1).total.per_run == pytest.approx((60.0,))


def test_grades_of_no_question_are_an_error() -> None:
    with pytest.raises(DataError, match="1 grade belongs to no question, for instance v1_99"):
        aggregate(CAPABILITIES, {**GRADES, "v1_99": [1.0]}, 1)


def test_an_integration_is_a_set() -> None:
    assert integration_name(["spat", "ocr", "spat"]) == "ocr_spat"


ENTRY = {
    "imagename": "v1_0.png",
    "question": "what?",
    "answer": "-1<AND>-5",
    "imagesource": "here",
    "capability": ["ocr", "math"],
}


@pytest.mark.parametrize("name", ["mm-vet.json", "mm-vet.json.gz"])
def test_the_official_file_loads(tmp_path: Path, name: str) -> None:
    text = json.dumps({"v1_0": ENTRY}).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    (sample,) = data.load(tmp_path)
    assert sample == data.Question("v1_0", tmp_path / "images" / "v1_0.png", "what?", "-1<AND>-5", ("ocr", "math"))
    assert data.load(tmp_path, images=tmp_path / "photos")[0].image == tmp_path / "photos" / "v1_0.png"
    assert data.read_capabilities(tmp_path / name) == {"v1_0": ("ocr", "math")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"imagename": "../secret.png"}, "not a plain file name"),
        ({"imagename": ".."}, "not a plain file name"),
        ({"question": None}, "lacks an imagename, question or answer"),
        ({"capability": []}, "no list of capabilities"),
    ],
)
def test_malformed_questions_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "mm-vet.json").write_text(json.dumps({"v1_7": ENTRY | change}))
    with pytest.raises(DataError, match=f"v1_7.*{message}|{message}.*v1_7|v1_7 {message}"):
        data.load(tmp_path)


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not hold mm-vet\.json"):
        data.load(tmp_path)
    (tmp_path / "mm-vet.json").write_text("[]")
    with pytest.raises(DataError, match="not an object of questions"):
        data.load(tmp_path)
    (tmp_path / "mm-vet.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        data.load(tmp_path)


@pytest.mark.parametrize(
    "text",
    ['{"v1_0": "two\\nlines", "v1_1": ""}', '{"id": "v1_0", "text": "two\\nlines"}\n\n{"id": "v1_1", "text": ""}\n'],
)
def test_answers_are_read_in_both_formats(tmp_path: Path, text: str) -> None:
    (tmp_path / "answers").write_text(text)
    assert data.read_answers(tmp_path / "answers") == {"v1_0": "two\nlines", "v1_1": ""}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"v1_0": 3}', "v1_0 is not text but 3"),
        ('{"id": "v1_0", "text": "a"}\n{"id": "v1_0", "text": "b"}', "answered twice"),
        ('{"id": "v1_0", "text": "a"}\n{"id": "v1_0"}', "line 2"),
    ],
)
def test_malformed_answers_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "answers").write_text(text)
    with pytest.raises(DataError, match=message):
        data.read_answers(tmp_path / "answers")


def test_one_answer_in_json_lines(tmp_path: Path) -> None:
    (tmp_path / "answers").write_text('{"id": "v1_0", "text": "a"}')
    assert data.read_answers(tmp_path / "answers") == {"v1_0": "a"}


def test_grade_files_are_read_and_written(tmp_path: Path) -> None:
    grades = {"v1_0": [data.Grade("gpt-4", "0.5", 0.5), data.Grade("gpt-4", "what?", None)]}
    data.write_grades(tmp_path / "g.json", grades)
    assert data.read_grades(tmp_path / "g.json") == grades
    assert json.loads((tmp_path / "g.json").read_text())["v1_0"]["score"] == [0.5, None]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"score": 1}, "no list of scores"),
        ({"score": [2]}, "not numbers from 0 to 1"),
        ({"score": [True]}, "not numbers from 0 to 1"),
        ({"score": [float("nan")]}, "NaN is no finite number"),
        ({"score": [1], "model": []}, "not one model and content per score"),
    ],
)
def test_malformed_grades_are_named(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    (tmp_path / "g.json").write_text(json.dumps({"v1_0": entry}))
    with pytest.raises(DataError, match=message):
        data.read_grades(tmp_path / "g.json")
