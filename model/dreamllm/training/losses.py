"""The two losses of DreamLLM: the next token, and the noise that a frozen UNet is asked to find under the model's own condition.

Shapes: B batch, T tokens, H decoder width, V vocabulary, n images to read, m images to generate images, Q dream queries, E condition width,
C x h x w latents, R pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dreamllm.core import DreamLLMCore
from dreamllm.errors import InputError, UsageError
from dreamllm.image_decoder import Scheduler
from dreamllm.spans import find_spans, position_ids_from_mask
from dreamllm.training.recipe import LossSettings

# Fields by which a decoder of transformers does more to its logits than multiply by the output embeddings.
LOGIT_FIELDS = ("logit_scale", "logits_scaling", "final_logit_softcapping")


class Losses(NamedTuple):
    """Scalars: what is minimised, and the language loss and the image loss without their weights."""

    total: torch.Tensor
    lm: torch.Tensor
    vm: torch.Tensor


@dataclass(frozen=True)
class Draws:
    """All that is random in one image loss. What the settings do not use is None."""

    posterior: torch.Tensor  # (m, C, h, w) standard normal: which latents the autoencoder's posterior gives
    noise: torch.Tensor  # (m, C, h, w) standard normal, before offset and perturbation
    timesteps: torch.Tensor  # (m,) int64, uniform over the schedule
    offset: torch.Tensor | None = None  # (m, C, 1, 1) standard normal
    perturbation: torch.Tensor | None = None  # (m, C, h, w) standard normal
    dropped: torch.Tensor | None = None  # (m,) bool: these are generated from the unconditional states

    def to(self, device: torch.device) -> Draws:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: None if value is None else value.to(device) for name, value in values.items()}
        return Draws(**moved)


def draw(
    keys: Sequence[tuple[int, ...]], latent_shape: tuple[int, int, int], timesteps: int, settings: LossSettings
) -> Draws:
    """Draws for m images, each from its own key (seed, place, ...) alone: batch mates, processes and resumes change nothing.

    They are made on the CPU, the same for every device.
    """
    generators = [generator_for(*key) for key in keys]
    flat = (latent_shape[0], 1, 1)

    def normal(shape: tuple[int, int, int]) -> torch.Tensor:
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators])

    def uniform() -> torch.Tensor:
        return torch.stack([torch.rand((), generator=generator) for generator in generators])

    return Draws(
        posterior=normal(latent_shape),
        noise=normal(latent_shape),
        timesteps=torch.stack([torch.randint(0, timesteps, (), generator=generator) for generator in generators]),
        offset=normal(flat) if settings.noise_offset else None,
        perturbation=normal(latent_shape) if settings.input_perturbation else None,
        dropped=uniform() < settings.drop_probability if settings.drop_probability else None,
    )


def generator_for(*numbers: int) -> torch.Generator:
    """A generator on the CPU that depends on these numbers alone."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


@dataclass(frozen=True)
class ImageTerms:
    """The steps of the image loss."""

    states: torch.Tensor  # (m, Q, H) final hidden states at the queries, or the unconditional ones where dropped
    condition: torch.Tensor  # (m, Q, E)
    latents: torch.Tensor  # (m, C, h, w) scaled
    noisy_latents: torch.Tensor  # (m, C, h, w)
    prediction: torch.Tensor  # (m, C, h, w) float32
    losses: torch.Tensor  # (m,) float32, weighted by min-SNR where it is on


def signal_to_noise(scheduler: Scheduler) -> torch.Tensor:
    """Signal-to-noise ratio of every timestep of the schedule: alpha-bar / (1 - alpha-bar)."""
    alphas = scheduler.alphas_cumprod.float()
    return alphas / (1 - alphas)


