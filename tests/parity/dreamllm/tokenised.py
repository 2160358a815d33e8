"""Tokenizer, chat templates, image processor; the training samples of the same recording belong to training."""

from __future__ import annotations

import glob
from typing import Any

import numpy as np
from parity.checks import Check, Exempt
from parity.dreamllm.golden import Golden

from dreamllm.processing import CHAT_TEMPLATES

STEM = "tokenised"
TRAINING = "training: its data pipeline makes these samples"


def exempt(golden: Golden) -> list[Exempt]:
    cases = golden.records[STEM]["_common"]["case_keys"]
    return [
        *(Exempt(f"{STEM}.json:{glob.escape(name)}/*", TRAINING) for name in cases),
        Exempt(f"{STEM}.json:collator/*", TRAINING),
        Exempt(f"{STEM}.safetensors:collator/*", TRAINING),
        Exempt(f"{STEM}.safetensors:solid/*", TRAINING),
        Exempt(f"{STEM}.json:_flip/*", TRAINING),
        Exempt(f"{STEM}.safetensors:processors/*/sd_pixel_values_*", "training: targets to paint"),
        Exempt(f"{STEM}.json:_system_token_len", "training: where conversations are cut"),
        Exempt(f"{STEM}.json:_common/case_keys", "names of the cases"),
        Exempt(f"{STEM}.json:_common/ignore_index", TRAINING),
        Exempt(f"{STEM}.safetensors:processors/*/image_u8", "an input of the case"),
        Exempt(f"{STEM}.json:_conversation_prompts/*/turns", "an input of the case"),
        Exempt(f"{STEM}.json:_eval_prompts/*/prompt", "an input of the case"),
        Exempt(
            f"{STEM}.json:_tokenizer_samples/*/decoded",
            "how the slow tokenizer sets spaces around special tokens on display",
        ),
    ]


def checks(golden: Golden) -> list[Check]:
    return [*_tokenizer(golden), *_prompts(golden), *_images(golden)]


def _tokenizer(golden: Golden) -> list[Check]:
    tokenizer = golden.processor.tokenizer
    found = [golden.value_check(STEM, "_common/model_max_length_default", tokenizer.model_max_length)]
    for text, sample in golden.records[STEM]["_tokenizer_samples"].items():
        path = f"{STEM}.json:_tokenizer_samples/{text}"
        decoded = tokenizer.decode(sample["ids"], skip_special_tokens=True)
        # The slow tokenizer takes one or two spaces off the front, the fast one takes one.
        found += [
            Check(f"{path}/ids", np.array(sample["ids"]), np.array(tokenizer(text)["input_ids"])),
            Check(f"{path}/decoded_skip", sample["decoded_skip"].lstrip(), decoded.lstrip()),
        ]
    return found


def _prompts(golden: Golden) -> list[Check]:
    found = []
    processor = golden.processor
    for name, record in golden.records[STEM]["_conversation_prompts"].items():
        turns: list[Any] = record["turns"]
        opened = turns[-1] is None
        messages = [
            {"role": ("user", "assistant")[i % 2], "content": text}
            for i, text in enumerate(turns[:-1] if opened else turns)
        ]
        prompt = processor.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=opened, chat_template=CHAT_TEMPLATES[name.split("/")[0]]
        )
        found.append(Check(f"{STEM}.json:_conversation_prompts/{name}/prompt", record["prompt"], prompt))
    for question, record in golden.records[STEM]["_eval_prompts"].items():
        ids = processor.tokenizer(record["prompt"])["input_ids"]
        found.append(
            Check(f"{STEM}.json:_eval_prompts/{question}/input_ids", np.array(record["input_ids"]), np.array(ids))
        )
    return found


def _images(golden: Golden) -> list[Check]:
    return [
        golden.array_check(
            STEM,
            f"{name}/clip_pixel_values",
            golden.processor.pixel_values([golden.arrays[STEM][f"{name}/image_u8"].numpy()])[0],
            atol=1e-6,
        )
        for name in golden.cases(STEM, "clip_pixel_values")
    ]
