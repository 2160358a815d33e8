"""The image generation tasks on the playground: what is asked, what is kept, and that scores depend on nothing else."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

import dreambench
from dreambench.api import Result, score_run
from dreambench.errors import DataError, RunError, UsageError
from dreambench.metrics.compare import compare_folders, save_folder_statistics
from dreambench.report.runs import load
from dreambench.requests import sample_seed
from dreambench.spec import RunSpec
from dreambench.statistics import recompute
from dreambench_tasks import playground
from dreambench_tasks.coco import image_index, read_captions
from dreambench_tasks.coco_fid import CocoFid
from dreambench_tasks.lncoco_fid import LnCocoFid

COCO = Path(__file__).parents[2].parent / "shared" / "data" / "coco"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 scenes with captions and narratives."""
    folder = tmp_path_factory.mktemp("world") / "data"
    return playground.write(folder, split="val", n=96, formats=["coco", "localized_narratives"])


def run_task(world: Path, out: Path, task: str = "coco_fid", model: str = "echo", **options: object) -> Result:
    return dreambench.run(task, model, data=world, features="playground-clip", out=out, **options)  # type: ignore[arg-type]


def test_the_images_themselves_are_at_distance_zero(world: Path, tmp_path: Path) -> None:
    result = run_task(world, tmp_path, model=f"folder:{world / 'val2017'}")
    assert result.scores[0].metric == "fd[playground-clip]"
    assert abs(result.scores[0].value or 0) < 1e-6
    rows = _rows(result.folder)
    assert min(row["similarity"] for row in rows) > 1 - 1e-6


def _rows(folder: Path) -> list[dict[str, object]]:
    import pandas as pd

    return pd.read_parquet(folder / "scores.parquet").to_dict("records")  # type: ignore[return-value]


def test_several_protocols_in_one_pass_equal_each_alone(world: Path, tmp_path: Path) -> None:
    names = ["clean", "pytorch", "tf1", "torchmetrics", "dreamllm"]
    together = run_task(world, tmp_path, protocol=names)
    heads = {score.protocol: score.value for score in together.scores if score.metric == "fd[playground-clip]"}
    assert len(heads) == 5
    for name in names:
        alone = run_task(world, tmp_path / name, protocol=[name]).scores[0]
        assert heads[alone.protocol] == alone.value


def test_statistics_in_a_file_give_what_their_images_give(world: Path, tmp_path: Path) -> None:
    file = tmp_path / "real.npz"
    assert save_folder_statistics(world / "val2017", file, "pytorch", "playground-clip") == 96
    by_folder = run_task(world, tmp_path / "a", protocol=["pytorch"], real=world / "val2017").scores[0]
    by_file = run_task(world, tmp_path / "b", protocol=["pytorch"], real=file).scores
    assert by_file[0].value == pytest.approx(by_folder.value, abs=1e-9)
    assert not any(score.metric.startswith("kd") for score in by_file), "without features there is no kernel distance"
    assert by_folder.protocol != by_file[0].protocol
    with pytest.raises(DataError, match="made with resize pytorch"):
        run_task(world, tmp_path / "c", protocol=["clean"], real=file)


def test_foreign_statistics_are_read_and_marked(world: Path, tmp_path: Path) -> None:
    file = tmp_path / "foreign.npz"
    np.savez(file, mu=np.zeros(64), sigma=np.eye(64))
    result = run_task(world, tmp_path / "runs", real=file)
    assert any("unknown" in note for note in result.scores[0].notes)


def test_folders_without_a_task_give_the_same_distance(world: Path, tmp_path: Path) -> None:
    result = run_task(world, tmp_path / "runs", protocol=["clean", "tf1"])
    generated = result.folder / "images"
    alone = compare_folders(world / "val2017", generated, ["clean", "tf1"], "playground-clip")
    ours = [score.value for score in result.scores if score.metric == "fd[playground-clip]"]
    assert [score.value for score in alone if score.metric == "fd[playground-clip]"] == pytest.approx(ours, rel=1e-9)


