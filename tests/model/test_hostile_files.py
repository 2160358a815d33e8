"""A checkpoint's and a recipe's files are believed only as far as they make sense, and before memory is asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dreamllm import checkpoint
from dreamllm.configuration import check_sizes
from dreamllm.errors import CheckpointError, UsageError, library_errors, naming
from dreamllm.files import parse_json, read_json_object
from dreamllm.options import has_type
from dreamllm.recipe import make_recipe


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 1}', "[NaN]", "[1e400]", "[-Infinity]", "[" * 200_000 + "]" * 200_000, ""]
)
def test_json_that_would_be_a_guess_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"twice|finite|deeply|Expecting"):
        parse_json(text)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json is not JSON"):
        read_json_object(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("value", "annotation", "fits"),
    [
        *((1, float, True), (1.5, int, False), (True, int, False), ("x", bool, False), (None, int | None, True)),
        *(([1, 2], int | tuple[int], True), ([1.5], tuple[int, ...], False), ([[1]], list[Any], True)),
        ({"x": 1}, dict[str, Any] | str, True),
    ],
)
def test_types_of_fields(value: Any, annotation: Any, fits: bool) -> None:
    assert has_type(value, annotation) is fits


@pytest.mark.parametrize(
    "field", [{"patch_size": 0}, {"hidden_size": 10**30}, {"num_hidden_layers": -1}, {"block_out_channels": [16, 0]}]
)
def test_sizes_that_no_model_has(field: dict[str, Any]) -> None:
    check_sizes({"vision_config": {"patch_size": 14}}, "config.json")
    with pytest.raises(CheckpointError, match=rf"config\.json: {next(iter(field))} is"):
        check_sizes({"vision_config": field}, "config.json")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda config: config.pop("text_config"), "has no text_config"),
        (lambda config: config["text_config"].pop("hidden_size"), "tensors"),
        (lambda config: config["text_config"].update(num_hidden_layers=900), "tensors missing"),
        (lambda config: config["text_config"].update(hidden_act="none"), "cannot be read as a checkpoint"),
        (lambda config: config["vision_config"].update(patch_size=1.5), "patch_size"),
        (lambda config: config["image_decoder_config"]["scheduler"].update(clip_sample="x"), r"scheduler\.clip_sample"),
        (lambda config: config.update(vision_select_layer=99), "vision_select_layer"),
        (lambda config: config.update(bos_token_id={}), r"config\.json: bos_token_id is {}, must be int"),
        (lambda config: config.update(bos_token_id=5), "bos_token_id 5, the tokenizer 1"),
        (lambda config: config.update(image_token_id=10**30), r"config\.json: special token ids"),
        (lambda config: config.update(text_config="x"), r"config\.json: text_config is not an object"),
        (lambda config: config["image_decoder_config"].update(resolution=True), "resolution is True, must be int"),
        (lambda config: config["image_decoder_config"]["vae"].update(scaling_factor=None), r"vae\.scaling_factor"),
    ],
)
def test_a_config_that_does_not_fit_costs_no_memory(damage: Any, message: str, own_model, processor, tmp_path) -> None:
    checkpoint.save(tmp_path / "m", own_model, processor)
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    damage(config)
    path.write_text(json.dumps(config))
    with pytest.raises((CheckpointError, UsageError), match=message):
        checkpoint.load(tmp_path / "m")


def test_tokenizer_and_image_processor_are_tried(own_model, processor, tmp_path) -> None:
    checkpoint.save(tmp_path / "whole", own_model, processor)
    tokenizer = json.loads((tmp_path / "whole" / "tokenizer.json").read_text())
    tokenizer["model"]["end_of_word_suffix"] = "a" * 1000
    for file, text in (
        ("tokenizer.json", "{}"),
        ("tokenizer.json", json.dumps(tokenizer)),  # a thousand tokens for each word
        ("tokenizer_config.json", "{}"),  # no token to pad with
        ("processor_config.json", '{"num_image_tokens": 1}'),
    ):
        shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
        (tmp_path / "damaged" / file).write_text(text)
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.load(tmp_path / "damaged")
        shutil.rmtree(tmp_path / "damaged")
    (tmp_path / "whole" / "chat_template.jinja").unlink(missing_ok=True)
    (tmp_path / "whole" / "chat_template.jinja").mkdir()
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja is no file"):
        checkpoint.load(tmp_path / "whole")


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("generation_config.json", {"output_hidden_states": 1.5}, "output_hidden_states is 1.5"),
        ("generation_config.json", {"eos_token_id": [True]}, "eos_token_id is"),
        ("processor_config.json", {"do_resize": 0}, "do_resize is 0"),
        ("processor_config.json", {"image_mean": True}, "image_mean is True"),
        ("processor_config.json", {"image_std": [0.5, -1, 0.5]}, "image_std is"),
        ("processor_config.json", {"rescale_factor": True}, "rescale_factor is True"),
        ("processor_config.json", {"size": {"shortest_edge": True}}, "size is"),
    ],
)
def test_values_that_transformers_would_misread_are_refused(
    file: str, fields: dict[str, Any], message: str, own_model, processor, tmp_path
) -> None:
    checkpoint.save(tmp_path, own_model, processor)
    checkpoint.check_files(tmp_path)
    stored = json.loads((tmp_path / file).read_text())
    stored.get("image_processor", stored).update(fields)
    (tmp_path / file).write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match=rf"{file}: {message}".replace(".json", r"\.json")):
        checkpoint.check_files(tmp_path)


def test_a_file_that_transformers_would_pass_over_is_refused(own_model, processor, tmp_path) -> None:
    checkpoint.save(tmp_path, own_model, processor)
    path = tmp_path / "generation_config.json"
    path.write_text(path.read_text(), encoding="utf-32")
    with pytest.raises(CheckpointError, match=r"generation_config\.json is not JSON"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 10**30])
def test_numbers_that_no_recipe_needs(number: float) -> None:
    with pytest.raises(UsageError, match=r"recipe: trainer\.max_steps"):
        make_recipe({"trainer": {"max_steps": number}})


def test_errors_of_a_library_and_of_ours_name_the_file() -> None:
    class PanicException(BaseException):
        pass

    for error in (PanicException("out of range"), KeyError("x"), CheckpointError("no object")):
        with pytest.raises(CheckpointError, match=r"tokenizer\.json"), library_errors("tokenizer.json"):
            raise error
    with pytest.raises(KeyboardInterrupt), library_errors("tokenizer.json"):
        raise KeyboardInterrupt
    with pytest.raises(UsageError, match=r"^sft\.yaml: max_length 7 is too short$"), naming("sft.yaml"):
        raise UsageError("max_length 7 is too short")


def test_a_recipe_s_text_has_no_null_character() -> None:
    with pytest.raises(UsageError, match=r"^sft\.json: data\.cache: it has a null character"):
        make_recipe({"data": {"cache": "a\0b"}}, "sft.json: ")
