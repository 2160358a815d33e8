"""``human analyse`` from a table of votes and from a study: figures, page, errors that name the row, hostile names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from human.studies import ACCEPT, PREFER, QUALITY, chain, make_study
from human.test_preference import simulated

from dreambench.cli import main
from dreambench.errors import DataError
from dreambench.human.analyse import analyse, tables_of_study
from dreambench.human.importing import import_ratings
from dreambench.human.raters import Count, rater_table
from dreambench.human.votes import read_votes

HEADER = "prompt,system_a,system_b,vote,rater,position\n"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as leaving:
        main(["human", "analyse", *map(str, arguments)])
    return int(leaving.value.code or 0)


def write_votes(path: Path, rows: Any) -> Path:
    if path.suffix == ".jsonl":
        names = HEADER.strip().split(",")
        path.write_text("".join(json.dumps({name: getattr(vote, name) for name in names}) + "\n" for vote in rows))
    else:
        lines = [f"{v.prompt},{v.system_a},{v.system_b},{v.vote},{v.rater},{v.position}\n" for v in rows]
        path.write_text(HEADER + "".join(lines))
    return path


def votes() -> Any:
    return simulated(1, dict.fromkeys("abcdef", 1.5) | {"careless": 0.0}, 40, order=0.3)


def analysed(folder: Path, *arguments: object) -> dict[str, Any]:
    assert run(*arguments, "--json", folder / "out.json") == 0
    return json.loads((folder / "out.json").read_text())


def test_a_table_of_votes_gives_every_figure_the_same_as_csv_and_json_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = analysed(tmp_path, "--votes", write_votes(tmp_path / "votes.csv", votes()))
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines()) <= 80
    assert list(found["strengths"]) == ["w", "x", "y", "z"]
    for row in found["strengths"].values():
        assert row["interval"][0] < row["value"] < row["interval"][1]
        assert row["rank_interval"][0] <= row["rank"] <= row["rank_interval"][1]
    assert found["model"] == "davidson with position"
    assert found["position"]["effect"]["interval"][0] < 0.3 < found["position"]["effect"]["interval"][1]
    assert found["win_rates"]["w"]["value"] > found["win_rates"]["z"]["value"]
    assert found["agreement"]["krippendorff"]["nominal"]["value"] > 0
    assert found["raters"]["careless"]["careless"]
    assert found["raters"]["careless"]["sensitivity"] < 0.5
    assert [name for name, row in found["raters"].items() if row["careless"]] == ["careless"]
    again = analysed(tmp_path, "--votes", write_votes(tmp_path / "votes.jsonl", votes()))
    assert {**again, "source": 0} == {**found, "source": 0}
    left = analysed(tmp_path, "--votes", tmp_path / "votes.csv", "--without-careless")
    assert left["win_rates"]["w"]["games"] < found["win_rates"]["w"]["games"]


def test_votes_without_raters_and_positions_are_enough(tmp_path: Path) -> None:
    table = tmp_path / "votes.csv"
    table.write_text("prompt,system_a,system_b,vote\n" + "p,x,y,a\nq,y,x,a\nr,x,y,a\n")
    found = analysed(tmp_path, "--votes", table)
    assert found["strengths"]["x"]["value"] == pytest.approx(np.log(2) / 2)
    assert found["raters"] == {}
    assert found["agreement"]["krippendorff"]["nominal"]["reason"] == "no item has ratings of two raters"


def test_raters_without_a_common_item_have_no_kappa_of_their_pair(tmp_path: Path) -> None:
    table = tmp_path / "votes.csv"
    table.write_text(HEADER + "p,x,y,a,anna,a\nq,x,y,b,anna,a\np,x,y,a,bert,a\nr,x,y,b,carl,a\n")
    found = analysed(tmp_path, "--votes", table)
    assert [pair["raters"] for pair in found["agreement"]["cohen_kappa"]] == [["anna", "bert"]]


def test_where_strengths_do_not_exist_that_is_said_and_win_rates_remain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "votes.csv"
    table.write_text("prompt,system_a,system_b,vote\np,x,y,a\nq,x,y,a\n")
    found = analysed(tmp_path, "--votes", table, "--html", tmp_path / "page.html")
    assert found["strengths"]["x"] | {"reason": ""} == {
        "value": None, "interval": None, "rank": None, "rank_interval": None, "reason": "",
    }  # fmt: skip
    assert found["win_rates"]["x"]["value"] == 100
    assert "strengths do not exist: x never lost to y" in capsys.readouterr().out


def test_judges_as_a_file_or_among_the_raters_give_the_same(tmp_path: Path) -> None:
    humans = votes()
    judge = simulated(8, {"judge": 3.0}, 120, tie=0.0)
    both = write_votes(tmp_path / "both.csv", [*humans, *judge])
    apart = write_votes(tmp_path / "judge.csv", judge)
    first = analysed(tmp_path, "--votes", both, "--judge", "judge")
    second = analysed(tmp_path, "--votes", write_votes(tmp_path / "votes.csv", humans), "--judge-votes", apart)
    assert first["judges"] == second["judges"]
    assert "judge" not in first["raters"]
    report = first["judges"]["judge"]
    assert report["with_ties"]["value"] < report["without_ties"]["value"]
    row = report["win_rates"]["w"]
    assert row["corrected"]["interval"][0] < row["corrected"]["value"] < row["corrected"]["interval"][1]
    assert row["corrected"]["worth"] > row["corrected"]["labels"] * 0.8


@pytest.mark.parametrize("option", [["--everyone"], ["--accept-from", "0"], ["--html", "/"]])
def test_options_that_would_do_nothing_are_refused(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "votes.csv").write_text("prompt,system_a,system_b,vote\np,x,y,a\n")
    with pytest.raises(SystemExit) as stopped:
        main(["human", "analyse", "--votes", str(tmp_path / "votes.csv"), *option])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("twice.csv", "prompt,system_a,system_b,vote,vote\np,x,y,a,b\n", "a column stands twice"),
        (
            "half.jsonl",
            r'{"prompt": "\ud800", "system_a": "x", "system_b": "y", "vote": "a"}',
            "half of a surrogate pair",
        ),
        (
            "true.jsonl",
            '{"prompt": true, "system_a": "x", "system_b": "y", "vote": "a"}',
            "prompt is not text but bool",
        ),
        (
            "number.jsonl",
            '{"prompt": "p", "system_a": "x", "system_b": "y", "vote": "a", "rater": 7}',
            "rater is not text but int: write names and ids in quotes",
        ),
    ],
)
def test_a_table_that_would_be_misread_is_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_votes(tmp_path / name)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("p,x,y,maybe,,\n", "line 2: vote 'maybe' is none of a, b, tie, both_good, both_bad"),
        ("p,x,y,a,,\nq,x,y,b,,left\n", "line 3: position 'left' is none of a, b"),
        ("p,x,x,a,,\n", "line 2: 'x' is compared with itself"),
        ("p,,y,a,,\n", "line 2: no 'system_a'"),
        ("p,x,y\n", "line 2: not as many cells as there are columns"),
        ("", "holds no votes"),
    ],
)
def test_a_row_that_is_no_vote_is_named(
    rows: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "votes.csv"
    table.write_text(HEADER + rows)
    assert run("--votes", table) == 2
    assert message in capsys.readouterr().err


def test_unknown_columns_judges_and_sources_are_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "votes.csv"
    table.write_text("prompt,system_a,system_b,vote,score\np,x,y,a,1\n")
    assert run("--votes", table) == 2
    assert "line 2: unknown column 'score'" in capsys.readouterr().err
    lines = tmp_path / "votes.jsonl"
    lines.write_text('{"prompt": ["p"], "system_a": "x", "system_b": "y", "vote": "a"}\n')
    assert run("--votes", lines) == 2
    assert "line 1: prompt is not text but list" in capsys.readouterr().err
    lines.write_text('{"prompt": "p", "system_a": "x", "system_b": "y", "vote": "a"}\n["p", "x", "y", "a"]\n')
    assert run("--votes", lines) == 2
    assert "votes.jsonl, line 2: not an object with the columns prompt, " in capsys.readouterr().err
    table.write_text(HEADER + "p,x,y,a,anna,\n")
    assert run("--votes", table, "--judge", "gpt") == 2
    assert "the raters are anna" in capsys.readouterr().err
    assert run("--votes", table, "--judge", "anna") == 2
    assert "all votes are those of judges" in capsys.readouterr().err
    assert run() == 2
    assert "either the folder of a study or a table of votes" in capsys.readouterr().err


def test_names_of_systems_and_raters_do_nothing_on_page_and_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "<script>alert(1)</script>\x1b[31m[bold]"
    rows = [
        {
            "prompt": f"p{k}",
            "system_a": hostile,
            "system_b": "\u202ey{{7*7}}",
            "vote": "ab"[k % 2],
            "rater": "<b>" + "x" * 300,
        }
        for k in range(5)
    ]
    table = tmp_path / "votes.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("--votes", table, "--html", tmp_path / "page.html") == 0
    page, text = (tmp_path / "page.html").read_text(), capsys.readouterr().out
    assert "<script" not in page
    assert "<b>" not in page
    assert "{{7*7}}" in page
    assert "\x1b" not in page + text
    assert "\u202e" not in page + text
    assert "default-src 'none'" in page
    assert not re.search(r'(?:src|href)="', page)
    assert max(len(line) for line in text.splitlines()) <= 80


def rated_study(folder: Path) -> None:
    """Two systems and three questions; rater-3 answers at random."""
    study = make_study(folder, questions=(PREFER,), items=24, raters=4)
    rng = np.random.default_rng(0)
    files: list[Path] = []
    for number, rater in enumerate(study.raters):
        answers: list[tuple[str, str, int | str]] = [("item-0", "prefer", "a")]
        drawn = rng.choice(["a", "b", "both_bad"], size=24, p=[0.6, 0.3, 0.1]).tolist()
        answers += [(f"item-{k}", "prefer", answer) for k, answer in enumerate(drawn, 1)]
        if number == 0:
            answers.append(("item-1", "prefer", "tie"))
        files.append(folder / f"{rater.id}.jsonl")
        files[-1].write_text("".join(r.model_dump_json() + "\n" for r in chain(study, rater, answers)))
    import_ratings(folder, files)


def test_a_pairwise_study_is_analysed_by_its_key_and_the_last_answer_counts(tmp_path: Path) -> None:
    rated_study(tmp_path)
    found = analysed(tmp_path, tmp_path)
    assert found["question"] == "prefer"
    assert sum(found["votes"].values()) == 4 * 24
    assert found["votes"]["tie"] == 1
    assert found["win_rates"]["one"]["value"] > 50
    # The left one is always the same system in this study.
    assert found["model"] == "davidson"
    assert any(note.startswith("no position term: the position cannot be told") for note in found["notes"])


def test_attention_checks_and_repeats_count_for_care_alone(tmp_path: Path) -> None:
    plain = make_study(tmp_path, items=3)
    (again,) = (item for item in plain.items if item.id == "item-1")
    repeat = again.model_copy(update={"id": "again", "purpose": "repeat", "repeats": "item-1"})
    changes = {"id": "check", "purpose": "attention", "topic": None, "systems": ("check",), "expected": {"accept": 1}}
    items = (*plain.items, repeat, again.model_copy(update=changes))
    ids = tuple(item.id for item in items)
    raters = tuple(rater.model_copy(update={"items": ids}) for rater in plain.raters[:2])
    study = plain.model_copy(update={"items": items, "raters": raters})
    study.write(tmp_path)
    for rater, careful in zip(raters, (1, 0), strict=True):
        given: list[tuple[str, str, int | str]] = [(id_, "accept", 1 if "item" in id_ else careful) for id_ in ids]
        lines = [rating.model_dump_json() + "\n" for rating in chain(study, rater, given)]
        (tmp_path / f"{rater.id}.jsonl").write_text("".join(lines))
    report = import_ratings(tmp_path, [tmp_path / f"{rater.id}.jsonl" for rater in raters], min_seconds=0)
    assert [row.checks_failed for row in report.raters] == [0, 1]
    (table,) = tables_of_study(tmp_path)[1]
    care = rater_table(table.answers, pairwise=False)
    assert {name: (row.attention, row.repeats, row.answers) for name, row in care.items()} == {
        "rater-1": (Count(1, 1), Count(1, 1), 3),
        "rater-2": (Count(0, 1), Count(0, 1), 3),
    }
    assert sorted((row.rater, row.prompt) for row in table.ratings) == [
        (rater.id, f"prompt-{k}") for rater in raters for k in (1, 2, 3)
    ]
    import_ratings(tmp_path, max_failed_checks=0)  # leaves rater-2 out
    for everyone, left_out in ({}, ["rater-2"]), ({"everyone": True}, []):
        analyse(tmp_path, None, json_file=tmp_path / "found.json", **everyone)
        found = json.loads((tmp_path / "found.json").read_text())
        assert found["source"]["left_out_raters"] == left_out
        assert found["acceptance"]["one"]["n"] == 6 - 3 * len(left_out)
        assert set(found["raters"]) == {"rater-1", "rater-2"}


def test_a_rating_study_gives_acceptance_beside_the_published_rates(tmp_path: Path) -> None:
    study = make_study(tmp_path, questions=(ACCEPT, QUALITY), items=20, raters=3)
    rng = np.random.default_rng(1)
    files: list[Path] = []
    for rater in study.raters:
        answers: list[tuple[str, str, int | str]] = [("item-0", "accept", 1), ("item-0", "quality", 5)]
        for k in range(1, 21):
            quality = int(rng.integers(1, 6))
            answers += [(f"item-{k}", "accept", int(quality > 2)), (f"item-{k}", "quality", quality)]
        files.append(tmp_path / f"{rater.id}.jsonl")
        files[-1].write_text("".join(r.model_dump_json() + "\n" for r in chain(study, rater, answers)))
    import_ratings(tmp_path, files)
    found = analysed(tmp_path, tmp_path, "--html", tmp_path / "page.html")
    row = found["acceptance"]["one"]
    assert (row["n"], row["raters"], row["documents"]) == (60, 3, 20)
    assert row["interval"][0] < row["value"] < row["interval"][1]
    assert [entry["value"] for entry in found["published"]] == [60.68, 77.24]
    assert any("1/750" in note for note in found["notes"])
    likert = found["other_questions"]["quality"]
    assert 1 <= likert["acceptance"]["one"]["mean"]["value"] <= 5
    assert likert["acceptance"]["one"]["value"] < row["value"]
    assert "60.68" in (tmp_path / "page.html").read_text()
    wider = analysed(tmp_path, tmp_path, "--accept-from", 2)
    assert wider["other_questions"]["quality"]["acceptance"]["one"]["value"] > likert["acceptance"]["one"]["value"]
    assert run(tmp_path, "--accept-from", 9) == 2
