"""MMBench: what each extraction rule takes and leaves, and what rotations, absences and doubts do to a score."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as some

from dreambench.errors import DataError
from dreambench_tasks.mmbench.data import LETTERS, ROTATION, Row
from dreambench_tasks.mmbench.extraction import extract_choice
from dreambench_tasks.mmbench.scoring import circular_units, copy_units, official_table, tallies, vanilla_units

OPTIONS = {"A": "a teddy bear", "B": "a rabbit", "C": "a cat"}


def copies(base: int, options: int = 3, split: str = "dev", category: str = "ocr") -> list[Row]:
    """Every rotation of one question whose answer starts as A: the letter moves on with each turn."""
    letters = LETTERS[:options]
    return [
        Row(
            index=base + turn * ROTATION,
            question="what?",
            hint="",
            options={letter: f"option {(place - turn) % options}" for place, letter in enumerate(letters)},
            answer=letters[turn],
            category=category,
            l2_category="coarse_perception",
            split=split,
            image=base,
            cells={},
        )
        for turn in range(options)
    ]


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
    """Choosing by what an option says, not by its place, gives the same verdict in every rotation."""
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
    assert tallies(units)[None].lower == 0.25
    assert tallies(circular_units(units))[None].lower == 0


def test_order_does_not_matter() -> None:
    rows = [row for base in range(1, 20) for row in copies(base, 2 + base % 4, category=f"c{base % 3}")]
    letters: dict[int, str | None] = {
        row.index: random.Random(row.index).choice([None, "A", row.answer]) for row in rows
    }
    mixed = random.Random(0).sample(rows, len(rows))
    assert tallies(circular_units(copy_units(mixed, letters))) == tallies(circular_units(copy_units(rows, letters)))


def test_doubt_widens_the_bounds_and_a_verdict_closes_them() -> None:
    rows = [*copies(1), *copies(2), *copies(3)]
    letters: dict[int, str | None] = {row.index: row.answer for row in rows}
    letters[2 + ROTATION] = None
    letters[3] = None
    letters[3 + ROTATION] = "Z"
    tally = tallies(circular_units(copy_units(rows, letters)))[None]
    assert (tally.right, tally.wrong, tally.undecided, tally.n) == (1, 1, 1, 3)
    assert (tally.lower, tally.upper) == (1 / 3, 2 / 3)
    for verdict, share in (("Z", 1 / 3), (rows[4].answer, 2 / 3)):
        judged = tallies(circular_units(copy_units(rows, letters | {2 + ROTATION: verdict})))[None]
        assert (judged.lower, judged.upper) == (share, share)


def test_groups_are_named_and_empty_cells_form_none() -> None:
    rows = [*copies(1, split="dev", category="ocr"), *copies(2, split="test", category="")]
    units = vanilla_units(copy_units(rows, {row.index: row.answer for row in rows}))
    assert list(tallies(units)) == [None, "split=dev", "split=test", "l2_category=coarse_perception", "category=ocr"]
    table = official_table(units)
    assert table["test"] == {"Overall": 1.0, "CP": 1.0, "ocr": None}
    assert table["pooled"] == {"Overall": 1.0, "CP": 1.0, "ocr": 1.0}


def test_absent_copies_are_an_error_unless_named() -> None:
    rows = [*copies(1), *copies(2)]
    letters: dict[int, str | None] = {row.index: row.answer for row in rows}
    letters[2] = "C"
    with pytest.raises(DataError, match="1 rows have no prediction, for instance index 1000002"):
        copy_units(rows, {index: letter for index, letter in letters.items() if index != 2 + ROTATION})
    with pytest.raises(DataError, match="question 2 lacks index 1000002"):
        circular_units(
            copy_units(
                [row for row in rows if row.index != 2 + ROTATION],
                {k: v for k, v in letters.items() if k != 2 + ROTATION},
            )
        )
    with pytest.raises(DataError, match="belong to no row, for instance index 9"):
        copy_units(rows, letters | {9: "A"})
    without_base = {index: letter for index, letter in letters.items() if index != 2}
    judged = circular_units(copy_units(rows, without_base, "judge-present"), "judge-present")
    assert [unit.row.index for unit in judged] == [1]
    without_copy = {index: letter for index, letter in letters.items() if index not in (1 + ROTATION, 2)}
    assert len(circular_units(copy_units(rows, without_copy, "judge-present"), "judge-present")) == 1


def test_held_back_answers_are_not_scored() -> None:
    row = Row(1, "what?", "", OPTIONS, None, "", "", "test", 1, {})
    with pytest.raises(DataError, match="export a server submission"):
        copy_units([row], {1: "A"})
