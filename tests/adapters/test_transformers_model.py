"""transformers: models of two families, read in batches as one by one, and held to what they are asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from adapters.images_for_tests import image
from adapters.tiny import save_llava, save_qwen

from dreambench.adapters.torch_tools import library_errors
from dreambench.adapters.transformers_model import Decoding, SeededSampling, VisionLanguageModel, _lengthened
from dreambench.documents import Document, Image, Text, document_text
from dreambench.errors import DataError, MissingWeightsError, ModelError, UsageError
from dreambench.interfaces import ModelOptions, OutOfMemoryError
from dreambench.requests import Request, Response

GREEDY = {"max_new_tokens": 8}


@pytest.fixture(scope="module", params=[save_llava, save_qwen], ids=["llava", "qwen2-vl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return request.param(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def model(folder: Path) -> VisionLanguageModel:
    return load(folder)


def load(folder: Path, **arguments: str) -> VisionLanguageModel:
    return VisionLanguageModel(ModelOptions("transformers", str(folder), arguments, device="cpu", dtype="float64"))


def documents() -> list[Document]:
    """Of different lengths and image sizes; text first, image first, two images, none."""
    return [
        (image(1), Text("What is on the table?")),
        (
            Text("How many kites are there, and how many red cups are on the table? "),
            image(2, 40, 16),
            Text("Answer:"),
        ),
        (image(3, 16, 16), Text("and "), image(4, 30, 30), Text("two?")),
        (Text("yes or no?"),),
        (image(5), Text("no")),
        (Text("How many?"),),
    ]


def requests(settings: dict[str, object], **fields: object) -> list[Request]:
    return [
        Request(str(i), "generate_text", document, settings, seed=100 + i, **fields)  # type: ignore[arg-type]
        for i, document in enumerate(documents())
    ]


def answers(model: VisionLanguageModel, asked: Sequence[Request]) -> dict[str, Response]:
    found = {response.id: response for response in model.answer(asked)}
    assert len(found) == len(asked)
    return found


def one_by_one(model: VisionLanguageModel, asked: Sequence[Request]) -> dict[str, Response]:
    return {request.id: next(iter(model.answer([request]))) for request in asked}


@pytest.mark.parametrize(
    "settings",
    [
        GREEDY,
        GREEDY | {"num_beams": 3},
        GREEDY | {"do_sample": True, "temperature": 0.8, "top_p": 0.9},
        GREEDY | {"do_sample": True, "top_k": 20},
    ],
    ids=["greedy", "beams", "sampled", "top-k"],
)
def test_a_batch_of_mixed_lengths_is_read_as_one_by_one(
    model: VisionLanguageModel, settings: dict[str, object]
) -> None:
    asked = requests(settings)
    together, alone = answers(model, asked), one_by_one(model, asked)
    assert together == alone
    assert answers(model, asked[::-1]) == alone
    assert len({document_text(response.document) for response in alone.values()}) >= 4


def test_greedy_text_generation_is_what_the_model_s_own_forward_says(model: VisionLanguageModel) -> None:
    """Against a plain loop over forward, without cache, padding, generate or the checkpoint's repetition penalty."""
    for request, response in zip(requests(GREEDY), answers(model, requests(GREEDY)).values(), strict=True):
        response = answers(model, [request])[request.id]
        inputs = model.inputs([request], {request.id: pixels(request)}, "right")
        ids: list[int] = []
        while len(ids) < 8 and not (ids and ids[-1] in (2, 7)):
            ids.append(int(model._log_probs(inputs, [ids])[0][-1].argmax()))
        assert response.new_tokens == len(ids)
        assert response.finish_reason == ("stop" if ids[-1] in (2, 7) else "length")
        assert document_text(response.document) == model.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert response.prompt_tokens == inputs["input_ids"].shape[1]


def test_the_first_words_of_the_answer_stand_at_the_end_of_the_prompt(model: VisionLanguageModel) -> None:
    prefix = "The short answer '(one word)' is:"
    begun = requests({**GREEDY, "assistant_prefix": prefix})
    plain = model.tokenizer.decode(model.inputs(requests(GREEDY)[:1], {"0": pixels(begun[0])}, "left")["input_ids"][0])
    after = model.tokenizer.decode(model.inputs(begun[:1], {"0": pixels(begun[0])}, "left")["input_ids"][0])
    assert after.startswith(plain)
    assert after[len(plain) :].split() == model.tokenizer.decode(model.tokenizer(prefix)["input_ids"]).split()
    assert answers(model, begun) == one_by_one(model, begun)