def test_one_caption_of_each_image_chosen_by_the_image_alone(world: Path, tmp_path: Path) -> None:
    whole = run_task(world, tmp_path)
    chosen = {row["image_id"]: row["caption_id"] for row in _rows(whole.folder)}
    captions = read_captions(world, "val2017").by_image
    assert {
        image: [one.id for one in captions[image]].count(caption) for image, caption in chosen.items()
    } == dict.fromkeys(captions, 1)
    part = run_task(world, tmp_path, ids=["5", "9", "60"])
    assert all(chosen[row["image_id"]] == row["caption_id"] for row in _rows(part.folder))
    other = run_task(world, tmp_path, seed=1)
    assert {row["image_id"]: row["caption_id"] for row in _rows(other.folder)} == chosen
    assert other.folder != whole.folder
    assert other.scores[0].protocol == whole.scores[0].protocol, "seeds are of the system: their runs can be compared"


def test_every_narrative_once_one_per_image_or_oversampled(world: Path, tmp_path: Path) -> None:
    lines = next(world.rglob("coco_val_localized_narratives.jsonl")).read_text().splitlines()
    every = run_task(world, tmp_path, "lncoco_fid")
    assert every.scores[0].n == len(lines) > 96
    single = run_task(world, tmp_path, "lncoco_fid", split="val2017-images")
    assert single.scores[0].n == 96
    over = run_task(world, tmp_path, "lncoco_fid", split="val2017-30k", limit=200)
    assert over.scores[0].n == 200
    images = [row["image_id"] for row in _rows(over.folder)]
    assert images[:96] == images[96:192], "images in turn"
    assert len({score.protocol for score in (every.scores[0], single.scores[0], over.scores[0])}) == 3


def test_thirty_thousand_are_as_many_and_of_images_a_draw_that_is_always_the_same(world: Path) -> None:
    turns = LnCocoFid(RunSpec(task="lncoco_fid", data=world, split="val2017-30k")).samples()
    assert len(turns) == 30_000
    for seed in (0, 1):
        task = CocoFid(RunSpec(task="coco_fid", data=world, seed=seed))
        everything = [sample.targets["image_id"] for sample in task.samples()]
        task.__dict__["split"] = ("val2017", 10)  # as if 30,000 of 40,504 were 10 of 96
        drawn = [sample.targets["image_id"] for sample in task.samples()]
        lowest = sorted(everything, key=lambda image: sample_seed(0, f"image {image}"))[:10]
        assert drawn == [image for image in everything if image in lowest]


def test_the_best_of_several_is_best_for_its_own_caption_and_repeats(world: Path, tmp_path: Path) -> None:
    settings = ["candidates=3", "rerank=playground-clip", "num_inference_steps=2"]
    kept = run_task(
        world, tmp_path / "a", model="dreamllm", limit=6, generation=[*settings, "keep_candidates=true"], batch_size=4
    )
    for line in _answers(kept.folder):
        scores, chosen = line["details"]["clip_scores"], line["details"]["chosen"]
        assert len(scores) == 3
        assert scores[chosen] == max(scores)
        assert len(line["document"]) == 3
        assert line["details"]["kept"][0] == chosen
    best = run_task(world, tmp_path / "b", model="dreamllm", limit=6, generation=settings, batch_size=4)
    ours = {line["id"]: line["document"][0]["sha256"] for line in _answers(kept.folder)}
    assert {line["id"]: line["document"][0]["sha256"] for line in _answers(best.folder)} == ours
    assert all(len(line["document"]) == 1 for line in _answers(best.folder))
    single = run_task(world, tmp_path / "c", model="dreamllm", limit=2, generation=["num_inference_steps=1"])
    tokens = {line["id"]: line["prompt_tokens"] for line in _answers(single.folder)}
    assert {line["id"]: line["prompt_tokens"] for line in _answers(best.folder) if line["id"] in tokens} == tokens
    assert all(tokens.values())


def _answers(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "responses" / "rank-00000.jsonl").read_text().splitlines()]  # type: ignore[misc]


def test_scoring_again_needs_neither_data_nor_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = playground.write(tmp_path / "data", split="val", n=24, formats=["coco"])
    result = run_task(data, tmp_path / "runs")
    before = {name: (result.folder / name).read_bytes() for name in ("metrics.json", "scores.parquet")}
    shutil.rmtree(data)
    shutil.move(result.folder, tmp_path / "moved")
    monkeypatch.setattr(
        "dreambench.metrics.features.load_extractor", lambda *_a, **_k: pytest.fail("weights were loaded")
    )
    score_run(tmp_path / "moved")
    assert {name: (tmp_path / "moved" / name).read_bytes() for name in before} == before


