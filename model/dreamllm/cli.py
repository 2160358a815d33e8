"""The command `dreamllm`. Each verb is a few lines around the Python API; heavy imports wait until its options are checked."""

import contextlib
import functools
import inspect
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dreamllm.errors import NOT_FINITE, DreamLLMError, InputError, NotFiniteError, UsageError, naming, one_line, refusal
from dreamllm.files import (
    check_image_file,
    check_new_file,
    check_new_folder,
    find_checkpoint,
    new_folder,
    read_image,
    temporary,
    write_text,
)
from dreamllm.options import (
    DEVICES,
    Dtype,
    ImagePreset,
    Layout,
    Preset,
    Resume,
    SchedulerName,
    check_device,
    check_seed,
    check_temperature,
    check_tokenizer,
)

if TYPE_CHECKING:
    from PIL import Image

    from dreamllm.interleaved import InterleavedDocument
    from dreamllm.processing import DreamLLMProcessor

INTERRUPTED, TERMINATED = 130, 143

app = typer.Typer(
    help="DreamLLM (arXiv 2309.11499): one causal language model that understands and generates images.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Prompt = Annotated[str, typer.Argument(help="Text; each <image> is the placeholder of the next --image.")]
Images = Annotated[
    list[Path] | None,
    typer.Option("--image", metavar="FILE", exists=True, dir_okay=False, help="Input image; may be repeated."),
]
Chat = Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's conversation template.")]
Seed = Annotated[int, typer.Option(callback=check_seed, help="Seed for sampling and noise.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Maximum number of generated tokens.")]
OWN = "[default: the checkpoint's own]"
Temperature = Annotated[
    float | None,
    typer.Option(min=0, callback=check_temperature, help=f"Sampling temperature; 0: no sampling.  {OWN}"),
]
ENDS = {
    "length": "ended by the limit on tokens",
    "images": "ended by the limit on images",
}
SUBMODEL = "for a released checkpoint that does not contain it."
Clip = Annotated[Path | None, typer.Option(metavar="DIR", exists=True, file_okay=False, help=f"CLIP model, {SUBMODEL}")]
Diffusion = Annotated[
    Path | None, typer.Option(metavar="DIR", exists=True, file_okay=False, help=f"Stable Diffusion model, {SUBMODEL}")
]


def _load(
    model: Annotated[
        str | None,
        typer.Option(metavar="DIR|ID", help="Checkpoint: a folder or hub id.  [default: the embedded one]"),
    ] = None,
    clip: Clip = None,
    diffusion: Diffusion = None,
    device: Annotated[str, typer.Option(metavar="NAME", callback=check_device, help=f"{DEVICES}.")] = "auto",
    dtype: Annotated[Dtype | None, typer.Option(help="Dtype of the weights.  [default: as stored]")] = None,
) -> tuple[Any, "DreamLLMProcessor", Callable[[str], None]]:
    """The model, its processor, and what to call with a prompt. The parameters are options of every verb that uses a model."""
    folder = find_checkpoint(model)
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {device}: torch finds no CUDA device on this machine; try --device cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    from dreamllm.card import WorldNotice
    from dreamllm.checkpoint import load

    _hide_progress_bars()
    loaded, processor = load(folder, clip=clip, diffusion=diffusion, device=device, dtype=dtype)
    if loaded.config.untrained:
        typer.echo(f"{folder}: the weights are random, the model is untrained", err=True)
    notice = WorldNotice(folder, processor.tokenizer)

    def notify(prompt: str) -> None:
        if (line := notice.about(prompt)) is not None:
            typer.echo(f"dreamllm: {_printable(line)}", err=True)

    return loaded, processor, notify


def _image_options(
    steps: Annotated[int | None, typer.Option(min=1, help=f"Denoising steps.  {OWN}")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help=f"Scale of classifier-free guidance; 1 turns it off.  {OWN}")
    ] = None,
    scheduler: Annotated[SchedulerName | None, typer.Option(help=f"Diffusion scheduler.  {OWN}")] = None,
) -> dict[str, Any]:
    """Arguments of `generate_images`. The parameters are options of every verb that generates images."""
    options = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "scheduler": scheduler}
    return options | {"progress": sys.stderr.isatty()}


