"""Text generation and log-likelihood with any image-text-to-text model of transformers, by its own processor and chat template.

Shapes: `R` requests of a batch, `T` prompt tokens, `V` entries of the vocabulary.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dreambench.adapters.torch_tools import (
    catch_out_of_memory,
    group_by_settings,
    is_ours,
    known_settings,
    library_errors,
    load_pretrained,
    resolve_checkpoint,
    resolve_device,
    resolve_dtype,
    seeded_generator,
    weights_digest,
)
from dreambench.documents import JSON, Image, Text, digest
from dreambench.errors import MissingWeightsError, ModelError, UsageError
from dreambench.files import read_json, sha256_file
from dreambench.images import BrokenImageError, decode_rgb
from dreambench.interfaces import Model, ModelOptions
from dreambench.records import ImageSettings, parse
from dreambench.requests import Kind, Request, Response

if TYPE_CHECKING:
    import PIL.Image
    from transformers import PreTrainedModel, ProcessorMixin

__all__ = ["Decoding", "Images", "SeededSampling", "VisionLanguageModel", "open_images"]

Images: TypeAlias = "Mapping[str, Sequence[PIL.Image.Image]]"
"""The decoded images of requests by request id, in the order of their documents."""


@dataclass(frozen=True)
class Decoding:
    """The settings of text generation, by transformers' names, with their defaults."""

    max_new_tokens: int = 512
    num_beams: int = 1
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    @classmethod
    def of(cls, request: Request, model: str) -> Decoding:
        """A request's settings; ``assistant_prefix`` is a part of the prompt and not among them.

        Raises `ModelError` for an unknown setting, and for one that has no effect beside the others.
        """
        known = ["assistant_prefix", *(field.name for field in fields(cls))]
        settings = known_settings(request, known, f"the model {model}")
        settings.pop("assistant_prefix", None)
        decoding = cls(**settings)
        neutral = {"temperature": (0, 1), "top_p": (1,), "top_k": (0,)}
        idle = [name for name, values in neutral.items() if getattr(decoding, name) not in values]
        if not decoding.do_sample and idle:
            raise ModelError(
                f"the task sets {', '.join(idle)} without do_sample, where it has no effect: set do_sample=true"
            )
        if decoding.do_sample and (decoding.num_beams > 1 or decoding.temperature <= 0):
            raise ModelError("do_sample needs num_beams=1 and a temperature above 0: choose other settings")
        if decoding.max_new_tokens < 1 or decoding.num_beams < 1:
            raise ModelError("max_new_tokens and num_beams are at least 1: choose other settings")
        return decoding


class SeededSampling(LogitsProcessor):
    """Replaces each row's scores so that its highest one is a draw from its distribution, with a generator for each row.

    The highest of log p - log e, with e exponentially distributed, is distributed as p (the Gumbel-max trick), so greedy decoding
    over these scores is sampling, and a draw depends on the row's seed and distribution only, not on its batch or the device.
    """

    def __init__(self, decoding: Decoding, seeds: Sequence[int]) -> None:
        self.generators = [seeded_generator(seed) for seed in seeds]
        self.warpers = LogitsProcessorList([TemperatureLogitsWarper(float(decoding.temperature))])
        if decoding.top_k > 0:
            self.warpers.append(TopKLogitsWarper(decoding.top_k))
        if decoding.top_p < 1:
            self.warpers.append(TopPLogitsWarper(decoding.top_p))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        warped = self.warpers(input_ids, scores.float())  # pyright: ignore[reportArgumentType]
        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=own) for own in self.generators])
        return warped - noise.clamp_min(torch.finfo(torch.float32).tiny).log().to(scores.device)


class FiniteScores(LogitsProcessor):
    """Changes nothing; notes for each row the first step whose scores are NaN or infinite, from which no token follows.

    The score of a suppressed token is -inf: what counts is the highest score, which is NaN where any is.
    """

    def __init__(self) -> None:
        self.step = 0
        self.first: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = torch.where(scores.amax(-1).isfinite(), torch.iinfo(torch.long).max, self.step)
        self.first = step if self.first is None else torch.minimum(self.first, step)
        self.step += 1
        return scores

    def first_steps(self, requests: int) -> list[int]:
        """For each request the first step at which one of its beams had no finite scores; a huge number if none had."""
        assert self.first is not None  # noqa: S101 - generation has at least one step
        return self.first.reshape(requests, -1).amin(1).tolist()


