"""Every reader of a benchmark's JSON refuses what it would have to guess: a key twice, NaN, a fraction or true as an id."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dreambench.errors import DataError
from dreambench.files import parse_json, read_json_or_lines
from dreambench.requests import parse_id, parse_number
from dreambench_tasks.coco import read_captions
from dreambench_tasks.interleaved.data import read_documents
from dreambench_tasks.lncoco_fid import read_narratives
from dreambench_tasks.mmbench.data import read_predictions
from dreambench_tasks.mmvet.data import read_answers, read_grades
from dreambench_tasks.vqav2.data import read_annotations, read_questions, read_results

QUESTION = '{"questions": [{"question_id": 5, "image_id": 7, "question": "?"}]}'
ANNOTATION = (
    '{"annotations": [{"question_id": 5, "image_id": 7, "question_type": "a", "answer_type": "b", "answers":'
    ' [{"answer": "c", "answer_id": 1}]}]}'
)
CAPTIONS = '{"images": [{"id": 7}], "annotations": [{"id": 5, "image_id": 7, "caption": "a cat"}]}'
DOCUMENT = '{"id": 5, "document": [{"text": "a"}, {"image": "a.png"}]}'
READERS: list[tuple[str, Callable[[Path], object], str, str]] = [
    ("questions.json", lambda path: list(read_questions(path)), QUESTION, "question_id"),
    ("questions.json", lambda path: list(read_questions(path)), QUESTION, "image_id"),
    ("annotations.json", lambda path: list(read_annotations(path)), ANNOTATION, "question_id"),
    ("annotations.json", lambda path: list(read_annotations(path)), ANNOTATION, "image_id"),
    ("results.json", read_results, '[{"question_id": 5, "answer": "yes"}]', "question_id"),
    ("results.jsonl", read_results, '{"id": 5, "text": "yes"}\n', "id"),
    ("predictions.jsonl", read_predictions, '{"index": 5, "prediction": "A"}\n', "index"),
    ("captions_val2017.json", lambda path: read_captions(path.parent, "val2017"), CAPTIONS, "id"),
    ("captions_val2017.json", lambda path: read_captions(path.parent, "val2017"), CAPTIONS, "image_id"),
    ("narratives.jsonl", read_narratives, '{"image_id": 5, "caption": "a cat"}\n', "image_id"),
    # Here an id may be any text.
    ("answers.jsonl", read_answers, '{"id": 5, "text": "yes"}\n', "id"),
    ("documents.jsonl", read_documents, DOCUMENT, "id"),
]
WRONG = ("5.9", "5.0", "true", "null", "[5]", "-5e400", "1e400", "NaN", "-Infinity")


@pytest.mark.parametrize(("name", "read", "content", "key"), READERS)
def test_an_id_is_a_whole_number_or_text_and_stands_once(
    tmp_path: Path, name: str, read: Callable[[Path], object], content: str, key: str
) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    path = tmp_path / name
    path.write_text(content)
    read(path)
    before, _, after = content.rpartition(f'"{key}": ')
    for wrong in WRONG if read in (read_answers, read_documents) else (*WRONG, '"5.9"', "-5", "9" * 30):
        path.write_text(f'{before}"{key}": {wrong}{after[1:]}')
        with pytest.raises(DataError, match=name):
            read(path)
    path.write_text(f'{before}"{key}": 5, "{key}": 6{after[1:]}')
    with pytest.raises(DataError, match=rf"{name}.*the key '{key}' stands twice in one object"):
        read(path)


def test_a_grade_that_is_no_number_is_no_grade(tmp_path: Path) -> None:
    path = tmp_path / "grades.json"
    path.write_text('{"v1_0": {"score": [NaN]}}')
    with pytest.raises(DataError, match=r"grades\.json.*NaN is no finite number, near .*v1_0"):
        read_grades(path)


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 1}', '[{"a": {"b": 1, "b": 2}}]', "[1e400]", "[-1e999]", "NaN", "[-Infinity]"]
)
def test_json_that_would_be_guessed_at_is_refused(text: str) -> None:
    json.loads(text)
    with pytest.raises(ValueError, match=r"stands twice|no finite number"):
        parse_json(text)


@pytest.mark.parametrize(
    "text", ['{"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]}', "[1e308, -0.0, 1e-400, 12345678901234567890]", '"NaN"']
)
def test_other_json_is_read_as_the_library_reads_it(text: str) -> None:
    assert parse_json(text) == json.loads(text)


def test_an_error_in_a_file_of_either_form_is_that_of_its_form(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    path.write_text('[\n {"a": 1, "a": 2}\n]')
    with pytest.raises(DataError, match="the key 'a' stands twice"):
        read_json_or_lines(path)
    path.write_text('{"a": 1}\n{"a": 1, "a": 2}\n')
    with pytest.raises(DataError, match=r"line 2: not JSON .the key 'a' stands twice"):
        read_json_or_lines(path)
    path.write_text("5")
    with pytest.raises(DataError, match="neither a JSON object, a list"):
        read_json_or_lines(path)


@pytest.mark.parametrize("value", [True, None, 1.0, 1.5, float("inf"), [], "", " ", b"1"])
def test_what_is_neither_a_number_nor_a_text_is_no_id(value: object) -> None:
    for parse in (parse_number, parse_id):
        with pytest.raises(ValueError, match="is no id"):
            parse(value)


@pytest.mark.parametrize("value", ["1.0", "1e3", "\u0661", "+1", "1_0", "9" * 19, str(1 << 63), 1 << 63, -1])
def test_a_number_is_written_in_plain_digits(value: object) -> None:
    with pytest.raises(ValueError, match="is no id"):
        parse_number(value)


def test_ids_of_one_sample_are_equal_however_they_are_written() -> None:
    assert parse_number("0042") == parse_number(42) == 42
    assert parse_id("v1_0") == "v1_0"
    assert parse_id(42) == parse_id("42") == "42"
    assert parse_number(str((1 << 63) - 1)) == (1 << 63) - 1
