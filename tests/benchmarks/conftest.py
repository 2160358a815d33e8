"""A speed claim is a ratio: how many times faster than the oracle that it must equal, measured side by side."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

Comparison = Callable[..., tuple[Any, Any]]


@pytest.fixture
def faster(benchmark: Any) -> Comparison:
    """``faster(ours, oracle, at_least, rounds=3)`` gives both results, and fails unless ours is `at_least` times faster.

    CPU time of this process is compared, the least of the rounds of each side, so that a busy machine does not decide; `clock` may be
    another one, which leaves out a part. With --benchmark-disable each side runs once and nothing is timed.
    """

    def compare(
        ours: Callable[[], Any],
        oracle: Callable[[], Any],
        at_least: float,
        rounds: int = 3,
        clock: Callable[[], float] = time.process_time,
    ) -> tuple[Any, Any]:
        benchmark._timer = clock
        if not benchmark.enabled:
            return benchmark.pedantic(ours), oracle()
        result = benchmark.pedantic(ours, rounds=rounds, warmup_rounds=1)
        expected, seconds = None, float("inf")
        for _ in range(max(1, rounds // 2)):
            began = clock()
            expected = oracle()
            seconds = min(seconds, clock() - began)
        ratio = seconds / benchmark.stats.stats.min
        benchmark.extra_info.update(oracle_s=round(seconds, 4), times_faster=round(ratio, 2))
        print(f"{benchmark.name}: {ratio:.1f} times faster than its oracle (at least {at_least})")
        assert ratio >= at_least, f"{ratio:.2f} times faster than the oracle, {at_least} are claimed"
        return result, expected

    return compare
