"""A sample of the servers that misbehave; `python -m tests.hostile --part servers` tries them all."""

from __future__ import annotations

import re
from pathlib import Path

from hostile.case import Judge
from hostile.misbehaviour import MISBEHAVIOUR
from hostile.servers import cases


def test_a_sample_of_them_is_survived(tmp_path: Path) -> None:
    judge = Judge(tmp_path)
    verdicts = [judge(case) for case in cases(tmp_path, seed=12, count=6)]
    assert len(verdicts) == 6
    assert not [verdict for verdict in verdicts if not verdict.ok]


def test_there_are_enough_of_every_kind() -> None:
    assert len(MISBEHAVIOUR) >= 150
    names = [one.name for one in MISBEHAVIOUR]
    assert len(set(names)) == len(names)
    assert {one.becomes for one in MISBEHAVIOUR} >= {"good", "fails", "down", "no text"}
    for kind in ("key", "redirect", "chunk", "endless", "UTF", "Retry-After", "surrogate", "deep", "usage", "length"):
        assert any(re.search(kind, name) for name in names), kind
