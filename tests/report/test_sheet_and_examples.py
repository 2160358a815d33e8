"""The contact sheet, the choice of examples, and the verb's errors."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from report.made_runs import HOSTILE, image_run, png, text_run

from dreambench.errors import UsageError
from dreambench.report.images import CELL, GAP, _wrap, captioned_sheet
from dreambench.report.page import write_page
from dreambench.report.runs import choose, load
from dreambench.report.text import printable

ROWS = [{"id": f"r{i}", "n": i, "text": "x", "value": None if i % 9 == 0 else (i * 37 % 50) / 8} for i in range(200)]


def test_worst_and_best_are_the_extremes() -> None:
    found = choose(ROWS, count=12)
    values = sorted(row["value"] for row in ROWS if row["value"] is not None)
    assert found.column == "value"
    assert [row["value"] for row in found.worst] == values[:12]
    assert [row["value"] for row in found.best] == values[::-1][:12]


def test_the_choice_does_not_depend_on_the_order_of_rows() -> None:
    shuffled = random.Random(0).sample(ROWS, len(ROWS))
    assert choose(shuffled) == choose(ROWS)
    assert choose(ROWS, count=3).worst == choose(ROWS, count=12).worst[:3]
    assert choose(ROWS, count=3).best == choose(ROWS, count=12).best[:3]


def test_no_row_is_both_worst_and_best() -> None:
    found = choose(ROWS[1:8], count=12)
    assert len(found.worst) == len(found.best) == 3
    assert not {row["id"] for row in found.worst} & {row["id"] for row in found.best}


def test_the_headlines_column_is_preferred_and_optional() -> None:
    rows = [{"id": str(i), "first": 0.5, "accuracy": i / 4} for i in range(4)]
    assert choose(rows, "accuracy").column == "accuracy"
    assert choose(rows, "unknown").column == "first"
    bare = choose([{"id": "1", "n": 3}])
    assert (bare.column, bare.worst, len(bare.random)) == (None, [], 1)
    assert choose([]).random == []


def test_the_sheet_shows_each_image_in_its_cell_and_repeats(tmp_path: Path) -> None:
    run = load(image_run(tmp_path / "run", HOSTILE))
    data = captioned_sheet(run)
    assert captioned_sheet(run) == data
    with Pillow.open(io.BytesIO(data)) as sheet:
        assert sheet.width == GAP + 8 * (CELL + GAP)
        for index in range(8):
            with Pillow.open(io.BytesIO(png(10 * index))) as generated:
                middle = sheet.getpixel((GAP + index * (CELL + GAP) + CELL // 2, 3 * GAP + CELL // 2))
                assert middle == generated.getpixel((16, 16))


def test_the_sheet_is_limited_and_marks_damaged_images(tmp_path: Path) -> None:
    folder = image_run(tmp_path / "run", [f"caption {i}" for i in range(20)])
    for path in (folder / "images").rglob("*.png"):
        path.write_bytes(b"damaged")
    with Pillow.open(io.BytesIO(captioned_sheet(load(folder), 4))) as sheet:
        assert sheet.width == GAP + 4 * (CELL + GAP)
        assert sheet.getpixel((GAP + CELL // 2, 3 * GAP + CELL // 2)) == (255, 255, 255)


@given(st.text(), st.integers(1, 4), st.integers(4, 30))
def test_wrapped_lines_fit_and_omissions_are_marked(text: str, most: int, room: int) -> None:
    lines = _wrap(text, len, room, most)
    whole = "".join(printable(" ".join(text.split())).split(" "))
    assert 1 <= len(lines) <= most
    assert all(len(line) <= room for line in lines)
    joined = "".join("".join(lines).split(" "))
    assert joined == whole or (joined.endswith("…") and whole.startswith(joined[:-1]))


def test_errors_are_usage_errors(tmp_path: Path) -> None:
    run = text_run(tmp_path / "run", ["a", "b"])
    with pytest.raises(UsageError, match="has no images"):
        captioned_sheet(load(run))
    with pytest.raises(UsageError, match="--html"):
        write_page([load(run)], tmp_path)


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--csv"], 0, "run,task,model,metric"),
        (["--markdown"], 0, "| metric "),
        (["--latex"], 0, r"\begin{tabular}"),
        (["--csv", "--latex"], 2, "--csv and --latex print the same table"),
        (["--html", "page.html"], 0, "wrote page.html"),
        (["--sheet", "sheet.png"], 2, "has no images"),
        (["absent"], 2, "absent is not a run"),
    ],
)
def test_the_report_command(tmp_path: Path, options: list[str], status: int, words: str) -> None:
    text_run(tmp_path / "run", ["a", "b"])
    command = [sys.executable, "-m", "dreambench", "report", "run", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert words in done.stdout + done.stderr
    if status:
        assert not done.stdout
        assert len(done.stderr.strip().splitlines()) == 1
