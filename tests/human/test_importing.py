"""`human import`: every fault of a file is counted and named, what is stored is what was accepted, and nothing is stored twice."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from human.studies import ACCEPT, PREFER, QUALITY, chain, document, make_study

from dreambench.cli import main
from dreambench.documents import canonical_json
from dreambench.errors import DataError, UsageError
from dreambench.human.import_report import ImportReport, Rules
from dreambench.human.importing import import_ratings, load_ratings
from dreambench.human.study import Item, Rater, Rating, Study

SECONDS = 5.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "study"


def checked_study(folder: Path) -> Study:
    """One question, three items, two attention checks that both want 1, three raters."""
    plain = make_study(folder, items=3)
    checks = tuple(
        Item(
            id=f"check-{k}",
            purpose="attention",
            prompt=f"attention {k}",
            topic=None,
            instruction="Choose accept.",
            systems=("check",),
            documents=(document("Choose accept.", None),),
            questions=("accept",),
            expected={"accept": 1},
        )
        for k in (1, 2)
    )
    shown = (*plain.raters[0].items, *(check.id for check in checks))
    study = plain.model_copy(
        update={
            "items": (*plain.items, *checks),
            "raters": tuple(rater.model_copy(update={"items": shown}) for rater in plain.raters),
        }
    )
    study.write(folder)
    return study


def answers(study: Study, rater: Rater, answer: int | str = 1) -> list[tuple[str, str, int | str]]:
    """The same answer to everything."""
    asked = {item.id: item.questions for item in study.items}
    return [(item, question, answer) for item in rater.items for question in asked[item]]


def sealed(
    study: Study, rater: Rater, given: Sequence[tuple[str, str, int | str]], seconds: float = SECONDS
) -> list[Rating]:
    ratings: list[Rating] = []
    for rating in chain(study, rater, list(given)):
        bare = rating.model_copy(update={"seconds": seconds})
        ratings.append(bare.model_copy(update={"seal": bare.sealed(rater.token, ratings[-1].seal if ratings else "")}))
    return ratings


def write(path: Path, lines: Sequence[Rating | dict[str, Any] | str]) -> Path:
    """A JSON Lines file."""
    texts = [
        line if isinstance(line, str) else json.dumps(line if isinstance(line, dict) else line.model_dump())
        for line in lines
    ]
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8", errors="surrogatepass")
    return path


def left_out(report: ImportReport) -> dict[str, int]:
    return {left.reason: left.n for left in report.sources[-1].left_out}


def verdicts(report: ImportReport) -> dict[str, tuple[str, ...]]:
    return {rater.rater: rater.left_out for rater in report.raters}


# --- one rating at a time ---------------------------------------------------------------------------------------------


def test_a_page_download_is_imported_and_loaded_in_full(folder: Path, tmp_path: Path) -> None:
    study = checked_study(folder)
    rater = study.raters[0]
    ratings = sealed(study, rater, answers(study, rater))
    report = import_ratings(folder, [write(tmp_path / "a.jsonl", ratings)])
    assert (report.sources[0].form, report.sources[0].accepted, left_out(report)) == ("rater page", 6, {})
    assert load_ratings(folder) == sorted(ratings, key=lambda rating: rating.item)
    assert verdicts(report) == {"rater-1": ()}
    assert (report.raters[0].answered, report.raters[0].asked) == (5, 5)


def test_the_same_file_again_changes_no_byte(folder: Path, tmp_path: Path) -> None:
    study = checked_study(folder)
    file = write(tmp_path / "a.jsonl", sealed(study, study.raters[0], answers(study, study.raters[0])))
    import_ratings(folder, [file])
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    copy = tmp_path / "under another name.jsonl"
    copy.write_bytes(file.read_bytes())
    report = import_ratings(folder, [file, copy])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert report.unchanged == ("a.jsonl", "under another name.jsonl")
    assert "imported before, no change" in report.lines()[0]


FAULTS: dict[str, tuple[str, int]] = {
    "edited answer": ("edited: its seal does not fit", 1),
    "edited seconds": ("edited: its seal does not fit", 1),
    "removed": ("edited: its seal does not fit", 1),
    "swapped": ("edited: its seal does not fit", 1),
    "unsealed": ("edited: its seal does not fit", 1),
    "replayed": ("repeated", 2),
    "another token": ("sealed by another rater", 1),
    "renamed": ("sealed by another rater", 1),
    "another study": ("another study", 6),
    "unknown rater": ("unknown rater", 1),
    "unknown item": ("item that this rater was not shown", 1),
    "unknown question": ("question that this item does not ask", 1),
    "answer": ("answer that the question does not allow", 1),
    "boolean": ("incomplete or damaged line", 1),
    "text": ("answer that the question does not allow", 1),
    "not JSON": ("incomplete or damaged line", 1),
    "torn": ("incomplete or damaged line", 1),
    "surrogate": ("incomplete or damaged line", 1),
    "endless": ("incomplete or damaged line", 1),
    "more fields": ("incomplete or damaged line", 1),
}


def faulty(fault: str, study: Study) -> list[Rating | dict[str, Any] | str]:
    """The download of rater-1 with one fault, in its third of six ratings or after the last."""
    rater, other = study.raters[:2]
    given = answers(study, rater)
    good: list[Any] = sealed(study, rater, given)
    plain = good[2].model_dump()

    def forged(**fields: Any) -> list[Any]:
        """A last rating whose seal is right, as somebody makes it who knows the token."""
        rating = good[-1].model_copy(update=fields)
        return [*good[:-1], rating.model_copy(update={"seal": rating.sealed(rater.token, good[-2].seal)})]

    return {
        "edited answer": lambda: [*good[:2], plain | {"answer": 0}, *good[3:]],
        "edited seconds": lambda: [*good[:2], plain | {"seconds": 99.0}, *good[3:]],
        "removed": lambda: [*good[:2], *good[3:]],
        "swapped": lambda: [*good[:2], good[3], good[2], *good[4:]],
        "unsealed": lambda: [*good[:2], plain | {"seal": ""}, *good[3:]],
        "replayed": lambda: [*good, good[1], good[3]],
        "another token": lambda: sealed(study, rater.model_copy(update={"token": other.token}), given),
        "renamed": lambda: [rating.model_copy(update={"rater": rater.id}) for rating in sealed(study, other, given)],
        "another study": lambda: [rating.model_copy(update={"study": "0" * 16}) for rating in good],
        "unknown rater": lambda: [*good, plain | {"rater": "nobody"}],
        "unknown item": lambda: forged(item="item-99"),
        "unknown question": lambda: forged(question="quality"),
        "answer": lambda: forged(answer=2),
        "text": lambda: forged(answer="a"),
        "boolean": lambda: [*good, plain | {"answer": True}],
        "not JSON": lambda: [*good, "accepted, mostly"],
        "torn": lambda: [*good, json.dumps(plain)[:40]],
        "surrogate": lambda: [*good, plain | {"answer": "\ud800"}],
        "endless": lambda: [*good, plain | {"seconds": float("inf")}],
        "more fields": lambda: [*good, plain | {"comment": "=cmd"}],
    }[fault]()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_only_valid_ratings_are_stored(fault: str, folder: Path, tmp_path: Path) -> None:
    study = checked_study(folder)
    report = import_ratings(folder, [write(tmp_path / "a.jsonl", faulty(fault, study))])
    reason, n = FAULTS[fault]
    found = left_out(report)
    assert found[reason] == n
    assert report.sources[0].accepted + sum(found.values()) == report.sources[0].found
    follows = found.get("follows an edited rating", 0)
    assert set(found) == {reason} | ({"follows an edited rating"} if follows else set())
    good = sealed(study, study.raters[0], answers(study, study.raters[0]))
    if report.sources[0].accepted:
        assert {rating.seal for rating in load_ratings(folder)} <= {rating.seal for rating in good}
    text = "\n".join(report.lines())
    assert f"left out: {n} {reason}" in text


def test_what_follows_an_edit_is_left_out_even_where_its_seal_fits(folder: Path, tmp_path: Path) -> None:
    study = checked_study(folder)
    report = import_ratings(folder, [write(tmp_path / "a.jsonl", faulty("edited answer", study))])
    assert report.sources[0].accepted == 2
    assert left_out(report)["follows an edited rating"] == 3
    assert [left.where for left in report.sources[0].left_out] == [("line 3",), ("line 4", "line 5", "line 6")]


def test_taking_all_but_one_seal_away_is_an_edit(folder: Path, tmp_path: Path) -> None:
    study = checked_study(folder)
    first, *others = sealed(study, study.raters[0], answers(study, study.raters[0]))
    bare = [rating.model_dump(exclude={"seal"}) for rating in others]
    report = import_ratings(folder, [write(tmp_path / "a.jsonl", [first, *bare])])
    assert report.sources[0].accepted == 1


# --- several files ----------------------------------------------------------------------------------------------------


def test_a_later_copy_adds_and_changes_what_the_rater_changed(folder: Path, tmp_path: Path) -> None:
    study = checked_study(folder)
    rater = study.raters[0]
    given = answers(study, rater)
    early = import_ratings(folder, [write(tmp_path / "a.jsonl", sealed(study, rater, given[:4]))])
    later = import_ratings(
        folder, [write(tmp_path / "b.jsonl", sealed(study, rater, [*given, ("item-1", "accept", 0)]))]
    )
    assert (early.raters[0].answered, later.raters[0].answered) == (3, 5)
    assert (later.sources[1].accepted, left_out(later)) == (3, {"repeated": 4})
    assert {rating.item: rating.answer for rating in load_ratings(folder)}["item-1"] == 0


def test_an_earlier_copy_after_a_later_one_changes_nothing(folder: Path, tmp_path: Path) -> None:
    study = checked_study(folder)
    ratings = sealed(study, study.raters[0], answers(study, study.raters[0]))
    import_ratings(folder, [write(tmp_path / "b.jsonl", ratings)])
    before = load_ratings(folder)
    report = import_ratings(folder, [write(tmp_path / "a.jsonl", ratings[:3])])
    assert left_out(report) == {"repeated": 3}
    assert load_ratings(folder) == before


def test_a_copy_that_parts_may_add_but_not_change(folder: Path, tmp_path: Path) -> None:
    """A rater who lost the browser's store and started again, or rated in two browsers."""
    study = checked_study(folder)
    rater = study.raters[0]
    given = answers(study, rater)
    import_ratings(folder, [write(tmp_path / "a.jsonl", sealed(study, rater, given[:3]))])
    again = [*given[:2], ("item-2", "accept", 0), *given[3:]]
    report = import_ratings(folder, [write(tmp_path / "b.jsonl", sealed(study, rater, again, seconds=7.0))])
    assert left_out(report) == {"repeated": 2, "answered otherwise in a file imported before": 1}
    assert {rating.item: rating.answer for rating in load_ratings(folder)}["item-2"] == 1
    assert report.raters[0].answered == 5


