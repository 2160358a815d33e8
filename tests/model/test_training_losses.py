"""The losses against their definitions: means, masks, weights, draws, dropped conditions, and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from dreamllm import DreamLLMForConditionalGeneration, DreamLLMProcessor
from dreamllm.errors import InputError, UsageError
from dreamllm.image_decoder import make_scheduler
from dreamllm.modeling import language_loss
from dreamllm.recipe import LossSettings
from dreamllm.training import losses
from dreamllm.training.losses import (
    Draws,
    check_decoder,
    compute_losses,
    conditioning_states,
    draw,
    final_states,
    image_terms,
    min_snr_weights,
    signal_to_noise,
    unconditional_states,
)

Model = DreamLLMForConditionalGeneration


def scheduler(model: Model, **changes: Any) -> Any:
    return make_scheduler("ddpm", model.config.image_decoder_config.scheduler | changes)


@pytest.fixture
def batch(model: Model, processor: DreamLLMProcessor) -> dict[str, torch.Tensor]:
    """The first row has an input image and a generated one, the second, padded, only a generated one."""
    ids = processor.tokenizer
    words = [ids(text, add_special_tokens=False)["input_ids"] for text in ("a red circle", "a blue square")]
    rows = [
        [1, *processor.image_span, *words[0], *processor.dream_span, 2],
        [1, *words[1], *processor.dream_span, 2],
    ]
    length = max(map(len, rows))
    pad = model.config.pad_token_id
    spans = {*processor.image_span, *processor.dream_span} - {processor.dream_span[0]}
    size, resolution = model.config.vision_config.image_size, model.config.image_decoder_config.resolution
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.tensor([row + [pad] * (length - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
        "labels": torch.tensor(
            [[-100 if i in spans else i for i in row] + [-100] * (length - len(row)) for row in rows]
        ),
        "pixel_values": torch.randn(1, 3, size, size, generator=generator),
        "target_pixels": torch.rand(2, 3, resolution, resolution, generator=generator) * 2 - 1,
    }


def draws(model: Model, settings: LossSettings, keys: tuple[tuple[int, ...], ...] = ((0, 0), (0, 1))) -> Draws:
    return draw(keys, model.config.image_decoder_config.latent_shape, 1000, settings)


def test_the_language_loss_equals_that_of_the_full_logits(model: Model, batch: dict[str, torch.Tensor]) -> None:
    settings = LossSettings()
    losses = compute_losses(model, scheduler(model), settings, batch, draws(model, settings))
    with torch.no_grad():
        output = model(batch["input_ids"], attention_mask=batch["attention_mask"], pixel_values=batch["pixel_values"])
    assert float(losses.lm) == pytest.approx(float(language_loss(output.logits, batch["labels"])), rel=1e-5)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [("none", lambda w, v: 1), ("l1", lambda w, v: w + v), ("l2", lambda w, v: (w * w + v * v) ** 0.5)],
)
def test_the_total_is_the_weighted_sum_divided_by_the_scale(
    model: Model, batch: dict[str, torch.Tensor], scale: Any, expected: Any
) -> None:
    settings = LossSettings(weight_lm=0.5, weight_vm=3.0, scale=scale)
    losses = compute_losses(model, scheduler(model), settings, batch, draws(model, settings))
    weighted = (0.5 * float(losses.lm) + 3.0 * float(losses.vm)) / expected(0.5, 3.0)
    assert float(losses.total.detach()) == pytest.approx(weighted, rel=1e-5)


def test_without_labels_or_images_the_loss_is_0_and_every_trained_part_has_a_gradient(own_model: Model) -> None:
    own_model.requires_grad_(False)
    for part in (own_model.visual_projector, own_model.condition_projector, own_model.language_model):
        part.requires_grad_(True)
    own_model.dream_queries.requires_grad_(True)
    ids = torch.tensor([[1, 20, 21, 22, 2]])
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.full_like(ids, -100)}
    losses = compute_losses(own_model, scheduler(own_model), LossSettings(), text, None)
    losses.total.backward()
    assert (float(losses.lm), float(losses.vm), float(losses.total.detach())) == (0, 0, 0)
    trained = [parameter for parameter in own_model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in trained)


def test_gradients_of_the_image_loss_flow_through_the_frozen_unet(
    own_model: Model, batch: dict[str, torch.Tensor]
) -> None:
    own_model.requires_grad_(True)
    own_model.image_decoder.requires_grad_(False)
    settings = LossSettings(weight_lm=0.0)
    compute_losses(own_model, scheduler(own_model), settings, batch, draws(own_model, settings)).total.backward()
    reached = {name.split(".")[0] for name, p in own_model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"condition_projector", "dream_queries", "language_model", "visual_projector"} <= reached
    assert all(parameter.grad is None for parameter in own_model.image_decoder.parameters())


@pytest.mark.parametrize("gamma", [None, 2.0])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_image_loss_is_the_error_of_the_unet_on_noisy_latents(
    model: Model, batch: dict[str, torch.Tensor], kind: str, gamma: float | None
) -> None:
    """By the definition of the schedule: z_t = a z + s e, the target is e or a e - s z, and the weight min(SNR, gamma) / SNR."""
    settings = LossSettings(noise_offset=0.3, input_perturbation=0.2, snr_gamma=gamma)
    schedule, image_draws = scheduler(model, prediction_type=kind), draws(model, settings)
    states = torch.randn(2, model.config.num_dream_queries, model.config.text_config.hidden_size)
    with torch.no_grad():
        terms = image_terms(model, schedule, states, batch["target_pixels"], image_draws, settings)
        posterior = model.image_decoder.vae.encode(batch["target_pixels"]).latent_dist
        latents = (posterior.mean + posterior.std * image_draws.posterior) * model.image_decoder.scaling_factor
        alphas = schedule.alphas_cumprod[image_draws.timesteps][:, None, None, None]
        assert image_draws.offset is not None
        assert image_draws.perturbation is not None
        noise = image_draws.noise + 0.3 * image_draws.offset
        noisy = alphas.sqrt() * latents + (1 - alphas).sqrt() * (noise + 0.2 * image_draws.perturbation)
        predicted = model.image_decoder.predict(noisy, image_draws.timesteps, model.condition_projector(states))
    target = noise if kind == "epsilon" else alphas.sqrt() * noise - (1 - alphas).sqrt() * latents
    errors = F.mse_loss(predicted, target, reduction="none").mean((1, 2, 3))
    if gamma is not None:
        ratio = published_ratio(schedule)[image_draws.timesteps] + (kind == "v_prediction")
        assert ratio.min() > gamma  # or the weights would be 1
        errors *= (gamma / ratio).clamp(max=1)
    torch.testing.assert_close(terms.losses, errors, rtol=1e-4, atol=1e-5)


def test_another_prediction_type_is_rejected(model: Model, batch: dict[str, torch.Tensor]) -> None:
    settings = LossSettings()
    with pytest.raises(UsageError, match="prediction_type 'sample' is not supported"):
        compute_losses(model, scheduler(model, prediction_type="sample"), settings, batch, draws(model, settings))


def published_ratio(schedule: Any) -> torch.Tensor:
    """alpha-bar / (1 - alpha-bar) from the schedule's definition: betas between two ends, evenly spaced in their square roots."""
    assert schedule.config.beta_schedule == "scaled_linear"
    roots = np.linspace(schedule.config.beta_start**0.5, schedule.config.beta_end**0.5, 1000)
    remaining = np.cumprod(1 - roots**2)
    return torch.from_numpy(remaining / (1 - remaining)).float()


