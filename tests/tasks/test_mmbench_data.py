"""MMBench files: official columns and their absence, images by reference, text that stays text, and the submission."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path

import pytest

from dreambench.errors import DataError
from dreambench_tasks.mmbench import data

IMAGE = base64.b64encode(bytes(range(256))).decode()
OTHER = base64.b64encode(bytes(255)).decode()
COLUMNS = [
    "index",
    "question",
    "hint",
    "A",
    "B",
    "C",
    "D",
    "answer",
    "category",
    "image",
    "source",
    "l2-category",
    "comment",
    "split",
]
ROW = {
    "index": "1",
    "question": "what?",
    "hint": "",
    "A": "None",
    "B": "NA",
    "C": "",
    "D": "",
    "answer": "B",
    "category": "ocr",
    "image": IMAGE,
    "source": "here",
    "l2-category": "coarse_perception",
    "comment": "",
    "split": "dev",
}


def write(path: Path, *rows: dict[str, str], columns: list[str] | None = None) -> Path:
    names = columns or COLUMNS
    lines = ["\t".join(names), *("\t".join((ROW | row).get(name, "") for name in names) for row in rows)]
    text = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("name", ["MMBench_DEV_EN.tsv", "MMBench_DEV_EN.tsv.gz"])
def test_cells_stay_text_and_empty_options_are_absent(tmp_path: Path, name: str) -> None:
    loaded = data.load(write(tmp_path / name, {"hint": "nan", "D": "北京"}))
    (row,) = loaded.rows
    assert row.options == {"A": "None", "B": "NA", "D": "北京"}
    assert (row.index, row.hint, row.answer, row.category, row.l2_category, row.split) == (
        1,
        "nan",
        "B",
        "ocr",
        "coarse_perception",
        "dev",
    )
    assert loaded.image_bytes(row) == bytes(range(256))
    assert not loaded.circular


def test_copies_share_the_image_whether_referenced_or_repeated(tmp_path: Path) -> None:
    rows = [
        {"index": "1000001", "image": "1"},
        {},
        {"index": "2", "image": OTHER},
        {"index": "1000002", "image": OTHER},
    ]
    loaded = data.load(write(tmp_path / "x.tsv", *rows))
    assert {row.index: row.image for row in loaded.rows} == {1000001: 1, 1: 1, 2: 2, 1000002: 2}
    assert [(row.base, row.rotation) for row in loaded.rows] == [(1, 1), (1, 0), (2, 0), (2, 1)]
    assert set(loaded.images) == {1, 2}
    assert loaded.circular


def test_a_long_image_is_read_whole(tmp_path: Path) -> None:
    """The csv module stops at 131,072 characters unless told otherwise."""
    image = base64.b64encode(bytes(300_000)).decode()
    loaded = data.load(write(tmp_path / "x.tsv", {"image": image}))
    assert loaded.image_bytes(loaded.rows[0]) == bytes(300_000)


def test_columns_that_ccbench_and_test_files_lack_read_as_empty(tmp_path: Path) -> None:
    loaded = data.load(write(tmp_path / "CCBench.tsv", {}, columns=["index", "question", "A", "B", "image"]))
    (row,) = loaded.rows
    assert (row.hint, row.answer, row.category, row.l2_category, row.split) == ("", None, "", "", "")


def test_five_options(tmp_path: Path) -> None:
    row = {"A": "1", "B": "2", "C": "3", "D": "4", "E": "5", "answer": "E"}
    loaded = data.load(write(tmp_path / "x.tsv", row, columns=[*COLUMNS, "E"]))
    assert list(loaded.rows[0].options) == list("ABCDE")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"answer": "C"}], "answer 'C', which is none of its options A, B"),
        ([{"B": ""}], "fewer than two options"),
        ([{}, {}], "index 1 occurs twice"),
        ([{"index": "x"}], "'x' is not an index"),
        ([{"index": "-1"}], "'-1' is not an index"),
        ([{"image": "7"}], "takes its image from '7', which holds none"),
        ([{"image": ""}], "takes its image from 'nowhere'"),
        ([{}, {"index": "2", "image": "1"}, {"index": "3", "image": "2"}], "takes its image from '2'"),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, rows: list[dict[str, str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        data.load(write(tmp_path / "x.tsv", *rows))


def test_files_that_are_no_mmbench_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        data.load(tmp_path / "absent.tsv")
    (tmp_path / "x.tsv").write_text("index\tA\n1\tx\n")
    with pytest.raises(DataError, match=r"lacks the column\(s\) question, B, image"):
        data.load(tmp_path / "x.tsv")
    loaded = data.load(write(tmp_path / "y.tsv", {"image": "!" * 80}))
    with pytest.raises(DataError, match="index 1 is not base64"):
        loaded.image_bytes(loaded.rows[0])


REPLIES = {
    "1": "None",
    "1000001": "",
    "2": "NA",
    "3": "=B",
    "4": "nan",
    "5": "two\nlines\tand\x0b",
    "6": "007",
    "7": "#N/A",
}


def predictions(path: Path, replies: dict[str, str]) -> Path:
    import pandas as pd

    frame = pd.DataFrame({"index": list(replies), "prediction": list(replies.values())})
    if path.suffix in (".tsv", ".csv"):
        frame.to_csv(path, sep="\t" if path.suffix == ".tsv" else ",", index=False)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"index": int(k), "prediction": v}) + "\n" for k, v in replies.items()))
    else:
        path.write_text("".join(json.dumps({"id": k, "text": v}) + "\n" for k, v in replies.items()))
    return path


@pytest.mark.parametrize("name", ["x.tsv", "x.csv", "x.jsonl", "responses.json"])
def test_predictions_stay_text_in_every_format(tmp_path: Path, name: str) -> None:
    assert data.read_predictions(predictions(tmp_path / name, REPLIES)) == REPLIES


def test_predictions_in_a_sheet(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (
        ["index", "question", "prediction"],
        [1, "?", "None"],
        [2.0, "?", None],
        ["3", "?", 4],
        [None, None, None],
    ):
        book.active.append(row)
    book.save(tmp_path / "x.xlsx")
    assert data.read_predictions(tmp_path / "x.xlsx") == {"1": "None", "2": "", "3": "4"}
    book.active.append([4, "?", "#N/A"])
    book.save(tmp_path / "x.xlsx")
    with pytest.raises(DataError, match=r"x\.xlsx: the answer to 4 is not text but None"):
        data.read_predictions(tmp_path / "x.xlsx")
    (tmp_path / "y.xlsx").write_text("no sheet")
    with pytest.raises(DataError, match="cannot be read as a sheet"):
        data.read_predictions(tmp_path / "y.xlsx")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"index": 1, "prediction": "A"}\n{"index": 1, "prediction": "B"}', "answered twice"),
        ('{"index": 1, "prediction": null}', "not text but None"),
        ('{"index": 1.5, "prediction": "A"}', "1.5 is not an index"),
        ('{"index": 1}', r"entry 0 \(from 0\) has no index and prediction"),
        ('{"index": 1, "prediction": "A"}\nbroken', "line 2: not JSON"),
        ("[1]", r"entry 0 \(from 0\) has no index and prediction"),
        ('{"index": 1, "prediction": 0}', "the answer to 1 is not text but 0"),
    ],
)
def test_malformed_predictions_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        data.read_predictions(tmp_path / "x.jsonl")


@pytest.mark.parametrize("suffix", [".tsv", ".xlsx"])
def test_a_submission_has_the_columns_without_the_image_and_reads_back(tmp_path: Path, suffix: str) -> None:
    if suffix == ".xlsx":
        pytest.importorskip("openpyxl")
    loaded = data.load(write(tmp_path / "x.tsv", *({"index": index} for index in REPLIES)))
    path = tmp_path / f"upload{suffix}"
    data.write_submission(path, loaded.rows, REPLIES)
    written = REPLIES | ({"5": "two\nlines\tand_x000B_"} if suffix == ".xlsx" else {})
    assert data.read_predictions(path) == written
    table = (data._sheet(path) if suffix == ".xlsx" else data._table(path, "\t")).to_dict("records")
    assert list(table[0]) == [*(name for name in COLUMNS if name != "image"), "prediction"]
    assert (table[0]["A"], table[0]["B"], table[0]["answer"]) == ("None", "NA", "B")