def test_an_import_that_was_killed_before_its_report_is_done_again(folder: Path, tmp_path: Path) -> None:
    study = checked_study(folder)
    file = write(tmp_path / "a.jsonl", sealed(study, study.raters[0], answers(study, study.raters[0])))
    import_ratings(folder, [file])
    (folder / "organiser/import.json").unlink()
    with pytest.raises(DataError, match="has no imported ratings"):
        load_ratings(folder)
    assert import_ratings(folder, [file]).sources[0].accepted == 6


@pytest.mark.parametrize(
    "change", [{"answer": "\u202e"}, {"answer": 2}, {"item": "x"}, {"question": "x"}, {"rater": "x"}]
)
def test_a_stored_rating_that_no_import_accepts_is_damage(
    folder: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    study = checked_study(folder)
    import_ratings(
        folder, [write(tmp_path / "a.jsonl", sealed(study, study.raters[0], answers(study, study.raters[0])))]
    )
    (stored,) = (folder / "organiser/ratings").iterdir()
    first, *others = stored.read_text().splitlines()
    stored.write_text("\n".join([json.dumps(json.loads(first) | change), *others]))
    for read in (lambda: load_ratings(folder), lambda: import_ratings(folder, [stored])):
        with pytest.raises(DataError, match=r"\.jsonl is damaged or was edited: remove"):
            read()


def test_a_stored_rating_that_became_another_valid_answer_is_damage(folder: Path, tmp_path: Path) -> None:
    study = checked_study(folder)
    import_ratings(
        folder, [write(tmp_path / "a.jsonl", sealed(study, study.raters[0], answers(study, study.raters[0])))]
    )
    (stored,) = (folder / "organiser/ratings").iterdir()
    whole = stored.read_text()
    first, *others = whole.splitlines(keepends=True)
    rating = json.loads(first)
    valid = [answer for answer in (0, 1) if study.questions[0].allows(answer)]
    rating["answer"] = next(answer for answer in valid if answer != rating["answer"])
    stored.write_text("".join([json.dumps(rating) + "\n", *others]))
    with pytest.raises(DataError, match="was edited"):
        load_ratings(folder)
    # An import of an earlier version has no digest, and its files are read as before.
    report = folder / "organiser/import.json"
    fields = json.loads(report.read_text())
    for source in fields["sources"]:
        del source["stored"]
    report.write_text(json.dumps(fields))
    assert rating["answer"] in [one.answer for one in load_ratings(folder)]


def test_one_unreadable_file_imports_none(folder: Path, tmp_path: Path) -> None:
    study = checked_study(folder)
    good = write(tmp_path / "a.jsonl", sealed(study, study.raters[0], answers(study, study.raters[0])))
    bad = tmp_path / "b.jsonl"
    for data in (b"\xff\xfe\x00", b"hello", b"", b"{}\n", b"[1]", b"[[]", b'[{"id": 1}]'):
        bad.write_bytes(data)
        with pytest.raises(DataError, match=r"b\.jsonl"):
            import_ratings(folder, [good, bad])
    assert not (folder / "organiser/import.json").exists()
    with pytest.raises(DataError, match="cannot be read"):
        import_ratings(folder, [tmp_path / "missing.jsonl"])


def test_without_files_those_of_serve_are_imported(folder: Path) -> None:
    study = checked_study(folder)
    with pytest.raises(UsageError, match="name the files"):
        import_ratings(folder)
    ratings = sealed(study, study.raters[1], answers(study, study.raters[1]))
    served = folder / "organiser/ratings/served-rater-2.jsonl"
    served.parent.mkdir(parents=True)
    write(served, ratings[:4])
    assert import_ratings(folder).raters[0].answered == 3
    write(served, ratings)
    report = import_ratings(folder)
    assert (report.raters[0].answered, left_out(report)) == (5, {"repeated": 4})


@pytest.mark.parametrize("part", ["items", "questions"])
def test_a_key_that_lacks_what_it_names_is_damaged(part: str, folder: Path) -> None:
    make_study(folder)
    key = folder / "organiser" / "key.json"
    known = json.loads(key.read_text())
    key.write_text(json.dumps({**known, part: known[part][1:]}))
    with pytest.raises(DataError, match="is named but not given"):
        Study.read(folder)


def test_a_damaged_store_is_an_error_that_says_what_to_do(folder: Path, tmp_path: Path) -> None:
    study = checked_study(folder)
    import_ratings(
        folder, [write(tmp_path / "a.jsonl", sealed(study, study.raters[0], answers(study, study.raters[0])))]
    )
    stored = next((folder / "organiser/ratings").iterdir())
    whole = stored.read_text()
    for emptied in ("\n", "".join(whole.splitlines(keepends=True)[1:])):
        stored.write_text(emptied)
        with pytest.raises(DataError, match="import the files again"):
            load_ratings(folder)
    stored.write_text(whole.replace('"accept"', "3"))
    with pytest.raises(DataError, match="import the files again"):
        load_ratings(folder)
    (folder / "organiser/import.json").write_text('{"study": 1}')
    with pytest.raises(DataError, match="import the files again"):
        import_ratings(folder)


# --- raters -----------------------------------------------------------------------------------------------------------


def test_raters_are_left_out_by_the_stated_rules_until_these_change(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = checked_study(folder)
    first, second, third = study.raters
    given = answers(study, second)
    careless = [(item, question, 0 if item.startswith("check") else answer) for item, question, answer in given]
    files = [
        write(tmp_path / "a.jsonl", sealed(study, first, answers(study, first), seconds=0.4)),
        write(tmp_path / "b.jsonl", sealed(study, second, careless)),
        write(tmp_path / "c.jsonl", sealed(study, third, answers(study, third)[:3])),
    ]
    report = import_ratings(folder, files)
    assert verdicts(report) == {"rater-1": ("median 0.4 s",), "rater-2": ("2 attention checks failed",), "rater-3": ()}
    assert {rating.rater for rating in load_ratings(folder)} == {"rater-3"}
    assert {rating.rater for rating in load_ratings(folder, everyone=True)} == {"rater-1", "rater-2", "rater-3"}
    text = "\n".join(report.lines())
    assert "rule: leave out raters who failed more than 1 attention check, or failed the training items twice" in text
    assert "rater-3  2 of 5 answers, incomplete" in text
    monkeypatch.setattr("dreambench.human.import_report.NAMED", 2)
    assert report.lines()[-4:] == [
        "votes: 2 of 9 planned, 7 still needed",
        *(f"  prompt-{k}  one: {given} of 3" for k, given in ((1, 1), (2, 1))),
        "  … and 1 others (--json FILE lists them all)",
    ]

    changed = import_ratings(folder, max_failed_checks=2, min_seconds=0.1, complete_only=True)
    assert verdicts(changed) == {"rater-1": (), "rater-2": (), "rater-3": ("incomplete",)}
    assert import_ratings(folder).rules == Rules(max_failed_checks=2, min_seconds=0.1, complete_only=True)
    with pytest.raises(SystemExit):
        main(["human", "import", str(folder), "--max-failed-checks", "4", "--min-seconds", "3", "--incomplete-too"])
    assert import_ratings(folder).rules == Rules(max_failed_checks=4, min_seconds=3, complete_only=False)


def test_a_rater_who_failed_the_training_items_twice_is_left_out(folder: Path, tmp_path: Path) -> None:
    study = checked_study(folder)
    rater = study.raters[0]
    lessons = [("item-0", "accept", 0), ("item-0", "accept", 0)]
    file = write(tmp_path / "a.jsonl", sealed(study, rater, [*lessons, *answers(study, rater)[1:]]))
    assert verdicts(import_ratings(folder, [file])) == {"rater-1": ("training items failed twice",)}


def test_votes_still_needed_are_counted_by_prompt_and_in_all(folder: Path, tmp_path: Path) -> None:
    study = checked_study(folder)
    first, second, _ = study.raters
    files = [
        write(tmp_path / "a.jsonl", sealed(study, first, answers(study, first))),
        write(tmp_path / "b.jsonl", sealed(study, second, answers(study, second)[:3])),
    ]
    report = import_ratings(folder, files)
    votes = {vote.prompt: (vote.given, vote.planned) for vote in report.votes}
    assert votes == {"prompt-1": (2, 3), "prompt-2": (2, 3), "prompt-3": (1, 3)}
    assert report.needed == 4
    assert import_ratings(folder, complete_only=True).needed == 6


# --- other forms ------------------------------------------------------------------------------------------------------


def potato(study: Study, rater: Rater, given: Sequence[tuple[str, str, int | str]]) -> list[dict[str, Any]]:
    return [
        {
            "instance_id": item,
            "user_id": rater.id,
            "labels": {question: {str(answer): "true"}},
            "spans": {},
            "links": {},
        }
        for item, question, answer in given
    ]


def label_studio(
    study: Study, rater: Rater, given: Sequence[tuple[str, str, int | str]], person: Any = 7
) -> list[dict[str, Any]]:
    """As Label Studio 1.23 exports it (shortened to what has a meaning, and a few fields that have none)."""

    def task(number: int, item: str, question: str, answer: int | str) -> dict[str, Any]:
        result = {"from_name": question, "to_name": "document", "type": "choices", "value": {"choices": [str(answer)]}}
        annotation = {
            "id": number,
            "completed_by": person,
            "result": [result],
            "was_cancelled": False,
            "lead_time": SECONDS,
        }
        return {
            "id": number,
            "annotations": [annotation],
            "predictions": [],
            "data": {"study": study.id, "rater": rater.id, "item": item, "document": "<p>…</p>"},
        }

    return [task(number, *each) for number, each in enumerate(given, 1)]


def mechanical_turk(
    study: Study, rater: Rater, given: Sequence[tuple[str, str, int | str]], **fields: str
) -> dict[str, str]:
    row = {"HITId": "H", "WorkerId": "W", "AssignmentStatus": "Submitted", "WorkTimeInSeconds": "30"}
    row |= {"Input.study": study.id, "Input.rater": rater.id, "Input.items": "<section>" + "x" * 200_000}
    return {**row, **{f"Answer.{item}.{question}": str(answer) for item, question, answer in given}, **fields}


def table(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), restval="")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8")
    return path


@pytest.mark.parametrize("mode", ["rating", "pairwise"])
@pytest.mark.parametrize("form", ["Label Studio", "Potato", "Mechanical Turk", "JSON Lines, no seals"])
def test_every_form_gives_the_same_answers(form: str, mode: str, folder: Path, tmp_path: Path) -> None:
    study = make_study(folder, questions=(PREFER,) if mode == "pairwise" else (ACCEPT, QUALITY))
    rater = study.raters[0]
    codes = {"accept": 1, "quality": 4, "prefer": "both_bad"}
    given = [(item, question, codes[question]) for item, question, _ in answers(study, rater)]
    file = tmp_path / ("a.csv" if form == "Mechanical Turk" else "a.jsonl")
    if form == "Label Studio":
        file.write_text(json.dumps(label_studio(study, rater, given)))
    elif form == "Potato":
        write(file, potato(study, rater, given))
    elif form == "Mechanical Turk":
        table(file, [mechanical_turk(study, rater, given)])
    else:
        write(
            file,
            [{"rater": rater.id, "item": item, "question": q, "answer": a, "note": "mine"} for item, q, a in given],
        )
    report = import_ratings(folder, [file])
    assert (report.sources[0].form, left_out(report)) == (form, {})
    assert sorted((rating.item, rating.question, rating.answer) for rating in load_ratings(folder)) == sorted(given)
    expected = {"Label Studio": SECONDS, "Mechanical Turk": 30 / 5}.get(form)
    assert report.raters[0].seconds == expected
    assert verdicts(report) == {rater.id: ()}


def test_label_studio_pairwise_words_ratings_and_skipped_tasks(folder: Path, tmp_path: Path) -> None:
    study = make_study(folder, questions=(PREFER,))
    rater = study.raters[0]
    tasks = label_studio(study, rater, [(f"item-{k}", "prefer", "a") for k in range(1, 5)])
    values: list[Any] = [{"selected": "left"}, {"selected": "right"}, {"selected": "none"}, {"choices": ["a", "b"]}]
    for task, value in zip(tasks, values, strict=True):
        task["annotations"][0]["result"][0] |= {"type": "pairwise", "to_name": "left,right", "value": value}
        del task["id"]
    skipped = label_studio(study, rater, [("item-0", "prefer", "a")])
    skipped[0]["annotations"][0]["was_cancelled"] = True
    file = tmp_path / "export.json"
    file.write_text(json.dumps([*tasks, *skipped]))
    report = import_ratings(folder, [file])
    assert [(rating.item, rating.answer) for rating in load_ratings(folder)] == [("item-1", "a"), ("item-2", "b")]
    assert left_out(report) == {"answer that the question does not allow": 1, "incomplete or damaged line": 1}
    assert {left.where for left in report.sources[0].left_out} == {("task 3",), ("task 4",)}


def test_label_studio_words_and_stars_are_codes(folder: Path, tmp_path: Path) -> None:
    study = make_study(folder, questions=(ACCEPT, QUALITY))
    rater = study.raters[0]
    tasks = label_studio(
        study, rater, [("item-1", "accept", "reject"), ("item-1", "quality", "fair"), ("item-2", "quality", 0)]
    )
    tasks[2]["annotations"][0]["result"][0] |= {"type": "rating", "value": {"rating": 5}}
    number = label_studio(study, rater, [("item-2", "accept", "reject")])  # a choice is text
    number[0]["annotations"][0]["result"][0]["value"]["choices"] = [0]
    file = tmp_path / "export.json"
    file.write_text(json.dumps([*tasks, *number]))
    assert left_out(import_ratings(folder, [file])) == {"incomplete or damaged line": 1}
    found = {(rating.item, rating.question): rating.answer for rating in load_ratings(folder)}
    assert found == {("item-1", "accept"): 0, ("item-1", "quality"): 3, ("item-2", "quality"): 5}


@pytest.mark.parametrize("form", ["Label Studio", "Mechanical Turk"])
def test_a_second_person_does_not_answer_for_a_rater(form: str, folder: Path, tmp_path: Path) -> None:
    study = make_study(folder)
    rater = study.raters[0]
    file = tmp_path / "a"
    if form == "Label Studio":
        one = label_studio(study, rater, answers(study, rater)[:2])
        two = label_studio(study, rater, answers(study, rater)[2:], person={"id": 8, "email": "eve@example.org"})
        file.write_text(json.dumps([*one, *two]))
    else:
        rows = [mechanical_turk(study, rater, answers(study, rater)[:2])]
        table(file, [*rows, mechanical_turk(study, rater, answers(study, rater)[2:], WorkerId="V")])
    report = import_ratings(folder, [file])
    assert left_out(report) == {"given by another person than the rater's first answer": 3}


def test_mechanical_turk_rejected_assignments_and_crowd_elements(folder: Path, tmp_path: Path) -> None:
    study = make_study(folder)
    first, second, _ = study.raters
    rejected = mechanical_turk(study, first, answers(study, first), AssignmentStatus="Rejected")
    crowd = mechanical_turk(study, second, [])
    crowd["Answer.taskAnswers"] = json.dumps([{"item-1.accept": {"0": False, "1": True}, "item-2.accept": "0"}])
    import_ratings(folder, [table(tmp_path / "batch.csv", [rejected, crowd])])
    found = [(rating.rater, rating.item, rating.answer) for rating in load_ratings(folder)]
    assert found == [("rater-2", "item-1", 1), ("rater-2", "item-2", 0)]


def test_potato_version_1_names_the_rater_by_the_folder(folder: Path, tmp_path: Path) -> None:
    make_study(folder)
    file = tmp_path / "rater-2" / "annotated_instances.jsonl"
    file.parent.mkdir()
    write(file, [{"id": "item-1", "displayed_text": "…", "label_annotations": {"accept": {"accept": "1"}}}])
    import_ratings(folder, [file])
    assert [(rating.rater, rating.item, rating.answer) for rating in load_ratings(folder)] == [("rater-2", "item-1", 1)]


def test_potato_state_of_an_annotator(folder: Path, tmp_path: Path) -> None:
    """As Potato 2.12 keeps it (shortened)."""
    make_study(folder)
    answers = {f"item-{k}": [[{"schema": "accept", "name": str(k % 2)}, str(k % 2)]] for k in (1, 2)}
    both = {"item-3": [[{"schema": "accept", "name": name}, name] for name in ("0", "1")], "item-4": {}}
    file = tmp_path / "user_state.json"
    file.write_text(json.dumps({"user_id": "rater-3", "instance_id_to_label_to_value": answers | both}, indent=2))
    report = import_ratings(folder, [file])
    assert [(rating.rater, rating.item, rating.answer) for rating in load_ratings(folder)] == [
        ("rater-3", "item-1", 1),
        ("rater-3", "item-2", 0),
    ]
    assert left_out(report) == {"incomplete or damaged line": 2}


# --- hostile files ----------------------------------------------------------------------------------------------------


def test_hostile_text_reaches_neither_terminal_nor_file_names(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checked_study(folder)
    bad = "\x1b[2J\u202e=cmd|' /C calc'!A0\n../../../etc/passwd"
    lines = [{"rater": bad, "item": bad, "question": bad, "answer": bad, "study": bad}]
    good = [{"rater": "rater-1", "item": "item-1", "question": "accept", "answer": 1}]
    file = write(tmp_path / "\x1b[31mred\u202e.jsonl", [*lines, *good])
    with pytest.raises(SystemExit) as leaving:
        main(["human", "import", str(folder), str(file), "--json", str(tmp_path / "report.json")])
    assert leaving.value.code == 0
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert "\u202e" not in shown.out + shown.err
    stored = {path.name for path in (folder / "organiser/ratings").iterdir()}
    assert stored == {f"{json.loads((tmp_path / 'report.json').read_text())['sources'][0]['sha256']}.jsonl"}


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"instance_id_to_label_to_value": {"item-1": [1, [], [2], [{"schema": {}}]]}}',
        '{"rater":' * 50_000,
        json.dumps(
            [{"annotations": "x", "data": []}, {"annotations": [None, {"result": [None, {"value": []}]}], "data": {}}]
        ),
        json.dumps(
            [{"annotations": [{"result": [{"from_name": ["x"], "value": {"choices": {}}}]}], "data": {"item": {}}}]
        ),
        '{"rater": {}, "item": [], "question": {}, "answer": {}, "seconds": "long"}',
        '{"labels": [], "instance_id": {}}\n{"labels": {"accept": null}, "user_id": 3}',
        'Input.rater,Answer.x.y,Answer.taskAnswers\nrater-1,=1+1,"[[{""a.b"": {}}]]"\nshort\n',
        'WorkTimeInSeconds,Input.rater,Answer.item-1.accept\nnan,rater-1,"unclosed',
        '{"rater": "rater-1", "item": "item-1", "question": "accept", "answer": ' + "9" * 5000 + "}",
    ],
)
def test_nonsense_is_refused_or_counted_never_a_crash(text: str, folder: Path, tmp_path: Path) -> None:
    checked_study(folder)
    file = tmp_path / "nonsense"
    file.write_text(text)
    try:
        report = import_ratings(folder, [file])
    except DataError:
        return
    assert report.sources[0].accepted == 0
    assert sum(left_out(report).values()) == report.sources[0].found > 0


def test_the_report_is_stored_with_its_rules_and_read_back(folder: Path, tmp_path: Path) -> None:
    study = checked_study(folder)
    file = write(tmp_path / "a.jsonl", sealed(study, study.raters[0], answers(study, study.raters[0])))
    report = import_ratings(folder, [file])
    stored = json.loads((folder / "organiser/import.json").read_text())
    assert stored["rules"] == {"max_failed_checks": 1, "min_seconds": 2.0, "complete_only": False}
    assert ImportReport.model_validate_json(canonical_json(stored)).votes == report.votes
    with pytest.raises(UsageError, match="no such rule"):
        import_ratings(folder, min_seconds=float("nan"))