def test_min_snr_weights_are_those_of_the_paper(model: Model) -> None:
    times = torch.arange(1000)
    noise, velocity = scheduler(model), scheduler(model, prediction_type="v_prediction")
    ratio = published_ratio(noise)
    assert float(ratio[0]) == pytest.approx(1 / 0.00085 - 1, rel=1e-4)  # Stable Diffusion's first beta
    torch.testing.assert_close(signal_to_noise(noise), ratio, rtol=1e-3, atol=0)
    torch.testing.assert_close(min_snr_weights(noise, times, 5.0), ratio.clamp(max=5) / ratio, rtol=1e-3, atol=0)
    expected = (ratio + 1).clamp(max=5) / (ratio + 1)
    torch.testing.assert_close(min_snr_weights(velocity, times, 5.0), expected, rtol=1e-3, atol=0)


def test_min_snr_weights_are_finite_where_nothing_of_the_signal_is_left(model: Model) -> None:
    ended = scheduler(model, rescale_betas_zero_snr=True)
    assert signal_to_noise(ended)[-1] < 1e-6  # the schedule's option has an effect
    assert min_snr_weights(ended, torch.arange(1000), 5.0)[-1] == 1


def test_draws_depend_on_their_key_alone(model: Model) -> None:
    settings = LossSettings(noise_offset=0.1, input_perturbation=0.1, drop_probability=0.5)
    together, alone = draws(model, settings, ((7, 1), (7, 2), (7, 3))), draws(model, settings, ((7, 2),))
    for name in ("posterior", "noise", "timesteps", "offset", "perturbation", "dropped"):
        assert torch.equal(getattr(together, name)[1:2], getattr(alone, name)), name
    assert not torch.equal(together.noise[0], together.noise[1])
    assert not torch.equal(together.noise[0], together.posterior[0])


