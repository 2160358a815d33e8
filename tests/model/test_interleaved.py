"""Interleaved generation: the cached, batched loop gives the documents that a full pass over each one would give, whole or in pieces."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList

from dreamllm.errors import InputError, UsageError
from dreamllm.interleaved import InterleavedDocument, _Pieces, _Row, image_seed
from dreamllm.layers import check_seeds, find_spans

FEW: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 2.0}
TEXTS = ["a red circle", "<image> the same with two large blue squares, <image> or this", "Tell a story, please."]
# Editing, composition, subjects given by images, examples whose images were generated, and no image at all.
IN_CONTEXT = [
    "<image> the same at night",
    "<image><image> both of them, please",
    "Draw: a cat <dream> a dog <dream> a bird",
    "a red circle",
    "What is in <image>? A ring. Draw it in <image>, in blue",
]


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


def dreaming(
    model, processor, images, at: Iterable[Any] = ((2, 5), (3,), (0, 4)), stop=None, texts=TEXTS
) -> LogitsProcessorList:
    return LogitsProcessorList([DreamAt(model, dict(zip(unpadded(processor(texts, images)), at, strict=True)), stop)])


CASES = {
    "prompts": (TEXTS, (0, 2, 0), ((2, 5), (3,), (0, 4)), [3, 2]),
    "in-context": (IN_CONTEXT, (1, 2, 2, 0, 2), ((0, 5), (3,), (1, 2, 4), (), (4, 6)), [4, 3, 1]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_document_equals_a_full_pass(model, processor, image, monkeypatch, case) -> None:
    texts, counts, at, together = CASES[case]
    images = [[image(10 * row + number) for number in range(count)] for row, count in enumerate(counts)]
    generated: list[torch.Tensor] = []
    waiting: list[int] = []  # the seeds of these images
    generate_images = model.generate_images

    def recorded(**given: Any) -> Any:
        generated.append(given["prompt_embeds"])
        waiting.extend(given["seeds"])
        return generate_images(**given)

    monkeypatch.setattr(model, "generate_images", recorded)
    batch = processor(texts, images)
    force = dreaming(model, processor, images, at, texts=texts)
    seeds = range(1, len(texts) + 1)
    documents = model.generate_interleaved(
        batch, processor, seeds=seeds, max_new_tokens=8, logits_processor=force, **FEW
    )
    assert [len(d.images) for d in documents] == [len(places) for places in at]
    assert [len(embeds) for embeds in generated] == together  # rows that wait are generated for together
    seen = dict(zip(waiting, torch.cat(generated), strict=True))
    for seed, prompt, document, shown in zip(seeds, unpadded(batch), documents, images, strict=True):
        ids = torch.tensor([prompt + document.token_ids])
        read = [*shown, *document.images]
        embeds = model.embed(ids, pixel_values=processor.pixel_values(read) if read else None)
        hidden = model.get_decoder()(inputs_embeds=embeds).last_hidden_state
        rows, columns = find_spans(ids, *model.config.dream_span)
        assert len(rows) == texts[seed - 1].count("<dream>") + len(document.images)
        for number, generated_image in enumerate(document.images, start=len(rows) - len(document.images)):
            key = image_seed(seed, number - len(rows) + len(document.images))
            condition = hidden[rows[number], columns[number]]
            torch.testing.assert_close(condition, seen[key], atol=1e-4, rtol=1e-4)
            (again,) = generate_images(prompt_embeds=condition[None], seeds=[key], **FEW)
            assert levels(again, generated_image) <= 1
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


def test_the_images_of_a_prompt_decide_about_its_document_only(model, processor, image) -> None:
    texts = ["<image> the same at night", "a red circle", "<image> the same by day"]
    shown = [[image(1)], [], [image(2)]]
    force = dreaming(model, processor, shown, [(2,)] * 3, texts=texts)
    given = {"seeds": [1, 2, 3], "max_new_tokens": 6, "logits_processor": force, **FEW}
    first = model.generate_interleaved(processor(texts, shown), processor, **given)
    swapped = model.generate_interleaved(processor(texts, shown[::-1]), processor, **given)
    changed = [levels(one.images[0], other.images[0]) > 4 for one, other in zip(first, swapped, strict=True)]
    assert changed == [True, False, True]
    inputs = dict(processor(texts, shown))
    inputs["image_features"] = model.encode_images(inputs.pop("pixel_values"))  # encoded in advance
    assert [d.token_ids for d in model.generate_interleaved(inputs, processor, **given)] == [d.token_ids for d in first]


def test_sampling_draws_from_the_warped_distribution(model, processor) -> None:
    batch = processor(["a red circle"])
    rows = {name: tensor.repeat(64, 1) for name, tensor in batch.items()}
    never = LogitsProcessorList([DreamAt(model, {unpadded(batch)[0]: ()})])

    def first_tokens(**settings: Any) -> list[int]:
        documents = model.generate_interleaved(
            rows, processor, seeds=range(64), max_new_tokens=1, do_sample=True, logits_processor=never, **settings
        )
        return [document.token_ids[0] for document in documents]

    with torch.no_grad():
        logits = never[0](batch["input_ids"], model(**batch).logits[:, -1].float())[0]
    special = model.config.special_token_ids.values()
    logits[list(special)] = -torch.inf
    best = logits.topk(4).indices.tolist()
    assert {*first_tokens(top_k=4)} == {*best}  # the rarest of them is missing with probability < 1e-3
    assert {*first_tokens(temperature=1e-4)} == {*first_tokens(top_k=1)} == {best[0]}
    nucleus = logits.softmax(-1)[best].cumsum(0)
    assert {*first_tokens(top_p=float(nucleus[1]) - 1e-3)} == {*best[:2]}
    assert len({*first_tokens()}) > 4


def collected(pieces: Iterable[tuple[int, Any]], count: int) -> tuple[list[list[Any]], list[InterleavedDocument]]:
    """The parts of each document, put together from its pieces, and the document that came last."""
    parts: list[list[Any]] = [[] for _ in range(count)]
    documents: list[Any] = [None] * count
    for row, piece in pieces:
        assert documents[row] is None
        if isinstance(piece, InterleavedDocument):
            documents[row] = piece
        elif isinstance(piece, str) and parts[row] and isinstance(parts[row][-1], str):
            parts[row][-1] += piece
        else:
            assert piece != ""
            parts[row].append(piece)
    return parts, documents


@pytest.mark.parametrize("do_sample", [False, True])
def test_the_pieces_of_a_stream_are_the_documents(model, processor, images, do_sample) -> None:
    force = dreaming(model, processor, images, at=((2, 9), (3,), (0, 4, 4)), stop=12)
    given = {"seeds": [7, 8, 9], "max_new_tokens": 20, "do_sample": do_sample, "logits_processor": force, **FEW}
    expected = model.generate_interleaved(processor(TEXTS, images), processor, **given)
    pieces = list(model.stream_interleaved(processor(TEXTS, images), processor, **given))
    parts, documents = collected(pieces, len(TEXTS))
    assert sum(isinstance(piece, str) for _, piece in pieces) > 12  # about one for each token
    for each, document, other in zip(parts, documents, expected, strict=True):
        assert tuple(each) == document.parts
        assert (document.token_ids, document.finish_reason) == (other.token_ids, other.finish_reason)
        assert [p for p in document.parts if isinstance(p, str)] == [p for p in other.parts if isinstance(p, str)]
        assert [image.tobytes() for image in document.images] == [image.tobytes() for image in other.images]


def test_a_text_comes_before_its_image_is_generated_and_what_is_not_read_is_not(
    model, processor, images, monkeypatch
) -> None:
    monkeypatch.setattr(model, "generate_images", None)  # an error if it is called
    force = dreaming(model, processor, images, at=((2,), (3,), (4,)))
    stream = model.stream_interleaved(processor(TEXTS, images), processor, logits_processor=force)
    assert [len(next(stream)) for _ in range(4)] == [2, 2, 2, 2]
    assert torch.is_grad_enabled()  # between the pieces
    rest = []
    with pytest.raises(TypeError, match="not callable"):
        rest.extend(stream)
    stream.close()
    with pytest.raises(InputError, match="one seed per prompt"):  # before anything is read
        model.stream_interleaved(processor(["a"]), processor, seeds=[1, 2])


def streamed(processor, ids: list[int]) -> tuple[list[str], str]:
    """The pieces of a text of these tokens, and the text."""
    row = _Row(0, [1], seed=0)
    pieces = _Pieces(row, processor)
    texts: list[Any] = []
    for token in ids:
        row.texts[-1].append(token)
        texts += pieces.new()
    row.finish = "stop"
    texts += pieces.new()
    return texts, "".join(part for part in row.document(processor).parts if isinstance(part, str))


def test_pieces_of_any_tokens_join_to_the_text(processor) -> None:
    vocabulary = processor.tokenizer.get_vocab()
    byte = {int(token[3:5], 16): i for token, i in vocabulary.items() if token.startswith("<0x")}
    blank, letter = vocabulary["▁"], vocabulary["a"]
    heart = [byte[value] for value in "❤".encode()]
    texts, whole = streamed(processor, [letter, *heart, letter])
    assert (texts, whole) == (["a", "❤a"], "a❤a")  # whether a character is complete, only the next token tells:
    assert streamed(processor, [letter, *heart, byte[0xFF], letter])[1] == "a\ufffd\ufffd\ufffd\ufffda"
    assert streamed(processor, [blank, blank, letter, blank, blank])[0] == ["a"]
    random = np.random.default_rng(0)
    common = [blank, letter, *heart, *heart, byte[0xE3], byte[0x80], byte[0x20], byte[0x0A], vocabulary["<s>"]]
    for _ in range(200):
        ids = [
            int(random.choice(common) if random.random() < 0.7 else random.integers(len(vocabulary) - 8))
            for _ in range(12)
        ]
        texts, whole = streamed(processor, ids)
        assert "".join(texts) == whole
        assert "" not in texts


def test_rows_that_end_leave_the_batch(model, processor, monkeypatch) -> None:
    """Nor do they slow down the rows that go on. Neither this nor that a row waits for its image changes the documents."""
    texts = [f"a red circle {number}" for number in range(8)]
    at = [()] * 6 + [(10,), (12,)]
    force = dreaming(model, processor, None, at, texts=texts)
    ends = dict.fromkeys(unpadded(processor(texts))[:6], 3)

    def end_early(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        (end,) = [end for prompt, end in ends.items() if tuple(ids[0, : len(prompt)].tolist()) == prompt] or [None]
        (prompt_length,) = {len(prompt) for prompt in ends}
        if end is not None and ids.shape[1] == prompt_length + end:
            scores = torch.full_like(scores, -torch.inf)
            scores[:, model.config.eos_token_id] = 0
        return scores

    fed: list[int] = []
    forward = model.language_model.forward
    monkeypatch.setattr(
        model.language_model, "forward", lambda **given: fed.append(len(given["inputs_embeds"])) or forward(**given)
    )
    both = LogitsProcessorList([*force, end_early])
    given = {"max_new_tokens": 24, "logits_processor": both, **FEW}
    documents = model.generate_interleaved(processor(texts), processor, seeds=range(8), **given)
    assert [d.finish_reason for d in documents] == ["stop"] * 6 + ["length"] * 2
    assert fed[:4] == [8] * 4
    assert (set(fed[4:]), fed[4:].count(1)) == (
        {1, 2},
        4,
    )  # one waits for its image, and later has two tokens more to write
    for number in (0, 7):
        (alone,) = model.generate_interleaved(processor(texts[number]), processor, seeds=[number], **given)
        assert alone.token_ids == documents[number].token_ids


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


def test_seeds_that_are_not_given_come_from_62_bits_of_the_global_generator() -> None:
    torch.manual_seed(0)
    drawn = check_seeds(None, 500, "prompt")
    assert len({*drawn}) == 500
    assert 2**61 < max(drawn) < 2**62
    torch.manual_seed(0)
    assert check_seeds(None, 500, "prompt") == drawn


def test_inputs_that_do_not_match_are_errors(model, processor) -> None:
    batch = processor(TEXTS[::2])
    with pytest.raises(InputError, match=r"one seed per prompt \(2\), got 1"):
        model.generate_interleaved(batch, processor, seeds=[1])
    right = {name: tensor.flip(1) for name, tensor in batch.items()}
    with pytest.raises(InputError, match="padded on the left"):
        model.generate_interleaved(right, processor)


def test_a_span_that_has_lost_some_of_its_patch_tokens_is_an_error() -> None:
    whole, cut = torch.tensor([[7, 5, 5, 5, 1]]), torch.tensor([[7, 5, 5, 1, 1]])
    assert find_spans(whole, 7, 5, 3)[1].tolist() == [[1, 2, 3]]
    with pytest.raises(InputError, match="has 2 of its 3 patch tokens"):
        find_spans(cut, 7, 5, 3)
