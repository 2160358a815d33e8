"""`golden/scores/agreement`: values of krippendorff, statsmodels, scikit-learn and choix against ours."""

from __future__ import annotations

import pytest
from human.agreement_checks import checks, exemptions, read
from parity.checks import fixture_folder, leaves, uncovered

GOLDEN = fixture_folder("DREAMBENCH_GOLDEN", "../shared/golden/scores")
FOLDER = GOLDEN / "agreement" if GOLDEN else None
pytestmark = pytest.mark.skipif(
    FOLDER is None or not FOLDER.is_dir(), reason="no recorded scores/agreement (DREAMBENCH_GOLDEN)"
)


def test_every_recorded_coefficient_is_ours() -> None:
    assert FOLDER
    problems = [problem for check in checks(FOLDER) if (problem := check.problem())]
    assert not problems, "\n".join(problems)


def test_every_recorded_value_is_compared_or_exempt() -> None:
    assert FOLDER
    keys = [key for file, recorded in read(FOLDER, "expected").items() for key in leaves(recorded, file)]
    assert keys
    assert uncovered(keys, checks(FOLDER), exemptions(FOLDER)) == []


def test_an_error_of_ten_tolerances_is_seen() -> None:
    assert FOLDER
    blind = [check.key for check in checks(FOLDER) if check.perturbed().problem() is None]
    assert blind == []
