"""playground-clip: a killed training run ends with the same weights, and the shipped one recognises the world."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel

import loop
import surrogate_clip
from dreambench.errors import DataError, MissingWeightsError
from dreambench.metrics.features import load_extractor
from dreambench.metrics.frechet import GaussianStatistics, frechet_jackknife
from dreambench.metrics.resize import RESIZERS
from dreambench.statistics import Estimate
from dreambench_tasks import playground
from dreambench_tasks.playground import WORLD, Rng, Scene, captions, clip_directory, draw_scene, narrative, render_many

SETTINGS = replace(surrogate_clip.CLIP, steps=5, seed=7, save_every=2)


def train(directory: Path, **changes: int) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surrogate_clip, "CLIP", replace(SETTINGS, **changes))
        return surrogate_clip.build_clip(directory)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build whose process was killed in the fourth step, after the checkpoint of the second."""
    directory = tmp_path_factory.mktemp("killed")
    code = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(loop.__file__).parent)!r})
import loop, surrogate_clip
from loop import Settings
surrogate_clip.CLIP = {SETTINGS!r}
schedule = loop._schedule
def killing(step, settings):
    if step == 3: os.kill(os.getpid(), signal.SIGKILL)
    return schedule(step, settings)
loop._schedule = killing
surrogate_clip.build_clip(Path(sys.argv[1]))
"""
    process = subprocess.run([sys.executable, "-c", code, str(directory)], check=False, capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()[-2000:]
    return directory


def test_a_killed_run_ends_with_the_same_weights(
    undisturbed: Path, killed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="seed=7: train with that"):
        train(killed, seed=8)
    steps: list[int] = []
    schedule = loop._schedule
    monkeypatch.setattr(loop, "_schedule", lambda step, settings: steps.append(step) or schedule(step, settings))
    folder = train(killed)
    assert steps == [2, 3, 4]
    one, other = load_file(undisturbed / "model.safetensors"), load_file(folder / "model.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (undisturbed / "training.json").read_bytes() == (folder / "training.json").read_bytes()
    assert not (folder / "checkpoint.safetensors").exists()


def test_training_changes_the_weights(undisturbed: Path, tmp_path: Path) -> None:
    other = load_file(train(tmp_path, steps=1) / "model.safetensors")
    one = load_file(undisturbed / "model.safetensors")
    assert not any(torch.equal(one[name], other[name]) for name in one if name.endswith("q_proj.weight"))


def test_a_finished_build_is_kept(undisturbed: Path) -> None:
    stamp = (undisturbed / "model.safetensors").stat().st_mtime_ns
    assert train(undisturbed.parent) == undisturbed
    assert (undisturbed / "model.safetensors").stat().st_mtime_ns == stamp


def test_the_tokenizer_knows_every_word_and_its_end() -> None:
    tokenizer = surrogate_clip.clip_tokenizer(77)
    assert tokenizer.eos_token_id == 3  # an eos_token_id of 2 makes CLIP pool at the largest id
    for split in ("train", "val", "test"):
        for index in range(300):
            scene, rng = draw_scene(split, index, seed=5), Rng("words", index)
            for text in (*captions(scene, rng), *narrative(scene, rng)):
                ids = tokenizer(text)["input_ids"]
                assert tokenizer.unk_token_id not in ids
                assert (ids[0], ids[-1]) == (1, 3)
                assert len(ids) <= 77


def test_a_missing_extractor_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(playground, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(MissingWeightsError, match=r"build\.py DIR --step clip"):
        clip_directory()


N = 1000


def features(scenes: Iterable[Scene]) -> Any:
    pixels = torch.from_numpy(render_many(scenes)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        return load_extractor("playground-clip")(RESIZERS["clean"](pixels, 64), "tf1").double().numpy()


@pytest.fixture(scope="module")
def reference() -> GaussianStatistics:
    return GaussianStatistics.from_features(features(draw_scene("val", index) for index in range(N)))


def distance(reference: GaussianStatistics, change: dict[str, Any]) -> Estimate:
    """Of other scenes to the reference; in every second one the first object is changed, unless another is like it or in its way."""
    scenes: list[Scene] = []
    for index in range(N, 2 * N):
        scene = draw_scene("val", index)
        first, *others = scene.things
        changed = replace(first, **change)
        clashes = any(t.name == changed.name or (t.row, t.column) == (changed.row, changed.column) for t in others)
        scenes.append(scene if clashes or index % 2 else replace(scene, things=(changed, *others)))
    return frechet_jackknife(features(scenes), reference, keys=[scene.content for scene in scenes])


@pytest.fixture(scope="module")
def intact(reference: GaussianStatistics) -> Estimate:
    return distance(reference, {})


@pytest.mark.parametrize("change", [{"shape": "star"}, {"colour": "red"}, {"row": 0, "column": 0}])
def test_one_exchange_in_half_the_images_moves_the_distance_by_three_of_its_intervals(
    reference: GaussianStatistics, intact: Estimate, change: dict[str, Any]
) -> None:
    assert intact.interval is not None
    low, high = intact.interval
    assert distance(reference, change).value - intact.value > 3 * (high - low)


def test_the_shipped_clip_finds_captions_of_held_out_images() -> None:
    folder = clip_directory()
    assert (folder / "model.safetensors").stat().st_size < 3_000_000
    model: Any = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    assert model.config.text_config.eos_token_id == 3
    scenes = {}
    for index in range(5000, 5200):
        scene, rng = draw_scene("val", index), Rng("held out", WORLD, index)
        scenes.setdefault(rng.pick(captions(scene, rng)), scene)
        if len(scenes) == 64:
            break
    tokens = AutoTokenizer.from_pretrained(folder)(list(scenes), padding=True, return_tensors="pt")
    with torch.inference_mode():
        image = model.get_image_features(loop.pixels_of(render_many(scenes.values()))).pooler_output
        text = model.get_text_features(**tokens).pooler_output
    assert image.shape == text.shape == (64, 64)
    scores = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    # The model card reports more than 0.9 for 1,024 images; the standard error for 64 is 0.04.
    assert float((scores.argmax(dim=1) == torch.arange(64)).float().mean()) >= 0.8