def _with_options(**helpers: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options of these functions to a verb's own; the verb receives each function with its arguments bound."""
    groups = {name: inspect.signature(helper).parameters for name, helper in helpers.items()}

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        def command(**values: Any) -> None:
            for name, group in groups.items():
                values[name] = functools.partial(helpers[name], **{option: values.pop(option) for option in group})
            verb(**values)

        own = {name: option for name, option in inspect.signature(verb).parameters.items() if name not in helpers}
        options = functools.reduce(lambda one, other: one | dict(other), groups.values(), own)
        command.__name__, command.__doc__, command.__annotations__ = verb.__name__, verb.__doc__, {}
        command.__dict__["__signature__"] = inspect.Signature(list(options.values()))
        return command

    return decorate


def _hide_progress_bars() -> None:
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"dreamllm {version('dreambench')}")
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None: ...


@app.command()
@_with_options(load=_load)
def generate(
    prompt: Prompt,
    load: Any,
    image: Images = None,
    chat: Chat = False,
    max_new_tokens: MaxNewTokens = 256,
    num_beams: Annotated[int | None, typer.Option(min=1, help=f"Number of beams.  {OWN}")] = None,
    temperature: Temperature = None,
    seed: Seed = 0,
) -> None:
    """Generate text from a prompt with or without images.

    Example: dreamllm generate --chat "<image> What is in the image?" --image circle.png
    """
    model, processor, notify = load()
    notify(prompt)
    text = _text(processor, prompt, chat)
    answer = _answer(model, processor, text, image or [], max_new_tokens, temperature, seed, num_beams=num_beams)
    typer.echo(_printable(answer))


@app.command()
@_with_options(image_options=_image_options, load=_load)
def generate_image(
    prompt: Prompt,
    file: Annotated[Path, typer.Argument(help="Image file to write.")],
    image_options: Any,
    load: Any,
    image: Images = None,
    preset: Annotated[
        ImagePreset | None,
        typer.Option(help="Settings of the original's demo or MS-COCO script; other options override them."),
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="What the image should not show.")] = None,
    seed: Seed = 0,
) -> None:
    """Generate an image from a prompt, or from an image with the prompt "<image>" and --image.

    Example: dreamllm generate-image "A red circle on a mint background." circle.png
    """
    check_image_file(file)
    from dreamllm.defaults import IMAGE_PRESETS, ImageSettings

    settings = IMAGE_PRESETS[preset] if preset else ImageSettings({})
    options = settings.options | {name: value for name, value in image_options().items() if value is not None}
    model, processor, notify = load()
    notify(prompt)
    if negative_prompt is not None and options.get("guidance_scale", model.image_defaults.guidance_scale) == 1:
        raise UsageError("--negative-prompt acts by guidance, which a --guidance-scale of 1 turns off")
    if unwanted := settings.negative_prompt if negative_prompt is None else negative_prompt:
        options["negative_prompts"] = processor(unwanted)
    inputs = processor(settings.prefix + prompt, image or None)
    from dreamllm.layers import check_room

    config, needed = model.config, model.config.num_dream_queries + 2
    for each in (inputs, options.get("negative_prompts", inputs)):
        check_room(each["attention_mask"], config.text_config.max_position_embeddings, needed, "an image")
    generated = model.generate_images(inputs, seeds=[seed], **options)[0]
    with temporary(file) as unfinished:
        generated.save(unfinished)
        unfinished.replace(file)
    typer.echo(str(file))


