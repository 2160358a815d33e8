"""diffusers: a tiny Stable Diffusion generates the same images in batches and one by one; every setting has an effect or is refused."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from adapters.images_for_tests import image
from adapters.tiny import save_stable_diffusion

from dreambench.adapters.diffusers_pipeline import Pipeline
from dreambench.documents import Image, Text
from dreambench.errors import MissingWeightsError, ModelError, UsageError
from dreambench.interfaces import ModelOptions, OutOfMemoryError
from dreambench.requests import Request, Response

SETTINGS: dict[str, object] = {"num_inference_steps": 3, "guidance_scale": 4.0, "resolution": 16}
PROMPTS = ["a cat on the table", "two red cups", "kites and a dog and a table", "yes"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_stable_diffusion(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Pipeline:
    return load(folder)


def load(folder: Path, **arguments: str) -> Pipeline:
    return Pipeline(ModelOptions("diffusers", str(folder), arguments, device="cpu", dtype="float64"))


def requests(**settings: object) -> list[Request]:
    return [
        Request(str(i), "generate_image", (Text(prompt),), SETTINGS | settings, seed=10 * i)
        for i, prompt in enumerate(PROMPTS)
    ]


def generated(model: Pipeline, batch: Sequence[Request]) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for response in model.answer(batch):
        assert response.error is None
        assert response.id not in found
        found[response.id] = [part.read() for part in response.document if isinstance(part, Image)]
    assert len(found) == len(batch)
    return found


@pytest.mark.parametrize("scheduler", ["default", "ddim", "ddpm", "dpm-solver++"])
def test_an_image_does_not_depend_on_batch_order_or_chunk(model: Pipeline, folder: Path, scheduler: str) -> None:
    """In float64, where batch mates cannot change a rounded pixel: the same bytes."""
    batch = requests(scheduler=scheduler, candidates=2)
    together = generated(model, batch)
    assert generated(model, batch[::-1]) == together
    assert {request.id: generated(model, [request])[request.id] for request in batch} == together
    assert generated(load(folder, images_per_batch="3"), batch) == together
    assert len({data for images in together.values() for data in images}) == 8


def test_candidate_j_is_the_image_of_seed_plus_j(model: Pipeline) -> None:
    (request,) = requests(candidates=3)[1:2]
    images = generated(model, [request])["1"]
    for j, data in enumerate(images):
        alone = Request("1", "generate_image", request.document, SETTINGS, seed=request.seed + j)
        assert generated(model, [alone])["1"] == [data]


def test_it_generates_what_diffusers_generates(model: Pipeline, folder: Path) -> None:
    """The library's own pipeline, called for one image, gives these pixels."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    own = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    own.to(dtype=torch.float64)
    own.scheduler = DDIMScheduler.from_config(own.scheduler.config)
    own.set_progress_bar_config(disable=True)
    image = own(
        PROMPTS[2],
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(20),
        height=16,
        width=16,
    ).images[0]
    (data,) = generated(model, requests(scheduler="ddim"))["2"]
    assert np.array_equal(np.asarray(PIL.Image.open(io.BytesIO(data))), np.asarray(image))


@pytest.mark.parametrize(
    "changed",
    [
        {"num_inference_steps": 4},
        {"guidance_scale": 1.0},
        {"negative_prompt": "a dog"},
        {"scheduler": "ddim"},
        {"scheduler": "ddpm"},
        {"scheduler": "ddim", "eta": 1.0},
        {"guidance_rescale": 0.7},
        {"resolution": None, "height": 16, "width": 24},
    ],
    ids=str,
)
def test_every_setting_has_an_effect(model: Pipeline, changed: dict[str, object]) -> None:
    before = generated(model, requests(**({"scheduler": "ddim"} if "eta" in changed else {})))
    after = generated(model, requests(**changed))
    assert not {data for one in before.values() for data in one} & {data for one in after.values() for data in one}


def test_neutral_values_are_the_pipelines_defaults(model: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a pipeline does not have the setting at all, as many have no guidance_rescale."""
    neutral = {"resolution": 0, "negative_prompt": "", "guidance_rescale": 0.0, "eta": 0.0, "scheduler": "default"}
    own = generated(model, requests(resolution=None))
    assert generated(model, requests(**neutral)) == own
    monkeypatch.setattr(model, "_accepted", model._accepted - {"guidance_rescale"})
    assert generated(model, requests(**neutral)) == own
    with pytest.raises(ModelError, match="guidance_rescale"):
        generated(model, requests(guidance_rescale=0.5))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"num_beams": 2}, "num_beams"),
        ({"scheduler": "magic"}, "dpm-solver"),
        ({"height": 16}, "both set"),
        ({"candidates": 0}, "at least 1"),
    ],
)
def test_what_the_pipeline_cannot_do_is_an_error(model: Pipeline, changed: dict[str, object], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        generated(model, requests(**changed))
    with pytest.raises(ModelError, match="accepts text only"):
        generated(model, [Request("x", "generate_image", (image(1), Text("this")), SETTINGS)])


def test_truncated_flagged_and_broken_images_are_recorded(model: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    long = Request("long", "generate_image", (Text("a cat and a dog " * 10),), SETTINGS)
    (response,) = model.answer([long])
    assert response.details["prompt_truncated_to"] == 16
    assert response.prompt_tokens is not None
    assert response.prompt_tokens > 16
    assert "flagged" not in response.details

    class Output:
        images = np.stack([np.full((4, 4, 3), 0.5), np.full((4, 4, 3), np.nan)])
        nsfw_content_detected = (True, False)

    def answers(*_: object, **__: object) -> Output:
        return Output()

    monkeypatch.setattr(type(model.pipeline), "__call__", answers)
    first, second = model.answer(requests()[:2])
    assert first.details["flagged"] == [True]
    assert len(first.document) == 1
    assert second.error is not None
    assert second.error.type == "not-finite"


def test_out_of_memory_reaches_the_runner_as_such(model: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(model.pipeline.unet, "forward", full)
    with pytest.raises(OutOfMemoryError):
        list[Response](model.answer(requests()))


def test_identity_follows_weights_and_configuration(folder: Path, model: Pipeline, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    shutil.copy(
        moved / "unet/diffusion_pytorch_model.safetensors", moved / "unet/diffusion_pytorch_model.fp16.safetensors"
    )
    assert load(moved).identity() == model.identity()
    assert model.identity()["pipeline"] == "StableDiffusionPipeline"
    assert model.identity()["safety_checker"] is False
    config = moved / "scheduler/scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | {"beta_end": 0.02}), encoding="utf-8")
    assert load(moved).identity() != model.identity()


def test_a_missing_or_incomplete_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    for location, says in [
        (str(tmp_path / "nowhere"), "is not a folder"),
        (str(tmp_path), "no model_index.json"),
        ("nobody/nothing", "--offline"),
    ]:
        with pytest.raises(MissingWeightsError, match=says):
            Pipeline(ModelOptions("diffusers", location, offline=True, device="cpu"))
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(MissingWeightsError, match="cannot load"):
        load(broken)
    with pytest.raises(UsageError, match="images_per_batch"):
        load(folder, images_per_batch="0")
    with pytest.raises(UsageError, match="safety_checker"):
        load(folder, safety_checker="maybe")
