"""The two losses of DreamLLM: next-token prediction, and the denoising loss of a frozen UNet under the model's condition vectors.

Shapes: B batch, T tokens, H decoder width, V vocabulary, n input images, m generated images, Q dream queries, E condition width,
C x h x w latents, R pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import nn
from torch.nn import functional as F

from dreamllm.data import IGNORED
from dreamllm.errors import InputError, UsageError
from dreamllm.image_decoder import Scheduler
from dreamllm.layers import find_spans, generator_for, position_ids_from_mask
from dreamllm.modeling import DreamLLMForConditionalGeneration
from dreamllm.recipe import LossSettings
from dreamllm.training.features import FeatureStore

Model = DreamLLMForConditionalGeneration
# Configuration fields of transformers' decoders that change logits after the output embeddings.
LOGIT_FIELDS = ("logit_scale", "logits_scaling", "final_logit_softcapping")


class Losses(NamedTuple):
    """Scalars: the weighted total that is minimised, and the language and image loss without their weights."""

    total: torch.Tensor
    lm: torch.Tensor
    vm: torch.Tensor


@dataclass(frozen=True)
class Draws:
    """All random numbers of the image loss of m images. Those that the settings do not use are None."""

    posterior: torch.Tensor  # (m, C, h, w) standard normal: selects latents from the autoencoder's posterior
    noise: torch.Tensor  # (m, C, h, w) standard normal, before offset and perturbation
    timesteps: torch.Tensor  # (m,) int64, uniform over the schedule
    offset: torch.Tensor | None = None  # (m, C, 1, 1) standard normal
    perturbation: torch.Tensor | None = None  # (m, C, h, w) standard normal
    dropped: torch.Tensor | None = None  # (m,) bool: whether the condition is replaced by the unconditional states

    def to(self, device: torch.device) -> Draws:
        moved: dict[str, Any] = {
            name: value if value is None else value.to(device) for name, value in vars(self).items()
        }
        return Draws(**moved)


def draw(
    keys: Sequence[tuple[int, ...]], latent_shape: tuple[int, int, int], timesteps: int, settings: LossSettings
) -> Draws:
    """Draws for m images, on the CPU; each depends on its own key (seed, sample index, ...) alone."""
    generators = [generator_for(*key) for key in keys]

    def each(sample: Callable[..., torch.Tensor], *options: Any) -> torch.Tensor:
        return torch.stack([sample(*options, generator=generator) for generator in generators])

    return Draws(  # in this order, which decides the values
        posterior=each(torch.randn, latent_shape),
        noise=each(torch.randn, latent_shape),
        timesteps=each(torch.randint, 0, timesteps, ()),
        offset=each(torch.randn, (latent_shape[0], 1, 1)) if settings.noise_offset else None,
        perturbation=each(torch.randn, latent_shape) if settings.input_perturbation else None,
        dropped=each(torch.rand, ()) < settings.drop_probability if settings.drop_probability else None,
    )


@dataclass(frozen=True)
class ImageTerms:
    """The intermediate results of the image loss."""

    states: torch.Tensor  # (m, Q, H) final hidden states at the dream queries, or the unconditional ones if dropped
    condition: torch.Tensor  # (m, Q, E)
    latents: torch.Tensor  # (m, C, h, w) scaled
    noisy_latents: torch.Tensor  # (m, C, h, w)
    prediction: torch.Tensor  # (m, C, h, w) float32
    losses: torch.Tensor  # (m,) float32, with min-SNR weights if these are on


def signal_to_noise(scheduler: Scheduler) -> torch.Tensor:
    """Signal-to-noise ratio of every timestep: alpha-bar / (1 - alpha-bar)."""
    alphas = scheduler.alphas_cumprod.float()
    return alphas / (1 - alphas)


def min_snr_weights(scheduler: Scheduler, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
    """(m,) weights min(SNR, gamma) / SNR (arXiv 2303.09556), 1 at SNR 0; with SNR + 1 for v-prediction, as in the original."""
    ratio = signal_to_noise(scheduler).to(timesteps.device)[timesteps]
    if scheduler.config.prediction_type == "v_prediction":
        ratio = ratio + 1
    return (gamma / ratio).clamp(max=1)


def image_terms(
    model: Model,
    scheduler: Scheduler,
    states: torch.Tensor,
    target_pixels: torch.Tensor,
    draws: Draws,
    settings: LossSettings,
    posterior: torch.Tensor | None = None,
) -> ImageTerms:
    """The image loss of each image (section 3 of the paper): the MSE of the UNet's prediction under the model's condition vectors.

    states (m, Q, H), target_pixels (m, 3, R, R) in [-1, 1]. Gradients flow through the UNet into the states even if the UNet is
    frozen; none flow into the autoencoder, whose `posterior` of the pixels (m, 2, C, h, w) may be given.
    """
    decoder = model.image_decoder
    with torch.no_grad():
        posterior = decoder.posterior(target_pixels) if posterior is None else posterior
        latents = decoder.sample(posterior, draws.posterior)
    noise = draws.noise if draws.offset is None else draws.noise + settings.noise_offset * draws.offset
    perturbed = noise if draws.perturbation is None else noise + settings.input_perturbation * draws.perturbation
    noisy = scheduler.add_noise(latents, perturbed, draws.timesteps)
    condition = model.condition_projector(states)
    prediction = decoder.predict(noisy, draws.timesteps, condition)
    kind = scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise UsageError(f"prediction_type {kind!r} is not supported; use a scheduler with epsilon or v_prediction")
    target = noise if kind == "epsilon" else scheduler.get_velocity(latents, noise, draws.timesteps)
    losses = F.mse_loss(prediction, target.float(), reduction="none").flatten(1).mean(1)
    if settings.snr_gamma is not None:
        losses = losses * min_snr_weights(scheduler, draws.timesteps, settings.snr_gamma)
    return ImageTerms(states, condition, latents, noisy, prediction, losses)


def unconditional_states(model: Model, kind: str) -> torch.Tensor:
    """(1, Q, H) final hidden states for a dropped condition: those of `bos <dream_start> Q queries <dream_end> eos`.

    With `kind` "queries" the span holds the dream queries, as in image generation; with "patches" it holds the patch token's
    embedding, as in the original's training.
    """
    config = model.config
    start, patch, count = config.dream_span
    ids = [config.bos_token_id, start, *[patch] * count, config.special_token_ids["<dream_end>"], config.eos_token_id]
    row = torch.tensor([ids], device=model.dream_queries.device)
    embeds = model.embed(row, substitute_queries=kind == "queries")
    hidden = model.get_decoder()(inputs_embeds=embeds, use_cache=False).last_hidden_state
    return hidden[:, 2 : 2 + count]


def token_losses(hidden: torch.Tensor, labels: torch.Tensor, head: nn.Module) -> torch.Tensor:
    """Summed cross-entropy of the next token, logits in float32, over labels (B, T) other than -100, the only positions with logits."""
    targets = labels[:, 1:]
    valid = (targets != IGNORED).nonzero(as_tuple=True)
    logits = head(hidden[:, :-1][valid])
    return F.cross_entropy(logits.float(), targets[valid], reduction="sum")


def count_targets(batch: dict[str, Any]) -> tuple[int, int]:
    """The numbers of labelled tokens and of generated images in a batch."""
    return int((batch["labels"][:, 1:] != IGNORED).sum()), len(batch.get("target_pixels", ()))


def weighted_loss(settings: LossSettings, lm: Any, vm: Any) -> Any:
    """The loss that is minimised. Its divisor is 1, the sum of the weights (l1), or the root of the sum of their squares (l2)."""
    weights = (settings.weight_lm, settings.weight_vm)
    scales = {"none": 1.0, "l1": sum(weights), "l2": sum(w * w for w in weights) ** 0.5}
    return (weights[0] * lm + weights[1] * vm) / scales[settings.scale]


def final_states(
    model: Model,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    pixel_values: torch.Tensor | None,
    length_groups: int = 1,
    packing: bool = False,
    image_features: torch.Tensor | None = None,
) -> torch.Tensor:
    """(B, T, H) hidden states after the final norm, of images given as `pixel_values` or as `image_features` (n, N, H).

    With `length_groups` above 1, rows of similar length go through the decoder together, without the padding that only longer rows
    need; positions beyond a group's longest row are 0. With `packing`, several rows share one, and padded positions are 0.
    """
    embeds = model.embed(input_ids, image_features, pixel_values=pixel_values)
    if packing and attention_mask is not None:
        return _decode_packed(model, embeds, attention_mask)
    if attention_mask is None or length_groups == 1:
        return _decode(model, embeds, attention_mask)
    lengths = attention_mask.sum(1)
    order = lengths.argsort()
    groups: list[torch.Tensor] = []
    for rows in order.chunk(length_groups):
        longest = int(lengths[rows].max())
        states = _decode(model, embeds[rows, :longest], attention_mask[rows, :longest])
        groups.append(F.pad(states, (0, 0, 0, embeds.shape[1] - longest)))
    return torch.cat(groups)[order.argsort()]


def _decode(model: Model, embeds: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    positions = None if attention_mask is None else position_ids_from_mask(attention_mask)
    output = model.get_decoder()(
        inputs_embeds=embeds, attention_mask=attention_mask, position_ids=positions, use_cache=False
    )
    return output.last_hidden_state


def _decode_packed(model: Model, embeds: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The states of rows that share rows as long as the longest; FlashAttention takes them all in one.

    transformers keeps sequences apart in a row where positions start again and there is no mask.
    """
    decoder: Any = model.get_decoder()
    lengths = attention_mask.sum(1).tolist()
    width = sum(lengths) if "flash" in str(decoder.config._attn_implementation) else max(lengths)
    places = torch.tensor(pack(lengths, width), device=embeds.device)
    sources, positions = attention_mask.bool().nonzero(as_tuple=True)
    rows, columns = places[sources, 0], places[sources, 1] + positions
    size = (int(places[:, 0].max()) + 1, width)
    packed = embeds.new_zeros(*size, embeds.shape[2]).index_put((rows, columns), embeds[sources, positions])
    position_ids = positions.new_zeros(size).index_put((rows, columns), positions)
    output = decoder(inputs_embeds=packed, position_ids=position_ids, use_cache=False)
    states: torch.Tensor = output.last_hidden_state
    return states.new_zeros(*embeds.shape).index_put((sources, positions), states[rows, columns])