@app.command()
@_with_options(image_options=_image_options, load=_load)
def generate_interleaved(
    prompt: Prompt,
    image_options: Any,
    load: Any,
    folder: Annotated[Path | None, typer.Argument(help="New folder for document.md and its images.")] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the document as one HTML page to this new file.")
    ] = None,
    image: Images = None,
    chat: Chat = False,
    max_new_tokens: MaxNewTokens = 512,
    max_images: Annotated[int, typer.Option(min=0, help="Maximum number of images; one more ends the document.")] = 4,
    temperature: Temperature = None,
    seed: Seed = 0,
) -> None:
    """Generate a document of text and images from a prompt; its text is printed while it is generated.

    Example: dreamllm generate-interleaved --chat "Tell a story about a red circle, with images." --html story.html
    """
    if folder is None and html is None:
        raise UsageError("nothing would be written: give a FOLDER, --html FILE or both")
    if folder is not None:
        check_new_folder(folder)
    if html is not None:
        check_new_file(html)
        if folder is not None and html.absolute() in (folder.absolute(), *folder.absolute().parents):
            raise UsageError(f"--html {html} is the folder of the document or holds it: choose another name")
    model, processor, notify = load()
    notify(prompt)
    options = image_options()
    # On one terminal, the bar would overwrite the line of text.
    progress = options.pop("progress") and not sys.stdout.isatty()
    pieces = model.stream_interleaved(
        processor(_text(processor, prompt, chat), image or None),
        processor,
        max_new_tokens=max_new_tokens,
        max_images=max_images,
        **_sampling(temperature),
        seeds=[seed],
        progress=progress,
        **options,
    )
    document = _print_document(pieces)
    if document.finish_reason == "not-finite":
        raise NotFiniteError(f"the document is incomplete, nothing was written: {NOT_FINITE}")
    if folder is not None:
        _write_folder(folder, document)
        typer.echo(str(folder / "document.md"))
    end = ENDS.get(document.finish_reason)
    if html is not None:
        from dreamllm.page import html_page

        weights = ", random weights" if model.config.untrained else ""
        text = model.interleaved_defaults.override(**_sampling(temperature))
        nucleus = f", top_p {text.top_p:g}" if text.do_sample and text.top_p != 1 else ""
        images = model.image_defaults.override(**options)
        facts = {
            "model": f"{load.keywords['model'] or 'the embedded checkpoint'}{weights}",
            "decoding": f"temperature {text.temperature if text.do_sample else 0:g}{nucleus}, seed {seed}",
            "images": f"{images.scheduler}, {images.num_inference_steps} steps, guidance {images.guidance_scale:g}",
            "end": end or "ended by the model",
        }
        write_text(html, html_page(_prompt_parts(prompt, image or []), document.parts, facts))
        typer.echo(str(html))
    if end:
        typer.echo(end, err=True)


def _print_document(pieces: "Iterator[tuple[int, Any]]") -> "InterleavedDocument":
    """Print a document while it is generated, images as in document.md; returns it."""
    from dreamllm.interleaved import InterleavedDocument

    within, images = False, 0  # within a line; images so far
    for _, piece in pieces:
        if isinstance(piece, str):
            typer.echo(_printable(piece), nl=False)
            within = True
            continue
        if within:
            typer.echo()
            within = False
        if isinstance(piece, InterleavedDocument):
            return piece
        typer.echo(f"![]({images}.png)")
        images += 1
    raise AssertionError("the last piece of a document is the document")


def _write_folder(folder: Path, document: "InterleavedDocument") -> None:
    numbers = iter(range(len(document.images)))
    paragraphs = [part if isinstance(part, str) else f"![]({next(numbers)}.png)" for part in document.parts]
    with new_folder(folder) as unfinished:
        for number, generated in enumerate(document.images):
            generated.save(unfinished / f"{number}.png")
        write_text(unfinished / "document.md", "\n\n".join(paragraphs) + "\n")


def _prompt_parts(prompt: str, images: list[Path]) -> "list[str | Image.Image]":
    """The prompt with its images in their places."""
    texts = re.split("<image>|<dream>", prompt)
    parts: list[str | Image.Image] = [texts[0]]
    for file, text in zip(images, texts[1:], strict=True):
        parts += [read_image(file), text]
    return parts


def _printable(text: str) -> str:
    """Without control characters, which a model could use to command the terminal."""
    return re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", text)


@app.command()
@_with_options(load=_load)
def chat(load: Any, image: Images = None, max_new_tokens: MaxNewTokens = 256) -> None:
    """Chat with the model.

    `/image FILE` adds an image to the next message, `/clear` starts anew; `/quit` or end of input ends the conversation.

    Example: dreamllm chat --image circle.png
    """
    for file in image or []:
        read_image(file)  # one that cannot be read would spoil every message
    model, processor, notify = load()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # as for arguments: the processor refuses what is not UTF-8
    new, shown, messages = list(image or []), [], []
    while True:
        try:
            line = input("you: ").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        command, _, name = line.partition(" ")
        try:
            if command == "/image":
                new.append(_readable_image(name.strip()))
            elif line == "/clear":
                new, shown, messages = [], [], []
            elif line:
                notify(line)
                parts = [{"type": "image"} for _ in new] + [{"type": "text", "text": line}]
                asked = [*messages, {"role": "user", "content": parts}]
                text = processor.apply_chat_template(asked)
                answer = _answer(model, processor, text, shown + new, max_new_tokens)
                messages = [*asked, {"role": "assistant", "content": answer}]
                shown, new = shown + new, []
                typer.echo(f"model: {_printable(answer)}")
        except (InputError, UsageError) as error:  # the conversation goes on without the message
            typer.echo(_printable(one_line(error)), err=True)


