"""Image generation: condition embeddings of prompts, UNet, autoencoder, schedulers, and whole sampling runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from parity.checks import Check, Exempt
from parity.dreamllm.golden import ATOL, RTOL, Golden
from torch import Tensor

from dreamllm import DreamLLMForConditionalGeneration
from dreamllm.files import read_json
from dreamllm.image_decoder import make_scheduler, rescale_guidance

EMBEDS, PIPELINE = "creation_embeds", "pipeline"
LATENTS = {"atol": 1e-3, "rtol": 1e-4}  # the README's 1e-3, on values of order 10
PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction"}
SETTINGS = (
    "scheduler",
    "prediction_type",
    "prompt",
    "negative_prompt",
    "num_inference_steps",
    "num_images_per_prompt",
    "guidance_scale",
    "guidance_rescale",
    "generator_seed",
)
EXEMPT = [
    Exempt(
        f"{EMBEDS}.safetensors:multimodal/as_is_256/*",
        "the original hard-codes 256 patches for every encoder (quirk 4)",
    ),
    Exempt(f"{EMBEDS}.safetensors:*/attention_mask", "an input of the case"),
    Exempt(f"{EMBEDS}.json:*/note", "words"),
    Exempt(f"{EMBEDS}.json:*/prompts", "an input of the case"),
    Exempt(f"{EMBEDS}.json:*/padding_side", "an input of the case"),
    Exempt(f"{EMBEDS}.json:multimodal/text", "an input of the case"),
    Exempt(f"{EMBEDS}.json:encode_nipp2/num_images_per_prompt", "an input of the case"),
    Exempt(f"{EMBEDS}.safetensors:multimodal/image_u8", "an input of the case"),
    Exempt(f"{EMBEDS}.json:span_vs_pipeline/max_abs_diff", "rounding of the original's own two paths"),
    *(Exempt(f"{PIPELINE}.json:*/{name}", "an input of the case") for name in SETTINGS),
    Exempt(f"{PIPELINE}.safetensors:latents_init*", "an input of the cases"),
    Exempt(f"{PIPELINE}.safetensors:*/step_noise", "an input of the case"),
    *(
        Exempt(f"{PIPELINE}.safetensors:{name}", "an input of the case")
        for name in ("unet/sample", "unet/timesteps", "unet/encoder_hidden_states", "vae/decode_in", "vae/encode_in")
    ),
    *(
        Exempt(f"{PIPELINE}.safetensors:rescale_cfg/{name}", "an input of the case")
        for name in ("noise_cfg", "noise_pred_text")
    ),
]


@torch.no_grad()
def checks(golden: Golden) -> list[Check]:
    found = [*_multimodal(golden), *_spans(golden), *_parts(golden), *_schedulers(golden)]
    for name in golden.cases(EMBEDS, "projected"):
        found += _prompts(golden, name)
    for name in golden.cases(PIPELINE, "latents"):
        found += _run(golden, name)
    return found


def official_prompt_embeds(model: DreamLLMForConditionalGeneration, ids: Tensor, mask: Tensor) -> Tensor:
    """The original's way: queries after the padding, which counts as positions. A padded prompt depends on its batch mates."""
    text, queries = model.embed(ids), model.dream_span_embeds(len(ids))
    embeds = torch.cat([text, queries], dim=1)
    mask = torch.cat([mask, mask.new_ones(queries.shape[:2])], dim=1)
    positions = torch.arange(embeds.shape[1], device=ids.device)[None]
    hidden = model.get_decoder()(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).last_hidden_state
    return hidden[:, -model.config.num_dream_queries - 1 : -1]


def _tokenise(golden: Golden, prompts: list[str], padding_side: str) -> dict[str, Tensor]:
    tokenizer = golden.processor.tokenizer
    batch = tokenizer(prompts, padding=True, padding_side=padding_side, return_tensors="pt").to(golden.device)
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def _official_embeds(golden: Golden, prompts: str | list[str]) -> Tensor:
    batch = _tokenise(golden, [prompts] if isinstance(prompts, str) else prompts, "right")
    return official_prompt_embeds(golden.model, batch["input_ids"], batch["attention_mask"])


