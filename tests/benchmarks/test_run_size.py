"""A run of many samples: its time grows with them, its memory hardly. The figures of 1,000,000 are in docs/reliability.md."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.constructed_vqav2 import write

SMALL, LARGE = 5_000, 25_000
LEAST_PER_CPU_SECOND = 3_000
MOST_BYTES_PER_SAMPLE = 1_500
"""500 bytes and what is not yet full at this size: caches, the rows of a part. Lists of objects took 5,000."""


def resources(folder: Path, n: int, environment: dict[str, str]) -> tuple[float, int]:
    """CPU seconds and peak memory in bytes of the whole command on `n` constructed questions."""
    data = write(folder / f"data-{n}", n)
    line = [sys.executable, "-m", "dreambench", "run", "--task", "vqav2", "--model", "echo", "--data", str(data)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*line, "--out", str(folder / "runs")], env=environment, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, (folder / "log").read_text()
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count the peak in other units")
def test_a_sample_costs_a_third_of_a_millisecond_and_no_memory(
    tmp_path: Path, outside_environment: dict[str, str]
) -> None:
    """By the difference of two sizes, so that the start of Python does not count."""
    (small_s, small_bytes), (large_s, large_bytes) = (
        resources(tmp_path, n, outside_environment) for n in (SMALL, LARGE)
    )
    rate, growth = (LARGE - SMALL) / (large_s - small_s), (large_bytes - small_bytes) / (LARGE - SMALL)
    print(f"{rate:.0f} samples per CPU second, {growth:.0f} bytes per sample")
    assert rate > LEAST_PER_CPU_SECOND
    assert growth < MOST_BYTES_PER_SAMPLE