def _readable_image(name: str) -> Path:
    if not name:
        raise UsageError("name an image file: /image FILE")
    file = os.path.expanduser(name)  # noqa: PTH111  (no shell does it here)
    if not os.path.isfile(file):  # noqa: PTH113  (Path.is_file raises OSError for a name that is too long)
        raise UsageError(f"there is no file {name}")
    read_image(file)
    return Path(file)


def _text(processor: "DreamLLMProcessor", prompt: str, chat: bool) -> str:
    return processor.apply_chat_template([{"role": "user", "content": prompt}]) if chat else prompt


def _sampling(temperature: float | None) -> dict[str, Any]:
    """The arguments of a temperature; none where the checkpoint decides."""
    if not temperature:
        return {} if temperature is None else {"do_sample": False}
    return {"do_sample": True, "temperature": temperature}


def _answer(
    model: Any,
    processor: "DreamLLMProcessor",
    text: str,
    images: list[Path],
    limit: int,
    temperature: float | None = None,
    seed: int = 0,
    num_beams: int | None = None,
) -> str:
    import torch

    from dreamllm.layers import check_room

    torch.manual_seed(seed)
    options = _sampling(temperature) | ({} if num_beams is None else {"num_beams": num_beams})
    inputs = processor(text, images or None).to(model.device)
    check_room(inputs["attention_mask"], model.config.text_config.max_position_embeddings)
    ids = model.generate(**inputs, max_new_tokens=limit, logits_processor=[_require_finite], **options)
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :]).strip()


def _require_finite(_: Any, scores: Any) -> Any:
    """The scores of the next token; those of suppressed tokens are -inf, the highest has to be finite."""
    if not bool(scores.amax(-1).isfinite().all()):
        raise NotFiniteError(f"there is no answer: {NOT_FINITE}")
    return scores


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="New folder for the checkpoint.")],
    preset: Annotated[Preset, typer.Option(help="Size of the model.")] = Preset.tiny,
    seed: Annotated[int, typer.Option(callback=check_seed, help="Seed for the random weights.")] = 0,
    tokenizer: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Llama's tokenizer.model or tokenizer.json; 7b needs one."),
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Dtype of the weights.")] = Dtype.float32,
) -> None:
    """Write a checkpoint with random weights.

    Example: dreamllm init models/tiny --preset tiny
    """
    check_new_folder(folder)
    check_tokenizer(preset, tokenizer)
    from dreamllm import checkpoint, presets

    model, processor = presets.build(preset, seed, tokenizer_file=tokenizer, dtype=checkpoint.torch_dtype(dtype))
    checkpoint.save(folder, model, processor)
    count = sum(parameter.numel() for parameter in model.parameters())
    typer.echo(f"{folder}: {preset}, {count:,} parameters, random weights (seed {seed}), untrained")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Checkpoint folder or hub id.")],
    target: Annotated[Path, typer.Argument(help="New folder for the converted checkpoint.")],
    to: Annotated[Layout, typer.Option(help="Layout to write.")],
    clip: Clip = None,
    diffusion: Diffusion = None,
) -> None:
    """Convert a checkpoint to the other layout.

    Example: dreamllm convert dreamllm-7b models/native --to native --clip clip-vit-l --diffusion sd-2-1-base
    """
    check_new_folder(target)
    folder = find_checkpoint(source)
    from dreamllm import checkpoint

    checkpoint.convert(folder, target, to, clip=clip, diffusion=diffusion)
    typer.echo(f"{target}: {to} layout")


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe: a YAML file.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print sizes, memory and time, write the first batch to files, and stop.")
    ] = False,
    memory: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Print the memory that each of N processes needs, without loading weights, and stop.",
        ),
    ] = None,
    resume: Annotated[
        Resume,
        typer.Option(
            help="auto: from the last checkpoint in the output folder, if any; never: the folder must be empty."
        ),
    ] = Resume.auto,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the recipe; may be repeated."),
    ] = None,
) -> None:
    """Train a model as described by a recipe. After an interruption, the same command continues from the last checkpoint.

    Example: dreamllm train igpt-7b.yaml --set trainer.max_steps=100 --dry-run
    """
    from dreamllm.recipe import load_recipe

    loaded, main_process = load_recipe(recipe, change or []), os.environ.get("RANK", "0") == "0"
    if memory is not None:
        if dry_run:
            raise UsageError("--dry-run loads the weights, --memory does not: choose one of them")
        from dreamllm.training.memory import memory_lines

        with naming(recipe):
            typer.echo("\n".join(memory_lines(loaded, memory)))
        return
    if dry_run:
        from dreamllm.training.dry_run import dry_run as describe

        with naming(recipe):
            lines = describe(loaded)
        if main_process:
            typer.echo("\n".join(lines))
        return
    from dreamllm.training import run

    _hide_progress_bars()
    was_complete = (loaded.output / run.RESULT).is_file()
    with naming(recipe):
        record = run.train(loaded, resume)
    if not main_process:
        return
    losses = ", ".join(f"{name} {value:.4f}" for name, value in record["last"].items())
    typer.echo(f"{loaded.output}: {record['stage']}, {record['steps']} steps; {losses}")
    if was_complete:
        typer.echo("this run was complete before: nothing was trained", err=True)
    if broken := record["broken_records"]:
        typer.echo(f"{broken:,} records or images were broken: {loaded.output / run.BROKEN}", err=True)


