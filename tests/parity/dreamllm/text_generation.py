"""Generated text: greedy and beam search with none, one and several images, alone and in left-padded batches."""

from __future__ import annotations

import glob
from typing import Any

import numpy as np
import torch
from parity.checks import Check, Exempt
from parity.dreamllm.golden import Golden

STEM = "generation"
EXEMPT = [
    Exempt(
        f"{STEM}.safetensors:*_official_bug/*",
        "prompts with several images get others' under the original's beams (quirk 11)",
    ),
    Exempt(
        f"{STEM}.json:*_official_bug/*", "prompts with several images get others' under the original's beams (quirk 11)"
    ),
    Exempt(f"{STEM}.safetensors:*_no_mask/*", "the original attends to padding where no mask is given (quirk 12)"),
    Exempt(f"{STEM}.json:*_no_mask/*", "the original attends to padding where no mask is given (quirk 12)"),
    Exempt(f"{STEM}.safetensors:*/images", "an input of the case"),
    Exempt(f"{STEM}.safetensors:*/attention_mask", "an input of the case"),
    Exempt(f"{STEM}.json:*/kwargs/*", "an input of the case"),
    Exempt(f"{STEM}.json:prompt*/text", "an input of the cases"),
    Exempt(f"{STEM}.json:prompt*/question", "an input of the cases"),
    Exempt(f"{STEM}.json:*/min_top1_top2_gap", "says how safe the comparison of tokens is"),
    Exempt(f"{STEM}.json:*/decoded_new", "the slow tokenizer decodes invalid UTF-8 byte by byte; the ids are compared"),
    Exempt(f"{STEM}.json:*/note", "words"),
    Exempt(f"{STEM}.json:default_conversation_name", "words"),
    Exempt(f"{STEM}.safetensors:*/input_ids", "an input of the case; those of named prompts are compared too"),
]
INCOMPARABLE = ("_official_bug", "_no_mask")


def checks(golden: Golden) -> list[Check]:
    found = _prompt_ids(golden)
    for name in golden.cases(STEM, "sequences"):
        if not _ended_beams(golden, name) and not name.endswith(INCOMPARABLE):
            found += _case(golden, name)
    return found


def exempt(golden: Golden) -> list[Exempt]:
    return [
        Exempt(
            f"{STEM}.{kind}:{glob.escape(name)}/*", "transformers up to 4.38 divided beam scores by prompt + new length"
        )
        for name in golden.cases(STEM, "sequences")
        if _ended_beams(golden, name)
        for kind in ("json", "safetensors")
    ]


def _ended_beams(golden: Golden, name: str) -> bool:
    """Whether beams of different lengths competed: some could end early."""
    record = golden.records[STEM][name]
    beams = record["kwargs"].get("num_beams", 1) > 1
    return beams and ("eos_token_id" in record["kwargs"] or any(record["has_eos"]))


def _case(golden: Golden, name: str) -> list[Check]:
    record, case = golden.records[STEM][name], golden.case(STEM, name)
    ids = case["input_ids"]
    arguments: dict[str, Any] = {"pad_token_id": golden.model.config.eos_token_id, **record["kwargs"]}  # quirk 12
    arguments.pop("temperature", None)  # inert in the original, as do_sample is off
    output = golden.model.generate(
        ids,
        attention_mask=case.get("attention_mask", torch.ones_like(ids)),
        pixel_values=case.get("images"),
        allow_special_tokens=True,  # the original suppresses nothing
        return_dict_in_generate=True,
        output_logits=True,
        output_scores=True,
        **arguments,
    )
    new = output.sequences.shape[1] - ids.shape[1]
    ended = [golden.model.config.eos_token_id in row for row in output.sequences[:, ids.shape[1] :].tolist()]
    found = [
        golden.array_check(STEM, f"{name}/sequences", output.sequences, atol=0, rtol=0),
        golden.value_check(STEM, f"{name}/new_len", new),
        golden.value_check(STEM, f"{name}/has_eos", ended),
    ]
    if "scores" in case:
        found.append(golden.array_check(STEM, f"{name}/scores", torch.stack(output.logits, dim=1)))
    if "sequences_scores" in case:
        # Ours are divided by the number of new tokens, the recorded ones by that of all.
        scores = output.sequences_scores * new / (ids.shape[1] + new)
        found.append(golden.array_check(STEM, f"{name}/sequences_scores", scores))
    return found


def _prompt_ids(golden: Golden) -> list[Check]:
    """The recorded ids of single prompts are what our processor makes of their text."""
    found = []
    filled = "<im_start>" + "<im_patch>" * golden.model.config.num_image_tokens + "<im_end>"
    image = np.zeros((8, 8, 3), np.uint8)
    for name, record in golden.records[STEM].items():
        suffix = name.removeprefix("prompt").removeprefix("_")
        cases = [case for case in (f"greedy{suffix}", f"greedy_{suffix}") if f"{case}/input_ids" in golden.arrays[STEM]]
        if not name.startswith("prompt") or not cases:
            continue
        text = record["text"].replace(filled, "<image>")
        batch = golden.processor(text, [image] * text.count("<image>"))
        found.append(golden.array_check(STEM, f"{cases[0]}/input_ids", batch["input_ids"], atol=0, rtol=0))
    return found
