"""Runs of comprehension benchmarks keep thumbnails of the images that a page shows, and of no others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from report.test_page import Parsed, block

import dreambench
from dreambench.api import score_run
from dreambench.files import write_atomically
from dreambench.report.images import saved_reference_images
from dreambench.report.page import page
from dreambench.report.runs import load, shown_samples
from dreambench_tasks import playground


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "world"
    return playground.write(folder, split="val", n=12, formats=["vqav2", "mmbench", "mmvet"])


def files(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "thumbnails").iterdir()}


@pytest.mark.parametrize("task", ["vqav2", "mmbench", "mmvet"])
def test_each_question_is_shown_with_its_image_and_the_prompt_as_sent(task: str, data: Path, tmp_path: Path) -> None:
    judge = {"judge": "rule"} if task == "mmvet" else {}
    run = dreambench.run(task, "echo", data=data, out=tmp_path / "runs", **judge).folder
    parsed = Parsed(page([load(run)]))
    samples = parsed.samples().values()
    assert samples
    images = set()
    for sample in samples:
        image, text = block(sample, "prompt as sent")
        images.add(image["i"])
        assert text.startswith(sample["title"]) or sample["title"] in text
        assert sample["lead"] == [image]
    assert len(images) > 1
    before = files(run)
    assert len(before) == 1 + len(saved_reference_images(load(run).run))

    (run / "thumbnails" / "reference_images.json").unlink()  # as after a kill
    next((run / "thumbnails").glob("*.jpg")).unlink()
    score_run(run)
    assert files(run) == before

    moved = tmp_path / "elsewhere"
    shutil.copytree(run, moved)
    shutil.rmtree(moved / "thumbnails")
    (moved / "run.json").write_text((run / "run.json").read_text().replace(str(data), str(tmp_path / "gone")))
    assert "not kept in the run" in json.dumps(Parsed(page([load(moved)])).data())


def test_a_broken_image_costs_its_own_thumbnail_only(data: Path, tmp_path: Path) -> None:
    world = Path(shutil.copytree(data, tmp_path / "world"))
    broken = next(path for path in sorted(world.rglob("*.png")) if "val2017" in path.parts)
    write_atomically(broken, b"no image")
    run = dreambench.run("vqav2", "echo", data=world, out=tmp_path / "runs").folder
    saved = saved_reference_images(load(run).run)
    assert str(int(broken.stem)) not in saved
    assert len(saved) > 5


def test_errors_are_shown_first_and_the_rest_is_the_same_random_choice_in_any_order() -> None:
    ids = [f"q{i}" for i in range(1000)]
    shown = shown_samples(iter(ids), {"q7", "q500"}, 20)
    assert set(shown[:2]) == {"q7", "q500"}
    assert shown == shown_samples(reversed(ids), {"q7", "q500"}, 20)
    assert shown[2:] == shown_samples(ids, (), 20)[:18]
