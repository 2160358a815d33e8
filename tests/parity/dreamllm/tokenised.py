"""Tokenizer, chat templates, image processors, and the training samples and batches made of them."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from typing import Any

import numpy as np
from parity.checks import Check, Exempt
from parity.dreamllm.golden import Golden
from PIL import Image

from dreamllm.data import IGNORED, Collator, Sample
from dreamllm.data.samples import (
    comprehension_pair,
    conversation,
    document,
    generation_pair,
    matched_parts,
    target_pixels,
)
from dreamllm.processing import CHAT_TEMPLATES, SYSTEM

STEM = "tokenised"
INPUT = "an input of the case"
INPUTS = ("dataset_type", "raw/*", "flags/*", "model_max_length", "tokenizer_legacy", "note", "np_random_*")
UNLIMITED = 10**9


def exempt(golden: Golden) -> list[Exempt]:
    found = [
        Exempt(f"{STEM}.json:{glob.escape(name)}/{field}", INPUT) for name in _case_names(golden) for field in INPUTS
    ]
    for name in _case_names(golden):
        reason = _quirk(golden, golden.records[STEM][name])
        if reason is not None:
            found.append(Exempt(f"{STEM}.json:{glob.escape(name)}/*", reason))
    return [
        *found,
        Exempt(f"{STEM}.json:collator/*", INPUT),
        Exempt(f"{STEM}.safetensors:solid/*", INPUT),
        Exempt(f"{STEM}.json:_flip/*", "which seeds mirror: an input of the targets"),
        Exempt(f"{STEM}.json:_common/case_keys", "names of the cases"),
        Exempt(f"{STEM}.safetensors:processors/*/image_u8", INPUT),
        Exempt(f"{STEM}.json:_conversation_prompts/*/turns", INPUT),
        Exempt(f"{STEM}.json:_eval_prompts/*/prompt", INPUT),
        Exempt(
            f"{STEM}.json:_tokenizer_samples/*/decoded",
            "how the slow tokenizer sets spaces around special tokens on display",
        ),
    ]


def checks(golden: Golden) -> list[Check]:
    return [*_tokenizer(golden), *_prompts(golden), *_image_checks(golden), *_samples(golden), *_batch(golden)]


def _tokenizer(golden: Golden) -> list[Check]:
    tokenizer = golden.processor.tokenizer
    found = [
        golden.value_check(STEM, "_common/model_max_length_default", tokenizer.model_max_length),
        golden.value_check(STEM, "_common/ignore_index", IGNORED),
        golden.value_check(STEM, "_system_token_len", len(tokenizer(SYSTEM)["input_ids"])),
    ]
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


def _image_checks(golden: Golden) -> list[Check]:
    found = []
    for name in golden.cases(STEM, "image_u8"):
        pixels = golden.arrays[STEM][f"{name}/image_u8"].numpy()
        clip = golden.processor.pixel_values([pixels])[0]
        found.append(golden.array_check(STEM, f"{name}/clip_pixel_values", clip, atol=1e-6))
        for seed, mirrored in golden.records[STEM]["_flip"].items():
            target = target_pixels(Image.fromarray(pixels), _resolution(golden), mirrored)
            found.append(golden.array_check(STEM, f"{name}/sd_pixel_values_{seed}", target, atol=1e-6))
    return found


def _samples(golden: Golden) -> Iterator[Check]:
    collate = Collator(golden.processor, _resolution(golden))
    images = _images(golden)
    names = {id(image): name for name, image in images.items()}
    for name in _case_names(golden):
        record = golden.records[STEM][name]
        if _quirk(golden, record) is not None:
            continue
        sample = _build(golden, record, images, record["model_max_length"])
        ours = {
            "input_ids": sample.input_ids,
            "labels": sample.labels,
            "attention_mask": collate([sample])["attention_mask"][0].tolist(),
            "length": len(sample.input_ids),
            "n_images": len(sample.images),
            "n_images_dm": len(sample.targets),
            "images_order": [names[id(image)] for image in sample.images],
            "images_dm_order": [names[id(image)] for image in sample.targets],
        }
        for field, value in ours.items():
            yield golden.value_check(STEM, f"{name}/{field}", value)


def _batch(golden: Golden) -> list[Check]:
    """The recorded batch's images are of one colour each, so that mirroring them changes nothing."""
    images = _images(golden)
    samples = [
        document(
            golden.processor,
            matched_parts(raw["text_list"], [images[name] for name in raw["image_list"]], raw["matched_text_index"]),
            golden.processor.tokenizer.model_max_length,
        )
        for raw in golden.records[STEM]["collator"]["raw"]
    ]
    batch = Collator(golden.processor, _resolution(golden))(samples)
    ours = {
        **{name: batch[name] for name in ("input_ids", "attention_mask", "labels")},
        "images": batch["pixel_values"],
        "images_dm": batch["target_pixels"],
    }
    return [
        golden.array_check(STEM, f"collator/{name}", array, atol=1e-6 if array.is_floating_point() else 0.0)
        for name, array in ours.items()
    ]


def _build(golden: Golden, record: dict[str, Any], images: dict[str, Image.Image], max_length: int) -> Sample:
    """Our sample of a case, with the original's choice of what is learnt in conversations."""
    raw, flags = record["raw"], record["flags"]
    processor = golden.processor
    if record["dataset_type"] == "ImageTextPair":
        # With both allowed the original reads where the number it draws is at least 1/2.
        reads = flags["comprehension_only"] or (not flags["creation_only"] and record["np_random_rand"] >= 0.5)
        return (comprehension_pair if reads else generation_pair)(
            processor, raw["text"], images[raw["image"]], max_length
        )
    if record["dataset_type"] == "Conversation":
        roles = {"USER": "user", "ASSISTANT": "assistant"}
        return conversation(
            processor,
            [{"role": roles[role], "content": text} for role, text, _ in raw["dialog"]],
            [images[name] for _, _, names in raw["dialog"] for name in names],
            max_length,
            learn_dream_start=False,
        )
    return document(
        processor,
        matched_parts(raw["text_list"], [images[name] for name in raw["image_list"]], raw["matched_text_index"]),
        max_length,
        comprehension=not flags["creation_only"],
        generation=not flags["comprehension_only"],
        instruction=raw.get("instruction"),
    )


def _quirk(golden: Golden, record: dict[str, Any]) -> str | None:
    """Why a case holds a mistake of the original's (by the number in the fixture's README), or None."""
    raw = record["raw"]
    named = [raw["image"]] if "image" in raw else raw.get("image_list", [])
    if not record["tokenizer_legacy"]:
        return "recorded with another tokenizer, whose labels the original shifts (quirk 16)"
    if set(named) - set(_images(golden)):
        return "a broken image is counted here and its sample left out (quirk 18)"
    if record["dataset_type"] != "Conversation":
        return None
    answers = [text for role, text, _ in raw["dialog"] if role == "ASSISTANT"]
    if 2 * len(answers) != len(raw["dialog"]) or any("ASSISTANT:" in text for text in answers):
        return "a turn without answer, or whose answer holds a role's name, unmasks the rest (quirk 16)"
    whole = _build(golden, record, _images(golden), UNLIMITED).input_ids
    return "cut inside a span (quirk 15)" if _inside_a_span(golden, whole, record["model_max_length"]) else None


def _inside_a_span(golden: Golden, ids: list[int], position: int) -> bool:
    """Whether cutting before `position` would cut a span, or part a generated image from its being read back."""
    processor = golden.processor
    dream = processor.dream_span + processor.image_span
    for at in range(len(ids)):
        for span in (dream, processor.image_span):
            if ids[at : at + len(span)] == span and at < position < at + len(span):
                return True
    return False


def _case_names(golden: Golden) -> list[str]:
    return golden.records[STEM]["_common"]["case_keys"]


def _images(golden: Golden) -> dict[str, Image.Image]:
    prefix = "solid/"
    return {
        key.removeprefix(prefix): Image.fromarray(array.numpy())
        for key, array in golden.arrays[STEM].items()
        if key.startswith(prefix)
    }


def _resolution(golden: Golden) -> int:
    return golden.model.config.image_decoder_config.resolution
