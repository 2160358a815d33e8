"""VQA accuracy: the fast scorer is the plain rule, its quirks are the evaluator's, and nothing is scored that was not asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import vqa_oracle
from hypothesis import given, settings
from hypothesis import strategies as some

from dreambench.errors import DataError
from dreambench_tasks.vqav2 import index as indexing
from dreambench_tasks.vqav2.index import build_index, cached_index
from dreambench_tasks.vqav2.normalise import clean, normalise
from dreambench_tasks.vqav2.scoring import RULES, Rule, score_answers

PIECES = [
    "a",
    "the",
    "cat",
    "dont",
    "Two",
    "none",
    "yes",
    "YES",
    " ",
    "  ",
    "-",
    ".",
    ",",
    "1",
    "1,000",
    "?",
    "'s",
    "\n",
    "\t",
    "é",
    "/x",
]
TEXTS = some.lists(some.sampled_from(PIECES), max_size=4).map("".join)
CONFIDENCE = some.sampled_from(["yes", "no"])


@some.composite
def annotated(draw: some.DrawFn, with_ids: bool = True) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """A few questions whose answers repeat each other, with predictions drawn near them."""
    annotations, answers = [], {}
    for number in range(draw(some.integers(1, 4))):
        pool = draw(some.lists(TEXTS, min_size=1, max_size=3))
        given_answers = []
        for place in range(draw(some.sampled_from([1, 2, 5, 10, 10, 10, 11]))):
            record: dict[str, Any] = {"answer": draw(some.sampled_from(pool)), "answer_confidence": draw(CONFIDENCE)}
            given_answers.append({**record, "answer_id": place + 1} if with_ids else record)
        annotations.append(question(number, given_answers))
        answers[number] = draw(some.sampled_from(pool) | TEXTS)
    return annotations, answers


def question(number: int, answers: list[dict[str, Any]] | list[str], kind: str = "other") -> dict[str, Any]:
    records = [
        {"answer": answer, "answer_confidence": "yes", "answer_id": place} if isinstance(answer, str) else answer
        for place, answer in enumerate(answers)
    ]
    named = {"question_id": number, "image_id": number // 2, "question_type": "what", "answer_type": kind}
    return {**named, "multiple_choice_answer": "", "answers": records}


def accuracy(answers: list[str], prediction: str, rule: str = "official") -> float:
    return float(score_answers(build_index([question(1, answers)]), {1: prediction}, rule).accuracies[0])


@given(annotated())
@settings(max_examples=200, deadline=None)
def test_the_fast_scorer_is_the_plain_rule(case: tuple[list[dict[str, Any]], dict[int, str]]) -> None:
    annotations, answers = case
    index = build_index(annotations)
    assert score_answers(index, answers).accuracies.tolist() == vqa_oracle.evaluate(annotations, answers)


@given(annotated(with_ids=False), some.booleans())
@settings(max_examples=200, deadline=None)
def test_records_without_ids_fall_out_together(
    case: tuple[list[dict[str, Any]], dict[int, str]], substring: bool
) -> None:
    annotations, answers = case
    ours = score_answers(build_index(annotations), answers, RULES["dreamllm-evaluator" if substring else "official"])
    plain = [
        vqa_oracle.accuracy(each["answers"], answers[each["question_id"]], substring=substring) for each in annotations
    ]
    assert ours.accuracies.tolist() == plain


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)])
def test_three_agreeing_annotators_are_worth_nine_tenths(agreeing: int, expected: float) -> None:
    assert accuracy(["cat"] * agreeing + ["dog"] * (10 - agreeing), "cat") == pytest.approx(expected)


def test_unanimous_references_are_compared_as_they_are() -> None:
    assert accuracy(["Yes"] * 10, "yes") == 0
    assert accuracy(["Yes"] * 10, "Yes") == 1
    assert accuracy(["Yes"] * 9 + ["yep"], "yes.") == 1


def test_the_protocols_differ_where_they_say() -> None:
    assert accuracy(["Yes"] * 10, "yes.", "normalised") == 1
    assert accuracy(["cat"] * 9 + ["dog"], "a black cat", "official") == 0
    assert accuracy(["cat"] * 9 + ["dog"], "a black cat", "dreamllm-evaluator") == 1
    assert accuracy([""] * 9 + ["dog"], "anything", "dreamllm-evaluator") == 1


def test_ten_equal_records_without_ids_score_nothing() -> None:
    records = [{"answer": "cat", "answer_confidence": "yes"}] * 10
    index = build_index([question(1, records)])
    assert score_answers(index, {1: "cat"}).accuracies.tolist() == [0]
    assert score_answers(index, {1: "cat"}, "normalised").accuracies.tolist() == [1]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("a-b", "b"),
        ("x-y", "x y"),
        ("x- y-z", "x yz"),
        ("1,000-2", "10002"),
        ("5.", "5"),
        (".5", ".5"),
        ("x.5", "x.5"),
        ("U.S.A.", "usa"),
        ("The Two dogs", "2 dogs"),
        ("none", "0"),
        ("dont", "don't"),
        ("somebody'd", "somebodyd"),
        ("Im", "im"),
        ("A", ""),
        ("." * 40, "." * 8),
        ("x\u3000y", "x y"),
        ("１,０００", "１ ０００"),
        ("İstanbul", "istanbul"),
        ("ΣΑΣ", "σασ"),
        ("it's 50%: $3 & #4*", "it's 50%: $3 & #4*"),
    ],
)
def test_normalisation_keeps_the_evaluators_quirks(raw: str, expected: str) -> None:
    assert normalise(raw) == expected


def test_cleaning_comes_first() -> None:
    assert clean("\tyes\nno \n") == "yes no"


def test_tables_round_to_two_decimals_as_python_2_does() -> None:
    """One right answer of 32 is 3.125 %, an exact tie: the evaluator goes up under Python 2, DreamLLM's copy under 3 to the even digit."""
    tie = build_index([question(number, ["cat"] * 4 + ["dog"] * 6) for number in range(32)])
    answers = {number: "cat" if number == 0 else "fish" for number in range(32)}
    scores = score_answers(tie, answers)
    assert scores.overall == 3.125
    assert scores.report()["accuracy"]["overall"] == 3.13
    even = score_answers(tie, answers, "dreamllm-evaluator")
    assert even.report()["accuracy"]["overall"] == 3.12


