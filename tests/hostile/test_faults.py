"""A bounded part of the kills and the full disks: verbs without a model, struck at calls drawn from a fixed seed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile import disks, kills
from hostile.case import Judge
from hostile.striking import missing_compiler

pytestmark = pytest.mark.skipif(missing_compiler() is not None, reason=missing_compiler() or "")


def test_a_verb_that_is_killed_ends_in_the_bytes_of_an_undisturbed_one(tmp_path: Path) -> None:
    judge = Judge(tmp_path)
    verdicts = [judge(case) for case in kills.cases(tmp_path, seed=1, count=5, heavy=False)]
    assert [verdict for verdict in verdicts if not verdict.ok] == []
    assert len(verdicts) == 5


def test_a_verb_on_a_full_disk_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    judge = Judge(tmp_path)
    verdicts = [judge(case) for case in disks.cases(tmp_path, seed=1, count=5, heavy=False)]
    assert [verdict for verdict in verdicts if not verdict.ok] == []
    assert sum(verdict.status == 2 for verdict in verdicts) >= 3
