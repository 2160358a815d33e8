"""End to end: images a second of a whole image generation run, and what the harness adds to the model's own time."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

import dreambench
from dreambench_tasks import playground

IMAGES = 64


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return playground.write(tmp_path_factory.mktemp("world") / "data", split="val", n=IMAGES, formats=["coco"])


def test_images_a_second_of_a_whole_run(benchmark, world: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The embedded model: image generation, storing, features of three protocols, scores. Reported, not held: it has no oracle."""
    number = iter(range(100))

    def whole() -> dreambench.Result:
        out = tmp_path / str(next(number))
        return dreambench.run(
            "coco_fid",
            "dreamllm",
            data=world,
            features="playground-clip",
            protocol=["clean", "pytorch", "tf1"],
            out=out,
        )

    result = benchmark.pedantic(whole, rounds=2, warmup_rounds=1)
    benchmark.extra_info["images_per_second"] = IMAGES / benchmark.stats.stats.min if benchmark.stats else None
    assert result.scores[0].n == IMAGES


def test_the_harness_itself_costs_little_beside_its_batches(benchmark, world: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Storing a batch (PNG files, lines, syncs) takes less than half the time of answering it; loose, because disks differ."""
    began = time.perf_counter()
    result = benchmark.pedantic(
        lambda: dreambench.run("coco_fid", "dreamllm", data=world, features="playground-clip", out=tmp_path), rounds=1
    )
    seconds = time.perf_counter() - began
    timings = [json.loads(line) for line in (result.folder / "timings.jsonl").read_text().splitlines()]
    answering = sum(line["answer_s"] for line in timings)
    storing = sum(line["store_s"] for line in timings)
    benchmark.extra_info.update(answer_s=round(answering, 3), store_s=round(storing, 3), whole_s=round(seconds, 3))
    assert storing < 0.5 * answering
