"""The settings of generation by which a system is known: with another value, results are those of another system."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dreambench.adapters.dreamllm import DreamLLM
from dreambench.api import RunPlan, plan
from dreambench.interfaces import ModelOptions
from dreambench.spec import RunSpec
from dreambench_tasks.coco_fid import CocoFid
from dreambench_tasks.interleaved.task import InterleavedTask
from dreamllm.files import embedded_checkpoint

SAMPLER = {
    "preset": "default",
    "scheduler": "dpm-solver++",
    "guidance_scale": 2.0,
    "guidance_rescale": 0.0,
    "negative_prompt": "",
}


def test_images_are_generated_with_the_documented_settings() -> None:
    candidates = {"candidates": 1, "rerank": "", "keep_candidates": False}
    default = SAMPLER | candidates | {"num_inference_steps": 25, "resolution": 0}
    assert CocoFid(RunSpec(task="coco_fid")).generation == default
    # The COCO script of the DreamLLM repository: 150 steps of DDPM at guidance 2, the best of 8 by CLIP.
    script = {"scheduler": "ddpm", "num_inference_steps": 150, "guidance_scale": 2.0, "resolution": 512}
    given = ("dreamllm", "rerank=clip:folder")
    expected = default | script | {"preset": "dreamllm", "candidates": 8, "rerank": "clip:folder"}
    assert CocoFid(RunSpec(task="coco_fid", generation=given)).generation == expected


def test_documents_are_generated_with_the_documented_settings() -> None:
    sampling = {"max_new_tokens": 512, "max_images": 4, "temperature": 0.7, "top_p": 1.0}
    choice = {"samples": 1, "documents_per_topic": 0, "context_images": "reference", "clip": ""}
    expected = SAMPLER | sampling | choice | {"num_inference_steps": 20, "resolution": 0}
    assert InterleavedTask(RunSpec(task="interleaved")).generation == expected


def test_a_system_that_chooses_among_candidates_names_what_chooses_and_no_folder() -> None:
    task = CocoFid(RunSpec(task="coco_fid", generation=("candidates=2", "rerank=clip:/secret/folder")))
    vars(task)["scorer"] = SimpleNamespace(identity={"clip_sha256": "0"})
    system = task.system()
    assert system["reranker"] == {"clip_sha256": "0"}
    assert system["generation"] == {**task.generation, "rerank": "clip"}
    assert set(CocoFid(RunSpec(task="coco_fid")).system()) == {"generation"}


OWN = {"scheduler": "ddim", "num_inference_steps": 20, "guidance_scale": 1.5, "guidance_rescale": 0.0}
"""How the embedded checkpoint generates images, by its generation_config.json."""


def planned(tmp_path: Path, *generation: str, **options: Any) -> RunPlan:
    return plan(RunSpec(task="coco_fid", limit=2, generation=generation, **options), tmp_path)


def test_the_defaults_of_the_checkpoint_are_the_same_run_as_their_values_given(tmp_path: Path) -> None:
    own = planned(tmp_path)
    assert own.system["generation"] == {**CocoFid.presets["default"], **OWN, "preset": "default"}
    given = planned(tmp_path, *(f"{name}={value}" for name, value in OWN.items()))
    assert (given.folder, given.system) == (own.folder, own.system)
    assert [request.settings for request in given.requests()] == [request.settings for request in own.requests()]
    other = planned(tmp_path, "guidance_scale=2.0")
    assert other.folder != own.folder
    assert other.protocols == own.protocols


def test_a_preset_that_is_named_precedes_the_checkpoint(tmp_path: Path) -> None:
    task = CocoFid(RunSpec(task="coco_fid", generation=("dreamllm", "rerank=clip:folder", "num_inference_steps=9")))
    task.adopt(OWN)
    published = {"scheduler": "ddpm", "guidance_scale": 2.0, "num_inference_steps": 9}
    assert {name: task.generation[name] for name in published} == published
    assert planned(tmp_path, "default").system["generation"] == {**CocoFid.presets["default"], "preset": "default"}


def test_a_checkpoint_that_says_nothing_leaves_the_benchmark_its_own(tmp_path: Path) -> None:
    shutil.copytree(embedded_checkpoint(), tmp_path / "model")
    file = tmp_path / "model" / "generation_config.json"
    fields = json.loads(file.read_text())
    del fields["image_generation"], fields["interleaved_generation"]
    file.write_text(json.dumps(fields))
    options = ModelOptions("dreamllm", str(tmp_path / "model"), offline=True)
    assert DreamLLM.checkpoint_settings(options) == {}
    file.write_text(json.dumps({**fields, "interleaved_generation": {"do_sample": True, "temperature": 0.5}}))
    task = InterleavedTask(RunSpec(task="interleaved"))
    task.adopt(DreamLLM.checkpoint_settings(options))
    expected = {**InterleavedTask.presets["default"], "temperature": 0.5, "preset": "default"}
    assert task.generation == expected
