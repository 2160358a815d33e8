"""Tables for programs and papers: nothing is lost, and every cell is escaped."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from report.made_runs import HOSTILE, score, text_run

from dreambench.api import Result
from dreambench.cli import main
from dreambench.errors import RunError
from dreambench.report.runs import load, load_all
from dreambench.report.tables import to_csv, to_latex, to_markdown
from dreambench.report.terminal import MOST_GROUPS, print_result, print_runs, print_scores
from dreambench.report.text import LATEX, latex, markdown, printable


def hostile_runs(folder: Path) -> list[Path]:
    scores = [
        score(metric=text, group=text, value=i / 3, protocol=f"p{i % 2} {text}", notes=(text,))
        for i, text in enumerate(HOSTILE)
    ]
    return [text_run(folder / name, ["a", "b"], scores, model=HOSTILE[0]) for name in ("one", "two")]


def cells_of(table: str) -> list[list[str]]:
    """Cells of a Markdown table as a reader sees them, by an independent renderer."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(table)
    rows: list[list[str]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        if token.type == "inline" and rows:
            assert all(child.type in ("text", "text_special") for child in token.children or []), token.content
            rows[-1].append("".join(child.content for child in token.children or []))
        if token.type == "table_close":
            break
    return rows


def test_csv_holds_every_score_in_full_precision(tmp_path: Path) -> None:
    runs = load_all(hostile_runs(tmp_path))
    rows = list(csv.DictReader(io.StringIO(to_csv(runs))))
    assert len(rows) == 2 * len(HOSTILE)
    assert sorted(float(row["value"]) for row in rows) == sorted(2 * [i / 3 for i in range(len(HOSTILE))])
    assert {row["interval_low"] for row in rows} == {"40.0"}
    assert {row["run"] for row in rows} == {"one", "two"}
    by_value = {float(row["value"]): row["group"] for row in rows}
    for i, text in enumerate(HOSTILE):
        assert by_value[i / 3] == ("'" if text.startswith("=") else "") + printable(text)
    assert all(row["notes"].startswith("note a; ") for row in rows)


def test_markdown_cells_render_as_the_text_they_hold(tmp_path: Path) -> None:
    header, *rows = cells_of(to_markdown(load_all(hostile_runs(tmp_path))))
    assert header == [
        "run",
        "model",
        "metric",
        "group",
        "value",
        "interval",
        "interval method",
        "n",
        "unscored",
        "protocol",
    ]
    assert len(rows) == 2 * len(HOSTILE)
    assert {row[3] for row in rows} == {" ".join(printable(text).split()) for text in HOSTILE}
    assert {row[1] for row in rows} == {HOSTILE[0]}


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_any_text_survives_a_markdown_cell(text: str) -> None:
    (_, (cell, _)) = cells_of(f"| a | b |\n| --- | --- |\n| {markdown(text)} | x |\n")
    assert cell.split() == printable(text).split()


@given(st.text())
def test_any_text_survives_a_latex_cell(text: str) -> None:
    """Reading the commands back gives the text, and no special character stands by itself."""
    written = latex(text)
    back = {command: character for character, command in LATEX.items()}
    commands = sorted(map(re.escape, back), key=len, reverse=True)
    assert re.sub("|".join(commands), lambda match: back[match[0]], written) == printable(text)
    rest = re.sub("|".join(commands), "", written)
    assert not set(rest) & set("\\{}$&#_%~^")


def test_latex_has_one_row_per_score_and_a_rule_between_protocols(tmp_path: Path) -> None:
    table = to_latex(load_all(hostile_runs(tmp_path)))
    rows = re.findall(r"^(?!\\).*\\\\$", table, re.MULTILINE)
    assert len(rows) == 1 + 2 * len(HOSTILE)
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {9}
    assert table.count(r"\midrule") == len({f"{i % 2} {text}" for i, text in enumerate(HOSTILE)})
    scores = [score(protocol=protocol, value=value) for protocol, value in (("a@1", 1.0), ("b@1", 2.0), ("b@1", 3.0))]
    lines = to_latex(load_all([text_run(tmp_path / "one", ["a"], scores)])).splitlines()
    ruled = [lines[number - 1] == r"\midrule" for number, line in enumerate(lines) if line.startswith("accuracy")]
    assert ruled == [True, True, False]


def test_the_command_prints_one_table_or_writes_what_was_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = text_run(tmp_path / "one", ["a", "b"])
    runs = load_all([folder])
    print_runs(runs)
    shown, page = capsys.readouterr().out, tmp_path / "page.html"
    forms = {"--csv": to_csv(runs), "--markdown": to_markdown(runs), "--latex": to_latex(runs), f"--html={page}": ""}
    for option, expected in (("", shown), *forms.items()):
        assert page.exists() is False
        with pytest.raises(SystemExit) as left:
            main(["report", str(folder), *filter(None, [option])])
        assert (left.value.code, capsys.readouterr().out) == (0, expected)
    assert "accuracy" in page.read_text()


def test_several_runs_are_adjacent_within_a_protocol(tmp_path: Path) -> None:
    """Of two runs with two protocols and two metrics each, the same score of both is adjacent."""
    scores = [score(metric=metric, protocol=protocol) for protocol in ("p@1-0", "q@1-0") for metric in ("x", "y")]
    runs = load_all([text_run(tmp_path / name, ["a", "b"], scores) for name in ("one", "two")])
    rows = list(csv.DictReader(io.StringIO(to_csv(runs))))
    assert [(row["protocol"], row["metric"], row["run"]) for row in rows] == [
        (protocol, metric, run) for protocol in ("p@1-0", "q@1-0") for metric in ("x", "y") for run in ("one", "two")
    ]
    for table in (to_markdown(runs), to_latex(runs)):
        assert "not comparable" in table
        assert "one: note a" in table
        assert "two: note a" in table
    alone = load_all([text_run(tmp_path / "alone", ["a", "b"])])
    assert "not comparable" not in to_markdown(alone) + to_latex(alone)
    assert "- note a\n" in to_markdown(alone), "a single run needs no name before its notes"


def test_no_table_sends_control_characters_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = hostile_runs(tmp_path)
    runs = load_all(folders)
    print_runs(runs)
    for text in (to_csv(runs), to_markdown(runs), to_latex(runs), capsys.readouterr().out):
        acting = {c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c != "\n"}
        assert not acting
        assert "\u202e" not in text
        assert "x1b" in text, "written out, not dropped"


@given(st.text())
def test_printable_text_is_unchanged_and_the_rest_is_escaped(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert printable(shown) == shown
    plain = [c for c in text if unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp")]
    if len(plain) == len(text) and not set(text) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"):
        assert shown == text


@pytest.mark.parametrize("terminal", [True, False])
def test_the_terminal_table_fits_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    """With long names everywhere, also in a pipe, only names are folded, and no number is cut."""
    if terminal:
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        monkeypatch.setenv("NO_COLOR", "1")
    metric, group = (
        "clip_score[a-very-long-extractor-name]-shuffled",
        "l2_category=finegrained_perception (cross-instance)",
    )
    numbers = {"value": 100.0, "interval": (91.25, 100.0), "n": 214354, "unscored": 9}
    print_scores("mmbench", [score(metric=metric, **numbers), score(metric=metric, group=group, **numbers)])
    table = capsys.readouterr().out.splitlines()[:-2]
    assert all(len(line) <= 80 for line in table)
    for cell in ("100.00 %", "91.25 … 100.00", "214354"):
        assert "\n".join(table).count(cell) == 2
    names = "".join(line[:34].strip() for line in table[3:])
    assert names.startswith(metric)
    assert group in names


def test_the_end_of_a_run_leaves_many_groups_to_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    topics = [score(group=f"topic=number {i}") for i in range(MOST_GROUPS + 1)]
    folder = text_run(tmp_path / "one", ["a"], [score(), score(group="kind=few"), *topics])
    (run,) = load_all([folder])
    print_result(Result(folder, run.metrics))
    shown = capsys.readouterr().out
    assert "kind=few" in shown
    assert "topic=number" not in shown
    assert f"{MOST_GROUPS + 1} groups topic=: dreambench report {folder}" in shown
    print_runs([run])
    assert capsys.readouterr().out.count("topic=number") == MOST_GROUPS + 1


def test_a_folder_of_runs_stands_for_its_complete_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b", "a", "unfinished"):
        text_run(tmp_path / name, ["a", "b"])
    (tmp_path / "unfinished" / "metrics.json").unlink()
    assert [run.name for run in load_all([tmp_path / "b", tmp_path])] == ["b", "a"]
    (line,) = capsys.readouterr().err.splitlines()
    assert f"dreambench rerun {tmp_path / 'unfinished'}" in line
    with pytest.raises(RunError, match="is not complete"):
        load_all([tmp_path / "unfinished"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="is not a run"):
        load_all([tmp_path / "empty"])


def test_a_run_without_scores_still_has_its_header(tmp_path: Path) -> None:
    """Held-back answers leave an upload file and no score."""
    runs = load_all([text_run(tmp_path / "one", ["a", "b"], [])])
    assert to_csv(runs).startswith("run,task,model,metric,")
    assert "interval method" in to_markdown(runs)
    assert r"\midrule" in to_latex(runs)


def test_a_blind_baseline_that_is_no_worse_is_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the same protocol only, from the same folder or given with the run, and never in metrics.json."""
    low = [
        score(metric="circular_accuracy", value=4.0, better="higher"),
        score(value=50.0, better="higher"),
        score(value=1.0, group="kind=a", better="higher"),
        score(metric="distance", value=1.0, better="lower"),
    ]
    folder = text_run(tmp_path / "runs" / "made-model-1", ["a"], low)
    before = (folder / "metrics.json").read_bytes()
    assert load(folder).blind_notes == []
    blind = [
        score(metric="circular_accuracy", value=6.8),
        score(value=50.0),
        score(value=9.0, group="kind=a"),
        score(metric="accuracy", value=99.0, protocol="other@1-0"),
        score(metric="distance", value=2.0),
    ]
    baseline = text_run(tmp_path / "runs" / "made-blind-2", ["a"], blind, model="blind")
    expected = [
        "circular_accuracy: the blind baseline blind has 6.80 %; this model's 4.00 % is below it",
        "accuracy: the blind baseline blind has 50.00 %; this model's 50.00 % is no higher",
    ]
    (run,) = load_all([folder])
    assert run.blind_notes == expected
    assert load(baseline).blind_notes == []
    print_result(Result(folder, run.metrics))
    shown = capsys.readouterr().out
    assert all(f"note: {note}\n" in shown for note in expected)
    assert expected[0] in to_csv([run])
    assert "is below it" in to_latex([run])
    assert (folder / "metrics.json").read_bytes() == before
    apart = baseline.rename(tmp_path / "elsewhere")
    assert load(folder).blind_notes == []
    assert load_all([folder, apart])[0].blind_notes == expected
    (tmp_path / "runs" / "made-blind-3").mkdir()
    (tmp_path / "runs" / "made-blind-3" / "run.json").write_text("{")
    assert load(folder).blind_notes == [], "a damaged run beside it is not this run's affair"
    for seed, value in enumerate((50.5, 52.0, 51.0)):
        text_run(tmp_path / "runs" / f"made-text-only-x-{seed}", ["a"], [score(value=value)], model="text-only:x")
    note = "accuracy: the blind baseline text-only:x has 52.00 %; this model's 50.00 % is below it"
    assert load(folder).blind_notes == [note], "of several seeds the highest"


def test_decimals_of_a_metric_agree_in_every_row(tmp_path: Path) -> None:
    scores = [
        score(value=9.375, interval=(3.1, 24.2)),
        score(value=100.0, interval=(88.0, 100.0), group="kind=a", unscored=1, bounds=(50.0, 100.0)),
        score(metric="kernel", unit="", value=0.00312, interval=(-0.001, 0.0072)),
        score(metric="kernel", unit="", value=0.0, interval=None, group="kind=a"),
        score(metric="fd", unit="", value=123.456, interval=(1.0, 200.0)),
        score(metric="none", unit="", value=None, interval=None),
    ]
    (run,) = load_all([text_run(tmp_path / "one", ["a"], scores)])
    shown = [(row[2], row[3], row[6]) for row in cells_of(to_markdown([run]))[1:]]
    assert shown == [
        ("9.38 %", "3.10 … 24.20", "0"),
        ("100.00 %", "88.00 … 100.00", "1 (50.00 … 100.00 with them)"),
        ("0.003120", "-0.001000 … 0.007200", "0"),
        ("0.000000", "–", "0"),
        ("123.46", "1.00 … 200.00", "0"),
        ("–", "–", "0"),
    ]
