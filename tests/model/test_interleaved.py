"""Interleaved generation: the cached, batched loop gives the documents that a full pass over each one would give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList

from dreamllm.errors import InputError, UsageError
from dreamllm.interleaved import image_seed
from dreamllm.layers import find_spans

FEW: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 2.0}
TEXTS = ["a red circle", "<image> the same with two large blue squares, <image> or this", "Tell a story, please."]


class DreamAt:
    """Begins an image at given counts of sampled tokens, never elsewhere; may end the document at another."""

    def __init__(self, model, prompts: dict[tuple[int, ...], tuple[int, ...]], stop: int | None = None) -> None:
        self.model, self.prompts, self.stop = model, prompts, stop

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        assert len(input_ids) == 1
        assert self.model.config.pad_token_id not in input_ids
        ids = tuple(input_ids[0].tolist())
        (prompt,) = (p for p in self.prompts if ids[: len(p)] == p)
        new = torch.tensor([ids[len(prompt) :]], dtype=torch.long)
        dream, eos = self.model.config.dream_start_token_id, self.model.config.eos_token_id
        generated = len(find_spans(new, *self.model.config.dream_span)[0])
        read = self.model.config.num_dream_queries + 2 + self.model.config.num_image_tokens + 2
        sampled = new.shape[1] - generated * (read - 1)
        scores = scores.clone()
        scores[:, [dream, eos]] = -torch.inf
        if sampled in self.prompts[prompt]:
            scores[:, dream] = torch.inf
            scores[:, :dream], scores[:, dream + 1 :] = -torch.inf, -torch.inf
            scores[:, dream] = 0
        elif sampled == self.stop:
            scores[:] = -torch.inf
            scores[:, eos] = 0
        return scores


@pytest.fixture
def images(image):
    return [[], [image(1), image(2)], []]


def unpadded(batch) -> list[tuple[int, ...]]:
    return [
        tuple(ids[mask.bool()].tolist()) for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def levels(one, other) -> int:
    """The largest difference of two images, of 255."""
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


def dreaming(model, processor, images, at=((2, 5), (3,), (0, 4)), stop=None) -> LogitsProcessorList:
    return LogitsProcessorList([DreamAt(model, dict(zip(unpadded(processor(TEXTS, images)), at, strict=True)), stop)])


def test_the_document_equals_a_full_pass(model, processor, images, monkeypatch) -> None:
    generated: list[torch.Tensor] = []
    generate_images = model.generate_images
    monkeypatch.setattr(
        model,
        "generate_images",
        lambda **given: generated.append(given["prompt_embeds"]) or generate_images(**given),
    )
    batch = processor(TEXTS, images)
    force = dreaming(model, processor, images)
    documents = model.generate_interleaved(
        batch, processor, seeds=[1, 2, 3], max_new_tokens=8, logits_processor=force, **FEW
    )
    assert [len(d.images) for d in documents] == [2, 1, 2]
    assert [len(embeds) for embeds in generated] == [3, 2]  # rows that wait are generated for together
    seen = {0: [generated[0][0], generated[1][0]], 1: [generated[0][1]], 2: [generated[0][2], generated[1][1]]}
    for row, (prompt, document, shown) in enumerate(zip(unpadded(batch), documents, images, strict=True)):
        ids = torch.tensor([prompt + document.token_ids])
        features = model.encode_images(processor.pixel_values([*shown, *document.images]))
        embeds = model.embed(ids, features)
        hidden = model.get_decoder()(inputs_embeds=embeds).last_hidden_state
        rows, columns = find_spans(ids, *model.config.dream_span)
        torch.testing.assert_close(hidden[rows, columns], torch.stack(seen[row]), atol=1e-4, rtol=1e-4)
        logits = model.get_output_embeddings()(hidden).float()
        spans = set(model.config.special_token_ids.values())
        for place in range(len(prompt), ids.shape[1]):
            if int(ids[0, place]) not in spans:
                before = force[0](ids[:, :place], logits[:, place - 1])
                before[:, list(spans)] = -torch.inf
                assert int(before.argmax()) == int(ids[0, place])


def test_an_image_is_that_of_generate_images_for_the_document_so_far(model, processor) -> None:
    batch = processor(["a red circle"])
    force = LogitsProcessorList([DreamAt(model, {unpadded(batch)[0]: (3,)})])
    (document,) = model.generate_interleaved(
        batch, processor, seeds=[4], max_new_tokens=4, logits_processor=force, **FEW
    )
    before = document.token_ids[:3]
    assert model.config.dream_start_token_id not in before
    so_far = {"input_ids": torch.tensor([unpadded(batch)[0] + before])}
    (expected,) = model.generate_images(so_far, seeds=[image_seed(4, 0)], **FEW)
    (other,) = model.generate_images(so_far, seeds=[image_seed(4, 1)], **FEW)
    assert levels(expected, document.images[0]) <= 1
    assert levels(other, document.images[0]) > 20


@pytest.mark.parametrize("do_sample", [False, True])
def test_batch_mates_change_nothing(model, processor, images, do_sample) -> None:
    given = {"max_new_tokens": 10, "do_sample": do_sample, "top_k": 50, **FEW}
    force = dreaming(model, processor, images, stop=8)
    together = model.generate_interleaved(
        processor(TEXTS, images), processor, seeds=[7, 8, 9], logits_processor=force, **given
    )
    for text, shown, seed, document in zip(TEXTS, images, (7, 8, 9), together, strict=True):
        (alone,) = model.generate_interleaved(
            processor(text, shown or None), processor, seeds=[seed], logits_processor=force, **given
        )
        assert alone.token_ids == document.token_ids
        assert alone.finish_reason == document.finish_reason == "stop"
        assert [p for p in alone.parts if isinstance(p, str)] == [p for p in document.parts if isinstance(p, str)]
        for one, other in zip(alone.images, document.images, strict=True):
            assert levels(one, other) <= 1


def test_without_images_it_equals_generate(model, processor) -> None:
    batch = processor(TEXTS[::2])
    never = LogitsProcessorList([DreamAt(model, dict.fromkeys(unpadded(batch), ()))])
    documents = model.generate_interleaved(batch, processor, max_new_tokens=12, logits_processor=never)
    eos = [model.config.eos_token_id]
    ids = model.generate(**batch, max_new_tokens=12, do_sample=False, suppress_tokens=eos)
    assert [list(d.token_ids) for d in documents] == ids[:, batch["input_ids"].shape[1] :].tolist()
    assert [d.parts for d in documents] == [(text.strip(),) for text in processor.batch_decode(ids[:, -12:])]
    assert {d.finish_reason for d in documents} == {"length"}


def test_seeds_decide(model, processor, images) -> None:
    def generated(seeds):
        force = dreaming(model, processor, images, at=((2,), (2,), (2,)))
        return model.generate_interleaved(
            processor(TEXTS, images),
            processor,
            seeds=seeds,
            do_sample=True,
            max_new_tokens=6,
            logits_processor=force,
            **FEW,
        )

    first, again, other = generated([1, 2, 3]), generated([1, 2, 3]), generated([1, 2, 4])
    assert [d.token_ids for d in first] == [d.token_ids for d in again]
    assert [d.images[0].tobytes() for d in first] == [d.images[0].tobytes() for d in again]
    assert [d.token_ids for d in first[:2]] == [d.token_ids for d in other[:2]]
    assert first[2].token_ids != other[2].token_ids
    assert first[2].images[0].tobytes() != other[2].images[0].tobytes()


def test_two_images_of_a_document_have_their_own_noise(model, processor) -> None:
    batch = processor(["a red circle"])
    force = LogitsProcessorList([DreamAt(model, {unpadded(batch)[0]: (0, 1)})])
    (document,) = model.generate_interleaved(
        batch, processor, seeds=[4], max_new_tokens=2, logits_processor=force, **FEW
    )
    one, two = document.images
    assert one.tobytes() != two.tobytes()
    assert document.parts == (one, two)  # no empty text between them


def test_limits_hold(model, processor, images) -> None:
    batch = processor(TEXTS, images)
    always = dreaming(model, processor, images, at=(range(100), range(100), (2, 3)))
    given = {"logits_processor": always, **FEW}
    documents = model.generate_interleaved(batch, processor, max_new_tokens=4, max_images=2, **given)
    assert [len(d.images) for d in documents] == [2, 2, 2]
    assert [d.finish_reason for d in documents] == ["images", "images", "length"]
    assert documents[0].token_ids[-1] == model.config.im_end_token_id
    documents = model.generate_interleaved(batch, processor, max_new_tokens=4, max_images=0, **given)
    assert [(len(d.token_ids), d.finish_reason) for d in documents] == [(0, "images"), (0, "images"), (2, "images")]


def test_a_document_never_outgrows_the_models_positions(own_model, processor) -> None:
    batch = processor(["a red circle"])
    prompt = batch["input_ids"].shape[1]
    spans = len(processor.dream_span) + len(processor.image_span)
    for room, images, tokens in ((3 + spans, 1, 3 + spans), (2 + spans, 1, 2 + spans), (1 + spans, 0, 2)):
        own_model.config.text_config.max_position_embeddings = prompt + room
        force = LogitsProcessorList([DreamAt(own_model, {unpadded(batch)[0]: (2,)})])
        (document,) = own_model.generate_interleaved(batch, processor, logits_processor=force, **FEW)
        assert (len(document.images), len(document.token_ids)) == (images, tokens)
        assert document.finish_reason == "length"
    own_model.config.text_config.max_position_embeddings = prompt
    with pytest.raises(InputError, match=f"{prompt} tokens leaves no room"):
        own_model.generate_interleaved(batch, processor)


def test_eos_ends_a_document(model, processor, images) -> None:
    force = dreaming(model, processor, images, stop=6)
    documents = model.generate_interleaved(processor(TEXTS, images), processor, logits_processor=force, **FEW)
    assert {d.finish_reason for d in documents} == {"stop"}
    assert {d.token_ids[-1] for d in documents} == {model.config.eos_token_id}
    kinds = [[isinstance(part, str) for part in d.parts] for d in documents]
    assert kinds[1] == [True, False, True]
    assert kinds[2][0] is False


def test_special_tokens_are_never_written(model, processor) -> None:
    batch = processor(["a red circle"])
    never = LogitsProcessorList([DreamAt(model, {unpadded(batch)[0]: ()})])
    (document,) = model.generate_interleaved(
        batch, processor, do_sample=True, temperature=50.0, seeds=[0], max_new_tokens=400, logits_processor=never
    )
    assert len(document.token_ids) == 400
    assert not set(document.token_ids) & set(model.config.special_token_ids.values())


@pytest.mark.parametrize("wrong", [{"max_new_tokens": 0}, {"max_images": -1}, {"do_sample": True, "temperature": 0.0}])
def test_settings_are_checked(model, processor, wrong) -> None:
    with pytest.raises(UsageError, match="max_new_tokens must be at least 1"):
        model.generate_interleaved(processor(["a"]), processor, **wrong)


def test_inputs_that_do_not_match_are_errors(model, processor) -> None:
    batch = processor(TEXTS[::2])
    with pytest.raises(InputError, match=r"one seed per prompt \(2\), got 1"):
        model.generate_interleaved(batch, processor, seeds=[1])
    right = {name: tensor.flip(1) for name, tensor in batch.items()}
    with pytest.raises(InputError, match="padded on the left"):
        model.generate_interleaved(right, processor)
