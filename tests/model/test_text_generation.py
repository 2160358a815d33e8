"""Text generation: images stand where their prompt says, and neither batch, beams nor cache change an answer."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import CONFIG_MAPPING

from dreamllm import DreamLLMConfig, DreamLLMForConditionalGeneration, presets
from dreamllm.errors import InputError
from dreamllm.layers import CACHE
from dreamllm.modeling import language_loss

PROMPTS = [
    "USER: <image> What is this? ASSISTANT:",
    "USER: first <image> then <image> which is red, please? ASSISTANT:",
    "hello",
]
COUNTS = (1, 2, 0)


@pytest.fixture(scope="module")
def batch(processor, image):
    return processor(PROMPTS, [image(i) for i in range(sum(COUNTS))])


def answers(model, inputs, **options) -> list[list[int]]:
    length = inputs["input_ids"].shape[1]
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, **options}
    return model.generate(**inputs, **options)[:, length:].tolist()


def singles(processor, image):
    numbers = iter(range(sum(COUNTS)))
    return [
        processor(prompt, [image(next(numbers)) for _ in range(n)]) for prompt, n in zip(PROMPTS, COUNTS, strict=True)
    ]


def test_positions_of_the_caller_are_used(model, processor) -> None:
    inputs = dict(processor("a red circle on a white background"))
    gap = torch.arange(inputs["input_ids"].shape[1])[None]
    gap[:, 3:] += 40
    embeds = model.embed(inputs["input_ids"])
    with torch.no_grad():
        expected = model.language_model(inputs_embeds=embeds, position_ids=gap).logits
        assert torch.equal(model(**inputs, position_ids=gap).logits, expected)
        assert not torch.allclose(model(**inputs).logits, expected)
        last = model(**inputs, position_ids=gap, logits_to_keep=1).logits
    assert last.shape[1] == 1
    torch.testing.assert_close(last, expected[:, -1:])


@pytest.mark.parametrize("beams", [1, 3])
def test_a_left_padded_batch_gives_the_answers_of_single_prompts(model, processor, image, batch, beams) -> None:
    alone = [answers(model, inputs, num_beams=beams)[0] for inputs in singles(processor, image)]
    assert answers(model, batch, num_beams=beams) == alone


def test_the_order_of_images_matters(model, processor, image) -> None:
    one, other = (answers(model, processor(PROMPTS[1], [image(i), image(j)])) for i, j in ((0, 1), (1, 0)))
    assert one != other


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(
    "options", [{"use_cache": False}, {"cache_implementation": "static"}], ids=["no cache", "static"]
)
def test_the_cache_changes_no_answer(model, batch, beams, options) -> None:
    assert answers(model, batch, num_beams=beams, **options) == answers(model, batch, num_beams=beams)


def test_sampling_depends_on_the_seed(model, batch) -> None:
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(answers(model, batch, do_sample=True))
    assert drawn[0] == drawn[1] != drawn[2]


def test_several_sequences_of_one_prompt_see_its_images(model, batch) -> None:
    best = answers(model, batch, num_beams=3)
    returned = answers(model, batch, num_beams=3, num_return_sequences=2)
    assert returned[::2] == best


def test_image_features_replace_pixels(model, batch) -> None:
    features = model.encode_images(batch["pixel_values"])
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert answers(model, {**text, "image_features": features}) == answers(model, batch)


def test_a_shared_prefix_is_encoded_once(model, processor, image) -> None:
    """Questions about one image: the prefix's cache is repeated, and shorter questions are padded behind it."""
    start, questions = (
        "USER: <image>",
        [" What is red? ASSISTANT:", " How many small blue circles are there, please? ASSISTANT:"],
    )
    prefix = processor(start, image(0))
    apart = [processor.tokenizer(question)["input_ids"][1:] for question in questions]
    width = max(map(len, apart))
    rows = [[model.config.pad_token_id] * (width - len(ids)) + ids for ids in apart]
    ids = torch.cat([prefix["input_ids"].expand(2, -1), torch.tensor(rows)], dim=1)
    mask = (ids != model.config.pad_token_id).long()
    with torch.no_grad():
        cache = model(**prefix, use_cache=True)[CACHE]
    cache.batch_repeat_interleave(2)
    shared = answers(model, {"input_ids": ids, "attention_mask": mask}, cache=cache)
    for row, question in enumerate(apart):
        whole = torch.cat([prefix["input_ids"], torch.tensor([question])], dim=1)
        assert answers(model, {"input_ids": whole, "pixel_values": prefix["pixel_values"]}) == [shared[row]]


def test_generate_accepts_embeddings(model, processor, image) -> None:
    inputs = processor(PROMPTS[0], [image(0)])
    embeds = model.embed(inputs["input_ids"], model.encode_images(inputs["pixel_values"]))
    # The library gives back new tokens only, since it never saw the others.
    new = model.generate(
        inputs_embeds=embeds, attention_mask=inputs["attention_mask"], max_new_tokens=8, min_new_tokens=8
    )
    assert new.tolist() == answers(model, inputs)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_more_or_fewer_images_than_spans_is_an_error(model, processor, image, count) -> None:
    inputs = processor(PROMPTS[1], [image(0), image(1)])
    pixels = processor.pixel_values([image(i) for i in range(count)]) if count else None
    words = rf"images \({count}\) and of image spans in the prompt \(2\)"
    with pytest.raises(InputError, match=words):
        model(inputs["input_ids"], pixel_values=pixels)
    with pytest.raises(InputError, match=words):
        model.generate(inputs["input_ids"], pixel_values=pixels, max_new_tokens=2)