def pixels(request: Request) -> list[object]:
    from dreambench.images import decode_rgb

    return [decode_rgb(part) for part in request.document if isinstance(part, Image)]


def test_the_image_and_the_seed_matter(model: VisionLanguageModel) -> None:
    def text(document: Document, settings: dict[str, object], seed: int = 0) -> str:
        request = Request("x", "generate_text", document, settings, seed)
        return document_text(answers(model, [request])["x"].document)

    question = Text("What is on the table?")
    assert len({text((image(seed), question), GREEDY) for seed in range(4)}) > 1
    sampled = GREEDY | {"do_sample": True}
    assert len({text((image(1), question), sampled, seed) for seed in range(4)}) == 4


@torch.inference_mode()
def test_loglikelihood_is_the_sum_over_a_choice_s_tokens(model: VisionLanguageModel) -> None:
    """Against the probability of prompt and choice in one plain forward each, and equal in a batch and alone."""
    choices = [
        ("A", "B", "C"),
        ("A", "two red cups", "yes", "no kites on the table"),
        ("cat",),
        ("A", "B"),
        ("one", "yes"),
        ("B",),
    ]
    asked = [Request(str(i), "loglikelihood", document, choices=choices[i]) for i, document in enumerate(documents())]
    together = answers(model, asked)
    for request in asked:
        alone = answers(model, [request])[request.id]
        assert alone.scores is not None
        assert together[request.id].scores == pytest.approx(alone.scores, abs=1e-9)
        for j, choice in enumerate(request.choices):
            inputs = model.inputs([request], {request.id: pixels(request)}, "right")
            ids = model.tokenizer(choice, add_special_tokens=False)["input_ids"]
            assert alone.details["choice_tokens"][j] == len(ids)
            total = 0.0
            for place, token in enumerate(ids):
                total += float(model._log_probs(inputs, [ids[:place]])[0][-1, token])
            assert alone.scores[j] == pytest.approx(total, abs=1e-6)
    with pytest.raises(ModelError, match="no token"):
        answers(model, [Request("x", "loglikelihood", (Text("?"),), choices=("",))])


def test_a_broken_image_fails_alone(model: VisionLanguageModel, tmp_path: Path) -> None:
    asked = requests(GREEDY)
    spoilt = [Request("broken", "generate_text", (Image(data=b"\x89PNG not really"), Text("?")), GREEDY), *asked]
    found = answers(model, spoilt)
    assert found["broken"].error is not None
    assert found["broken"].error.type == "broken-image"
    del found["broken"]
    assert found == answers(model, asked)
    gone = Request("gone", "generate_text", (Image(path=str(tmp_path / "gone.png")), Text("?")), GREEDY)
    with pytest.raises(DataError, match="--images"):
        answers(model, [gone])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"guidance_scale": 3}, "guidance_scale"),
        ({"temperature": 0.2}, "without do_sample"),
        ({"do_sample": True, "num_beams": 2}, "num_beams=1"),
        ({"do_sample": True, "temperature": 0}, "above 0"),
        ({"max_new_tokens": 0}, "at least 1"),
    ],
)
def test_settings_that_mean_nothing_are_errors(
    model: VisionLanguageModel, settings: dict[str, object], says: str
) -> None:
    with pytest.raises(ModelError, match=says):
        answers(model, requests(settings))


def test_out_of_memory_reaches_the_runner_as_such(model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    monkeypatch.setattr(model.model, "generate", full)
    with pytest.raises(OutOfMemoryError, match="Tried to allocate 2 GiB"):
        answers(model, requests(GREEDY))


def test_identity_follows_weights_and_files_not_the_place(
    folder: Path, model: VisionLanguageModel, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    assert load(moved).identity() == model.identity()
    assert str(folder) not in json.dumps(dict(model.identity()))
    assert model.environment()["dtype"] == "float64"
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0]['content'][0]['text'] }} =", encoding="utf-8")
    other = load(moved, chat_template=str(template))
    assert other.identity() != model.identity()
    prompt = answers(other, [Request("x", "generate_text", (Text("yes"),), GREEDY)])["x"].prompt_tokens
    assert prompt == len(model.tokenizer("yes =")["input_ids"])