def _prompts(golden: Golden, name: str) -> list[Check]:
    """A case of `get_prompt_embeds`: our way for whole rows, and the original's way for all of them."""
    record = golden.records[EMBEDS][name]
    model = golden.kv_model if name.startswith("kv_variant") else golden.model
    prompts = [record["prompts"]] if isinstance(record["prompts"], str) else record["prompts"]
    batch = _tokenise(golden, prompts, record["padding_side"])
    padded_right = bool((batch["attention_mask"][:, -1] == 0).any())
    ours = model.encode_prompts(**batch)
    embeds = official_prompt_embeds(model, batch["input_ids"], batch["attention_mask"]) if padded_right else ours
    projected = model.condition_projector(embeds)
    found = [
        golden.array_check(EMBEDS, f"{name}/input_ids", batch["input_ids"], atol=0, rtol=0),
        golden.array_check(EMBEDS, f"{name}/prompt_embeds", embeds),
        golden.array_check(EMBEDS, f"{name}/projected", projected),
    ]
    if padded_right:
        unpadded = batch["attention_mask"].all(dim=1).cpu().numpy()[:, None, None]
        found.append(golden.array_check(EMBEDS, f"{name}/prompt_embeds", ours, atol=ATOL, rtol=RTOL, mask=unpadded))
    return found


def _multimodal(golden: Golden) -> list[Check]:
    record = golden.records[EMBEDS]["multimodal"]
    case = golden.case(EMBEDS, "multimodal")
    batch = golden.processor(record["text"], case["image_u8"].cpu().numpy()).to(golden.device)
    embeds = golden.model.encode_prompts(**batch)
    return [
        golden.array_check(EMBEDS, "multimodal/pixel_values", batch["pixel_values"]),
        golden.array_check(EMBEDS, "multimodal/real_patch_count/input_ids", batch["input_ids"], atol=0, rtol=0),
        golden.array_check(EMBEDS, "multimodal/real_patch_count/prompt_embeds", embeds),
    ]


def _spans(golden: Golden) -> list[Check]:
    model, config = golden.model, golden.model.config
    span = golden.processor.dream_span
    ids = torch.tensor([[config.bos_token_id, *span, config.eos_token_id]], device=golden.device)
    hidden = model(ids, substitute_queries=False, output_hidden_states=True).hidden_states[-1]
    trained = hidden[:, 2 : 2 + config.num_dream_queries]
    recorded = golden.arrays[EMBEDS]["dream_queries_with_special/embeds"]
    repeats = golden.records[EMBEDS]["encode_nipp2"]
    positive = _official_embeds(golden, repeats["prompts"]).repeat_interleave(repeats["num_images_per_prompt"], dim=0)
    empty = model.encode_unconditional()
    return [
        golden.array_check(EMBEDS, "dream_queries_with_special/embeds", model.dream_span_embeds(len(recorded))),
        golden.array_check(EMBEDS, "train_uncond/u_encoder_hidden_states", trained),
        golden.value_check(
            EMBEDS, "train_uncond/max_abs_diff_to_inference_uncond", float((trained - empty).abs().max()), atol=ATOL
        ),
        golden.array_check(EMBEDS, "encode_nipp2/prompt_embeds", positive),
        golden.array_check(EMBEDS, "encode_nipp2/negative_prompt_embeds", empty.expand(len(positive), -1, -1)),
    ]


def _parts(golden: Golden) -> list[Check]:
    decoder = golden.model.image_decoder
    unet, vae, rescale = (golden.case(PIPELINE, name) for name in ("unet", "vae", "rescale_cfg"))
    posterior = decoder.vae.encode(vae["encode_in"]).latent_dist
    decoded = decoder.vae.decode(vae["decode_in"] / decoder.scaling_factor).sample
    found = [
        golden.array_check(
            PIPELINE, "unet/out", decoder.predict(unet["sample"], unet["timesteps"], unet["encoder_hidden_states"])
        ),
        golden.array_check(PIPELINE, "vae/decode_out", decoded),
        golden.array_check(PIPELINE, "vae/encode_mean", posterior.mean),
        golden.array_check(PIPELINE, "vae/encode_logvar", posterior.logvar),
    ]
    for name in rescale:
        if name.startswith("out_"):
            ours = rescale_guidance(rescale["noise_cfg"], rescale["noise_pred_text"], float(name.removeprefix("out_")))
            found.append(golden.array_check(PIPELINE, f"rescale_cfg/{name}", ours))
    return found