class VisionLanguageModel(Model):
    """``transformers:DIR_OR_HUB_ID``; ``--model-arg chat_template=FILE`` for a checkpoint that has no template.

    Text generation: the document is one user turn; the setting ``assistant_prefix`` begins the answer. Decoding follows the request's
    settings (`Decoding`); of the checkpoint's own generation defaults only the special tokens count. Log-likelihood: the sum of the
    log-probabilities of a choice's tokens, tokenised by itself and placed directly after the template's generation prompt (and prefix);
    no end token, no division by length (``details["choice_tokens"]`` has the lengths). Code in a checkpoint's folder is never run.
    """

    capabilities: ClassVar[frozenset[Kind]] = frozenset({"generate_text", "loglikelihood"})
    argument_names: ClassVar[tuple[str, ...]] = ("chat_template",)
    image_errors: ClassVar[tuple[type[Exception], ...]] = (BrokenImageError,)
    """Errors of an image that fail its request; others, such as the `DataError` of a missing file, end the run."""
    weights: str
    """sha256 of the weights."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        options.only(*self.argument_names)
        self.device = resolve_device(options.device)
        self.dtype = resolve_dtype(options.dtype, self.device)
        self.model, self.processor = self.load()
        with catch_out_of_memory():
            self.model.to(self.device)  # pyright: ignore[reportArgumentType] - torch's own signature
        self.tokenizer: Any = self.processor.tokenizer  # pyright: ignore[reportAttributeAccessIssue]
        self.eos = _end_tokens(self.model, self.tokenizer)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.convert_ids_to_tokens(self.eos[0])
        self.chat_template = _chat_template(self.processor, options)

    def load(self) -> tuple[PreTrainedModel, ProcessorMixin]:
        """The model in `self.dtype` and its processor; sets `weights`."""
        location = self.options.location
        if not location:
            raise UsageError("--model transformers: write transformers:FOLDER or transformers:HUB_ID")
        folder = resolve_checkpoint(location, self.options.offline, "--model transformers")
        self.weights = weights_digest(folder)
        self.files = digest([[path.name, sha256_file(path)] for path in _data_files(folder)])
        return _load(folder, self.dtype)

    def identity(self) -> Mapping[str, JSON]:
        image_processor = getattr(self.processor, "image_processor", None)
        return {
            "name": "transformers",
            "architecture": type(self.model).__name__,
            "weights_sha256": self.weights,
            "files_sha256": self.files,
            "image_processor": type(image_processor).__name__,
            "chat_template_sha256": digest(self.chat_template),
        }

    def parameters(self) -> int:
        return sum(weights.numel() for weights in self.model.parameters())

    def environment(self) -> Mapping[str, JSON]:
        attention = getattr(self.model.config, "_attn_implementation", None)
        return {"device": str(self.device), "dtype": str(self.dtype).removeprefix("torch."), "attention": attention}

    def answer(self, requests: Sequence[Request]) -> Iterator[Response]:
        decodings = {request.id: Decoding.of(request, self.options.name) for request in requests}
        images, failed = open_images(requests, self.image_errors)
        yield from failed
        for with_images in (True, False):
            readable = [
                request for request in requests if request.id in images and bool(images[request.id]) == with_images
            ]
            for batch in group_by_settings(readable):
                with torch.inference_mode(), catch_out_of_memory():
                    if batch[0].kind == "loglikelihood":
                        responses = self._loglikelihood(batch, images)
                    else:
                        responses = self._generate(batch, images, decodings[batch[0].id])
                yield from responses

    def inputs(self, batch: Sequence[Request], images: Images, side: str) -> dict[str, torch.Tensor]:
        """The processor's tensors for a batch, padded on `side`: ``input_ids`` (R, T), ``attention_mask`` (R, T), pixels."""
        conversations: list[Any] = []
        for request in batch:
            remaining = iter(images[request.id])
            content = [
                {"type": "text", "text": self.text(part.text)}
                if isinstance(part, Text)
                else {"type": "image", "image": next(remaining)}
                for part in request.document
            ]
            conversations.append([{"role": "user", "content": content}])
        template = self._template(batch[0].settings.get("assistant_prefix"))
        with library_errors(self.options.location or self.options.name):
            inputs: Any = self.processor.apply_chat_template(
                conversations,
                chat_template=template,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                processor_kwargs={"padding": True, "padding_side": side, "return_tensors": "pt"},
            )
        return {
            key: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
            if isinstance(value, torch.Tensor)
        }

    def text(self, text: str) -> str:
        """A document's text as it goes into the prompt."""
        return text

    def _template(self, prefix: str | None) -> str:
        """The chat template, with the first words of the answer at its end if any, a space before them where there is none yet."""
        if not prefix:
            return self.chat_template
        turn: Any = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
        with library_errors(self.options.location or self.options.name):
            ending: Any = self.processor.apply_chat_template(
                turn, chat_template=self.chat_template, add_generation_prompt=True, tokenize=False
            )
        gap = "" if str(ending)[-1:].isspace() else " "
        return f"{self.chat_template.removesuffix(chr(10))}{{{{ {json.dumps(gap + prefix)} }}}}"

    def _generate(self, batch: Sequence[Request], images: Images, decoding: Decoding) -> list[Response]:
        inputs = self.inputs(batch, images, "left")
        sampling = [SeededSampling(decoding, [request.seed for request in batch])] if decoding.do_sample else []
        config = GenerationConfig(
            max_new_tokens=decoding.max_new_tokens,
            num_beams=decoding.num_beams,
            length_penalty=decoding.length_penalty,
            repetition_penalty=decoding.repetition_penalty,
            do_sample=False,
            eos_token_id=self.eos,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        generate: Any = self.model.generate
        finite = FiniteScores()
        processors = LogitsProcessorList([finite, *sampling])
        with library_errors(self.options.location or self.options.name):
            output = generate(**inputs, generation_config=config, logits_processor=processors)
        prompt = 0 if self.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        lengths = inputs["attention_mask"].sum(1).tolist()
        return [
            self._response(request, row[prompt:].tolist(), int(length), wrong)
            for request, row, length, wrong in zip(batch, output, lengths, finite.first_steps(len(batch)), strict=True)
        ]

    def _response(self, request: Request, ids: list[int], prompt_tokens: int, wrong: int) -> Response:
        """The text up to the first end token, which counts as a new token. No answer if the token of step `wrong` is among them."""
        end = next((index for index, token in enumerate(ids) if token in self.eos), None)
        new = ids if end is None else ids[: end + 1]
        if wrong < len(new):
            message = f"the logits are NaN or infinite in {self.dtype} at token {wrong + 1}: use --dtype float32"
            return Response.failed(request.id, "not-finite", message)
        text = self.tokenizer.decode(new, skip_special_tokens=True).strip()
        return Response(
            request.id,
            (Text(text.encode("utf-8", "replace").decode()),),
            "length" if end is None else "stop",
            prompt_tokens,
            len(new),
        )

    def _loglikelihood(self, batch: Sequence[Request], images: Images) -> list[Response]:
        """One pass over the prompts scores all choices of one token; longer choices take one pass for each position in the list."""
        if self.model.config.is_encoder_decoder:
            raise ModelError(
                f"{type(self.model).__name__} has an encoder and a decoder: log-likelihoods are not supported"
            )
        inputs = self.inputs(batch, images, "right")
        ids = [[self._choice(request, choice) for choice in request.choices] for request in batch]
        scores: list[dict[int, float]] = [{} for _ in batch]
        if any(len(choice) == 1 for choices in ids for choice in choices):
            first = self._log_probs(inputs, [[] for _ in batch])
            for row, choices in enumerate(ids):
                scores[row] = {
                    j: float(first[row][0, tokens[0]]) for j, tokens in enumerate(choices) if len(tokens) == 1
                }
        for j in range(max(map(len, ids))):
            tails = [choices[j] if j < len(choices) and len(choices[j]) > 1 else [] for choices in ids]
            if not any(tails):
                continue
            rows = self._log_probs(inputs, [tail[:-1] for tail in tails])
            for row, tail in enumerate(tails):
                if tail:
                    scores[row][j] = float(rows[row].gather(1, torch.tensor(tail)[:, None]).sum())
        return [
            Response(
                request.id,
                prompt_tokens=int(inputs["attention_mask"][row].sum()),
                scores=tuple(scores[row][j] for j in range(len(choices))),
                details={"choice_tokens": [len(choice) for choice in choices]},
            )
            for row, (request, choices) in enumerate(zip(batch, ids, strict=True))
        ]

    def _choice(self, request: Request, choice: str) -> list[int]:
        ids: list[int] = self.tokenizer(choice, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ModelError(f"{request.id}: the choice {choice!r} has no tokens")
        return ids

    def _log_probs(self, inputs: Mapping[str, torch.Tensor], tails: Sequence[list[int]]) -> list[torch.Tensor]:
        """For each row the log-probabilities (1 + its tail's length, V) after the prompt and after each token of its tail.

        Rows are padded on the right, so that every token has the position that it has without batch mates.
        """
        lengths = inputs["attention_mask"].sum(1).tolist()
        extended = {key: _lengthened(key, inputs, lengths, tails, self.tokenizer.pad_token_id) for key in inputs}
        start, stop = min(lengths) - 1, max(length + len(tail) for length, tail in zip(lengths, tails, strict=True))
        forward: Any = self.model
        keeps = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        positions = {"logits_to_keep": torch.arange(start, stop, device=self.device)} if keeps else {}
        with library_errors(self.options.location or self.options.name):
            logits = forward(**extended, **positions, use_cache=False).logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        offset = start if keeps else 0
        return [
            logits[row, length - 1 - offset : length + len(tail) - offset].log_softmax(-1).cpu()
            for row, (length, tail) in enumerate(zip(lengths, tails, strict=True))
        ]


def open_images(
    requests: Sequence[Request], errors: tuple[type[Exception], ...]
) -> tuple[dict[str, list[PIL.Image.Image]], list[Response]]:
    """The images of each request by its id, and an error response for each request with a broken image.

    An image that several requests share is read and decoded once, to one object. `errors` are those that count as a broken image;
    others are raised.
    """
    decoded: dict[Image, PIL.Image.Image] = {}
    images: dict[str, list[PIL.Image.Image]] = {}
    failed: list[Response] = []
    for request in requests:
        parts = [part for part in request.document if not isinstance(part, Text)]
        try:
            for part in parts:
                if part not in decoded:
                    decoded[part] = decode_rgb(part)
        except errors as error:
            failed.append(Response.failed(request.id, "broken-image", str(error)))
        else:
            images[request.id] = [decoded[part] for part in parts]
    return images, failed


def _lengthened(
    key: str, inputs: Mapping[str, torch.Tensor], lengths: Sequence[int], tails: Sequence[list[int]], pad: int
) -> torch.Tensor:
    """A tensor of the processor with the tails after each row's prompt; pixels, which have no token axis, as they are."""
    tensor = inputs[key]
    longest = max(map(len, tails))
    if tensor.shape != inputs["attention_mask"].shape or longest == 0:
        return tensor
    fill = pad if key == "input_ids" else 0
    wide = torch.nn.functional.pad(tensor, (0, longest), value=fill)
    for row, (length, tail) in enumerate(zip(lengths, tails, strict=True)):
        if key == "input_ids":
            wide[row, length : length + len(tail)] = torch.tensor(tail, dtype=wide.dtype, device=wide.device)
        elif key == "attention_mask":
            wide[row, length : length + len(tail)] = 1
    return wide


def _load(folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Model and processor of a folder, every weight from its safetensors files."""
    for path in (folder / "processor_config.json", folder / "preprocessor_config.json"):
        fields: Any = read_json(path) if path.is_file() else {}
        settings = fields.get("image_processor", fields) if isinstance(fields, dict) else fields
        parse(ImageSettings, settings, MissingWeightsError, str(path))
    try:
        model = load_pretrained(AutoModelForImageTextToText, folder, dtype)
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except BaseException as error:  # of damaged files, every parser and model of the library raises its own
        if is_ours(error):
            raise
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise MissingWeightsError(
            f"{folder}: transformers cannot load an image-text-to-text model from it ({line})"
        ) from error
    if not hasattr(processor, "tokenizer"):
        raise MissingWeightsError(f"{folder}: it has no processor of text and images (processor_config.json)")
    return model, processor


def _data_files(folder: Path) -> list[Path]:
    """Configuration, tokenizer, template: all small files that change what the model sees."""
    suffixes = {".json", ".txt", ".model", ".jinja", ".tiktoken"}
    return sorted(
        path for path in folder.iterdir() if path.suffix in suffixes and not path.name.endswith(".index.json")
    )


def _end_tokens(model: PreTrainedModel, tokenizer: Any) -> list[int]:
    """The checkpoint's end tokens. Its other generation defaults are removed: the request's settings decide."""
    ends: Any = getattr(model.generation_config, "eos_token_id", None)
    ends = tokenizer.eos_token_id if ends is None else ends
    ends = [end for end in (ends if isinstance(ends, (list, tuple)) else [ends]) if end is not None]
    if not ends:
        raise ModelError(
            f"{type(model).__name__}: neither its generation_config.json nor its tokenizer has an end token"
        )
    size = max(len(tokenizer), int(model.config.get_text_config().vocab_size))
    wrong = [end for end in ends if type(end) is not int or not 0 <= end < size]
    if wrong:
        raise ModelError(
            f"{model.name_or_path}: generation_config.json: eos_token_id {str(wrong[0])[:40]!r} is no token"
        )
    names = ("bos_token_id", "decoder_start_token_id")
    model.generation_config = GenerationConfig(**{name: getattr(model.generation_config, name, None) for name in names})
    return ends


def _chat_template(processor: ProcessorMixin, options: ModelOptions) -> str:
    """The jinja template that turns a conversation into a prompt: the user's file, else the checkpoint's own."""
    path = options.arguments.get("chat_template")
    if path is not None:
        try:
            return Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--model-arg chat_template={path}: cannot be read ({type(error).__name__})") from error
    template = getattr(processor, "chat_template", None) or processor.tokenizer.chat_template  # pyright: ignore
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise ModelError(
            f"{options.location} has no chat template: write one into a file and give --model-arg chat_template=FILE"
        )
    return template