def min_snr_weights(scheduler: Scheduler, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
    """(m,) weights min(SNR, gamma) / SNR, with SNR + 1 for SNR where velocity is predicted (arXiv 2303.09556, as the original has it).

    Where the signal is gone (SNR 0, zero-terminal schedules) the weight is 1, its limit.
    """
    ratio = signal_to_noise(scheduler).to(timesteps.device)[timesteps]
    if scheduler.config.prediction_type == "v_prediction":
        ratio = ratio + 1
    return (gamma / ratio).clamp(max=1)


def image_terms(
    model: DreamLLMCore,
    scheduler: Scheduler,
    states: torch.Tensor,
    target_pixels: torch.Tensor,
    draws: Draws,
    settings: LossSettings,
) -> ImageTerms:
    """The image loss of each image (section 3 of the paper): MSE of what the UNet predicts under the model's condition.

    states (m, Q, H), target_pixels (m, 3, R, R) in [-1, 1]. Gradients flow through the UNet into the states, whether or not it
    learns itself; none flow into the autoencoder.
    """
    decoder = model.image_decoder
    with torch.no_grad():
        latents = decoder.encode(target_pixels, draws.posterior)
    noise = draws.noise
    if draws.offset is not None:
        noise = noise + settings.noise_offset * draws.offset
    perturbed = noise
    if draws.perturbation is not None:
        perturbed = noise + settings.input_perturbation * draws.perturbation
    noisy = scheduler.add_noise(latents, perturbed, draws.timesteps)
    condition = model.condition_projector(states)
    prediction = decoder.predict(noisy, draws.timesteps, condition)
    kind = scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise UsageError(f"the image loss knows no prediction_type {kind!r}; there are epsilon and v_prediction")
    target = noise if kind == "epsilon" else scheduler.get_velocity(latents, noise, draws.timesteps)
    losses = F.mse_loss(prediction, target.float(), reduction="none").flatten(1).mean(1)
    if settings.snr_gamma is not None:
        losses = losses * min_snr_weights(scheduler, draws.timesteps, settings.snr_gamma)
    return ImageTerms(states, condition, latents, noisy, prediction, losses)


def unconditional_states(model: DreamLLMCore, kind: str) -> torch.Tensor:
    """(1, Q, H) final hidden states that stand for no condition: those of `bos <dream_start> Q queries <dream_end> eos`.

    `kind` "queries" has the dream queries in the span, as the unconditional branch of image generation has; "patches" leaves the
    patch token's embedding there, as the original's training does.
    """
    config = model.config
    start, patch, count = config.dream_span
    ids = [config.bos_token_id, start, *[patch] * count, config.special_token_ids["<dream_end>"], config.eos_token_id]
    row = torch.tensor([ids], device=model.dream_queries.device)
    embeds = model.embed(row, substitute_queries=kind == "queries")
    hidden = model.get_decoder()(inputs_embeds=embeds, use_cache=False).last_hidden_state
    return hidden[:, 2 : 2 + count]


def token_losses(hidden: torch.Tensor, labels: torch.Tensor, head: nn.Module) -> torch.Tensor:
    """Summed cross-entropy of the next token, logits in float32, over labels (B, T) other than -100.

    Logits (V wide) are made only where there is a label: most positions of an interleaved document are image patches.
    """
    targets = labels[:, 1:]
    valid = targets != -100
    logits = head(hidden[:, :-1][valid])
    return F.cross_entropy(logits.float(), targets[valid], reduction="sum")


def count_targets(batch: dict[str, Any]) -> tuple[int, int]:
    """How many tokens and how many images a batch asks to be predicted."""
    generated = batch.get("target_pixels")
    return int((batch["labels"][:, 1:] != -100).sum()), 0 if generated is None else len(generated)


def loss_scale(settings: LossSettings) -> float:
    """What the weighted sum is divided by: 1, the sum of the weights (l1), or the root of the sum of their squares (l2)."""
    weights = (settings.weight_lm, settings.weight_vm)
    scales = {"none": 1.0, "l1": sum(weights), "l2": sum(w * w for w in weights) ** 0.5}
    return scales[settings.scale]


def final_states(
    model: DreamLLMCore,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    pixel_values: torch.Tensor | None,
    length_groups: int = 1,
) -> torch.Tensor:
    """(B, T, H) final-norm hidden states with images and dream queries in their places.

    With `length_groups` rows of like length go through the decoder together and without the padding that only longer ones need; what
    is beyond a group's longest row is then 0.
    """
    features = None if pixel_values is None else model.encode_images(pixel_values)
    embeds = model.embed(input_ids, features)
    if attention_mask is None:
        return _decode(model, embeds, None)
    if length_groups == 1:
        return _decode(model, embeds, attention_mask)
    lengths = attention_mask.sum(1)
    hidden: torch.Tensor | None = None
    for rows in lengths.argsort().chunk(length_groups):
        longest = int(lengths[rows].max())
        states = _decode(model, embeds[rows, :longest], attention_mask[rows, :longest])
        hidden = states.new_zeros(*input_ids.shape, states.shape[-1]) if hidden is None else hidden
        hidden = hidden.index_put((rows[:, None], torch.arange(longest, device=rows.device)[None]), states)
    assert hidden is not None  # noqa: S101  (a batch has rows)
    return hidden


def _decode(model: DreamLLMCore, embeds: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    positions = None if attention_mask is None else position_ids_from_mask(attention_mask)
    output = model.get_decoder()(
        inputs_embeds=embeds, attention_mask=attention_mask, position_ids=positions, use_cache=False
    )
    return output.last_hidden_state


def conditioning_states(
    model: DreamLLMCore, hidden: torch.Tensor, input_ids: torch.Tensor, draws: Draws, settings: LossSettings
) -> torch.Tensor:
    """(m, Q, H) hidden states at the dream queries, in order over the flattened batch, dropped ones replaced."""
    rows, columns = find_spans(input_ids, *model.config.dream_span)
    states = hidden[rows, columns]
    if draws.dropped is None:
        return states
    # Run even if nothing is dropped: sharded processes must make the same calls whatever each has drawn.
    nothing = unconditional_states(model, settings.unconditional)
    return torch.where(draws.dropped[:, None, None], nothing.to(states.dtype), states)


def compute_losses(
    model: DreamLLMCore,
    scheduler: Scheduler,
    settings: LossSettings,
    batch: dict[str, torch.Tensor],
    draws: Draws | None,
    counts: tuple[int, int] | None = None,
) -> Losses:
    """Both losses of a batch and their weighted sum.

    Args:
        batch: `input_ids`, `attention_mask` and `labels` (B, T), right-padded; `pixel_values` (n, 3, S, S) for the image spans and
            `target_pixels` (m, 3, R, R) for the dream spans, where there are any.
        draws: for the m images; None where m is 0.
        counts: tokens and images that the losses are means over, where the batch is one of several; its own by default.

    Raises InputError where images to generate images and dream spans differ in number.
    """
    ids, targets = batch["input_ids"], batch.get("target_pixels")
    spans = len(find_spans(ids, *model.config.dream_span)[0])
    given = 0 if targets is None else len(targets)
    if spans != given:
        raise InputError(f"{given} images to generate images are given for {spans} dream spans")
    hidden = final_states(model, ids, batch.get("attention_mask"), batch.get("pixel_values"), settings.length_groups)
    tokens, images = (max(count, 1) for count in counts or count_targets(batch))
    lm = token_losses(hidden, batch["labels"], model.get_output_embeddings()) / tokens
    vm = lm.new_zeros(())
    if targets is not None and draws is not None:
        draws = draws.to(hidden.device)
        states = conditioning_states(model, hidden, ids, draws, settings)
        vm = image_terms(model, scheduler, states, targets, draws, settings).losses.sum() / images
    total = (settings.weight_lm * lm + settings.weight_vm * vm) / loss_scale(settings)
    return Losses(total + zero_gradients(model), lm.detach(), vm.detach())


def zero_gradients(model: DreamLLMCore) -> torch.Tensor | float:
    """0, with a gradient of zeros for what a batch without images does not touch.

    Processes exchange gradients, so a part that learns must have one on all of them. A zero is also what the original gives (by passes
    over empty images); an Adam step then does not depend on how batches fall to processes.
    """
    parts = (*model.visual_projector.parameters(), *model.condition_projector.parameters(), model.dream_queries)
    return sum(0.0 * parameter.sum() for parameter in parts if parameter.requires_grad)


def check_decoder(model: DreamLLMCore) -> None:
    """UsageError for a decoder whose logits are more than its output embeddings times its states: its loss would be another."""
    config = model.config.text_config
    strange = [name for name in LOGIT_FIELDS if getattr(config, name, None) not in (None, 1, 1.0)]
    if strange:
        raise UsageError(f"training knows no {config.model_type!r} decoder with {strange[0]}; take one without")
