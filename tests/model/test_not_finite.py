"""NaN and infinity are errors, at load or where they arise: they become no text, no image and no part of a document."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from dreamllm import checkpoint, cli
from dreamllm.errors import CheckpointError, NotFiniteError
from dreamllm.image_decoder import to_pil

FEW = {"num_inference_steps": 2, "guidance_scale": 2.0, "seeds": [0, 1]}


@contextmanager
def logits(model, change: Callable[[torch.Tensor], None]) -> Generator[None]:
    """Within it, `change` is applied to the logits (B, T, V) of every pass."""
    hook = model.language_model.lm_head.register_forward_hook(lambda _module, _inputs, output: change(output))
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dream_queries", torch.nan),
        ("language_model.lm_head.weight", torch.inf),
        ("image_decoder.unet.conv_out.bias", torch.nan),
    ],
)
def test_a_checkpoint_with_such_a_weight_is_refused_by_its_name(own_model, processor, tmp_path, name, value) -> None:
    dict(own_model.named_parameters())[name].data.view(-1)[-1] = value
    checkpoint.save(tmp_path / "model", own_model, processor)
    with pytest.raises(CheckpointError, match=rf"NaN or infinite values in {name}: take"):
        checkpoint.load(tmp_path / "model")


def test_latents_or_pixels_of_one_image_spoil_that_image_only(model) -> None:
    latents = torch.randn(
        3, *model.config.image_decoder_config.latent_shape, generator=torch.Generator().manual_seed(0)
    )
    sound = model.decode_latents(latents, "tensor")
    for value in (torch.nan, torch.inf, -torch.inf):
        spoilt = latents.clone()
        spoilt[1, 0, 0, 0] = value
        pixels = model.decode_latents(spoilt, "tensor")
        assert pixels[1].isnan().all()
        torch.testing.assert_close(pixels[[0, 2]], sound[[0, 2]])
        with pytest.raises(NotFiniteError, match="pixels that are not finite"):
            model.decode_latents(spoilt)
    with pytest.raises(NotFiniteError):
        to_pil(torch.full((1, 3, 2, 2), torch.nan))


def test_a_unet_that_computes_nan_paints_nothing(own_model, processor) -> None:
    own_model.image_decoder.unet.conv_out.bias.data[:] = torch.nan
    prompts = processor(["a red circle", "a blue one"])
    assert own_model.generate_images(prompts, output_type="tensor", **FEW).isnan().all()
    with pytest.raises(NotFiniteError):
        own_model.generate_images(prompts, **FEW)


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_document_ends_where_its_logits_do_and_the_others_go_on(model, processor, do_sample, value) -> None:
    def generate() -> list:
        return model.generate_interleaved(
            processor(["one", "two"]), processor, max_new_tokens=6, max_images=0, do_sample=do_sample, seeds=[0, 1]
        )

    whole, step = generate(), 0

    def spoil(output: torch.Tensor) -> None:
        nonlocal step
        step += 1
        if step == 3:
            output[1, :, 17] = value

    with logits(model, spoil):
        first, second = generate()
    assert first == whole[0]
    assert second.finish_reason == "not-finite"
    assert second.token_ids == whole[1].token_ids[:2]


@pytest.mark.parametrize(
    ("verb", "at_load"),
    [
        ("generate", True),
        ("generate", False),
        ("generate-image", False),
        ("generate-interleaved", False),
        ("chat", False),
    ],
)
def test_the_command_line_says_so_in_one_line(
    own_model, processor, tmp_path, monkeypatch, capsys, verb, at_load
) -> None:
    broken = copy.deepcopy(own_model)
    broken.dream_queries.data[0, 0] = torch.nan
    if at_load:
        checkpoint.save(tmp_path / "model", broken, processor)
    else:
        broken.language_model.lm_head.weight.data[5] = torch.nan
        monkeypatch.setattr(checkpoint, "load", lambda *_, **__: (broken, processor))
    written = tmp_path / "written.png"
    arguments = {
        "generate": ["a"],
        "generate-image": ["a", written, "--steps", "2"],
        "generate-interleaved": ["a", written.with_suffix("")],
        "chat": [],
    }[verb]
    monkeypatch.setattr("builtins.input", lambda _: "hello")
    Path(tmp_path / "model").mkdir(exist_ok=True)
    with pytest.raises(SystemExit) as ended:
        cli.main(list(map(str, [verb, *arguments, "--model", tmp_path / "model", "--device", "cpu"])))
    assert ended.value.code == 2
    (error,) = (line for line in capsys.readouterr().err.splitlines() if "error" in line)
    assert "--dtype float32" in error
    assert not written.exists()
    assert not written.with_suffix("").exists()
