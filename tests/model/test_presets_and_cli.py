"""Presets are marked as untrained; the command line does what it says or fails with one line and status 2."""

from __future__ import annotations

import ast
import base64
import io
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dreamllm
from dreamllm import DreamLLMConfig, DreamLLMForConditionalGeneration, checkpoint, cli, presets
from dreamllm.configuration import SPECIAL_TOKEN_FIELDS, ImageDecoderConfig
from dreamllm.errors import CheckpointError, UsageError
from dreamllm.interleaved import InterleavedDocument
from dreamllm.options import Preset

DOCS = Path(__file__).parents[2] / "docs" / "model.md"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["dreamllm", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return int(exit_.value.code or 0)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one, other, third = (presets.build("tiny", seed)[0].state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not torch.equal(one["dream_queries"], third["dream_queries"])
    assert one["dream_queries"].std() == pytest.approx(0.02, rel=0.2)


def test_tiny_is_tiny_and_untrained() -> None:
    model, _ = presets.build("tiny")
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_500_000
    assert model.config.untrained


def test_7b_has_the_released_shapes() -> None:
    ids = {field: 32000 + i for i, field in enumerate(SPECIAL_TOKEN_FIELDS.values())}
    config = DreamLLMConfig(**presets.config_fields(Preset.large, 32008), **ids)
    with torch.device("meta"):
        model = DreamLLMForConditionalGeneration(config)
    assert config.num_image_tokens == 256
    assert config.image_decoder_config.latent_shape == (4, 64, 64)
    assert model.dream_queries.shape == (1, 64, 4096)
    assert model.visual_projector.layers[0].weight.shape == (4096, 1024)
    assert model.condition_projector.layers[0].weight.shape == (1024, 4096)
    assert model.condition_projector.layers[0].bias is None
    # Stable Diffusion 2.1's published sizes: 865.9 million in the UNet, 83.7 million in the autoencoder.
    assert sum(p.numel() for p in model.image_decoder.unet.parameters()) == 865_910_724
    assert sum(p.numel() for p in model.image_decoder.vae.parameters()) == 83_653_863
    # Vicuna-7B's, with the eight added rows in embeddings and head.
    assert sum(p.numel() for p in model.language_model.parameters()) == 6_738_415_616 + 2 * 8 * 4096


def test_7b_needs_a_tokenizer() -> None:
    with pytest.raises(UsageError, match="--tokenizer FILE"):
        presets.build("7b")


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"im_end_token_id": None}, UsageError, "no id for <im_end>"),
        ({"im_end_token_id": 32008}, UsageError, "below vocab_size"),
        ({"im_end_token_id": 32000}, UsageError, "must differ"),
        ({"plugins_init_kwargs": {}}, CheckpointError, "released layout"),
    ],
)
def test_an_invalid_configuration_is_an_error(fields, error, words) -> None:
    ids = {field: 32000 + i for i, field in enumerate(SPECIAL_TOKEN_FIELDS.values())}
    with pytest.raises(error, match=words):
        DreamLLMConfig(**presets.config_fields(Preset.large, 32008), **{**ids, **fields})


def test_an_image_decoder_of_another_kind_is_an_error() -> None:
    with pytest.raises(UsageError, match="only stable-diffusion"):
        ImageDecoderConfig(kind="sdxl")


def test_init_generate_generate_image_and_convert(monkeypatch, capsys, tmp_path, image) -> None:
    assert run(monkeypatch, "init", tmp_path / "m", "--preset", "tiny", "--seed", 4) == 0
    assert "untrained" in capsys.readouterr().out
    image(0).save(tmp_path / "x.png")
    options = ["--model", tmp_path / "m", "--device", "cpu"]
    prompt = ["USER: <image> what? ASSISTANT:", "--image", tmp_path / "x.png"]
    assert run(monkeypatch, "generate", *prompt, *options, "--max-new-tokens", 4) == 0
    assert "the model is untrained" in capsys.readouterr().err
    files = [tmp_path / "a.png", tmp_path / "new" / "b.png"]
    for file in files:
        assert run(monkeypatch, "generate-image", "a ring", file, "--steps", 2, *options) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    assert run(monkeypatch, "convert", tmp_path / "m", tmp_path / "r", "--to", "released") == 0
    assert (tmp_path / "r" / "stable_diffusion_head.bin").is_file()


