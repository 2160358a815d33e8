"""A checkpoint generates as it says in its generation_config.json unless an argument says otherwise."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch

from dreamllm import DreamLLMForConditionalGeneration, load
from dreamllm.checkpoint import convert, save
from dreamllm.cli import _answer, main
from dreamllm.defaults import ImageDefaults, InterleavedDefaults, read_defaults
from dreamllm.errors import CheckpointError
from dreamllm.training.assemble import merge

IMAGES = ImageDefaults.model_validate({"scheduler": "dpm-solver++", "num_inference_steps": 2, "guidance_scale": 3})
TEXT = InterleavedDefaults(do_sample=True, temperature=5.0)


@pytest.fixture
def stated(own_model) -> DreamLLMForConditionalGeneration:
    own_model.image_defaults, own_model.interleaved_defaults = IMAGES, TEXT
    return own_model


def ids(documents: Any) -> list[tuple[int, ...]]:
    return [document.token_ids for document in documents]


def test_images_are_generated_as_the_checkpoint_says(model, stated, processor) -> None:
    prompt: dict[str, Any] = {"prompts": processor("a ring"), "seeds": [0], "output_type": "latent"}
    settings = {"scheduler": "dpm-solver++", "num_inference_steps": 2, "guidance_scale": 3.0}
    assert torch.equal(stated.generate_images(**prompt), model.generate_images(**prompt, **settings))
    for name, value in {"scheduler": "ddim", "num_inference_steps": 3, "guidance_scale": 1.0}.items():
        given = stated.generate_images(**prompt, **{name: value})
        assert torch.equal(given, model.generate_images(**prompt, **{**settings, name: value}))
        assert not torch.equal(given, stated.generate_images(**prompt))


def test_a_preset_gives_the_settings_and_words_of_the_original_unless_options_do(
    stated, processor, image, monkeypatch, tmp_path
) -> None:
    calls: list[dict[str, Any]] = []

    def recorded(prompts: Any, **options: Any) -> list[Any]:
        words = {
            name: processor.decode(options.pop(name)["input_ids"][0])
            for name in ["negative_prompts"]
            if name in options
        }
        calls.append({"prompt": processor.decode(prompts["input_ids"][0]), **words, **options})
        return [image(0)]

    monkeypatch.setattr(stated, "generate_images", recorded)
    monkeypatch.setattr("dreamllm.checkpoint.load", lambda *_, **__: (stated, processor))

    def run(*options: str) -> dict[str, Any]:
        with pytest.raises(SystemExit, match="0"):
            main(["generate-image", "a red ring", str(tmp_path / "x.png"), *options])
        (tmp_path / "x.png").unlink()
        return calls.pop()

    original = {"scheduler": "ddpm", "num_inference_steps": 150}
    assert run("--preset", "coco").items() >= {"prompt": "a red ring", **original, "guidance_scale": 2.0}.items()
    demo = run("--preset", "demo", "--steps", "3")
    assert demo.items() >= {**original, "num_inference_steps": 3, "guidance_scale": 3.5}.items()
    assert demo["prompt"] == "(best quality,extremely detailed) a red ring"
    assert demo["negative_prompts"].startswith("ugly,duplicate")
    assert run("--preset", "demo", "--negative-prompt", "a blue ring")["negative_prompts"] == "a blue ring"
    plain = run()
    assert plain.keys().isdisjoint(["scheduler", "num_inference_steps", "guidance_scale", "negative_prompts"])
    with pytest.raises(SystemExit, match="2"):
        main(["generate-image", "a", str(tmp_path / "x.png"), "--negative-prompt", "b", "--guidance-scale", "1"])


def test_documents_are_sampled_as_the_checkpoint_says_and_answers_are_not(model, stated, processor) -> None:
    options: dict[str, Any] = {"max_new_tokens": 12, "max_images": 0, "seeds": [0]}
    batch = processor(["a red circle"])
    generated = ids(stated.generate_interleaved(batch, processor, **options))
    assert generated == ids(model.generate_interleaved(batch, processor, do_sample=True, temperature=5.0, **options))
    greedy = ids(model.generate_interleaved(batch, processor, **options))
    assert greedy != generated
    assert ids(stated.generate_interleaved(batch, processor, do_sample=False, **options)) == greedy
    # Neither these settings nor the guidance of images, which is a field of transformers' `generate`, too, act on text.
    assert torch.equal(stated.generate(**batch, max_new_tokens=8), model.generate(**batch, max_new_tokens=8))


def test_text_is_generated_as_the_checkpoint_says(own_model, processor) -> None:
    own_model.generation_config.update(do_sample=True, temperature=50.0)
    drawn = [_answer(own_model, processor, "a red circle", [], 12, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({_answer(own_model, processor, "a red circle", [], 12, 0.0, seed) for seed in (0, 1)}) == 1


def test_they_are_in_every_layout_and_a_checkpoint_without_them_stays_without(stated, processor, tmp_path) -> None:
    save(tmp_path / "native", stated, processor)
    fields = json.loads((tmp_path / "native" / "generation_config.json").read_text())
    assert fields["image_generation"] == {
        "scheduler": "dpm-solver++",
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
    }
    assert DreamLLMForConditionalGeneration.from_pretrained(tmp_path / "native").image_defaults == IMAGES
    convert(tmp_path / "native", tmp_path / "released", "released")
    convert(tmp_path / "released", tmp_path / "again", "native")
    for folder in ("native", "released", "again"):
        assert read_defaults(tmp_path / folder) == (IMAGES, TEXT), folder
    fields.pop("image_generation")
    fields.pop("interleaved_generation")
    (tmp_path / "native" / "generation_config.json").write_text(json.dumps(fields))
    model = load(tmp_path / "native")[0]
    assert (model.image_defaults, model.interleaved_defaults) == (ImageDefaults(), InterleavedDefaults())
    save(tmp_path / "without", model, processor)
    assert read_defaults(tmp_path / "without") == (None, None)


def test_they_may_be_written_into_a_file_that_transformers_has_marked(model, processor, tmp_path) -> None:
    """It reads no foreign field from a file with this mark."""
    save(tmp_path / "m", model, processor)
    file = tmp_path / "m" / "generation_config.json"
    fields = json.loads(file.read_text())
    assert fields["_from_model_config"]
    file.write_text(json.dumps({**fields, "image_generation": IMAGES.stated()}))
    loaded = load(tmp_path / "m")[0]
    assert loaded.image_defaults == IMAGES
    save(tmp_path / "again", loaded, processor)
    assert load(tmp_path / "again")[0].image_defaults == IMAGES


def test_merged_halves_generate_images_as_the_half_that_learned_to(stated, processor, tmp_path) -> None:
    other = copy.deepcopy(stated)
    other.image_defaults = ImageDefaults(guidance_scale=4.0)
    save(tmp_path / "comprehension", stated, processor)
    save(tmp_path / "generation", other, processor)
    merge(tmp_path / "comprehension", tmp_path / "generation", tmp_path / "merged")
    assert read_defaults(tmp_path / "merged") == (other.image_defaults, TEXT)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("image_generation", {"guidance": 3}, "image_generation.guidance: Extra inputs are not permitted"),
        ("image_generation", {"scheduler": "heun"}, "image_generation.scheduler: Input should be 'ddpm', 'ddim' or"),
        ("image_generation", {"num_inference_steps": 0}, "greater than or equal to 1"),
        ("image_generation", {"num_inference_steps": 2.5}, "a valid integer"),
        ("image_generation", {"guidance_scale": -1}, "greater than or equal to 0"),
        ("image_generation", 3, "image_generation: Input should be"),
        ("interleaved_generation", {"temperature": 0}, "interleaved_generation.temperature: Input should be greater"),
        ("interleaved_generation", {"do_sample": "yes"}, "a valid boolean"),
    ],
)
def test_what_cannot_be_is_an_error_that_names_file_and_field(model, processor, tmp_path, field, value, words) -> None:
    save(tmp_path / "m", model, processor)
    file = tmp_path / "m" / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    with pytest.raises(CheckpointError) as error:
        load(tmp_path / "m")
    assert str(error.value).startswith(f"{file}: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)