def pack(lengths: Sequence[int], width: int) -> list[tuple[int, int]]:
    """The (row, first column) of each sequence: the longest first, in the first row with room."""
    places = [(0, 0)] * len(lengths)
    used: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        row = next((row for row, end in enumerate(used) if end + lengths[number] <= width), len(used))
        used += [0] if row == len(used) else []
        places[number] = (row, used[row])
        used[row] += lengths[number]
    return places


def conditioning_states(
    model: Model, hidden: torch.Tensor, input_ids: torch.Tensor, draws: Draws, settings: LossSettings
) -> torch.Tensor:
    """(m, Q, H) hidden states at the dream queries, in order over the flattened batch, dropped ones replaced."""
    rows, columns = find_spans(input_ids, *model.config.dream_span)
    states = hidden[rows, columns]
    if draws.dropped is None:
        return states
    # Computed even if nothing is dropped: sharded processes must make the same calls whatever each has drawn.
    unconditional = unconditional_states(model, settings.unconditional)
    return torch.where(draws.dropped[:, None, None], unconditional.to(states.dtype), states)


def compute_losses(
    model: Model,
    scheduler: Scheduler,
    settings: LossSettings,
    batch: dict[str, torch.Tensor],
    draws: Draws | None,
    counts: tuple[int, int] | None = None,
    store: FeatureStore | None = None,
) -> Losses:
    """Both losses of a batch and their weighted sum.

    Args:
        batch: `input_ids`, `attention_mask` and `labels` (B, T), right-padded; `pixel_values` (n, 3, S, S) for the image spans and
            `target_pixels` (m, 3, R, R) for the dream spans, if there are any.
        draws: for the m images; None if m is 0.
        counts: numbers of tokens and images to average over; by default the batch's own.
        store: of what the frozen encoders give for the images, whose keys are then in the batch too.

    Raises InputError if target images and dream spans differ in number.
    """
    ids, targets = batch["input_ids"], batch.get("target_pixels")
    spans = len(find_spans(ids, *model.config.dream_span)[0])
    count = 0 if targets is None else len(targets)
    if spans != count:
        raise InputError(f"target images and dream spans differ in number: {count} and {spans}")
    pixels, features, posterior = batch.get("pixel_values"), None, None
    if store is not None and pixels is not None:
        features = model.visual_projector(store.vision_states(model, pixels, batch["pixel_keys"]))
    if store is not None and targets is not None:
        posterior = store.posteriors(model, targets, batch["target_keys"])
    options = (settings.length_groups, settings.packing, features)
    hidden = final_states(model, ids, batch.get("attention_mask"), None if features is not None else pixels, *options)
    tokens, images = (max(count, 1) for count in counts or count_targets(batch))
    lm = token_losses(hidden, batch["labels"], model.get_output_embeddings()) / tokens
    vm = lm.new_zeros(())
    if targets is not None and draws is not None:
        draws = draws.to(hidden.device)
        states = conditioning_states(model, hidden, ids, draws, settings)
        vm = image_terms(model, scheduler, states, targets, draws, settings, posterior).losses.sum() / images
    elif settings.drop_probability:  # as in `conditioning_states`: another process may have images in this batch
        vm = 0.0 * unconditional_states(model, settings.unconditional).sum()
    return Losses(weighted_loss(settings, lm, vm) + _zero_gradients(model), lm.detach(), vm.detach())


