"""Image generation: an image depends on its prompt and its seed, and on nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler

from dreamllm.errors import InputError, UsageError
from dreamllm.image_decoder import rescale_guidance, to_pil

TEXTS = ["a red circle", "two large blue squares on the left of a small star", ""]
FEW = {"num_inference_steps": 3, "output_type": "latent"}


def pad_right(batch, pad):
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def test_a_prompt_has_one_encoding_alone_and_padded_on_either_side(model, processor) -> None:
    batch = processor(TEXTS)
    left, right = model.encode_prompts(**batch), model.encode_prompts(**pad_right(batch, model.config.pad_token_id))
    alone = torch.cat([model.encode_prompts(**processor(text)) for text in TEXTS])
    torch.testing.assert_close(left, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(right, alone, atol=1e-5, rtol=1e-5)
    assert (alone[0] - alone[1]).abs().max() > 0.1


def test_the_empty_prompt_is_the_unconditional_one(model, processor) -> None:
    torch.testing.assert_close(model.encode_unconditional(), model.encode_prompts(**processor("")))


def test_the_unconditional_embedding_is_computed_once_for_the_same_weights(own_model, monkeypatch) -> None:
    calls = []
    encode = own_model.encode_prompts
    monkeypatch.setattr(own_model, "encode_prompts", lambda *args, **kwargs: calls.append(1) or encode(*args, **kwargs))
    first = own_model.encode_unconditional()
    assert own_model.encode_unconditional() is first
    assert len(calls) == 1
    with torch.no_grad():
        own_model.dream_queries.mul_(2)
    assert not torch.equal(own_model.encode_unconditional(), first)
    with torch.no_grad():
        own_model.get_decoder().layers[0].mlp.up_proj.weight.mul_(2)
    own_model.encode_unconditional()
    own_model.train()
    own_model.dream_queries.data.mul_(2)  # what no version counter sees
    own_model.eval()
    own_model.encode_unconditional()
    own_model.double()
    assert own_model.encode_unconditional().dtype == torch.float64
    assert len(calls) == 5


def test_images_in_a_prompt_change_what_is_generated(model, processor, image) -> None:
    embeds = [model.encode_prompts(**processor("<image> the same at night", image(i))) for i in range(2)]
    assert (embeds[0] - embeds[1]).abs().max() > 0.1


@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "dpm-solver++"])
def test_an_image_depends_on_its_own_seed_only(model, processor, scheduler) -> None:
    options = {**FEW, "scheduler": scheduler}
    together = model.generate_images(processor(TEXTS), seeds=[5, 6, 7], **options)
    alone = torch.cat(
        [model.generate_images(processor(t), seeds=[s], **options) for t, s in zip(TEXTS, (5, 6, 7), strict=True)]
    )
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    other = model.generate_images(processor(TEXTS), seeds=[5, 6, 8], **options)
    torch.testing.assert_close(other[:2], together[:2], atol=1e-4, rtol=1e-4)
    assert (other[2] - together[2]).abs().max() > 0.1
    assert (model.generate_images(processor(TEXTS[:1]), seeds=[6], **options) - together[:1]).abs().max() > 0.1


def test_ancestral_noise_comes_from_the_seed_not_from_the_global_generator(model, processor) -> None:
    drawn = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        drawn.append(model.generate_images(processor(TEXTS[0]), seeds=[3], scheduler="ddpm", **FEW))
    assert torch.equal(*drawn)
    torch.manual_seed(0)
    free = [model.generate_images(processor(TEXTS[0]), scheduler="ddpm", **FEW) for _ in range(2)]
    assert not torch.equal(*free)
    torch.manual_seed(0)
    assert torch.equal(model.generate_images(processor(TEXTS[0]), scheduler="ddpm", **FEW), free[0])


def test_given_noise_replaces_drawn_noise(model, processor) -> None:
    generator = torch.Generator().manual_seed(9)
    shape = model.config.image_decoder_config.latent_shape
    noise = torch.stack([torch.randn(shape, generator=generator) for _ in range(4)])[:, None]  # first, then one a step
    options = {**FEW, "scheduler": "ddpm"}
    drawn = model.generate_images(processor(TEXTS[0]), seeds=[9], **options)
    given = model.generate_images(processor(TEXTS[0]), latents=noise[0], variance_noise=noise[1:], **options)
    assert torch.equal(drawn, given)
    with pytest.raises(InputError, match="for step 2"):
        model.generate_images(processor(TEXTS[0]), latents=noise[0], variance_noise=noise[1:3], **options)


def test_images_are_guided_as_the_documentation_says_unless_told_otherwise(model, processor) -> None:
    one, other = (
        model.generate_images(processor(TEXTS[0]), seeds=[3], **FEW, **stated)
        for stated in ({}, {"scheduler": "ddim", "guidance_scale": 7.5, "guidance_rescale": 0.0})
    )
    assert torch.equal(one, other)


def test_images_of_one_prompt_stand_together(model, processor) -> None:
    several = model.generate_images(processor(TEXTS[:2]), num_images_per_prompt=2, seeds=[0, 1, 2, 3], **FEW)
    repeated = model.generate_images(processor([TEXTS[0], TEXTS[0], TEXTS[1], TEXTS[1]]), seeds=[0, 1, 2, 3], **FEW)
    torch.testing.assert_close(several, repeated, atol=1e-4, rtol=1e-4)


def test_guidance_one_runs_the_conditional_branch_alone(model, processor, monkeypatch) -> None:
    monkeypatch.setattr(model, "encode_unconditional", lambda: pytest.fail("there is no unconditional branch"))
    sizes = []
    predict = model.image_decoder.predict
    monkeypatch.setattr(model.image_decoder, "predict", lambda x, t, c: sizes.append(len(x)) or predict(x, t, c))
    model.generate_images(processor(TEXTS), guidance_scale=1, seeds=[0, 1, 2], **FEW)
    assert sizes == [3, 3, 3]


def test_negative_prompts_replace_the_empty_one(model, processor) -> None:
    plain = model.generate_images(processor(TEXTS[0]), seeds=[0], **FEW)
    empty = model.generate_images(processor(TEXTS[0]), negative_prompts=processor(""), seeds=[0], **FEW)
    torch.testing.assert_close(empty, plain, atol=1e-5, rtol=1e-5)
    negative = model.generate_images(processor(TEXTS[0]), negative_prompts=processor("blue squares"), seeds=[0], **FEW)
    assert (negative - plain).abs().max() > 1e-3
    one_for_all = model.generate_images(processor(TEXTS[:2]), negative_prompts=processor("x"), seeds=[0, 1], **FEW)
    one_each = model.generate_images(processor(TEXTS[:2]), negative_prompts=processor(["x", "x"]), seeds=[0, 1], **FEW)
    torch.testing.assert_close(one_for_all, one_each, atol=1e-5, rtol=1e-5)


def test_full_rescaling_gives_the_conditional_deviation() -> None:
    guided, conditional = torch.randn(3, 4, 8, 8) * 5, torch.randn(3, 4, 8, 8)
    torch.testing.assert_close(
        rescale_guidance(guided, conditional, 1.0).std(dim=(1, 2, 3)), conditional.std(dim=(1, 2, 3))
    )
    assert torch.equal(rescale_guidance(guided, conditional, 0.0), guided)


def test_output_types_are_views_of_one_image(model, processor) -> None:
    seen = []
    options = {
        "seeds": [1, 2],
        "num_inference_steps": 4,
        "callback": lambda i, t, latents: seen.append((i, t, latents)),
    }
    latents, pixels, images = (
        model.generate_images(processor(TEXTS[:2]), output_type=kind, **options) for kind in ("latent", "tensor", "pil")
    )
    size = model.config.image_decoder_config.resolution
    assert latents.shape == (2, *model.config.image_decoder_config.latent_shape)
    assert torch.equal(model.decode_latents(latents, "tensor"), pixels)
    assert pixels.shape == (2, 3, size, size)
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    assert [p.tobytes() for p in to_pil(pixels)] == [p.tobytes() for p in images]
    assert images[0].size == (size, size)
    assert [i for i, _, _ in seen] == [0, 1, 2, 3] * 3
    assert [t for _, t, _ in seen[:4]] == sorted((t for _, t, _ in seen[:4]), reverse=True)
    assert torch.equal(seen[3][2], latents)


def test_pixels_round_to_the_nearest_level() -> None:
    pixels = torch.tensor([0.0, 0.4999 / 255, 0.5001 / 255, 1.0]).expand(1, 3, 1, 4)
    assert to_pil(pixels)[0].tobytes() == bytes(level for level in (0, 0, 1, 255) for _ in range(3))


def test_any_diffusers_scheduler_works(model, processor) -> None:
    scheduler = EulerAncestralDiscreteScheduler.from_config(model.config.image_decoder_config.scheduler)
    drawn = [
        model.generate_images(processor(TEXTS[0]), seeds=[3], scheduler=copy.deepcopy(scheduler), **FEW)
        for _ in range(2)
    ]
    assert torch.equal(*drawn)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"scheduler": "heun"}, UsageError, "ddpm, ddim, dpm-solver"),
        ({"output_type": "np"}, UsageError, "pil, tensor, latent"),
        ({"seeds": [1]}, InputError, r"one seed per image \(2\), got 1"),
        ({"latents": torch.zeros(3, 4, 8, 8)}, InputError, r"latents \(3\) and of images \(2\) differ"),
        ({"prompt_embeds": torch.zeros(1, 8, 64)}, InputError, "not both"),
        ({"negative_prompt_embeds": torch.zeros(3, 8, 64)}, InputError, r"no multiple of the number of prompts \(3\)"),
    ],
)
def test_arguments_that_do_not_match_are_errors(model, processor, options, error, words) -> None:
    with pytest.raises(error, match=words):
        model.generate_images(processor(TEXTS[:2]), **{"num_inference_steps": 1, **options})


def test_a_missing_prompt_is_an_error(model) -> None:
    with pytest.raises(InputError, match="needs prompts or prompt_embeds"):
        model.generate_images()