def test_killed_while_generating_images_and_while_scoring_it_ends_in_the_same_bytes(
    world: Path, tmp_path: Path
) -> None:
    def command(out: Path) -> list[str]:
        line = [
            sys.executable,
            "-m",
            "dreambench",
            "run",
            "--task",
            "coco_fid",
            "--data",
            str(world),
            "--out",
            str(out),
        ]
        return [
            *line,
            "--features",
            "playground-clip",
            "--batch-size",
            "4",
            "--generation",
            "num_inference_steps=6",
            "--limit",
            "48",
        ]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(tmp_path / "whole"), env=environment, check=True, capture_output=True)
    (whole,) = (tmp_path / "whole").iterdir()
    chance, landed = random.Random(0), 0
    for _ in range(2):
        process = subprocess.Popen(
            command(tmp_path / "killed"), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        before = _written(tmp_path / "killed")
        while process.poll() is None and _written(tmp_path / "killed") == before:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        landed += 0 < _written(tmp_path / "killed") < 48
    assert landed, "no kill landed with some but not all answers written"
    subprocess.run(command(tmp_path / "killed"), env=environment, check=True, capture_output=True)
    (killed,) = [path for path in (tmp_path / "killed").iterdir() if not path.name.startswith(".")]
    for name in ("metrics.json", "scores.parquet"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert sorted(path.name for path in (killed / "images").rglob("*.png")) == sorted(
        path.name for path in (whole / "images").rglob("*.png")
    )
    assert not list(killed.rglob("*.tmp"))


def _written(out: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in out.glob("*/responses/rank-*.jsonl"))


def test_images_are_found_by_id_under_names_of_2014_and_2017(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/COCO_val2014_000000000042.jpg", "a/000000000139.jpg", "a/notes.txt", "a/000000000007.png"):
        (tmp_path / name).write_bytes(b"")
    assert {image: Path(path).name for image, path in image_index(tmp_path).items()} == {
        42: "COCO_val2014_000000000042.jpg",
        139: "000000000139.jpg",
        7: "000000000007.png",
    }


def test_a_missing_image_is_named_before_anything_is_generated(tmp_path: Path) -> None:
    data = playground.write(tmp_path / "data", split="val", n=8, formats=["coco"])
    next((data / "val2017").glob("*3.png")).unlink()
    with pytest.raises(DataError, match=r"1 of 8 images are missing, the first 000000000003.jpg"):
        run_task(data, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    data = playground.write(tmp_path / "data", split="val", n=8, formats=["coco"])
    broken = data / "val2017" / "000000000005.png"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(DataError, match=r"000000000005\.png: not a readable image"):
        run_task(data, tmp_path / "runs")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "val2030"}, "no annotations/captions_val2030.json"),
        ({"protocol": ["best"]}, "--protocol best"),
        ({"generation": ["candidates=4"]}, "rerank=clip:DIR"),
        ({"generation": ["candidates=0"]}, "at least 1"),
        ({"generation": ["dreamllm"]}, "rerank=clip:DIR"),
        ({"real": Path("absent.npz")}, "no such file"),
        ({"real": Path("absent")}, "no such folder"),
        ({"limit": 1}, "two samples at least"),
        ({"generation": ["num_inference_steps=0"]}, "at least 1"),
        ({"generation": ["guidance_scale=nan"]}, "not a float"),
    ],
)
def test_what_cannot_be_is_one_line(world: Path, tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises((UsageError, DataError), match=message) as caught:
        run_task(world, tmp_path, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"images": [{"id": 1}], "annotations": [{"id": 1}]}',
        '{"images": [{"id": 1}], "annotations": []}',
        '{"images": [{"id": 1}], "annotations": [{"id": 1, "image_id": 1, "caption": null}]}',
        '{"images": [{"id": 1}], "annotations": [{"id": 1, "image_id": 1, "caption": " "}]}',
        '{"images": [{"id": 1.5}], "annotations": [{"id": 1, "image_id": 1.5, "caption": "a"}]}',
        '{"images": [{"id": 1}], "annotations": [{"id": 1, "image_id": 1, "caption": "a"}, {"id": 1, "image_id": 1, "caption": "b"}]}',
        "[" * 100_000,
    ],
)
def test_a_malformed_annotation_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "captions_val2017.json").write_text(content)
    with pytest.raises(DataError, match=r"captions_val2017\.json"):
        run_task(tmp_path, tmp_path / "runs")


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_a_reference_that_cannot_be_read_is_named_before_anything_is_generated(
    world: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    real = tmp_path / "real"
    shutil.copytree(world / "val2017", real)
    one = sorted(real.iterdir())[5]
    damage(one)
    if not one.exists():
        one.symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=one.name):
        run_task(world, tmp_path / "runs", real=real)
    np.savez(tmp_path / "wide.npz", mu=np.zeros(10), sigma=np.eye(10))
    with pytest.raises(DataError, match="10 features; the extractor has 64"):
        run_task(world, tmp_path / "runs", real=tmp_path / "wide.npz")
    assert not (tmp_path / "runs").exists()


