"""A checkpoint's and a recipe's files are believed only as far as they make sense, and before memory is asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dreamllm import checkpoint
from dreamllm.configuration import check_sizes
from dreamllm.errors import CheckpointError, UsageError
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
    ],
)
def test_a_config_that_does_not_fit_costs_no_memory(damage: Any, message: str, own_model, processor, tmp_path) -> None:
    checkpoint.save(tmp_path / "m", own_model, processor)
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    damage(config)
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(tmp_path / "m")


def test_tokenizer_and_image_processor_are_tried(own_model, processor, tmp_path) -> None:
    checkpoint.save(tmp_path / "whole", own_model, processor)
    for file, text in (("tokenizer.json", "{}"), ("processor_config.json", '{"num_image_tokens": 1}')):
        shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
        (tmp_path / "damaged" / file).write_text(text)
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.load(tmp_path / "damaged")
        shutil.rmtree(tmp_path / "damaged")
    (tmp_path / "whole" / "chat_template.jinja").unlink(missing_ok=True)
    (tmp_path / "whole" / "chat_template.jinja").mkdir()
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja is no file"):
        checkpoint.load(tmp_path / "whole")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 10**30])
def test_numbers_that_no_recipe_needs(number: float) -> None:
    with pytest.raises(UsageError, match=r"recipe: trainer\.max_steps"):
        make_recipe({"trainer": {"max_steps": number}})
