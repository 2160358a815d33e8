"""The judge finds what it is there for: each kind of fault, made on purpose, gets its verdict."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from hostile.case import Case, Judge, Limits, Outcome, Report, Verdict, forked
from hostile.inputs import counted_as_lost, is_valid
from hostile.mutations import Mutation


def raises() -> int:
    raise ValueError("a bug")


def says(*lines: str, status: int = 2) -> int:
    for line in lines:
        print(line, file=sys.stderr)
    return status


def hoards() -> int:
    return len(bytearray(1 << 32)) * 0


@pytest.mark.parametrize(
    ("work", "kind"),
    [
        (lambda: says("dreambench: error: x.json is not JSON"), "ok"),
        (lambda: says(status=0), "wrong number"),
        (raises, "traceback"),
        (lambda: says("dreambench: error: this is a bug; the traceback is in x.json"), "traceback"),
        (lambda: says(), "not one line"),
        (lambda: says("dreambench: error: x.json: one", "dreambench: error: x.json: two"), "not one line"),
        (lambda: says("dreambench: error: something is wrong"), "no place"),
        (lambda: says(status=3), "status"),
        (lambda: time.sleep(9) or 0, "limit"),
        (hoards, "memory"),
    ],
)
def test_each_kind_of_fault_is_named(work: object, kind: str, tmp_path: Path) -> None:
    def run(folder: Path) -> Outcome:
        return forked(work, folder, values=lambda: {"accuracy": 50.0}, limits=Limits(5, 1.0, 1 << 30))  # type: ignore[arg-type]

    case = Case("judge", "a case", run, places=("x.json",), expected={"accuracy": 75.0})
    assert Judge(tmp_path)(case).kind == kind


def test_what_cannot_be_accepted_and_what_a_case_checks_itself(tmp_path: Path) -> None:
    def run(folder: Path) -> Outcome:
        return forked(lambda: 0, folder, values=lambda: 1)

    judge = Judge(tmp_path)
    assert judge(Case("judge", "same values", run, expected=1)).ok
    assert judge(Case("judge", "other values", run, expected=2, changes=True)).ok
    assert judge(Case("judge", "accepted", run, must_fail=True)).kind == "accepted"
    assert judge(Case("judge", "leftovers", run, check=lambda outcome, folder: "a leftover")).details == "a leftover"
    assert not list(tmp_path.iterdir())


def test_a_file_of_verdicts_holds_what_was_ok_with_its_seed(tmp_path: Path) -> None:
    cases = [Case("p", name, lambda folder: Outcome(0)) for name in ("fine", "mended", "new")]
    report = Report(tmp_path / "verdicts.jsonl", seed=1)
    report.add(Verdict("p", "fine", "ok", 0, 0.1))
    report.add(Verdict("p", "mended", "traceback", 1, 0.1, "Traceback"))
    again = Report(tmp_path / "verdicts.jsonl", seed=1)
    assert [again.known(case) is not None for case in cases] == [True, False, False]
    again.add(again.known(cases[0]) or Verdict("p", "fine", "not read", 0, 0.1))
    again.add(Verdict("p", "mended", "ok", 2, 0.1))
    assert len((tmp_path / "verdicts.jsonl").read_text().splitlines()) == 3
    assert not again.faults
    assert [Report(tmp_path / "verdicts.jsonl", seed=1).known(case) is not None for case in cases] == [
        True,
        True,
        False,
    ]
    assert Report(tmp_path / "verdicts.jsonl", seed=2).known(cases[0]) is None


def test_a_lost_answer_that_is_counted_is_no_wrong_number() -> None:
    def result(answer: str | None, unscored: int) -> dict[str, object]:
        return {"rows": [{"id": "1", "answer": answer}], "scores": [{"group": None, "unscored": unscored}]}

    assert counted_as_lost(result("red", 0), result(None, 1))
    assert not counted_as_lost(result("red", 0), result(None, 0))
    assert not counted_as_lost(result("red", 0), result("blue", 1))
    assert not counted_as_lost(result("red", 0), result("red", 0))


def test_which_damage_leaves_another_valid_file() -> None:
    def of(file: str, name: str) -> bool:
        return is_valid(file, Mutation(name, lambda path: None))

    assert of("fake/1.png", "missing")
    assert of("votes.jsonl", "line 3 twice")
    assert of("votes.jsonl", "line 3: rater = null")
    assert of("run/responses/rank-00000.jsonl", "line 4: document = empty list")
    assert not of("votes.jsonl", "line 3: all with rater twice")
    assert not of("votes.jsonl", "line 3: vote = null")
    assert not of("results.json", "missing")
