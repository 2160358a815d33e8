"""Training: both losses, every step of the image loss under the recorded draws, and the gradients of all that learns."""

from __future__ import annotations

from typing import Any

import torch
from parity.checks import Check, Exempt
from parity.dreamllm.golden import ATOL, RTOL, Golden
from torch import Tensor

from dreamllm import DreamLLMForConditionalGeneration
from dreamllm.image_decoder import make_scheduler
from dreamllm.recipe import LossSettings
from dreamllm.released import CLIP, DIFFUSION, QUERIES, released_name
from dreamllm.training.losses import (
    Draws,
    compute_losses,
    conditioning_states,
    final_states,
    image_terms,
    signal_to_noise,
    unconditional_states,
)

STEM = "training"
LOSS = {"atol": 1e-4, "rtol": 1e-5}
GRADIENT = {"atol": 1e-4, "rtol": 1e-3}  # sums over all positions and layers
PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction"}
DRAWS = {
    "vae_eps": "posterior",
    "noise": "noise",
    "timesteps": "timesteps",
    "offset_noise": "offset",
    "perturb_noise": "perturbation",
    "drop_mask": "dropped",
}
# How the original names the parts in front of the names that its checkpoints have.
PREFIXES = {
    "language_model": "",
    CLIP: f"model.{CLIP}.",
    QUERIES: "model.dream_embedding.",
    DIFFUSION: f"{DIFFUSION}.",
}
EXEMPT = [
    *(Exempt(f"{STEM}.safetensors:*/{name}", "an input of the case: what was drawn") for name in DRAWS),
    *(
        Exempt(f"{STEM}.safetensors:batch.*/{name}", "an input of the cases")
        for name in ("input_ids", "attention_mask", "labels", "images", "images_dm")
    ),
    *(Exempt(f"{STEM}.safetensors:mlp_variant/{name}", "an input of the case") for name in ("images", "proj_in")),
    Exempt(f"{STEM}.json:batches/*", "shapes of the inputs"),
    Exempt(f"{STEM}.json:*/settings/*", "an input of the case"),
    Exempt(f"{STEM}.json:*/batch", "an input of the case"),
    Exempt(f"{STEM}.json:*/note", "words"),
    Exempt(f"{STEM}.json:*/random_calls", "the order of the original's draws; ours are injected"),
]


def checks(golden: Golden) -> list[Check]:
    found = []
    try:
        for name in golden.cases(STEM, "loss"):
            found += _case(golden, name)
        found += _logits(golden)
    finally:
        golden.model.requires_grad_(True).eval()
        golden.model.zero_grad(set_to_none=True)
    return [*found, _signal_to_noise(golden)]