def test_draws_follow_their_distributions(model: Model) -> None:
    settings = LossSettings(drop_probability=0.2)
    many = draws(model, settings, tuple((3, i) for i in range(4000)))
    assert many.dropped is not None
    assert float(many.dropped.float().mean()) == pytest.approx(0.2, abs=0.02)
    assert float(many.timesteps.float().mean()) == pytest.approx(499.5, abs=15)
    assert (int(many.timesteps.min()), int(many.timesteps.max())) == pytest.approx((0, 999), abs=5)
    assert float(many.noise.std()) == pytest.approx(1, abs=0.01)


def test_a_dropped_condition_is_the_unconditional_one_of_image_generation(
    model: Model, batch: dict[str, torch.Tensor]
) -> None:
    settings = LossSettings(drop_probability=0.5)
    image_draws = draws(model, settings)
    chosen = Draws(image_draws.posterior, image_draws.noise, image_draws.timesteps, dropped=torch.tensor([False, True]))
    with torch.no_grad():
        hidden = final_states(model, batch["input_ids"], batch["attention_mask"], batch["pixel_values"])
        states = conditioning_states(model, hidden, batch["input_ids"], chosen, settings)
        plain = conditioning_states(model, hidden, batch["input_ids"], draws(model, LossSettings()), settings)
        torch.testing.assert_close(states[1:], model.encode_unconditional(), rtol=1e-4, atol=1e-5)
        assert torch.equal(states[0], plain[0])
        original = unconditional_states(model, "patches")
    assert not torch.allclose(original, states[1:], atol=1e-2)


def test_counts_of_a_larger_batch_scale_both_losses(model: Model, batch: dict[str, torch.Tensor]) -> None:
    settings = LossSettings()
    image_draws = draws(model, settings)
    own = compute_losses(model, scheduler(model), settings, batch, image_draws)
    tokens = int((batch["labels"][:, 1:] != -100).sum())
    larger = compute_losses(model, scheduler(model), settings, batch, image_draws, (4 * tokens, 6))
    assert float(larger.lm) == pytest.approx(float(own.lm) / 4, rel=1e-5)
    assert float(larger.vm) == pytest.approx(float(own.vm) / 3, rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("groups", "packing", "rows"), [(3, False, 2), (1, True, 2)])
def test_rows_by_length_and_packed_rows_do_not_change_the_hidden_states(
    model: Model,
    processor: DreamLLMProcessor,
    batch: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    groups: int,
    packing: bool,
    rows: int,
) -> None:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    text = processor.tokenizer("one blue square and some more words", add_special_tokens=False)["input_ids"]
    for count in (3, 1, 7):
        row = torch.tensor([text[:count] + [model.config.pad_token_id] * (ids.shape[1] - count)])
        ids = torch.cat([ids, row])
        mask = torch.cat([mask, (torch.arange(ids.shape[1]) < count)[None].long()])
    whole = final_states(model, ids, mask, batch["pixel_values"])
    decoder: Any = model.get_decoder()
    forward, seen = decoder.forward, []

    def watched(**inputs: Any) -> Any:
        seen.append(len(inputs["inputs_embeds"]))
        return forward(**inputs)

    monkeypatch.setattr(decoder, "forward", watched)
    fewer = final_states(model, ids, mask, batch["pixel_values"], groups, packing)
    torch.testing.assert_close(fewer[mask.bool()], whole[mask.bool()], atol=1e-5, rtol=1e-5)
    assert max(seen) == rows < len(ids)
    # The texts of 1 and 3 tokens are a group, which ends with the longer one.
    assert not fewer[3, 3:].any()
    assert whole[3, 3:].any()


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_packed_sequences_do_not_overlap(lengths: list[int]) -> None:
    places = losses.pack(lengths, max(lengths))
    taken = [(row, first + i) for (row, first), length in zip(places, lengths, strict=True) for i in range(length)]
    assert len(set(taken)) == sum(lengths)
    assert max(column for _, column in taken) < max(lengths)
    rows = 1 + max(row for row, _ in places)
    assert rows == 1 or 2 * sum(lengths) > (rows - 1) * max(lengths)  # what first fit guarantees


def test_a_decoder_that_mixes_packed_sequences_is_rejected(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    losses.check_packing(model)
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None)
    with pytest.raises(UsageError, match=r"loss\.packing: a 'llama' decoder mixes"):
        losses.check_packing(model)


def test_images_and_spans_that_differ_in_number_are_rejected(model: Model, batch: dict[str, torch.Tensor]) -> None:
    settings = LossSettings()
    short = batch | {"target_pixels": batch["target_pixels"][:1]}
    with pytest.raises(InputError, match="target images and dream spans differ in number: 1 and 2"):
        compute_losses(model, scheduler(model), settings, short, draws(model, settings, ((0, 0),)))


def test_a_decoder_that_scales_its_logits_is_rejected(own_model: Model) -> None:
    check_decoder(own_model)
    own_model.config.text_config.logits_scaling = 8.0
    with pytest.raises(UsageError, match="logits_scaling"):
        check_decoder(own_model)