def test_a_cut_span_is_an_error(model, processor, image) -> None:
    inputs = processor(PROMPTS[0], [image(0)])
    start = inputs["input_ids"][0].tolist().index(model.config.im_start_token_id)
    with pytest.raises(InputError, match="5 of its 16 patch tokens"):
        model(inputs["input_ids"][:, : start + 6], pixel_values=inputs["pixel_values"])


@pytest.mark.parametrize("name", ["im_start", "im_patch", "dream_start"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_special_tokens_are_generated_only_if_allowed(own_model, batch, name, use_cache) -> None:
    token = getattr(own_model.config, f"{name}_token_id")
    with torch.no_grad():  # every hidden state points towards the token
        own_model.language_model.lm_head.weight[token] = 0
        own_model.language_model.model.norm.weight[0] = 100
        own_model.language_model.lm_head.weight[:, 0] = 0
        own_model.language_model.lm_head.weight[token, 0] = 10
        own_model.language_model.model.embed_tokens.weight[:, 0] = 100
    assert token not in {i for row in answers(own_model, batch, use_cache=use_cache) for i in row}
    if name != "im_patch":
        allowed = answers(own_model, batch, use_cache=use_cache, allow_special_tokens=True)
        assert token in {i for row in allowed for i in row}


def test_padding_changes_no_hidden_state(model, processor, image, batch) -> None:
    with torch.no_grad():
        together = model(**batch).logits
        for row, inputs in enumerate(singles(processor, image)):
            alone = model(**inputs).logits[0]
            torch.testing.assert_close(together[row, -len(alone) :], alone, atol=1e-4, rtol=1e-4)


def test_loss_is_the_mean_over_labels_and_zero_without_any() -> None:
    logits = torch.randn(2, 5, 7, dtype=torch.bfloat16)
    labels = torch.tensor([[1, 2, -100, 3, 4], [-100, -100, 5, 6, -100]])
    rows = torch.log_softmax(logits.float(), dim=-1)
    by_hand = [-rows[b, t - 1, labels[b, t]] for b in range(2) for t in range(1, 5) if labels[b, t] != -100]
    torch.testing.assert_close(language_loss(logits, labels), torch.stack(by_hand).mean())
    assert language_loss(logits, torch.full_like(labels, -100)) == 0
    torch.testing.assert_close(language_loss(logits, labels, num_items=10), torch.stack(by_hand).sum() / 10)


def test_gradients_reach_queries_projectors_and_decoder(own_model, processor, image) -> None:
    inputs = processor(["<image> a red circle <dream> done"], [image(0), image(1)])
    own_model(**inputs, labels=inputs["input_ids"]).loss.backward()
    for parameter in (
        own_model.dream_queries,
        own_model.visual_projector.layers[0].weight,
        own_model.get_input_embeddings().weight,
    ):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "gemma2"])
def test_any_llama_like_decoder_works(built, image, tmp_path, kind) -> None:
    config, processor = copy.deepcopy(built[0].config), built[1]
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 16,
    }
    text = CONFIG_MAPPING[kind](
        vocab_size=config.text_config.vocab_size, num_key_value_heads=2, pad_token_id=0, **sizes
    )
    fields = {**config.to_dict(), "text_config": text.to_dict()}
    fields.pop("model_type")
    model = DreamLLMForConditionalGeneration(DreamLLMConfig(**fields)).eval()
    inputs = processor(PROMPTS[0], [image(0)])
    before = answers(model, inputs)
    generated = model.generate_images(processor("a ring"), seeds=[0], num_inference_steps=2, output_type="latent")
    model.save_pretrained(tmp_path)
    again = DreamLLMForConditionalGeneration.from_pretrained(tmp_path)
    assert type(again.language_model).__name__.lower().startswith(kind)
    assert answers(again, inputs) == before
    assert torch.equal(
        again.generate_images(processor("a ring"), seeds=[0], num_inference_steps=2, output_type="latent"), generated
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_generates_text_and_images(processor, image, dtype) -> None:
    model, _ = presets.build("tiny", dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert len(answers(model, processor(PROMPTS[0], [image(0)]))[0]) == 8
    pixels = model.generate_images(processor("a ring"), seeds=[0], num_inference_steps=3, output_type="tensor")
    assert pixels.dtype == torch.float32
    assert pixels.isfinite().all()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cuda_generates_text_and_images(own_model, processor, image, dtype) -> None:
    own_model.to("cuda", dtype)
    inputs = processor(PROMPTS, [image(i) for i in range(sum(COUNTS))]).to("cuda")
    assert len(answers(own_model, inputs, cache_implementation="static")[0]) == 8
    assert len(own_model.generate_images(processor("a ring"), seeds=[0], num_inference_steps=3)) == 1
