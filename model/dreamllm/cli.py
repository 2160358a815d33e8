"""The command `dreamllm`. Each verb is a few lines around the Python API; heavy imports wait until a verb runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dreamllm.errors import DreamLLMError, UsageError

if TYPE_CHECKING:
    from dreamllm.modeling import DreamLLMForConditionalGeneration
    from dreamllm.processing import DreamLLMProcessor

app = typer.Typer(
    name="dreamllm",
    help="DreamLLM (arXiv 2309.11499): one causal decoder that reads and generates images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Checkpoint = Annotated[str, typer.Argument(help="Folder or hub id, in our layout or the released one.")]
Clip = Annotated[Path | None, typer.Option(help="Folder of the CLIP model that a released checkpoint names.")]
Diffusion = Annotated[
    Path | None, typer.Option(help="Folder of the Stable Diffusion model that a released checkpoint names.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; as stored by default.")]
Steps = Annotated[int, typer.Option(min=1, help="Steps of the sampler.")]
Guidance = Annotated[float, typer.Option(help="Classifier-free guidance; 1 is none.")]
SamplerName = Annotated[str, typer.Option(help="ddpm, ddim or dpm-solver++.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Limit on the tokens of an answer.")]


@app.command(epilog="Example: dreamllm init models/tiny --preset tiny")
def init(
    folder: Annotated[Path, typer.Argument(help="New folder for the checkpoint.")],
    preset: Annotated[str, typer.Option(help="tiny or 7b.")] = "tiny",
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Llama's tokenizer.model or tokenizer.json; 7b needs it.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Write a checkpoint with random weights."""
    from dreamllm import checkpoint, presets

    checkpoint.check_new(folder)
    model, processor = presets.build(preset, seed, tokenizer_file=tokenizer, dtype=checkpoint.torch_dtype(dtype))
    checkpoint.save(folder, model, processor)
    count = sum(parameter.numel() for parameter in model.parameters())
    typer.echo(f"{folder}: {preset}, {count:,} parameters, random weights (seed {seed}), untrained")


