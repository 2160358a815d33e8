"""playground-clip: a run that is killed ends in the same weights, and the shipped one knows the world."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel

from dreambench.errors import DataError, MissingWeightsError
from dreambench_tasks.playground import clip, clip_directory, shipped
from dreambench_tasks.playground.language import captions, narrative
from dreambench_tasks.playground.render import render_many
from dreambench_tasks.playground.scene import WORLD, Rng, draw_scene

STEPS = 5
KILLED_AFTER = 3


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip.build_clip(tmp_path_factory.mktemp("build"), steps=STEPS, seed=7)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build whose process was killed after three steps, the last checkpoint being of the second."""
    directory = tmp_path_factory.mktemp("killed")
    code = f"""
import os, signal, sys
from dreambench_tasks.playground.clip import build_clip
def report(step, loss):
    if step == {KILLED_AFTER}: os.kill(os.getpid(), signal.SIGKILL)
build_clip(sys.argv[1], steps={STEPS}, seed=7, save_every=2, report=report)
"""
    process = subprocess.run([sys.executable, "-c", code, str(directory)], check=False, capture_output=True)
    assert process.returncode == -signal.SIGKILL
    return directory


def test_a_killed_run_ends_in_the_same_weights(undisturbed: Path, killed: Path) -> None:
    with pytest.raises(DataError, match="seed=7: train with that"):
        clip.build_clip(killed, steps=STEPS, seed=8)
    steps: list[int] = []
    folder = clip.build_clip(killed, steps=STEPS, seed=7, report=lambda step, _: steps.append(step))
    assert steps == [3, 4, 5]
    one, other = load_file(undisturbed / "model.safetensors"), load_file(folder / "model.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (undisturbed / "training.json").read_bytes() == (folder / "training.json").read_bytes()
    assert not (folder / "checkpoint.safetensors").exists()


def test_training_changes_the_weights(undisturbed: Path, tmp_path: Path) -> None:
    other = load_file(clip.build_clip(tmp_path, steps=1, seed=7) / "model.safetensors")
    one = load_file(undisturbed / "model.safetensors")
    assert not any(torch.equal(one[name], other[name]) for name in one if name.endswith("q_proj.weight"))


def test_a_finished_build_is_kept(undisturbed: Path) -> None:
    stamp = (undisturbed / "model.safetensors").stat().st_mtime_ns
    assert clip.build_clip(undisturbed.parent, steps=STEPS, seed=7) == undisturbed
    assert (undisturbed / "model.safetensors").stat().st_mtime_ns == stamp


def test_the_tokenizer_knows_every_word_and_its_end() -> None:
    tokenizer = clip.clip_tokenizer()
    assert tokenizer.eos_token_id == 3  # an eos_token_id of 2 makes CLIP pool at the largest id
    for part in ("train", "val", "test"):
        for index in range(300):
            scene, rng = draw_scene(part, index, seed=5), Rng("words", index)
            for text in (*captions(scene, rng), *narrative(scene, rng)):
                ids = tokenizer(text)["input_ids"]
                assert tokenizer.unk_token_id not in ids
                assert (ids[0], ids[-1]) == (1, 3)
                assert len(ids) <= clip.CONTEXT


def test_a_missing_extractor_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shipped, "__file__", str(tmp_path / "shipped.py"))
    with pytest.raises(MissingWeightsError, match="playground build DIR --stage clip"):
        clip_directory()


def test_the_shipped_clip_finds_captions_of_held_out_images() -> None:
    folder = clip_directory()
    assert (folder / "model.safetensors").stat().st_size < 3_000_000
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    assert model.config.text_config.eos_token_id == 3
    scenes = {}
    for index in range(5000, 5200):
        scene, rng = draw_scene("val", index), Rng("held out", WORLD, index)
        scenes.setdefault(rng.pick(captions(scene, rng)), scene)
        if len(scenes) == 64:
            break
    image = clip.image_features(model, render_many(scenes.values()))
    text = clip.text_features(model, AutoTokenizer.from_pretrained(folder), list(scenes))
    assert image.shape == text.shape == (64, 64)
    scores = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    # The card has 0.9 or more for 1,024 images; 64 of them scatter by 0.04.
    assert float((scores.argmax(dim=1) == torch.arange(64)).float().mean()) >= 0.8
