"""Reading: encoder, logits, hidden states, losses, cache, grouped-query and rotary variants, projector variant."""

from __future__ import annotations

import torch
from parity.checks import Check, Exempt
from parity.dreamllm.golden import ATOL, RTOL, Golden

from dreamllm.layers import CACHE

STEM = "comprehension"
INPUTS = ("input_ids", "attention_mask", "images", "labels", "position_ids", "prefix_ids", "next_ids")
EXEMPT = [
    *(Exempt(f"{STEM}.safetensors:*/{name}", "an input of the case") for name in (*INPUTS, "pixel_values")),
    Exempt(f"{STEM}.json:*/note", "words"),
    Exempt(f"{STEM}.json:*/mode", "words"),
    Exempt(f"{STEM}.json:rope_*/rope_scaling/*", "an input of the case"),
    Exempt(f"{STEM}.json:rope_*/max_position_embeddings", "an input of the case"),
    Exempt(f"{STEM}.json:*/additional_log_info/vm_loss", "training: the image loss is 0 in evaluation"),
]


@torch.no_grad()
def checks(golden: Golden) -> list[Check]:
    found = [*_encoder(golden), *_cache(golden), *_rope(golden), *_projectors(golden)]
    for name in golden.cases(STEM, "logits"):
        found += _case(golden, name)
    return found


def _encoder(golden: Golden) -> list[Check]:
    case = golden.case(STEM, "clip")
    hidden = golden.model.vision_tower(case["pixel_values"], output_hidden_states=True).hidden_states
    return [
        golden.array_check(STEM, "clip/image_embeds", golden.model.encode_images(case["pixel_values"])),
        *(golden.array_check(STEM, f"clip/hidden_states.{i}", h) for i, h in enumerate(hidden)),
    ]


def _case(golden: Golden, name: str) -> list[Check]:
    case = golden.case(STEM, name)
    ids = case["input_ids"]
    mask = case.get("attention_mask", torch.ones_like(ids))
    # The original counts padding as positions where it is given none; hidden states do not depend on it, beyond rounding.
    inputs = {
        "input_ids": ids,
        "attention_mask": case.get("attention_mask"),
        "position_ids": case.get("position_ids", torch.arange(ids.shape[1], device=ids.device)[None]),
        "pixel_values": case.get("images"),
        "labels": case.get("labels"),
        "substitute_queries": not name.endswith("_no_images_dm"),
    }
    model = golden.kv_model if name.startswith("kv_variant") else golden.model
    output = model(**inputs, output_hidden_states=True)
    attended = mask[..., None].bool().cpu().numpy()
    tolerance = {"atol": ATOL, "rtol": RTOL, "mask": attended}
    found = [golden.array_check(STEM, f"{name}/logits", output.logits, **tolerance)]
    found += [
        golden.array_check(STEM, f"{name}/hidden_states.{i}", hidden, **tolerance)
        for i, hidden in enumerate(output.hidden_states)
        if f"hidden_states.{i}" in case
    ]
    if "loss" not in golden.records[STEM].get(name, {}):
        return found
    # With padding on the left the recorded loss counts the first token, predicted from a position that attends to nothing.
    loss = golden.eager(**inputs).loss if (mask[:, 0] == 0).any() else output.loss
    return [
        *found,
        golden.value_check(STEM, f"{name}/loss", float(loss), atol=ATOL),
        golden.value_check(STEM, f"{name}/additional_log_info/lm_loss", float(loss), atol=ATOL),
    ]


def _cache(golden: Golden) -> list[Check]:
    case = golden.case(STEM, "kv_cache")
    prefix = golden.model(case["prefix_ids"], pixel_values=case["images"], use_cache=True)
    output = golden.model(case["next_ids"], cache=prefix[CACHE])
    return [golden.array_check(STEM, "kv_cache/next_logits", output.logits)]


def _rope(golden: Golden) -> list[Check]:
    found = []
    for name in golden.cases(STEM, "last_hidden_state"):
        model = golden.rope_model(name)
        output = model(golden.case(STEM, name)["input_ids"], output_hidden_states=True)
        found.append(golden.array_check(STEM, f"{name}/last_hidden_state", output.hidden_states[-1]))
    return found


def _projectors(golden: Golden) -> list[Check]:
    """`mlp_variant`, which is recorded among the training cases."""
    case, batch = golden.case("training", "mlp_variant"), golden.case("training", "batch.comprehension")
    model = golden.mlp_model
    output = model(batch["input_ids"], attention_mask=batch["attention_mask"], pixel_values=case["images"])
    attended = batch["attention_mask"][..., None].bool().cpu().numpy()
    return [
        golden.array_check("training", "mlp_variant/image_embeds", model.encode_images(case["images"])),
        golden.array_check("training", "mlp_variant/proj_out", model.condition_projector(case["proj_in"])),
        golden.array_check("training", "mlp_variant/logits", output.logits, atol=ATOL, rtol=RTOL, mask=attended),
    ]