def test_the_embedded_checkpoint_is_the_default(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--steps", 10, "--device", "cpu"]
    assert run(monkeypatch, "generate-image", "a red circle on a white background", "circle.png", *options) == 0
    question = ["<image> What is in the image?", "--image", "circle.png", "--chat", "--device", "cpu"]
    assert run(monkeypatch, "generate", *question) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "red circle"


def test_generate_interleaved_writes_the_document_with_its_images(
    monkeypatch, capsys, tmp_path, own_model, processor
) -> None:
    with torch.no_grad():  # a model that begins an image at once
        prompt = processor(processor.apply_chat_template([{"role": "user", "content": "a ring"}]))
        last = own_model.get_decoder()(input_ids=prompt["input_ids"]).last_hidden_state[0, -1]
        own_model.get_output_embeddings().weight[own_model.config.dream_start_token_id] = 50 * last
    checkpoint.save(tmp_path / "m", own_model, processor)
    options = ["--model", tmp_path / "m", "--chat", "--steps", 2, "--device", "cpu"]
    command = ["generate-interleaved", "a ring", tmp_path / "story", *options]
    assert run(monkeypatch, *command, "--max-new-tokens", 6, "--max-images", 1) == 0
    output = capsys.readouterr()
    written = (tmp_path / "story" / "document.md").read_text(encoding="utf-8")
    assert written.startswith("![](0.png)\n")
    assert "![](0.png)" in output.out
    assert "ended by the limit on" in output.err
    assert {path.name for path in (tmp_path / "story").iterdir()} == {"document.md", "0.png"}
    assert run(monkeypatch, *command) == 2
    assert "not an empty folder" in capsys.readouterr().err


class _Page(HTMLParser):
    """What a page contains: its tags with their attributes, and its text."""

    def __init__(self, file) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_generate_interleaved_writes_one_page(monkeypatch, capsys, tmp_path, own_model, processor, image) -> None:
    def stream(prompts, *_, **given):
        assert given["seeds"] == [3]
        parts = ("A <script>ring</script>\x1b[2J & more", image(1), "end")
        yield from ((0, piece) for piece in ("A <script>ring", "</script>\x1b[2J & more", image(1), "end"))
        yield 0, InterleavedDocument(parts, "images", ())

    monkeypatch.setattr(DreamLLMForConditionalGeneration, "stream_interleaved", lambda _, *a, **k: stream(*a, **k))
    assert run(monkeypatch, "init", tmp_path / "m") == 0
    image(0).resize((3000, 10)).save(tmp_path / "x.png")
    capsys.readouterr()
    prompt = 'like <image>"><img src=x onerror=alert(1)>'
    command = ["generate-interleaved", prompt, "--html", tmp_path / "new" / "page.html", "--model", tmp_path / "m"]
    command += ["--image", tmp_path / "x.png", "--device", "cpu", "--seed", 3, "--steps", 2]
    assert run(monkeypatch, *command) == 0
    output = capsys.readouterr()
    assert output.out == (
        f"A <script>ring</script>\ufffd[2J & more\n![](0.png)\nend\n{tmp_path / 'new' / 'page.html'}\n"
    )
    assert "ended by the limit on images" in output.err
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]

    page = _Page(tmp_path / "new" / "page.html")
    assert "A <script>ring</script>" in page.text
    assert '"><img src=x onerror=alert(1)>' in page.text
    assert "ended by the limit on images" in page.text
    assert "temperature 0, seed 3" in page.text
    assert "random weights" in page.text
    assert not page.all("script") + page.all("link") + page.all("iframe")
    shown, generated = page.all("img")
    assert all(set(tag) <= {"class", "alt", "width", "height", "src"} for tag in (shown, generated))
    assert (shown["alt"], generated["alt"]) == ("input image 1", "generated image 1")
    assert shown["width"] == "1024"  # large input images are reduced
    data = (generated["src"] or "").removeprefix("data:image/png;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == image(1).tobytes()
    policy = next(tag["content"] for tag in page.all("meta") if tag.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert run(monkeypatch, *command) == 2
    assert "page.html exists" in capsys.readouterr().err


def test_chat_answers_until_the_input_ends(monkeypatch, capsys, tmp_path, image) -> None:
    assert run(monkeypatch, "init", tmp_path / "m") == 0
    image(0).save(tmp_path / "x.png")
    lines = iter(["/image nowhere.png", f"/image {tmp_path / 'x.png'}", "what is this?", "", "and now?", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert run(monkeypatch, "chat", "--model", tmp_path / "m", "--device", "cpu", "--max-new-tokens", 3) == 0
    output = capsys.readouterr()
    assert output.out.count("model: ") == 2
    assert "there is no file nowhere.png" in output.err


def test_chat_goes_on_after_what_it_cannot_use(monkeypatch, capsys, tmp_path, built, image) -> None:
    """An image stays for the next message if a message is refused, and the model is asked as if that had not been."""
    asked: list[tuple[str, int]] = []

    def answer(model, processor, text: str, images: list[Path], limit: int) -> str:
        processor(text, images or None)
        asked.append((text.removesuffix("ASSISTANT:")[-40:], len(images)))
        return "yes"

    monkeypatch.setattr(checkpoint, "load", lambda *arguments, **options: built)
    monkeypatch.setattr(cli, "find_checkpoint", lambda model: tmp_path)
    monkeypatch.setattr(cli, "_answer", answer)
    image(0).save(tmp_path / "x.png")
    (tmp_path / "bad.png").write_bytes(b"none")
    typed = [f"/image {tmp_path / 'bad.png'}", "/image", f"/image {tmp_path / 'x.png'}", "what is <image>?", "and?"]
    lines = iter([*typed, "a \udcff", "so?", "/clear", "and now?", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert run(monkeypatch, "chat", "--device", "cpu") == 0
    output = capsys.readouterr()
    assert [images for _, images in asked] == [1, 1, 0]
    assert asked[1][0].endswith("USER: <image>and? ASSISTANT: yes</s>USER: so? "[-40:])
    assert asked[2][0].endswith("USER: and now? ")
    assert "yes" not in asked[2][0]
    assert output.out.count("model: yes") == 3
    bad, usage, placeholder, encoding = output.err.splitlines()[1:]
    assert bad.startswith(f"image {tmp_path / 'bad.png'} cannot be read")
    assert usage == "name an image file: /image FILE"
    assert "one <image> for each image" in placeholder
    assert "not UTF-8" in encoding
    assert run(monkeypatch, "chat", "--image", tmp_path / "bad.png") == 2  # at once


@pytest.mark.parametrize("verb", [["generate"], ["generate", "--chat"], ["generate-image"], ["generate-interleaved"]])
@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a red \udcff circle", "the prompt is not UTF-8"),  # as Python gives bytes that are no text
        ("red " * 3000, "leaves no room for an {}: the model has 2048 positions"),
    ],
    ids=["not-utf-8", "too-long"],
)
def test_a_prompt_that_the_model_cannot_read_is_refused(
    monkeypatch, capsys, tmp_path, built, verb, prompt, words
) -> None:
    monkeypatch.setattr(checkpoint, "load", lambda *arguments, **options: built)
    monkeypatch.setattr(cli, "find_checkpoint", lambda model: tmp_path)
    output = {"generate": [], "generate-image": [tmp_path / "x.png"], "generate-interleaved": [tmp_path / "story"]}
    assert run(monkeypatch, *verb, prompt, *output[verb[0]], "--device", "cpu") == 2
    _, error = capsys.readouterr().err.splitlines()  # the first line says that the model is untrained
    assert words.format("image" if verb == ["generate-image"] else "answer") in error
    assert not list(tmp_path.iterdir())


IMAGE = ["generate-image", "hello", "{}/x.png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["init", "{}/m", "--preset", "7b"], "--tokenizer FILE"),
        (["init", "{}/m", "--preset", "huge"], "'tiny', '7b'"),
        (["init", "{}/m", "--dtype", "int4"], "'float32', 'bfloat16', 'float16'"),
        (["init", "{}"], "not an empty folder"),
        (["init", "{}/file/m"], "file is a file"),
        (["convert", "{}/nowhere", "{}/m", "--to", "theirs"], "'native', 'released'"),
        (["merge", "{}", "{}", "{}"], "not an empty folder"),
        (["train", "{}/nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["train", "{}/nowhere.yaml", "--resume", "yes"], "'auto', 'never'"),
        (["generate", "hello", "--model", "{}/nowhere"], "is not a folder"),
        (["generate", "hello", "--image", "{}/nowhere.png"], "does not exist"),
        (
            ["generate", "hello", "--device", "gpu"],
            "unknown --device 'gpu'; choose from auto, cpu, cuda or cuda:NUMBER",
        ),
        (["generate", "hello", "--dtype", "fp16"], "'float32', 'bfloat16', 'float16'"),
        (["generate-interleaved", "hello", "{}/file/story"], "file is a file"),
        (["generate-interleaved", "hello"], "give a FOLDER, --html FILE or both"),
        (["generate-interleaved", "hello", "--html", "{}/file"], "file exists"),
        (["generate-interleaved", "hello", "--html", "{}/file/x.html"], "file is a file"),
        (["generate-interleaved", "hello", "{}/s", "--html", "{}/s"], "is the folder of the document"),
        (["generate-interleaved", "hello", "{}/s/t", "--html", "{}/s"], "is the folder of the document"),
        (["generate-image", "hello", "{}/x.xyz"], "cannot save an image as"),
        (["generate-image", "hello", "{}/file/x.png"], "cannot create the folder of"),
        (["generate", "hello", "--seed", "9" * 23], "--seed is out of range: choose a number from -2**63 to 2**64 - 1"),
        ([*IMAGE, "--seed", "9" * 23], "--seed is out of range"),
        (["init", "{}/m", "--seed", "9" * 23], "--seed is out of range"),
        (["generate", "hello", "--temperature", "inf"], "--temperature inf: choose 0, or a number from 1e-6 to 1e6"),
        (["generate-interleaved", "hello", "{}/s", "--temperature", "1e-300"], "--temperature 1e-300: choose 0"),
        ([*IMAGE, "--scheduler", "heun"], "'ddpm', 'ddim', 'dpm-solver++'"),
        ([*IMAGE, "--clip", "{}/nowhere"], "does not exist"),
        (["compose"], "No such command"),
    ],
)
def test_errors_are_one_line_and_status_2_before_anything_is_loaded(
    monkeypatch, capsys, tmp_path, arguments, words
) -> None:
    for name in ("checkpoint", "presets", "training"):  # whatever imports one of them fails
        monkeypatch.setitem(sys.modules, f"dreamllm.{name}", None)
        monkeypatch.delattr(dreamllm, name, raising=False)
    (tmp_path / "file").touch()
    assert run(monkeypatch, *(argument.format(tmp_path) for argument in arguments)) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_an_output_that_cannot_be_written_is_an_error_before_anything_is_loaded(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "dreamllm.checkpoint", None)
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)  # root may write anywhere
    for output in (["story"], ["--html", "page.html"], ["--html", "new/page.html"]):
        arguments = [tmp_path / each if each[0] != "-" else each for each in output]
        assert run(monkeypatch, "generate-interleaved", "hello", *arguments) == 2
        assert f"{tmp_path} is not writable" in capsys.readouterr().err


def test_help_and_import_load_nothing_heavy() -> None:
    code = (
        "import sys, dreamllm\nfrom dreamllm import cli\nsys.argv = ['dreamllm', '--help']\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'diffusers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def test_every_verb_shows_an_example_and_the_accepted_values(monkeypatch, capsys) -> None:
    for verb in ("generate", "generate-image", "generate-interleaved", "chat", "init", "convert", "train", "merge"):
        assert run(monkeypatch, verb, "--help") == 0
        assert f"Example: dreamllm {verb}" in capsys.readouterr().out
    for verb, values in {
        "generate": ["float32|bfloat16|float16", "auto, cpu, cuda or cuda:NUMBER"],
        "generate-image": ["ddpm|ddim|dpm-solver++"],
        "init": ["tiny|7b"],
        "convert": ["native|released"],
        "train": ["auto|never"],
    }.items():
        run(monkeypatch, verb, "--help")
        output = capsys.readouterr().out
        assert all(value in output for value in values)


def test_version_and_no_command(monkeypatch, capsys) -> None:
    assert run(monkeypatch, "--version") == 0
    assert re.fullmatch(r"dreamllm \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)
    assert run(monkeypatch) == 2
    assert "generate-interleaved" in capsys.readouterr().err


@pytest.mark.parametrize("page", [DOCS, DOCS.parents[1] / "README.md"], ids=lambda page: page.name)
def test_the_first_example_answers_right_and_saves_a_right_image(monkeypatch, capsys, tmp_path, page) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    assert len(ast.parse(code[1]).body) == 6  # an import and five lines
    exec(code[1], {})  # noqa: S102
    assert capsys.readouterr().out == "red heart\n"
    red, green, blue = np.asarray(Image.open(tmp_path / "heart.png")).astype(int).transpose(2, 0, 1)
    heart = (red > green + 60) & (red > blue + 60)
    assert 0.03 < heart.mean() < 0.3
    assert (green > red)[~heart].mean() > 0.9  # mint


def test_public_names_are_there() -> None:
    assert all(getattr(dreamllm, name) is not None for name in dreamllm.__all__)
    assert set(dreamllm.__all__) <= set(dir(dreamllm))
    with pytest.raises(AttributeError):
        _ = dreamllm.nothing
