"""MMBench: what each extraction rule takes and leaves, and what rotations, absences and doubts do to a score."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as some

from dreambench.errors import DataError
from dreambench_tasks.mmbench.data import LETTERS, ROTATION, Row
from dreambench_tasks.mmbench.scoring import (
    Unit,
    circular_units,
    copy_units,
    extract_choice,
    grouped,
    vanilla_units,
)

OPTIONS = {"A": "a teddy bear", "B": "a rabbit", "C": "a cat"}


def copies(base: int, options: int = 3, split: str = "dev", category: str = "ocr") -> list[Row]:
    """Every rotation of one question whose answer starts as A: the letter moves on with each turn."""
    letters = LETTERS[:options]
    return [
        Row(
            index=base + turn * ROTATION,
            question="what?",
            hint="",
            options={letter: f"option {(position - turn) % options}" for position, letter in enumerate(letters)},
            answer=letters[turn],
            category=category,
            l2_category="coarse_perception",
            split=split,
            image=base,
            cells={},
        )
        for turn in range(options)
    ]


def counts(units: list[Unit]) -> tuple[int, int, int]:
    """Right, wrong and undecided units."""
    hits = [unit.hit for unit in units]
    return hits.count(True), hits.count(False), hits.count(None)


@pytest.mark.parametrize(
    ("reply", "letter", "rule"),
    [
        ("B", "B", "single letter"),
        ("(B).", "B", "single letter"),
        ("\tC: a cat\n", "C", "single letter"),
        ("I can see it well, so I say B", "B", "single letter"),
        ("B it is and nothing else", None, None),
        ("A cat sits there on the wide green sofa", "C", "option text"),
        ("A cat sits there on the wide green sofa and sleeps on", None, None),
        ("a cat", "C", "option text"),
        ("It is A CAT!", "A", "single letter"),
        ("It is THE teddy BEAR, a Teddy bear!", "A", "option text"),
        ("a cat or a rabbit", None, None),
        ("b", None, None),
        ("D", None, None),
        ("Z", "Z", "reject letter"),
        ("A or B", None, None),
        ("The answer is blue", "B", "answer is"),
        ("The correct answer is **C**, because of this and that and more of it", "C", "answer is"),
        ("the answer is d", None, None),
        ("The answer is A, not B", "A", "answer is"),
        ("I can't process this file. The answer is C", "Z", "refusal"),
        ("Failed to obtain answer via API B", None, None),
        ("Failed to obtain answer via API. B: a cat", "C", "option text"),
        ("", None, None),
        ("nan", None, None),
        ("<B>", None, None),
        ("a teddy bear " * 6, None, None),
    ],
)
def test_each_rule_takes_what_it_says(reply: str, letter: str | None, rule: str | None) -> None:
    found = extract_choice(reply, OPTIONS)
    assert (found.letter, found.rule) == (letter, rule)
    assert (found.via is None) == (letter is None)


def test_an_absent_option_is_no_letter() -> None:
    assert extract_choice("C", {"A": "red", "B": "blue"}).letter is None
    assert extract_choice("E", dict.fromkeys("ABCDE", "x")).letter == "E"


@given(some.text(max_size=40))
def test_a_letter_is_an_option_or_the_rejection(reply: str) -> None:
    assert extract_choice(reply, OPTIONS).letter in {None, "Z", *OPTIONS}


@given(some.integers(2, 5), some.data())
def test_circular_is_right_only_if_every_rotation_is(options: int, data: some.DataObject) -> None:
    rows = copies(7, options)
    letters = {row.index: data.draw(some.sampled_from([None, *row.options])) for row in rows}
    (unit,) = circular_units(copy_units(rows, letters))
    right = [letters[row.index] == row.answer for row in rows]
    wrong = [letters[row.index] not in (None, row.answer) for row in rows]
    assert unit.hit is (False if any(wrong) else True if all(right) else None)
    (vanilla,) = vanilla_units(copy_units(rows, letters))
    assert (vanilla.hit is True) == right[0]


@given(some.integers(2, 5), some.integers(0, 4), some.integers(0, 4))
def test_a_model_that_means_the_option_passes_every_rotation_or_none(options: int, meant: int, start: int) -> None:
    """Choosing by what an option says, not by its letter, gives the same verdict in every rotation."""
    rows = copies(start, options)
    letters = {
        row.index: next(letter for letter, text in row.options.items() if text == f"option {meant % options}")
        for row in rows
    }
    hits = {unit.hit for unit in copy_units(rows, letters)}
    assert hits == {meant % options == 0}
    assert circular_units(copy_units(rows, letters))[0].hit is (meant % options == 0)


def test_always_a_is_right_by_chance_and_never_in_a_circle() -> None:
    rows = [row for base in range(1, 30) for row in copies(base, 4)]
    units = copy_units(rows, dict.fromkeys([row.index for row in rows], "A"))
    assert counts(units) == (29, 87, 0)
    assert counts(circular_units(units)) == (0, 29, 0)


def test_order_does_not_matter() -> None:
    rows = [row for base in range(1, 20) for row in copies(base, 2 + base % 4, category=f"c{base % 3}")]
    letters: dict[int, str | None] = {
        row.index: random.Random(row.index).choice([None, "A", row.answer]) for row in rows
    }
    mixed = random.Random(0).sample(rows, len(rows))
    in_order, shuffled = (
        {
            group: sorted(str(unit.hit) for unit in members)
            for group, members in grouped(circular_units(copy_units(each, letters))).items()
        }
        for each in (rows, mixed)
    )
    assert shuffled == in_order


def test_an_undecided_letter_leaves_its_question_undecided_until_a_judge_decides() -> None:
    rows = [*copies(1), *copies(2), *copies(3)]
    letters: dict[int, str | None] = {row.index: row.answer for row in rows}
    letters[2 + ROTATION] = None
    letters[3] = None
    letters[3 + ROTATION] = "Z"
    assert counts(circular_units(copy_units(rows, letters))) == (1, 1, 1)
    for verdict, right in (("Z", 1), (rows[4].answer, 2)):
        judged = circular_units(copy_units(rows, letters | {2 + ROTATION: verdict}))
        assert counts(judged) == (right, 3 - right, 0)


def test_groups_are_named_and_empty_cells_form_none() -> None:
    rows = [*copies(1, split="dev", category="ocr"), *copies(2, split="test", category="")]
    units = vanilla_units(copy_units(rows, {row.index: row.answer for row in rows}))
    assert list(grouped(units)) == [
        None,
        "split=dev",
        "split=test",
        "l2_category=coarse_perception",
        "category=ocr",
    ]


def test_absent_copies_are_an_error() -> None:
    rows = [*copies(1), *copies(2)]
    letters: dict[int, str | None] = {row.index: row.answer for row in rows}
    with pytest.raises(DataError, match="1 row has no prediction, for instance index 1000002"):
        copy_units(rows, {index: letter for index, letter in letters.items() if index != 2 + ROTATION})


def test_rows_without_an_answer_are_not_scored() -> None:
    rows = [replace(row, answer=None) for row in copies(1)]
    with pytest.raises(DataError, match="index 1 has no answer in the data: held-back answers cannot be scored"):
        copy_units(rows, {row.index: "A" for row in rows})
