"""The processor: placeholders and images correspond, and prompts are padded on the left."""

from __future__ import annotations

import numpy as np
import pytest

from dreamllm.errors import InputError, UsageError
from dreamllm.tokenizer import ADDED_TOKENS, tiny_tokenizer, tokenizer_from_file


def test_placeholders_become_spans(model, processor, image) -> None:
    config = model.config
    ids = processor("a <image> b <dream> c", [image(0), image(1)])["input_ids"][0].tolist()
    span = [config.im_start_token_id, *[config.im_patch_token_id] * config.num_image_tokens, config.im_end_token_id]
    dream = [
        config.dream_start_token_id,
        *[config.im_patch_token_id] * config.num_dream_queries,
        config.dream_end_token_id,
    ]
    text = "a "
    plain = processor.tokenizer(text)["input_ids"]
    assert ids[: len(plain)] == plain
    at = len(plain)
    assert ids[at : at + len(span)] == span
    begin = ids.index(config.dream_start_token_id)
    assert ids[begin : begin + len(dream) + len(span)] == dream + span
    assert config.image_token_id not in ids
    assert config.dream_token_id not in ids


def test_batches_are_padded_on_the_left(model, processor) -> None:
    batch = processor(["a", "a red circle on the left"])
    assert batch["input_ids"][0, 0] == model.config.pad_token_id
    assert batch["attention_mask"][0].tolist() == sorted(batch["attention_mask"][0].tolist())
    assert batch["attention_mask"].all(dim=1).tolist() == [False, True]
    alone = processor("a")["input_ids"][0].tolist()
    assert batch["input_ids"][0, -len(alone) :].tolist() == alone
    assert alone[0] == model.config.bos_token_id


def test_images_are_accepted_flat_nested_and_alone(processor, image, tmp_path) -> None:
    texts = ["<image> x", "none", "<image> y <image>"]
    images = [image(i) for i in range(3)]
    flat = processor(texts, images)["pixel_values"]
    nested = processor(texts, [[images[0]], [], images[1:]])["pixel_values"]
    images[0].save(tmp_path / "x.png")
    files = processor(texts, [tmp_path / "x.png", np.asarray(images[1]), images[2]])["pixel_values"]
    assert flat.shape == (3, 3, 64, 64)
    assert (flat == nested).all()
    assert (flat == files).all()
    assert (processor("<image>", images[0])["pixel_values"] == flat[:1]).all()
    assert "pixel_values" not in processor("none")


@pytest.mark.parametrize(
    ("texts", "images", "words"),
    [
        (["<image>"], [], r"images \(0\) and of image placeholders in the prompts \(1\)"),
        (["none"], [0], r"placeholders in the prompts \(0\) differ: one <image> for each image"),
        (
            ["<image>", "<image><image>"],
            [[0, 1], [2]],
            r"images \(\[2, 1\]\) and of image placeholders in the prompts \(\[1, 2\]\)",
        ),
        (["<image>", "<image>"], [0, [1]], "not a mixture"),
        ([], None, "no prompt"),
    ],
)
def test_images_must_match_placeholders(processor, image, texts, images, words) -> None:
    def fill(item):
        return [fill(each) for each in item] if isinstance(item, list) else image(item)

    with pytest.raises(InputError, match=words):
        processor(texts, None if images is None else fill(images))


def test_an_unreadable_image_is_an_error(processor, tmp_path) -> None:
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"x\.png cannot be read"):
        processor("<image>", [tmp_path / "x.png"])


def test_conversations_follow_vicunas_template(processor) -> None:
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\nWhat is it?"}]},
        {"role": "assistant", "content": "A ring."},
        {"role": "user", "content": "Draw it."},
    ]
    prompt = processor.apply_chat_template(messages)
    assert prompt.startswith("A chat between a curious user")
    assert prompt.endswith("USER: <image>\nWhat is it? ASSISTANT: A ring.</s>USER: Draw it. ASSISTANT:")
    own = processor.apply_chat_template([{"role": "system", "content": "Be brief."}, *messages[2:]])
    assert own == "Be brief. USER: Draw it. ASSISTANT:"
    with pytest.raises(UsageError, match="text, image and dream"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "video"}]}])


def test_the_tiny_tokenizer_decodes_any_text() -> None:
    tokenizer = tiny_tokenizer()
    for text in ("a red circle", "Größe 日本 🐶", "a\n\tb  c", "<0x41> is text", "1 + 1 = 2"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert [tokenizer.convert_ids_to_tokens(len(tokenizer) - 8 + i) for i in range(8)] == list(ADDED_TOKENS)


def test_a_tokenizer_file_gets_the_added_tokens(tmp_path) -> None:
    base = tiny_tokenizer().backend_tokenizer
    base.save(str(tmp_path / "tokenizer.json"))
    tokenizer = tokenizer_from_file(tmp_path / "tokenizer.json")
    text = "a ring <im_start> a"
    assert tokenizer(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]
    with pytest.raises(UsageError, match="is missing"):
        tokenizer_from_file(tmp_path / "tokenizer.model")