def _signal_to_noise(golden: Golden) -> Check:
    scheduler = make_scheduler("ddpm", golden.model.config.image_decoder_config.scheduler)
    return golden.array_check("pipeline", "snr_all", signal_to_noise(scheduler), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def _logits(golden: Golden) -> list[Check]:
    found = []
    for name in golden.cases(STEM, "train_logits"):
        batch = golden.case(STEM, name)
        mask = batch["attention_mask"]
        output = golden.model.train()(
            batch["input_ids"],
            attention_mask=mask,
            pixel_values=batch.get("images"),
            substitute_queries="images_dm" in batch,
        )
        attended = mask[..., None].bool().cpu().numpy()
        found.append(
            golden.array_check(STEM, f"{name}/train_logits", output.logits, atol=ATOL, rtol=RTOL, mask=attended)
        )
    return found


def _case(golden: Golden, name: str) -> list[Check]:
    record, case, model = golden.records[STEM][name], golden.case(STEM, name), golden.model
    given = record["settings"]
    settings = LossSettings(
        weight_lm=given["loss_weight_lm"],
        weight_vm=given["loss_weight_vm"],
        scale=given["loss_scale_schedule"].removesuffix("_norm"),
        noise_offset=given["noise_offset"],
        input_perturbation=given["input_perturbation"],
        snr_gamma=given["snr_gamma"],
        drop_probability=given["drop_prob"] or 0.0,
        unconditional="patches",  # quirk 3
    )
    schedule = dict(model.config.image_decoder_config.scheduler)
    scheduler = make_scheduler("ddpm", schedule | {"prediction_type": PREDICTION_TYPES[given["prediction_type"]]})
    batch = golden.case(STEM, f"batch.{record['batch']}")
    names = {"images": "pixel_values", "images_dm": "target_pixels"}
    batch = {names.get(key, key): value for key, value in batch.items() if key != "train_logits"}
    draws = _draws(case)
    model.train().requires_grad_(True)
    model.vision_tower.requires_grad_(False)
    model.image_decoder.vae.requires_grad_(False)
    model.image_decoder.unet.requires_grad_(given["unet_trainable"])
    model.zero_grad(set_to_none=True)
    losses = compute_losses(model, scheduler, settings, batch, draws)
    losses.total.backward()
    return [
        golden.value_check(STEM, f"{name}/lm_loss", float(losses.lm), **LOSS),
        golden.value_check(STEM, f"{name}/vm_loss", float(losses.vm), **LOSS),
        golden.value_check(STEM, f"{name}/loss", float(losses.total.detach()), **LOSS),
        golden.array_check(STEM, f"{name}/loss", losses.total, **LOSS),
        *_gradients(golden, name),
        *([] if draws is None else _terms(golden, name, scheduler, settings, batch, draws)),
    ]


def _draws(case: dict[str, Tensor]) -> Draws | None:
    given: dict[str, Any] = {ours: case[name] for name, ours in DRAWS.items() if name in case}
    if "dropped" in given:
        given["dropped"] = given["dropped"].bool().reshape(-1)
    return Draws(**given) if given else None


@torch.no_grad()
def _terms(
    golden: Golden, name: str, scheduler: Any, settings: LossSettings, batch: dict[str, Tensor], draws: Draws
) -> list[Check]:
    """The image loss step by step, by the functions that `compute_losses` is made of."""
    model = golden.model
    ids = batch["input_ids"]
    hidden = final_states(model, ids, batch["attention_mask"], batch.get("pixel_values"))
    plain = conditioning_states(model, hidden, ids, Draws(draws.posterior, draws.noise, draws.timesteps), settings)
    states = conditioning_states(model, hidden, ids, draws, settings)
    terms = image_terms(model, scheduler, states, batch["target_pixels"], draws, settings)
    posterior = model.image_decoder.vae.encode(batch["target_pixels"]).latent_dist
    arrays = {
        "encoder_hidden_states": plain,
        "projector_in": states,
        "unet_context": terms.condition,
        "latents": terms.latents,
        "noisy_latents": terms.noisy_latents,
        "model_pred": terms.prediction,
        "vae_mean": posterior.mean,
        "vae_std": posterior.std,
    }
    if draws.dropped is not None:
        arrays["u_encoder_hidden_states"] = unconditional_states(model, settings.unconditional)
    return [golden.array_check(STEM, f"{name}/{key}", value) for key, value in arrays.items()]


def _gradients(golden: Golden, name: str) -> list[Check]:
    """Norms of all gradients, and those that are recorded whole. A part that learns has a gradient, of zeros if nothing touched it."""
    gradients = _official_gradients(golden.model)
    record = golden.records[STEM][name]
    untouched = [key for key in record["all_param_grad_norms"] if gradients.get(key) is None]
    found = [golden.value_check(STEM, f"{name}/requires_grad_but_no_grad", untouched)]
    present = {key: gradient for key, gradient in gradients.items() if gradient is not None}
    found += [
        golden.value_check(STEM, f"{name}/all_param_grad_norms/{key}", _norm([present[key]]), **GRADIENT)
        for key in record["all_param_grad_norms"]
        if key in present
    ]
    found += [
        golden.value_check(
            STEM, f"{name}/grad_norms/{short}", _norm([present[key] for key in _keys(golden, short)]), **GRADIENT
        )
        for short in record["grad_norms"]
    ]
    prefix = f"{name}/grad."
    return found + [
        golden.array_check(STEM, key, present[_keys(golden, key.removeprefix(prefix))[0]], **GRADIENT)
        for key in golden.arrays[STEM]
        if key.startswith(prefix)
    ]


def _official_gradients(model: DreamLLMForConditionalGeneration) -> dict[str, Tensor | None]:
    gradients = {}
    for key, parameter in model.named_parameters():
        part, name = released_name(key, model.config)
        gradients[PREFIXES[part] + name] = parameter.grad
    return gradients


def _keys(golden: Golden, short: str) -> list[str]:
    """The original's parameter names for the short ones of `grad_norms` and `grad.*`."""
    names = _official_gradients(golden.model)
    last = golden.model.config.text_config.num_hidden_layers - 1
    for kind, prefix in (
        ("first_layer", "model.layers.0."),
        ("last_layer", f"model.layers.{last}."),
        ("embed_tokens", "model.embed_tokens."),
        ("lm_head", "lm_head."),
        ("norm", "model.norm."),
        ("dream_queries", f"{PREFIXES[QUERIES]}dream_queries"),
        ("clip_projector", f"{PREFIXES[CLIP]}projector.projector."),
        ("unet_projector", f"{PREFIXES[DIFFUSION]}projector.projector."),
    ):
        head, _, rest = short.partition(".")
        if head == kind:
            return [key for key in names if key.startswith(prefix) and key.endswith(rest)]
    raise KeyError(short)


def _norm(gradients: list[Tensor]) -> float:
    return float(torch.stack([gradient.norm() for gradient in gradients]).norm())