@app.command()
def merge(
    comprehension: Annotated[Path, typer.Argument(help="Checkpoint to take the visual projector from.")],
    generation: Annotated[
        Path, typer.Argument(help="Checkpoint to take the condition projector and dream queries from.")
    ],
    target: Annotated[Path, typer.Argument(help="New folder for the merged checkpoint.")],
) -> None:
    """Merge the two halves of stage I, which are trained separately, into one checkpoint.

    Example: dreamllm merge runs/alignment-comprehension runs/alignment-generation models/aligned
    """
    check_new_folder(target)
    from dreamllm.training import assemble

    assemble.merge(comprehension, generation, target)
    typer.echo(f"{target}: merged")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit status 0 done, 2 an error that the user can solve (one line), 130 interrupted, 143 by SIGTERM."""
    status: Any = 0
    with _stopped_by_sigterm() as interrupted:
        try:
            # Not standalone, the parser raises its own errors instead of printing them.
            status = app(args=arguments, prog_name="dreamllm", standalone_mode=False)
            sys.stdout.flush()
        except DreamLLMError as error:
            _fail(str(error))
        except (KeyboardInterrupt, typer.Abort):
            status = INTERRUPTED
        except (OSError, SystemExit) as error:
            # The parser turns a broken pipe into an exit.
            if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
                _drop_output()  # its reader has left (`| head`); there is nobody to tell
                sys.exit(0)
            if isinstance(error, SystemExit):
                raise
            _drop_output()
            _fail(refusal(error))
        except MemoryError:
            _fail("out of memory; allow more (`ulimit -v`), or ask for less at a time")
        except Exception as error:
            message = getattr(error, "format_message", None)
            if message is None:
                raise
            if type(error).__name__ == "NoArgsIsHelpError":
                typer.echo(message(), err=True)
                sys.exit(2)
            _fail(f"{message().replace('Value error, ', '')} (--help shows an example)")
        if status == INTERRUPTED:
            print("dreamllm: interrupted: run the same command again; training resumes", file=sys.stderr)
            sys.exit(interrupted())
    sys.exit(status if isinstance(status, int) else 0)


@contextlib.contextmanager
def _stopped_by_sigterm() -> Generator[Callable[[], int]]:
    """SIGTERM interrupts like Ctrl-C, so that nothing unfinished stays; gives the exit status of an interruption."""
    owner, status = os.getpid(), INTERRUPTED

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal status
        signal.signal(
            number, signal.SIG_IGN if os.getpid() == owner else signal.SIG_DFL
        )  # a second one does not disturb
        if os.getpid() != owner:  # a process that a library has forked
            os.kill(os.getpid(), number)
            return
        status = TERMINATED
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield lambda: status
        return
    try:
        yield lambda: status
    finally:
        signal.signal(signal.SIGTERM, before)


def _drop_output() -> None:
    """What is left in stdout's buffer cannot be written; the interpreter would try again at the end, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _fail(message: str) -> None:
    text = " ".join(message.split())
    print(f"dreamllm: error: {text if len(text) <= 1000 else f'{text[:500]} … {text[-500:]}'}", file=sys.stderr)
    sys.exit(2)