def test_tables_are_by_type() -> None:
    index = build_index([question(1, ["cat"] * 10), question(2, ["no"] * 10, kind="yes/no")])
    report = score_answers(index, {1: "cat", 2: "yes"}).report()
    assert report["accuracy"] == {
        "overall": 50.0,
        "perQuestionType": {"what": 50.0},
        "perAnswerType": {"other": 100.0, "yes/no": 0.0},
    }
    assert report["evalAnsType"] == {"other": {1: 100.0}, "yes/no": {2: 0.0}}
    assert report["evalQA"] == {1: 100.0, 2: 0.0}


def test_answers_must_name_exactly_the_questions() -> None:
    index = build_index([question(1, ["cat"] * 10), question(2, ["dog"] * 10)])
    with pytest.raises(DataError, match=r"1 questions without an answer .*question_id 2.*question_id 7"):
        score_answers(index, {1: "cat", 7: "dog"})
    with pytest.raises(DataError, match="must be text, not 3"):
        score_answers(index, {1: "cat", 2: 3})  # type: ignore[dict-item]


def test_a_selection_scores_as_the_whole_does() -> None:
    annotations = [question(number, ["cat"] * (number + 1) + ["dog"] * (9 - number)) for number in range(6)]
    index, answers = build_index(annotations), dict.fromkeys(range(6), "cat")
    whole, part = score_answers(index, answers), score_answers(index.select([4, 1]), {1: "cat", 4: "cat"})
    assert part.accuracies.tolist() == whole.accuracies[[1, 4]].tolist()
    with pytest.raises(DataError, match="question_id 9"):
        index.select([9])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": []}, "at least one"),
        ({"answers": [{"answer": 5}]}, "at least one"),
        ({"answer_type": None}, "no answer_type"),
        ({"question_id": 1}, "annotated twice"),
    ],
)
def test_malformed_annotations_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_index([question(1, ["cat"] * 10), {**question(2, ["cat"] * 10), **change}])


@given(annotated(with_ids=False))
@settings(max_examples=20, deadline=None)
def test_a_kept_index_is_the_index(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[list[dict[str, Any]], dict[int, str]]
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    annotations, answers = case
    assert cached_index("key", folder) is None
    built, kept = cached_index("key", folder, annotations), cached_index("key", folder)
    assert built is not None
    assert kept is not None
    assert kept.strings == built.strings
    for rule in RULES:
        assert score_answers(kept, answers, rule).report() == score_answers(built, answers, rule).report()


def test_a_damaged_cache_is_built_anew(tmp_path: Path) -> None:
    annotations = [question(1, ["cat"] * 9 + ["\ud800"])]
    cached_index("key", tmp_path, annotations)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:200])
    assert cached_index("key", tmp_path) is None
    cached_index("key", tmp_path, annotations)
    kept = cached_index("key", tmp_path)
    assert kept is not None
    assert score_answers(kept, {1: "cat"}).accuracies.tolist() == [1]


def test_another_normalisation_has_another_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached_index("key", tmp_path, [question(1, ["cat"] * 10)])
    monkeypatch.setattr(indexing, "_CACHE_VERSION", indexing._CACHE_VERSION + 1)
    assert cached_index("key", tmp_path) is None


def test_ragged_answers_divide_by_their_own_number() -> None:
    index = build_index([question(1, ["cat"]), question(2, ["cat"] * 4), question(3, ["cat"] * 20)])
    scores = score_answers(index, dict.fromkeys((1, 2, 3), "cat"), Rule("standard", leave_out_by_record=False))
    np.testing.assert_allclose(scores.accuracies, [0, 1, 1])
