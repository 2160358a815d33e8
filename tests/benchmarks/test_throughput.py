"""Every benchmark on the embedded model, as the whole command that a user waits for: reported beside its score, not held."""

from __future__ import annotations

import os
from typing import Any

import pytest

from dreambench.throughput import CASES, Case, measure, typical

SIZE = os.environ.get("DREAMBENCH_BENCH_SIZE", "standard")
ROUNDS = 1 if SIZE == "tiny" else 3


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_throughput(benchmark: Any, case: Case) -> None:
    if not benchmark.enabled:
        pytest.skip("a measurement: tox -e bench")
    found: list[dict[str, Any]] = []
    benchmark.pedantic(lambda: found.append(measure(case, SIZE)), rounds=ROUNDS)
    benchmark.extra_info.update(typical(found))
    assert all(one["value"] == found[0]["value"] for one in found), (
        "a speed whose score changes is the speed of something else"
    )
    assert found[0]["items"] >= found[0]["n"] * (case.task != "interleaved")
