"""VQA accuracy: the memoised scorer is the plain rule, and its quirks are the evaluator's."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks import vqa_oracle
from hypothesis import given, settings
from hypothesis import strategies as some

from dreambench_tasks.vqav2.data import _equal_records
from dreambench_tasks.vqav2.scoring import RULES, Rule, accuracy, clean, normalise, percent, rounded

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
def annotated(draw: some.DrawFn, with_ids: bool = True) -> tuple[list[dict[str, Any]], str]:
    """The answers to one question, which repeat each other, and a prediction near them."""
    pool = draw(some.lists(TEXTS, min_size=1, max_size=3))
    answers: list[dict[str, Any]] = []
    for number in range(draw(some.sampled_from([1, 2, 5, 10, 10, 10, 11]))):
        record: dict[str, Any] = {"answer": draw(some.sampled_from(pool)), "answer_confidence": draw(CONFIDENCE)}
        answers.append({**record, "answer_id": number + 1} if with_ids else record)
    return answers, draw(some.sampled_from(pool) | TEXTS)


def score(records: list[dict[str, Any]], prediction: str, rule: str = "official") -> float:
    return accuracy([record["answer"] for record in records], prediction, RULES[rule], _equal_records(records))


def score_texts(answers: list[str], prediction: str, rule: str = "official") -> float:
    return accuracy(answers, prediction, RULES[rule])


@pytest.mark.parametrize("with_ids", [True, False])
@pytest.mark.parametrize("substring", [True, False])
def test_the_memoised_scorer_is_the_plain_rule(with_ids: bool, substring: bool) -> None:
    """Without answer ids the records of annotators who agree are left out together, as by the evaluator."""
    rule = "dreamllm-evaluator" if substring else "official"

    @given(annotated(with_ids))
    @settings(max_examples=150, deadline=None)
    def check(case: tuple[list[dict[str, Any]], str]) -> None:
        answers, prediction = case
        assert score(answers, prediction, rule) == vqa_oracle.accuracy(answers, prediction, substring=substring)

    check()


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)])
def test_three_agreeing_annotators_are_worth_nine_tenths(agreeing: int, expected: float) -> None:
    assert score_texts(["cat"] * agreeing + ["dog"] * (10 - agreeing), "cat") == pytest.approx(expected)


def test_unanimous_references_are_compared_as_they_are() -> None:
    assert score_texts(["Yes"] * 10, "yes") == 0
    assert score_texts(["Yes"] * 10, "Yes") == 1
    assert score_texts(["Yes"] * 9 + ["yep"], "yes.") == 1


def test_the_protocols_differ_where_they_say() -> None:
    assert score_texts(["Yes"] * 10, "yes.", "normalised") == 1
    assert score_texts(["cat"] * 9 + ["dog"], "a black cat", "official") == 0
    assert score_texts(["cat"] * 9 + ["dog"], "a black cat", "dreamllm-evaluator") == 1
    assert score_texts([""] * 9 + ["dog"], "anything", "dreamllm-evaluator") == 1


def test_ten_equal_records_without_ids_score_nothing() -> None:
    records = [{"answer": "cat", "answer_confidence": "yes"}] * 10
    assert score(records, "cat") == 0
    assert score(records, "cat", "normalised") == 1


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


def test_percentages_round_to_two_decimals_as_python_2_does() -> None:
    """One right answer of 32 is 3.125 %, an exact tie: the evaluator goes up under Python 2, DreamLLM's copy under 3 to the even digit."""
    answers = ["cat"] * 4 + ["dog"] * 6
    value = percent([score_texts(answers, "cat" if number == 0 else "fish") for number in range(32)])
    assert value == 3.125
    assert rounded(value, RULES["official"]) == 3.13
    assert rounded(value, RULES["dreamllm-evaluator"]) == 3.12


def test_a_mean_is_added_from_left_to_right() -> None:
    """As the evaluator does, whatever `sum` does in later versions of Python."""
    values = [0.1] * 10
    total = 0.0
    for value in values:
        total += value
    assert percent(values) == 100 * total / 10 != 10.0


def test_any_number_of_answers_divides_by_itself() -> None:
    rule = Rule("standard", leave_out_by_record=False)
    assert [accuracy(["cat"] * count, "cat", rule) for count in (1, 4, 20)] == [0, 1, 1]