def _scheduler_config(golden: Golden, prediction_type: str) -> dict[str, Any]:
    """The recorded scheduler configuration of that prediction type: some folder `scheduler*` has it."""
    for path in sorted(golden.folder.glob("sd/scheduler*/scheduler_config.json")):
        config = read_json(path)
        if config["prediction_type"] == PREDICTION_TYPES.get(prediction_type, prediction_type):
            return config
    raise FileNotFoundError(f"no scheduler with prediction type {prediction_type}")


def _schedulers(golden: Golden) -> list[Check]:
    ddpm = make_scheduler("ddpm", golden.model.config.image_decoder_config.scheduler)
    found = [golden.array_check(PIPELINE, "alphas_cumprod", ddpm.alphas_cumprod, atol=1e-6, rtol=1e-6)]
    for name, recorded in golden.records[PIPELINE].items():
        kind, _, rest = name.partition("_")
        if rest.startswith("scheduler_config"):
            ours = make_scheduler(kind, _scheduler_config(golden, recorded["prediction_type"])).config
            found += [golden.value_check(PIPELINE, f"{name}/{key}", ours.get(key)) for key in recorded]
    return found


def _run(golden: Golden, name: str) -> list[Check]:
    """One run of the pipeline: embeddings the original's way, then our sampling loop."""
    record, case = golden.records[PIPELINE][name], golden.case(PIPELINE, name)
    embeds = _official_embeds(golden, record["prompt"])
    negative = record.get("negative_prompt")
    count = len(case["latents"])
    starts = sorted(key for key in golden.arrays[PIPELINE] if key.startswith("latents_init"))
    start = next(golden.arrays[PIPELINE][key] for key in starts if len(golden.arrays[PIPELINE][key]) >= count)
    latents: list[Tensor] = []
    timesteps: list[int] = []

    def remember(step: int, timestep: int, after: Tensor) -> None:
        timesteps.append(timestep)
        latents.append(after)

    pixels = golden.model.generate_images(
        prompt_embeds=embeds,
        negative_prompt_embeds=None if negative is None else _official_embeds(golden, negative),
        num_images_per_prompt=record.get("num_images_per_prompt", 1),
        scheduler=make_scheduler(record["scheduler"], _scheduler_config(golden, record["prediction_type"])),
        num_inference_steps=record["num_inference_steps"],
        guidance_scale=record["guidance_scale"],
        guidance_rescale=record["guidance_rescale"],
        latents=start[:count],
        variance_noise=case.get("step_noise"),
        output_type="tensor",
        callback=remember,
    )
    images = pixels.permute(0, 2, 3, 1).cpu().numpy()
    saturated = float(((images <= 0) | (images >= 1)).mean())
    found = [
        golden.array_check(PIPELINE, f"{name}/timesteps", np.array(timesteps), atol=0, rtol=0),
        golden.array_check(PIPELINE, f"{name}/step_latents", torch.stack(latents), **LATENTS),
        golden.array_check(PIPELINE, f"{name}/latents", latents[-1], **LATENTS),
        golden.value_check(PIPELINE, f"{name}/latents_max_abs", float(latents[-1].abs().max()), **LATENTS),
        golden.value_check(PIPELINE, f"{name}/image_std", float(images.std()), atol=1e-4),
        golden.value_check(PIPELINE, f"{name}/image_saturated", saturated, atol=1e-3),
    ]
    if "images" in case:
        found.append(golden.array_check(PIPELINE, f"{name}/images", images, atol=1e-3))
    return found
