"""The example package stands alone: a copy of its folder passes its own tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "toybench"


def test_a_copy_of_the_example_passes_its_own_tests(tmp_path: Path, outside_environment: dict[str, str]) -> None:
    copy = shutil.copytree(EXAMPLE, tmp_path / "toybench", ignore=shutil.ignore_patterns("__pycache__"))
    path = outside_environment["PYTHONPATH"].replace(str(EXAMPLE), str(copy))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=copy,
        env={**outside_environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout
