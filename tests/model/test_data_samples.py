"""One training sample: its labels, its images and their positions, and how it is truncated."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from dreamllm.data import IGNORED, Collator, Sample
from dreamllm.data.samples import (
    comprehension_pair,
    conversation,
    document,
    generation_pair,
    image_pair,
    matched_parts,
    target_pixels,
)
from dreamllm.errors import InputError, UsageError
from dreamllm.layers import count_spans
from dreamllm.processing import CHAT_TEMPLATES

LONG = 10**6


def labelled(processor, sample: Sample) -> str:
    ids = [i for i in sample.labels[1:] if i != IGNORED]
    return processor.decode(ids, skip_special_tokens=False)


def spans(config, sample: Sample) -> tuple[int, int]:
    ids = torch.tensor([sample.input_ids])
    return int(count_spans(ids, *config.image_span)), int(count_spans(ids, *config.dream_span))


def test_the_layouts_of_pairs(processor, image) -> None:
    pixels = image(0)
    words = processor.tokenizer("a red ring")["input_ids"][1:]
    bos, eos = processor.tokenizer.bos_token_id, processor.tokenizer.eos_token_id
    comprehension = comprehension_pair(processor, "a red ring", pixels, LONG)
    assert comprehension.input_ids == [bos, *processor.image_span, *words, eos]
    assert [i for i in comprehension.labels if i != IGNORED] == [bos, *words, eos]
    assert (comprehension.images, comprehension.targets) == ([pixels], [])
    generation = generation_pair(processor, "a red ring", pixels, LONG)
    assert generation.input_ids == [bos, *words, *processor.dream_span, eos]
    assert set(generation.labels) == {IGNORED}
    assert (generation.images, generation.targets) == ([], [pixels])
    assert generation.has_loss
    assert comprehension.has_loss


@pytest.mark.parametrize("text", ["", "a red ring"])
def test_an_image_pair_is_the_prompt_that_generates_its_target(processor, image, text) -> None:
    """`bos IMAGE DREAM eos` of the original; with a text, what the model gets when it is asked to edit an image."""
    sample = image_pair(processor, image(0), text, image(1), LONG)
    prompt = processor(f"<image>{text}", image(0))["input_ids"][0].tolist()
    assert sample.input_ids == [*prompt, *processor.dream_span, processor.tokenizer.eos_token_id]
    assert (sample.images, sample.targets, set(sample.labels)) == ([image(0)], [image(1)], {IGNORED})
    assert sample.has_loss
    spans = len(processor.image_span) + len(processor.dream_span)
    assert len(image_pair(processor, image(0), "a red ring", image(1), spans + 3).input_ids) == spans + 3
    with pytest.raises(UsageError, match="too short for an image"):
        image_pair(processor, image(0), text, image(1), spans + 1)


@pytest.mark.parametrize("build", [comprehension_pair, generation_pair])
def test_a_long_caption_is_truncated_and_the_image_stays(model, processor, image, build) -> None:
    span = len(processor.image_span if build is comprehension_pair else processor.dream_span)
    for max_length in range(span + 2, span + 9):
        sample = build(processor, "a red ring above a green star", image(0), max_length)
        assert len(sample.input_ids) == max_length
        assert sample.input_ids[-1] == processor.tokenizer.eos_token_id
        assert spans(model.config, sample) == (len(sample.images), len(sample.targets))
    with pytest.raises(UsageError, match="too short for an image"):
        build(processor, "a", image(0), span + 1)


def test_a_document_is_built_and_read_back(processor, image) -> None:
    images = [image(i) for i in range(3)]
    parts = matched_parts(["One. ", " Two.", "", "Four."], [images[2], images[0], images[1]], [3, 1, 1])
    assert parts == ["One. Two.", images[0], "", images[1], "Four.", images[2], ""]
    sample = document(processor, parts, LONG)
    assert sample.images == sample.targets == images
    assert labelled(processor, sample).split("<dream_start>") == ["One. Two.", "", " Four.", "</s>"]
    comprehension = document(processor, parts, LONG, generation=False)
    assert (comprehension.images, comprehension.targets) == (images, [])
    assert labelled(processor, comprehension) == "One. Two. Four.</s>"
    generation = document(processor, parts, LONG, comprehension=False)
    assert (generation.images, generation.targets) == ([], images)
    with pytest.raises(UsageError, match="cannot both be off"):
        document(processor, parts, LONG, comprehension=False, generation=False)


@pytest.mark.parametrize("index", [[0, 4], [0], [-1, 0]])
def test_an_image_needs_an_existing_sentence(image, index) -> None:
    with pytest.raises(InputError, match="each image needs the index"):
        matched_parts(["a", "b", "c", "d"], [image(0), image(1)], index)


def test_only_the_document_after_an_instruction_has_labels(processor, image) -> None:
    sample = document(processor, ["Here.", image(0)], LONG, instruction="Draw a boat.")
    prompt = processor.apply_chat_template([{"role": "user", "content": "Draw a boat."}])
    head = processor.tokenizer(prompt)["input_ids"]
    assert sample.input_ids[: len(head)] == head
    assert set(sample.labels[: len(head)]) == {IGNORED}
    assert labelled(processor, sample).replace(" ", "") == "Here.<dream_start></s>"
    with pytest.raises(InputError, match="no room"):
        document(processor, ["Here."], len(head) + 1, instruction="Draw a boat.")


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
@pytest.mark.parametrize("learn", [True, False])
def test_only_the_assistants_words_have_labels(processor, image, monkeypatch, template, learn) -> None:
    monkeypatch.setattr(processor.tokenizer, "chat_template", CHAT_TEMPLATES[template])
    images = [image(i) for i in range(2)]
    messages = [
        {"role": "user", "content": "<image>\nWhat is it?"},
        {"role": "assistant", "content": "A ring. ASSISTANT: is a word too."},
        {"role": "user", "content": "Draw it."},
        {"role": "assistant", "content": "Here: <dream> Done."},
    ]
    sample = conversation(processor, messages, images, LONG, learn_dream_start=learn)
    assert sample.images == images
    assert sample.targets == images[1:]
    words = labelled(processor, sample).replace(" ", "").split("</s>")
    start = "<dream_start>" if learn else ""
    assert words == ["Aring.ASSISTANT:isawordtoo.", f"Here:{start}Done.", ""]
    assert sample.labels[0] == IGNORED


def test_a_conversation_without_an_answer_has_no_loss(processor) -> None:
    """The original trains on the system text and the question then (quirk 16)."""
    assert not conversation(processor, [{"role": "user", "content": "Hello"}], [], LONG).has_loss


def test_placeholders_and_images_of_a_conversation_must_agree(processor, image) -> None:
    messages = [{"role": "user", "content": "<image> and <image>"}, {"role": "assistant", "content": "yes"}]
    with pytest.raises(InputError, match="placeholders and images differ in number: 2 and 1"):
        conversation(processor, messages, [image(0)], LONG)


def test_a_conversation_that_begins_with_an_answer_is_rejected(processor) -> None:
    with pytest.raises(InputError, match="begins with the assistant"):
        conversation(processor, [{"role": "assistant", "content": "A ring."}], [], 64)


def test_a_conversation_that_the_template_rejects_is_a_broken_record(processor, monkeypatch) -> None:
    monkeypatch.setattr(processor.tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InputError, match="rejects the conversation: roles must alternate"):
        conversation(processor, [{"role": "user", "content": "What?"}], [], 64)


def test_a_template_that_rewrites_earlier_turns_is_rejected(processor, monkeypatch) -> None:
    monkeypatch.setattr(processor.tokenizer, "chat_template", "{{ messages | length }}{{ messages[-1].content }}")
    messages = [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant")]
    with pytest.raises(UsageError, match="cannot be located"):
        conversation(processor, messages, [], LONG)


@pytest.mark.parametrize("text", ["a <im_patch> b", "<im_start><im_patch><im_end>"])
def test_text_cannot_spell_an_image_span(processor, image, text) -> None:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "x"}]
    for build in (
        lambda: comprehension_pair(processor, text, image(0), LONG),
        lambda: document(processor, [text, image(0)], LONG),
        lambda: document(processor, ["x"], LONG, instruction=text),
        lambda: conversation(processor, messages, [], LONG),
    ):
        with pytest.raises(InputError, match="contains <im_patch>"):
            build()


@pytest.mark.parametrize("kind", ["conversation", "document"])
def test_truncation_never_cuts_a_span(model, processor, kind) -> None:
    """Quirk 15: the original cuts inside spans. Here every length gives the longest prefix of whole spans that fits."""
    images = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(4)]
    messages = [
        {"role": "user", "content": "<image>\nWhat is it?"},
        {"role": "assistant", "content": "Here: <dream> Done. <dream>"},
    ]
    # A short text after an image that does not fit must not take its place.
    parts = ["a ring", images[0], images[1], "a", "a star and a heart", images[2], "b", images[3], "c"]
    if kind == "conversation":
        build, end = lambda n: conversation(processor, messages, images[:3], n), []
    else:
        build, end = lambda n: document(processor, parts, n), [processor.tokenizer.eos_token_id]
    full = build(LONG)
    bodies: list[int] = []
    for max_length in range(4, len(full.input_ids) + 1):
        sample = build(max_length)
        body = len(sample.input_ids) - len(end)
        assert len(sample.input_ids) <= max_length
        assert sample.input_ids == full.input_ids[:body] + end
        assert sample.labels == full.labels[:body] + end
        assert spans(model.config, sample) == (len(sample.images), len(sample.targets))
        assert sample.images == full.images[: len(sample.images)]
        assert sample.targets == full.targets[: len(sample.targets)]
        bodies.append(body)
    assert bodies == sorted(bodies)
    assert full.input_ids == build(len(full.input_ids)).input_ids
    # Each length at which the sequence grows is the length it grows to: nothing that fits is left out.
    grown = [n for n, (before, after) in enumerate(itertools.pairwise(bodies), start=5) if after > before]
    assert grown == sorted({body + len(end) for body in bodies} - {bodies[0] + len(end)})
    assert len(grown) >= 8


def test_a_first_text_that_is_too_long_is_truncated(processor, image) -> None:
    sample = document(processor, ["a red ring above a green star", image(0)], 5)
    assert len(sample.input_ids) == 5
    assert sample.has_loss


def test_a_batch_is_padded_on_the_right_and_keeps_the_order_of_images(model, processor) -> None:
    red, green, blue = (Image.new("RGB", (40, 50), color) for color in ("#f00", "#0f0", "#00f"))
    long = document(processor, ["x", red, "y", green], LONG)
    short = generation_pair(processor, "z", blue, LONG)
    batch = Collator(processor, 64)([short, long])
    length = len(long.input_ids)
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "input_ids": (2, length),
        "attention_mask": (2, length),
        "labels": (2, length),
        "pixel_values": (2, 3, 64, 64),
        "target_pixels": (3, 3, 64, 64),
    }
    n = len(short.input_ids)
    assert batch["attention_mask"].sum(dim=1).tolist() == [n, length]
    assert set(batch["input_ids"][0, n:].tolist()) == {model.config.pad_token_id}
    assert set(batch["labels"][0, n:].tolist()) == {IGNORED}
    assert batch["pixel_values"].mean(dim=(2, 3)).argmax(dim=1).tolist() == [0, 1]
    assert batch["target_pixels"].mean(dim=(2, 3)).argmax(dim=1).tolist() == [2, 0, 1]
    text = Collator(processor, 64)([document(processor, ["only text"], LONG)])
    assert set(text) == {"input_ids", "attention_mask", "labels"}


def test_targets_are_mirrored_if_the_sample_says_so(processor, image) -> None:
    sample = generation_pair(processor, "x", image(1), LONG)
    straight = Collator(processor, 32)([sample])["target_pixels"]
    sample.mirrored = [True]
    mirrored = Collator(processor, 32)([sample])["target_pixels"]
    assert torch.equal(mirrored, straight.flip(-1))
    assert not torch.equal(mirrored, straight)


def test_a_target_is_the_centre_of_its_image_in_minus_one_to_one() -> None:
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, 16:48] = 255
    assert (target_pixels(Image.fromarray(pixels), 32) == 1).all()
    assert (target_pixels(Image.new("L", (8, 8)), 32) == -1).all()
