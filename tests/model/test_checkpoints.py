"""Checkpoints: every tensor survives to the bit, and errors name what is wrong with a file."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreamllm import DreamLLMConfig, DreamLLMForConditionalGeneration, load
from dreamllm.checkpoint import convert, from_state, save
from dreamllm.errors import CheckpointError, UsageError
from dreamllm.released import read_config, read_state, write


@pytest.fixture
def native(built, tmp_path):
    save(tmp_path / "native", *built)
    return tmp_path / "native"


@pytest.fixture
def released(native, tmp_path):
    convert(native, tmp_path / "released", "released")
    return tmp_path / "released"


def equal(one, other) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)


def test_the_native_layout_comes_back_to_the_bit(model, processor, native) -> None:
    again, its_processor = load(native)
    assert equal(again, model)
    assert not again.training
    for name in DreamLLMConfig.__annotations__:
        expected, read = getattr(model.config, name), getattr(again.config, name)
        if name in ("text_config", "vision_config"):  # on loading the library notes the dtype in them
            expected, read = ({**each.to_dict(), "dtype": None} for each in (expected, read))
        assert read == expected, name
    text = "USER: <image> what? é ASSISTANT:"
    assert its_processor.tokenizer(text) == processor.tokenizer(text)
    assert its_processor.tokenizer.chat_template == processor.tokenizer.chat_template
    assert its_processor.image_processor.to_dict() == processor.image_processor.to_dict()


def test_the_native_layout_holds_no_pickle(native) -> None:
    assert {path.suffix for path in native.iterdir()} <= {".json", ".safetensors", ".jinja"}


def test_untrained_weights_say_so(native) -> None:
    assert load(native)[0].config.untrained


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
def test_dtype_is_that_asked_for_or_that_stored(native, tmp_path, name) -> None:
    dtype = getattr(torch, name)
    half, processor = load(native, dtype=name)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    assert half.get_decoder().rotary_emb.inv_freq.dtype == torch.float32
    save(tmp_path / "half", half, processor)
    assert equal(load(tmp_path / "half")[0], half)


def test_an_unknown_dtype_is_an_error(native) -> None:
    with pytest.raises(UsageError, match="float32, bfloat16, float16"):
        load(native, dtype="int4")


def test_a_released_checkpoint_comes_back_to_the_bit(model, released, tmp_path) -> None:
    assert equal(load(released)[0], model)
    convert(released, tmp_path / "native again", "native")
    convert(tmp_path / "native again", tmp_path / "released again", "released")
    for name in ("clip_vision_embedding.bin", "dream_embedding.bin", "stable_diffusion_head.bin"):
        first, second = (
            torch.load(folder / name, weights_only=True) for folder in (released, tmp_path / "released again")
        )
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert json.loads((released / "config.json").read_text()) == json.loads(
        (tmp_path / "released again/config.json").read_text()
    )


@pytest.mark.parametrize("depth", [1, 3])
def test_projector_variants_survive_the_released_layout(model, tmp_path, depth) -> None:
    fields = {**model.config.to_dict(), "visual_projector_depth": depth, "condition_projector_depth": depth}
    fields |= {"visual_projector_layernorm": True}
    fields.pop("model_type")
    variant = DreamLLMForConditionalGeneration(DreamLLMConfig(**fields))
    folder = tmp_path / "variant"
    write(folder, variant.config, variant.state_dict())
    config = read_config(folder, folder / "clip", folder / "diffusion")
    assert equal(from_state(config, read_state(folder, folder, config)), variant)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_are_read_through_their_index(model, released, kind) -> None:
    state = load_file(released / "model.safetensors")
    (released / "model.safetensors").unlink()
    names = sorted(state)
    halves = {f"shard-1.{kind}": names[::2], f"shard-2.{kind}": names[1::2]}
    for shard, part in halves.items():
        tensors = {name: state[name] for name in part}
        if kind == "bin":
            torch.save(tensors, released / shard)
        else:
            save_file(tensors, released / shard)
    index = {"weight_map": {name: shard for shard, part in halves.items() for name in part}}
    stem = "pytorch_model.bin" if kind == "bin" else "model.safetensors"
    (released / f"{stem}.index.json").write_text(json.dumps(index))
    assert equal(load(released)[0], model)


def test_an_index_may_not_leave_its_folder(released) -> None:
    (released / "model.safetensors").rename(released.parent / "elsewhere.safetensors")
    (released / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "../elsewhere.safetensors"}})
    )
    with pytest.raises(CheckpointError, match=r"\.\./elsewhere"):
        load(released)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("dream_queries"), "missing: dream_queries"),
        (lambda state: state.update(extra=torch.zeros(1)), "unexpected: extra"),
        (
            lambda state: state.update(dream_queries=torch.zeros(1, 3, 64)),
            r"dream_queries is \(1, 3, 64\), expected \(1, 8, 64\)",
        ),
    ],
    ids=["missing", "unexpected", "mismatched"],
)
def test_a_wrong_tensor_is_named(released, change, words) -> None:
    state = torch.load(released / "dream_embedding.bin", weights_only=True)
    change(state)
    torch.save(state, released / "dream_embedding.bin")
    with pytest.raises(CheckpointError, match=words):
        load(released)


@pytest.mark.parametrize("part", ["model.safetensors", "clip_vision_embedding.bin", "stable_diffusion_head.bin"])
def test_every_file_is_read_strictly(released, part) -> None:
    if part.endswith("bin"):
        state = torch.load(released / part, weights_only=True)
        torch.save({**state, "unet.what_is_this": torch.zeros(1)}, released / part)
    else:
        save_file({**load_file(released / part), "model.what_is_this": torch.zeros(1)}, released / part)
    with pytest.raises(CheckpointError, match="what_is_this"):
        load(released)


def test_recomputed_buffers_are_ignored(model, released) -> None:
    state = load_file(released / "model.safetensors")
    save_file({**state, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}, released / "model.safetensors")
    clip = torch.load(released / "clip_vision_embedding.bin", weights_only=True)
    clip["clip_vision_model.vision_model.embeddings.position_ids"] = torch.zeros(1, 17)
    torch.save(clip, released / "clip_vision_embedding.bin")
    assert equal(load(released)[0], model)


@pytest.mark.parametrize("change", ["missing", "unexpected", "mismatched"])
def test_the_native_layout_is_read_strictly(native, change) -> None:
    state = load_file(native / "model.safetensors")
    if change == "missing":
        state.pop("image_decoder.unet.conv_in.weight")
    elif change == "unexpected":
        state["unknown"] = torch.zeros(1)
    else:
        state["dream_queries"] = torch.zeros(1, 3, 64)
    save_file(state, native / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{change}: (image_decoder.unet.conv_in.weight|unknown|dream_queries)"):
        load(native)


def test_a_pickle_that_is_more_than_tensors_is_refused(released) -> None:
    class Surprise:
        def __reduce__(self):
            return (print, ("this code must not run",))

    torch.save({"dream_queries": Surprise()}, released / "dream_embedding.bin")
    with pytest.raises(CheckpointError, match="plain tensors"):
        load(released)
    torch.save([torch.zeros(1)], released / "dream_embedding.bin")
    with pytest.raises(CheckpointError, match="something else than named tensors"):
        load(released)


@pytest.mark.parametrize("name", ["dream_embedding.bin", "model.safetensors"])
@pytest.mark.parametrize("size", [0, 100], ids=["empty", "truncated"])
def test_a_damaged_file_is_named_in_one_line(released, name, size) -> None:
    os.truncate(released / name, size)
    with pytest.raises(CheckpointError, match=f"{name} cannot be read") as caught:
        load(released)
    assert "\n" not in str(caught.value)


def test_an_error_of_the_hub_without_a_message_is_named_by_its_type(monkeypatch) -> None:
    def refuse(_):
        raise TimeoutError

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=r"cannot be downloaded from the hub: TimeoutError$"):
        load("someone/something")


@pytest.mark.parametrize("part", ["clip", "diffusion"])
def test_a_missing_sub_model_says_how_to_give_it(released, tmp_path, part) -> None:
    shutil.move(released / part, tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=rf"--model-arg {part}=DIR"):
        load(released)
    with pytest.raises(CheckpointError, match="is not a folder"):
        load(released, **{part: tmp_path / "nowhere"})
    assert load(released, **{part: tmp_path / "elsewhere"})[0].config.num_dream_queries == 8


def test_sub_models_are_not_for_the_native_layout(native, tmp_path) -> None:
    with pytest.raises(UsageError, match="leave out clip"):
        load(native, clip=tmp_path)


@pytest.mark.parametrize("name", ["clip_vision_embedding.bin", "dream_embedding.bin", "tokenizer.json", "config.json"])
def test_a_missing_file_is_named(released, name) -> None:
    (released / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load(released)


def test_names_in_the_configuration_are_never_imported(released) -> None:
    config = json.loads((released / "config.json").read_text())
    for plugin in config["plugins_init_kwargs"].values():
        plugin["_target_"] = "this_module.must_not.be_imported"
    (released / "config.json").write_text(json.dumps(config))
    load(released)


def test_a_tokenizer_with_other_ids_is_an_error(released) -> None:
    config = json.loads((released / "config.json").read_text())
    ids = config["special_tokens2ids_dict"]["additional_special_tokens"]
    ids["<im_start>"], ids["<im_end>"] = ids["<im_end>"], ids["<im_start>"]
    (released / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="<im_start> is"):
        load(released)


def test_from_pretrained_of_the_released_layout_points_to_load(released) -> None:
    with pytest.raises(CheckpointError, match=r"dreamllm\.load"):
        DreamLLMForConditionalGeneration.from_pretrained(released)


def test_a_missing_folder_is_an_error(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        load(tmp_path / "nowhere")


def test_convert_writes_into_new_folders_only(native, tmp_path) -> None:
    with pytest.raises(UsageError, match="exists and is not an empty folder"):
        convert(native, native, "released")
    with pytest.raises(UsageError, match="native, released"):
        convert(native, tmp_path / "new", "theirs")