def test_a_generated_image_that_was_changed_is_not_scored(world: Path, tmp_path: Path) -> None:
    folder = run_task(world, tmp_path, limit=4).folder
    (folder / "metrics.json").unlink()
    shutil.rmtree(folder / "features")
    first, second = sorted(folder.rglob("*.png"))[:2]
    shutil.copy(first, second)
    with pytest.raises(RunError, match=f"{second.name} is missing or not as it was generated"):
        score_run(folder)


def test_pixels_that_are_not_finite_are_a_failure_and_no_black_image(world: Path, tmp_path: Path) -> None:
    wild = ["num_inference_steps=1", "guidance_scale=1e30"]
    with pytest.raises(DataError, match="no image was generated"):
        run_task(world, tmp_path, model="dreamllm", limit=2, generation=wild)
    (folder,) = tmp_path.iterdir()
    assert {line["error"]["type"] for line in _answers(folder)} == {"not-finite"}  # type: ignore[index]


@pytest.mark.skipif(not COCO.is_dir(), reason="real images lie in ../shared/data/coco, which is not here")
def test_real_images_under_three_protocols(tmp_path: Path) -> None:
    result = dreambench.run(
        "coco_fid",
        f"folder:{COCO / 'val2017'}",
        data=COCO,
        features="playground-clip",
        protocol=["clean", "pytorch", "tf1"],
        out=tmp_path,
    )
    heads = [score for score in result.scores if score.metric == "fd[playground-clip]"]
    assert [score.n for score in heads] == [85, 85, 85]
    assert all(abs(score.value or 0) < 1e-6 for score in heads)


def test_an_image_that_is_missing_in_a_folder_is_counted_and_named(world: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    for number in range(1, 96):
        PILImage.new("RGB", (16, 16), (number, 2 * number, 0)).save(made / f"{number}.png")
    result = run_task(world, tmp_path / "runs", model=f"folder:{made}")
    assert result.errors == 1
    assert result.scores[0].n == 95
    assert result.scores[0].unscored == 1


def test_a_run_keeps_the_reference_images_that_its_report_shows(world: Path, tmp_path: Path) -> None:
    from dreambench.report.images import nearest_reference_images, saved_reference_images
    from dreambench.store import RunFolder

    run = RunFolder(run_task(world, tmp_path, limit=5).folder)
    shown = saved_reference_images(run)
    own = {sample.targets["image_id"] for sample in run.samples()}
    nearest = nearest_reference_images(run, [sample.id for sample in run.samples()])
    assert all(len(found) == 3 for found in nearest.values())
    assert set(shown) == {str(key) for key in own} | {key for found in nearest.values() for key, _ in found}
    assert all(path is not None and path.is_file() for path in shown.values())


def test_two_images_on_a_side_are_enough_for_a_distance(world: Path, tmp_path: Path) -> None:
    for number, file in enumerate(sorted((world / "val2017").iterdir())[:2]):
        (tmp_path / "two").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "two" / f"{number}.png")
    (head, *_) = compare_folders(tmp_path / "two", tmp_path / "two", ["clean"], "playground-clip")
    assert abs(head.value or 0) < 1e-6