def _zero_gradients(model: Model) -> torch.Tensor | float:
    """0, with a gradient of zeros for the parts that a batch without images does not use.

    Processes exchange gradients, so a trained part needs one in each of them, as in the original; an Adam step then does not depend on
    how batches are distributed over processes.
    """
    parts = (*model.visual_projector.parameters(), *model.condition_projector.parameters(), model.dream_queries)
    return sum(0.0 * parameter.sum() for parameter in parts if parameter.requires_grad)


def check_decoder(model: Model) -> None:
    """UsageError for a decoder that rescales its logits, which `token_losses` does not."""
    config = model.config.text_config
    unsupported = [name for name in LOGIT_FIELDS if getattr(config, name, None) not in (None, 1, 1.0)]
    if unsupported:
        raise UsageError(f"training does not support a {config.model_type!r} decoder with {unsupported[0]}")


@torch.no_grad()
def check_packing(model: Model) -> None:
    """UsageError for a decoder that does not keep packed sequences apart: some ignore positions, as those with ALiBi or a state do.

    FlashAttention, which keeps them apart by the same positions, runs on GPUs only and is not tried.
    """
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    if "flash" not in str(model.config.text_config._attn_implementation):
        ids = torch.arange(mask.numel()).reshape(mask.shape)
        alone, packed = (
            final_states(model, ids, mask, None, packing=packing)[mask.bool()] for packing in (False, True)
        )
        if not (alone - packed).abs().max() <= 0.05 * alone.abs().max():
            kind = model.config.text_config.model_type
            raise UsageError(f"loss.packing: a {kind!r} decoder mixes the sequences of a row: use loss.length_groups")


class DreamLLMForTraining(DreamLLMForConditionalGeneration):
    """The same weights, with the losses as `forward`, around which replicated and sharded training gathers weights and gradients."""

    loss_settings: LossSettings
    noise_scheduler: Scheduler
    feature_store: FeatureStore | None = None

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, draws: Draws | None = None, counts: tuple[int, int] | None = None, **batch: torch.Tensor
    ) -> Losses:
        return compute_losses(self, self.noise_scheduler, self.loss_settings, batch, draws, counts, self.feature_store)

    def train(self, mode: bool = True) -> Self:
        if mode and self.training:  # the trainer calls this before every batch, and visiting all modules takes time
            return self
        super().train(mode)
        self.vision_tower.eval()  # frozen parts use no dropout
        self.image_decoder.eval()
        return self