def test_a_checkpoint_that_is_not_whole_is_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(MissingWeightsError, match="not a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(MissingWeightsError, match="--offline"):
        VisionLanguageModel(ModelOptions("transformers", "someone/something", offline=True))
    with pytest.raises(MissingWeightsError, match=r"no \.safetensors"):
        load(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    del weights[next(name for name in weights if "mlp" in name)]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(MissingWeightsError, match=r"weights of .* cannot be loaded from its files"):
        load(copy)
    (copy / "config.json").write_text('{"model_type": "never-heard-of"}', encoding="utf-8")
    with pytest.raises(MissingWeightsError, match="cannot load"):
        load(copy)
    with pytest.raises(UsageError, match="write transformers:"):
        VisionLanguageModel(ModelOptions("transformers"))


@pytest.mark.parametrize("end", [-1, 10**30, 1.5, True, "</s>", [2, None, [2]]])
def test_end_tokens_that_are_none_are_refused(folder: Path, tmp_path: Path, end: object) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": end}), encoding="utf-8")
    with pytest.raises((ModelError, MissingWeightsError), match=r"copy: .*(is no token|cannot load)"):
        load(copy)


@pytest.mark.parametrize(
    "settings", [{"do_resize": 0}, {"image_mean": True}, {"image_std": [-1.0]}, {"rescale_factor": "1"}]
)
def test_settings_of_images_that_transformers_would_misread_are_refused(
    folder: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(MissingWeightsError, match=rf"preprocessor_config\.json is damaged \({next(iter(settings))}"):
        load(copy)


def test_a_panic_of_a_library_in_rust_is_an_error_of_the_checkpoint() -> None:
    class PanicException(BaseException):
        pass

    with pytest.raises(ModelError, match="PanicException: out of range"), library_errors("model"):
        raise PanicException("out of range")
    with pytest.raises(KeyboardInterrupt), library_errors("model"):
        raise KeyboardInterrupt


def test_damage_that_shows_with_the_first_image_is_an_error_of_the_checkpoint(
    model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: object, **__: object) -> None:
        raise TypeError("no\nnumber")

    monkeypatch.setattr(type(model.processor), "apply_chat_template", damaged)
    request = Request("x", "generate_text", (image(1), Text("yes")), GREEDY)
    with pytest.raises(ModelError, match=r"/.*: transformers cannot use this checkpoint \(TypeError: no\)"):
        answers(model, [request])


def test_seeded_sampling_draws_from_the_warped_distribution() -> None:
    """4,000 draws against the softmax at temperature 0.7: chi-squared of five cells below its 99.99 % point for 4 degrees, 23.5."""
    logits = torch.tensor([[1.0, 0.2, -0.5, 2.0, 0.0]])
    draws = 4000
    sampler = SeededSampling(Decoding(do_sample=True, temperature=0.7), range(draws))
    tokens = sampler(torch.zeros(draws, 1, dtype=torch.long), logits.repeat(draws, 1)).argmax(-1)
    expected = (logits[0] / 0.7).softmax(0) * draws
    counts = torch.bincount(tokens, minlength=5)
    assert float(((counts - expected) ** 2 / expected).sum()) < 23.5
    narrow = SeededSampling(Decoding(do_sample=True, top_k=2), range(50))
    kept = narrow(torch.zeros(50, 1, dtype=torch.long), logits.repeat(50, 1)).argmax(-1)
    assert set(kept.tolist()) == {0, 3}
    likely = SeededSampling(
        Decoding(do_sample=True, top_p=0.8), range(200)
    )  # the likeliest tokens have 0.56, 0.77 and 0.86 of it
    kept = likely(torch.zeros(200, 1, dtype=torch.long), logits.repeat(200, 1)).argmax(-1)
    assert set(kept.tolist()) == {0, 1, 3}


def test_what_follows_a_prompt_is_attended_with_a_mask_of_ones() -> None:
    inputs = {"input_ids": torch.tensor([[5, 6, 0], [5, 6, 7]]), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    mask = _lengthened("attention_mask", inputs, [2, 3], [[8], [9, 9]], 0)
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert _lengthened("input_ids", inputs, [2, 3], [[8], [9, 9]], 0).tolist() == [[5, 6, 8, 0, 0], [5, 6, 7, 9, 9]]