def test_with_clip_features_each_image_has_a_score_and_the_mean_an_interval(world: Path, tmp_path: Path) -> None:
    own = run_task(world, tmp_path / "own", model=f"folder:{world / 'val2017'}")
    flat = run_task(world, tmp_path / "flat")
    mean = {name: _score(result, "clip_score[playground-clip]") for name, result in (("own", own), ("flat", flat))}
    assert mean["own"].interval is not None
    assert mean["flat"].interval is not None
    assert mean["own"].interval[0] > mean["flat"].interval[1], "captions fit their scenes better than flat colours"
    rows = _rows(own.folder)
    assert mean["own"].value == pytest.approx(sum(row["clip_score"] for row in rows) / len(rows))  # type: ignore[misc]
    again = recompute(mean["own"], load(own.folder).table)
    assert (again.value, again.interval) == (pytest.approx(mean["own"].value), pytest.approx(mean["own"].interval))


def _score(result: Result, metric: str) -> dreambench.Score:
    return next(score for score in result.scores if score.metric == metric)


def test_a_run_and_a_comparison_of_its_folders_have_the_same_metrics(world: Path, tmp_path: Path) -> None:
    run = run_task(world, tmp_path)
    folders = compare_folders(world / "val2017", run.folder / "images", ["clean"], "playground-clip")
    of_captions = ["clip_score[playground-clip]", "clip_score[playground-clip]-shuffled"]
    assert [score.metric for score in run.scores] == [score.metric for score in folders] + of_captions
    own, shuffled = (_score(run, metric).value for metric in of_captions)
    assert own == pytest.approx(shuffled, rel=0.25), "flat colours show no caption"


def test_16_bit_grey_images_and_files_that_other_programs_skip_are_counted(world: Path, tmp_path: Path) -> None:
    deep, grey = tmp_path / "deep", np.full((16, 16), 30_000, np.uint16)
    shutil.copytree(world / "val2017", deep)
    PILImage.fromarray(grey).save(deep / "a.png")
    (deep / "below").mkdir()
    PILImage.fromarray(grey).save(deep / "below" / "b.png")
    PILImage.new("RGB", (16, 16)).save(deep / "c.gif")
    PILImage.new("RGB", (16, 16)).save(deep / "d.ppm")
    (deep / "e.PNG").write_bytes((deep / "a.png").read_bytes())
    everything = (
        f"{deep}: 100 images; other programs list other files of it: torch-fidelity 98 (top level: png, jpg, jpeg);"
        " pytorch-fid 98 (top level: bmp, jpg, jpeg, pgm, png, ppm, tif, tiff, webp); clean-fid 100 (all levels:"
    )
    for scores, side in (
        (compare_folders(deep, world / "val2017", ["clean"], "playground-clip"), "reference"),
        (compare_folders(world / "val2017", deep, ["clean"], "playground-clip"), "generated"),
        (run_task(world, tmp_path / "runs", real=deep).scores, "reference"),
    ):
        listing, bits, *_ = scores[0].notes
        assert listing.startswith(everything)
        assert bits.startswith(f"3 {side} images are grey with more than 8 bits")
    (plain, *_) = compare_folders(world / "val2017", world / "val2017", ["clean"], "playground-clip")
    assert not any("other programs" in note or "grey" in note for note in plain.notes)


def test_torch_fidelity_lists_what_the_note_says(tmp_path: Path) -> None:
    from torch_fidelity.utils import glob_samples_paths

    from dreambench.metrics.features import listing_notes

    (tmp_path / "below").mkdir()
    for name in ("a.png", "b.JPG", "c.gif", "d.webp", "below/e.png", "f.txt"):
        (tmp_path / name).touch()
    listed = glob_samples_paths(str(tmp_path), False, "png,jpg,jpeg", verbose=False)
    (note,) = listing_notes(tmp_path)
    assert f"{tmp_path}: 5 images" in note
    assert f"torch-fidelity {len(listed)} " in note


def test_too_few_images_on_either_side_are_said(world: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted((world / "val2017").iterdir())[:20]:
        shutil.copy(path, few)
    sides = {(world / "val2017", few): "20 generated images", (few, world / "val2017"): "20 reference images"}
    for (real, fake), words in sides.items():
        notes = compare_folders(real, fake, ["clean"], "playground-clip")[0].notes
        assert any(note.startswith(words) and "biased upwards" in note for note in notes)