@app.command(epilog="Example: dreamllm generate models/tiny 'USER: <image> What is this? ASSISTANT:' --image cat.png")
def generate(
    model: Checkpoint,
    prompt: Annotated[str, typer.Argument(help="Text; <image> stands for the next --image.")],
    image: Annotated[list[Path] | None, typer.Option(help="An image to read; repeat for more.")] = None,
    generate_images: Annotated[
        Path | None, typer.Option(help="Generate images the prompt into this file instead of answering it.")
    ] = None,
    max_new_tokens: MaxNewTokens = 256,
    num_beams: Annotated[int, typer.Option(min=1)] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy or beam search; above, sampling.")] = 0.0,
    steps: Steps = 50,
    guidance_scale: Guidance = 7.5,
    scheduler: SamplerName = "ddim",
    seed: Annotated[int, typer.Option(help="Seed of the noise or of sampling.")] = 0,
    clip: Clip = None,
    diffusion: Diffusion = None,
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """Answer a prompt, or generate images it."""
    if generate_images is not None:
        _check_image(generate_images)
    loaded, processor = _load(model, clip, diffusion, device, dtype)
    if generate_images is not None:
        inputs = processor(prompt, image or None)
        images = loaded.generate_images(
            inputs,
            seeds=[seed],
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            scheduler=scheduler,
            progress=sys.stderr.isatty(),
        )
        images[0].save(generate_images)
        typer.echo(str(generate_images))
        return
    typer.echo(_answer(loaded, processor, prompt, image or [], max_new_tokens, num_beams, temperature, seed))


@app.command(
    epilog="Example: dreamllm compose models/tiny 'Tell a story about a cat, with images.' story --chat --max-images 2"
)
def generate_interleaved(
    model: Checkpoint,
    prompt: Annotated[str, typer.Argument(help="Text; <image> stands for the next --image.")],
    folder: Annotated[Path, typer.Argument(help="New folder for document.md and its images.")],
    image: Annotated[list[Path] | None, typer.Option(help="An image to read; repeat for more.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask in the model's conversation template.")] = False,
    max_new_tokens: MaxNewTokens = 512,
    max_images: Annotated[int, typer.Option(min=0, help="A document that begins another image ends there.")] = 4,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy; above, sampling.")] = 0.0,
    steps: Steps = 50,
    guidance_scale: Guidance = 7.5,
    scheduler: SamplerName = "ddim",
    seed: Annotated[int, typer.Option(help="Seed of sampling and of the images' noise.")] = 0,
    clip: Clip = None,
    diffusion: Diffusion = None,
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """Go on with a prompt in text and images."""
    from dreamllm import checkpoint

    checkpoint.check_new(folder)
    loaded, processor = _load(model, clip, diffusion, device, dtype)
    text = processor.apply_chat_template([{"role": "user", "content": prompt}]) if chat else prompt
    (document,) = loaded.generate_interleaved(
        processor(text, image or None),
        processor,
        max_new_tokens=max_new_tokens,
        max_images=max_images,
        do_sample=temperature > 0,
        temperature=temperature or 1.0,
        seeds=[seed],
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        scheduler=scheduler,
        progress=sys.stderr.isatty(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    for number, generated in enumerate(document.images):
        generated.save(folder / f"{number}.png")
    names = iter(range(len(document.images)))
    paragraphs = [part if isinstance(part, str) else f"![]({next(names)}.png)" for part in document.parts]
    (folder / "document.md").write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")
    typer.echo("\n".join(paragraphs))
    typer.echo(str(folder / "document.md"))
    if document.finish_reason != "stop":
        typer.echo(f"ended by the limit on {'images' if document.finish_reason == 'images' else 'tokens'}", err=True)


@app.command(epilog="Example: dreamllm chat models/tiny --image cat.png")
def chat(
    model: Checkpoint,
    image: Annotated[list[Path] | None, typer.Option(help="An image shown with the first message.")] = None,
    max_new_tokens: MaxNewTokens = 256,
    clip: Clip = None,
    diffusion: Diffusion = None,
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """Talk with the model. `/image FILE` shows it an image, `/quit` or end of input leaves."""
    loaded, processor = _load(model, clip, diffusion, device, dtype)
    waiting, shown, messages = list(image or []), [], []
    while True:
        try:
            line = input("you: ").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        if line.startswith("/image "):
            path = Path(line.removeprefix("/image ").strip())
            if path.is_file():
                waiting.append(path)
            else:
                typer.echo(f"there is no file {path}", err=True)
            continue
        if not line:
            continue
        parts = [{"type": "image"} for _ in waiting] + [{"type": "text", "text": line}]
        messages.append({"role": "user", "content": parts})
        shown, waiting = shown + waiting, []
        answer = _answer(loaded, processor, processor.apply_chat_template(messages), shown, max_new_tokens)
        messages.append({"role": "assistant", "content": answer})
        typer.echo(f"model: {answer}")


@app.command(
    epilog="Example: dreamllm convert dreamllm-7b-chat models/ours --to ours --clip clip-vit-l --diffusion sd-2-1-base"
)
def convert(
    source: Checkpoint,
    target: Annotated[Path, typer.Argument(help="New folder.")],
    to: Annotated[str, typer.Option(help="ours or released.")],
    clip: Clip = None,
    diffusion: Diffusion = None,
) -> None:
    """Write a checkpoint in the other layout."""
    from dreamllm import checkpoint

    checkpoint.convert(source, target, to, clip=clip, diffusion=diffusion)
    typer.echo(f"{target}: {to} layout")


@app.command(epilog="Example: dreamllm train igpt-7b.yaml --set trainer.max_steps=100 --dry-run")
def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a YAML file.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say sizes, costs and time, write the first batch for the eye, and stop.")
    ] = False,
    resume: Annotated[
        str, typer.Option(help="auto goes on from the last checkpoint in the output folder; never wants it empty.")
    ] = "auto",
    change: Annotated[
        list[str] | None, typer.Option("--set", help="key=value put into the recipe; repeat for more.")
    ] = None,
) -> None:
    """Train by a recipe; killed and started again, it goes on where it was."""
    from dreamllm.recipe import load_recipe

    made = load_recipe(recipe, change or [])
    if dry_run:
        from dreamllm.training.dry_run import dry_run as look

        typer.echo("\n".join(look(made)))
        return
    from transformers.utils import logging

    from dreamllm.training import run

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    record = run.train(made, resume)
    if os.environ.get("RANK", "0") != "0":
        return
    losses = ", ".join(f"{name} {value:.4f}" for name, value in record["last"].items())
    typer.echo(f"{made.output}: {record['stage']}, {record['steps']} steps; {losses}")


@app.command(epilog="Example: dreamllm merge runs/alignment-comprehension runs/alignment-generation models/aligned")
def merge(
    comprehension: Annotated[Path, typer.Argument(help="Checkpoint whose visual projector is taken.")],
    text_to_image: Annotated[
        Path, typer.Argument(help="Checkpoint whose condition projector and dream queries are taken.")
    ],
    target: Annotated[Path, typer.Argument(help="New folder.")],
) -> None:
    """Put the halves of stage I, trained apart, into one checkpoint."""
    from dreamllm.training.assemble import merge as merge_halves

    merge_halves(comprehension, text_to_image, target)
    typer.echo(f"{target}: merged")


def _check_image(file: Path) -> None:
    """UsageError where no image can be saved, before one is generated; its folder is made."""
    from PIL import Image

    if Image.registered_extensions().get(file.suffix.lower()) not in Image.SAVE:
        raise UsageError(f"--generate images {file}: an image is saved as .png, .jpg or another kind that Pillow knows")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--generate images {file}: its folder cannot be made ({error.strerror})") from None
    if file.is_dir():
        raise UsageError(f"--generate images {file} is a folder: name a file")


def _load(
    model: str, clip: Path | None, diffusion: Path | None, device: str, dtype: str | None
) -> tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]:
    import torch
    from transformers.utils import logging

    from dreamllm.checkpoint import load

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        known = device == "auto" or torch.device(device).type in ("cpu", "cuda")
    except RuntimeError:
        known = False
    if not known:
        raise UsageError(f"--device {device!r} is not known; there are auto, cpu, cuda and cuda:N")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {device}: this machine has no CUDA device that torch can use; try --device cpu")
    loaded, processor = load(model, clip=clip, diffusion=diffusion, device=device, dtype=dtype)
    if loaded.config.untrained:
        typer.echo(f"{model}: the weights are random, the model is untrained", err=True)
    return loaded, processor


def _answer(
    model: DreamLLMForConditionalGeneration,
    processor: DreamLLMProcessor,
    prompt: str,
    images: list[Path],
    max_new_tokens: int,
    num_beams: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    import torch

    inputs = processor(prompt, images or None).to(model.device)
    torch.manual_seed(seed)
    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    ids = model.generate(**inputs, max_new_tokens=max_new_tokens, num_beams=num_beams, **sampling)
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :]).strip()


def main() -> None:
    """Entry point: errors that are the user's to solve are one line, and exit status 2."""
    try:
        app()
    except DreamLLMError as error:
        print(f"dreamllm: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
