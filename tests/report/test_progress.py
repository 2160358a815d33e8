"""Progress counts what the whole run has, and guesses no time left before it knows the speed."""

from __future__ import annotations

import pytest

from dreambench.progress import Pace, progress_bar


def test_time_left_is_shown_once_the_speed_has_settled() -> None:
    now = 0.0
    pace = Pace(lambda: now)
    texts: list[str] = []
    for now in (0.0, 1.0, 2.0, 3.0, 6.0):
        pace.update(128 + 10 * int(now))
        texts.append(pace.text(256))
    assert texts[:2] == ["(128 before)", "(128 before), 10.0/s"]
    assert not any("left" in text for text in texts[:4]), "three seconds are too few"
    assert texts[4] == "(128 before), 10.0/s, 0:00:07 left"


def test_two_slow_batches_do_not_settle_it() -> None:
    now = 0.0
    pace = Pace(lambda: now)
    for now in (0.0, 30.0, 60.0):
        pace.update(int(now))
    assert "left" not in pace.text(256)


def test_a_resumed_run_says_what_was_done_before(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("vqav2") as update:
        update(128, 256)
        update(256, 256)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "dreambench: vqav2: 128 of 256 answered (128 before)"
    assert last.startswith("dreambench: vqav2: 256 of 256 answered (128 before), ")
