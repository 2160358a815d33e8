"""The settings of generation by which a system is known: with another value, results are those of another system."""

from __future__ import annotations

from types import SimpleNamespace

from dreambench.spec import RunSpec
from dreambench_tasks.coco_fid import CocoFid
from dreambench_tasks.interleaved.task import InterleavedTask

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
