"""VQAv2 files: the layouts users have, and each way in which two files can disagree."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from dreambench.errors import DataError, UsageError
from dreambench_tasks.vqav2 import data

QUESTIONS = [{"question_id": 10 * n, "image_id": n, "question": f"what is {n}?"} for n in (3, 1, 2)]


def annotation(number: int, **changes: Any) -> dict[str, Any]:
    answers = [{"answer": "cat", "answer_confidence": "yes", "answer_id": number} for number in range(1, 11)]
    named = {
        "question_id": 10 * number,
        "image_id": number,
        "question_type": "what",
        "answer_type": "other",
        "answers": answers,
    }
    return {**named, **changes}


ANNOTATIONS = [annotation(n) for n in (1, 2, 3)]


def write(path: Path, content: Any) -> None:
    text = json.dumps(content).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def folder(
    tmp_path: Path, questions: str = "questions.json", annotations: str | None = "annotations.json", **parts: Any
) -> Path:
    write(tmp_path / questions, {"questions": parts.get("listed", QUESTIONS)})
    if annotations:
        write(tmp_path / annotations, {"annotations": parts.get("annotated", ANNOTATIONS)})
    return tmp_path


@pytest.mark.parametrize(
    ("questions", "annotations", "split"),
    [
        ("questions.json", "annotations.json", "custom"),
        ("questions.json.gz", "annotations.json.gz", "custom"),
        ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json.gz", "val"),
        ("v2_OpenEnded_mscoco_train2014_questions.json", "v2_mscoco_train2014_annotations.json", "train"),
    ],
)
def test_official_and_plain_names_are_found(tmp_path: Path, questions: str, annotations: str, split: str) -> None:
    loaded = data.load(folder(tmp_path, questions, annotations))
    assert loaded.split == split
    pairs = list(loaded.pairs())
    assert [question.question_id for question, _ in pairs] == [30, 10, 20]
    assert [annotation and annotation.index for _, annotation in pairs] == [2, 0, 1]
    assert pairs[0][0] == data.Question(30, 3, "what is 3?")
    assert pairs[1][1] == data.Annotation(0, 10, 1, "what", "other", ("cat",) * 10)


def test_test_questions_have_no_references(tmp_path: Path) -> None:
    loaded = data.load(folder(tmp_path, "v2_OpenEnded_mscoco_test-dev2015_questions.json", None))
    assert loaded.split == "test-dev"
    assert [annotation for _, annotation in loaded.pairs()] == [None] * 3


def test_several_splits_must_be_chosen_from(tmp_path: Path) -> None:
    folder(tmp_path, "v2_OpenEnded_mscoco_test2015_questions.json", None)
    folder(tmp_path, "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json")
    with pytest.raises(UsageError, match="test, val: choose one with --split"):
        data.load(tmp_path)
    assert data.load(tmp_path, "val").annotation_file is not None
    with pytest.raises(UsageError, match="no split 'train'"):
        data.load(tmp_path, "train")


def test_a_split_without_its_annotations_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not v2_mscoco_val2014_annotations\.json"):
        data.load(folder(tmp_path, "v2_OpenEnded_mscoco_val2014_questions.json", None))
    with pytest.raises(DataError, match="is not a folder"):
        data.load(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="holds neither"):
        data.load(tmp_path.parent)


@pytest.mark.parametrize(
    ("annotated", "message"),
    [
        (ANNOTATIONS[:2], "1 question is in questions.json and not here, for instance question_id 30"),
        (
            [*ANNOTATIONS, annotation(7), annotation(8)],
            "2 questions are annotated but not in questions.json, for instance question_id 70",
        ),
        ([*ANNOTATIONS, annotation(1)], "question_id 10 is annotated twice"),
        ([annotation(1), *ANNOTATIONS], "question_id 10 is annotated twice"),
        (
            [*ANNOTATIONS[:2], annotation(3, image_id=9)],
            "question_id 30 has another image_id here than in questions.json",
        ),
    ],
)
def test_questions_and_annotations_must_agree(tmp_path: Path, annotated: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(data.load(folder(tmp_path, annotated=annotated)).pairs())


def test_malformed_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "questions.json").write_text("{")
    with pytest.raises(DataError, match=r"questions\.json is not JSON"):
        list(data.load(tmp_path).pairs())
    folder(tmp_path, listed=[{"question_id": 1}])
    with pytest.raises(DataError, match=r"question 0 \(from 0\) lacks"):
        list(data.load(tmp_path).pairs())
    folder(tmp_path, listed=[*QUESTIONS, QUESTIONS[0]])
    with pytest.raises(DataError, match="occurs twice"):
        list(data.load(tmp_path).pairs())
    (tmp_path / "questions.json").write_bytes(b"\x1f\x8b broken")
    with pytest.raises(DataError, match="cannot be read"):
        list(data.load(tmp_path).pairs())


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    first = data.load(folder(tmp_path)).fingerprint
    assert data.load(folder(tmp_path)).fingerprint == first
    assert (
        data.load(folder(tmp_path, annotated=[*ANNOTATIONS[:2], annotation(3, answer_type="number")])).fingerprint
        != first
    )


@pytest.mark.parametrize("separate", [True, False])
def test_results_are_read_in_both_formats(tmp_path: Path, separate: bool) -> None:
    path = tmp_path / "results"
    if separate:
        path.write_text('{"id": "30", "text": "NA"}\n\n{"id": "10", "text": ""}\n')
    else:
        write(path, [{"question_id": 30, "answer": "NA"}, {"question_id": 10, "answer": ""}])
    assert data.read_results(path) == {"30": "NA", "10": ""}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"question_id": 1, "answer": "a"}, {"question_id": 1, "answer": "b"}]', "answered twice"),
        ('[{"question_id": 1, "answer": 2}]', "is not text but 2"),
        ('[{"question": 1}]', r"entry 0 \(from 0\) is neither"),
        ('{"id": "x", "text": "a"}', "is neither"),
        ('{"id": "1", "text": "a"}\n{broken', "line 2: not JSON"),
    ],
)
def test_malformed_results_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        data.read_results(path)


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([], "no annotations"),
        ([annotation(1), {"question_id": 2}], r"annotation 1 \(from 0\) is not in the official format"),
        ([annotation(1, answers=[])], "at least one"),
        ([annotation(1, answers=[{"answer": 3}])], "at least one"),
        ([annotation(1, answers=["cat"])], r"annotation 0 \(from 0\)"),
        ([annotation(1, answer_type=None)], "must be text"),
        ([annotation(1, image_id="x")], "is no id"),
    ],
)
def test_malformed_annotations_are_named(tmp_path: Path, annotations: list[Any], message: str) -> None:
    write(tmp_path / "annotations.json", {"annotations": annotations})
    with pytest.raises(DataError, match=message):
        list(data.read_annotations(tmp_path / "annotations.json"))


def test_answers_whose_other_fields_are_equal_share_a_number(tmp_path: Path) -> None:
    answers = [{"answer": "cat", "answer_confidence": word} for word in ("yes", "no", "yes")]
    write(tmp_path / "annotations.json", {"annotations": [annotation(1, answers=answers)]})
    (read,) = data.read_annotations(tmp_path / "annotations.json")
    assert read.records == [0, 1, 0]
