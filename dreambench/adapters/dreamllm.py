"""DreamLLM: text and log-likelihood as for any model of transformers; image and interleaved generation by the library `dreamllm`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from huggingface_hub import snapshot_download
from transformers.utils import logging as transformers_logging

from dreambench.adapters.torch_tools import (
    catch_out_of_memory,
    group_by_settings,
    known_settings,
    require_finite,
    resolve_checkpoint,
    threads_for,
    weights_digest,
)
from dreambench.adapters.transformers_model import Images, VisionLanguageModel, open_images
from dreambench.documents import JSON, Image, Text
from dreambench.errors import DataError, MissingWeightsError, ModelError
from dreambench.images import BrokenImageError, encode_png
from dreambench.interfaces import ModelOptions
from dreambench.requests import Kind, Request, Response
from dreamllm.checkpoint import load
from dreamllm.defaults import FILE as GENERATION_CONFIG
from dreamllm.defaults import ImageDefaults, InterleavedDefaults, read_defaults
from dreamllm.errors import CheckpointError, DreamLLMError
from dreamllm.files import embedded_checkpoint
from dreamllm.image_decoder import to_pil

__all__ = ["DreamLLM", "LiveDreamLLM"]

IMAGE_SETTINGS = (
    "scheduler",
    "num_inference_steps",
    "guidance_scale",
    "guidance_rescale",
    "negative_prompt",
    "resolution",
)
GENERATED: frozenset[Kind] = frozenset({"generate_image", "generate_interleaved"})
GENERATE_IMAGE = (*IMAGE_SETTINGS, "candidates", "user_parts")
GENERATE_INTERLEAVED = (*IMAGE_SETTINGS, "max_new_tokens", "max_images", "temperature", "top_k", "top_p")


class DreamLLM(VisionLanguageModel):
    """The embedded checkpoint, or ``dreamllm:DIR_OR_HUB_ID`` in the native or the released layout.

    ``--model-arg clip=DIR`` and ``diffusion=DIR`` give the sub-models that a released checkpoint names but does not hold, and
    ``plugins=DIR`` the folder of its three .bin files if they are elsewhere.

    Image generation: the document is the prompt as it stands, without a template. With the setting ``user_parts=N`` its first N parts are
    the user's turn and the others begin the answer, as documents are tokenised in training: the image follows them. Interleaved
    generation: the document is one user turn.
    """

    capabilities: ClassVar[frozenset[Kind]] = frozenset(
        {"generate_text", "generate_image", "generate_interleaved", "loglikelihood"}
    )
    argument_names: ClassVar[tuple[str, ...]] = ("clip", "diffusion", "plugins")
    image_errors: ClassVar[tuple[type[Exception], ...]] = (BrokenImageError, DataError)
    model: Any
    processor: Any

    @classmethod
    def checkpoint_settings(cls, options: ModelOptions) -> Mapping[str, JSON]:
        location, where = options.location, "--model dreamllm"
        download = partial(snapshot_download, allow_patterns=[GENERATION_CONFIG])
        try:
            images, text = read_defaults(
                embedded_checkpoint()
                if location is None
                else resolve_checkpoint(location, options.offline, where, download)
            )
        except CheckpointError as error:
            raise MissingWeightsError(f"{where}: {error}") from error
        return _settings(images, text)

    def load(self) -> tuple[Any, Any]:
        transformers_logging.disable_progress_bar()
        location, offline = self.options.location, self.options.offline
        folder = None if location is None else resolve_checkpoint(location, offline, "--model dreamllm")
        with _harness_errors():
            model, processor = load(folder, **self.options.arguments)
        self.weights = weights_digest(model)
        # Read here: text generation leaves nothing of the checkpoint's generation_config.
        self.defaults = _settings(model.image_defaults, model.interleaved_defaults)
        module: Any = model
        module.to(self.dtype)
        require_finite(module, "--model dreamllm")  # a number may be infinite in a narrower dtype
        return module, processor

    def identity(self) -> Mapping[str, JSON]:
        return {
            "name": "dreamllm",
            "weights_sha256": self.weights,
            "dtype": str(self.dtype).removeprefix("torch."),
            "training": self.model.config.training or "not said by the checkpoint",
        }

    def environment(self) -> Mapping[str, JSON]:
        return {"device": self.device.type}

    def notes(self) -> Sequence[str]:
        if not self.model.config.untrained:
            return ()
        return ("the model is untrained (random weights): its scores say that the harness runs and nothing else",)

    def answer(self, requests: Sequence[Request]) -> Iterator[Response]:
        with threads_for(self.model), _harness_errors():
            for group in group_by_settings([request for request in requests if request.kind in GENERATED]):
                generate = self._generate_images if group[0].kind == "generate_image" else self._generate_interleaved
                images, failed = open_images(group, self.image_errors)
                yield from failed
                readable = [request for request in group if request.id in images]
                if readable:
                    yield from generate(readable, images)
            yield from super().answer([request for request in requests if request.kind not in GENERATED])

    def inputs(self, batch: Sequence[Request], images: Images, side: str) -> dict[str, torch.Tensor]:
        return self._encode_images(super().inputs(batch, images, side), batch, images)

    def text(self, text: str) -> str:
        """The text with special tokens broken up: an ``<image>`` in data must not stand for an image."""
        for token in self.tokenizer.all_special_tokens:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _encode_images(
        self, inputs: dict[str, torch.Tensor], batch: Sequence[Request], images: Images
    ) -> dict[str, torch.Tensor]:
        """Pixels replaced by image features; an image that several prompts share (one object) is encoded once."""
        if "pixel_values" in inputs:
            names = [id(image) for request in batch for image in images[request.id]]
            unique = list(dict.fromkeys(names))
            pixels = inputs.pop("pixel_values")[[names.index(name) for name in unique]]
            inputs["image_features"] = self.model.encode_images(pixels)[[unique.index(name) for name in names]]
        return inputs

    def _image_options(self, settings: Mapping[str, JSON]) -> dict[str, Any]:
        """The arguments of `generate_images` and `generate_interleaved` that say how an image is generated."""
        side, resolution = self.model.config.image_decoder_config.resolution, settings.get("resolution")
        if resolution and resolution != side:
            raise ModelError(f"resolution={resolution}: this model generates images of {side} x {side}; leave it out")
        negative = settings.get("negative_prompt")
        settings = {**self.defaults, **settings}
        return {
            "negative_prompts": self.processor(text=negative) if negative else None,
            "scheduler": settings["scheduler"],
            "num_inference_steps": int(settings["num_inference_steps"]),
            "guidance_scale": float(settings["guidance_scale"]),
            "guidance_rescale": float(settings["guidance_rescale"]),
        }

    def _generate_images(self, requests: Sequence[Request], images: Images) -> Iterator[Response]:
        settings = known_settings(requests[0], GENERATE_IMAGE, "dreamllm")
        candidates = int(settings.get("candidates", 1))
        options = self._image_options(settings)
        if "user_parts" in settings:
            requests, inputs, too_long = self._fitting(requests, lambda some: self._answers_begun(some, images))
            yield from too_long
        else:
            prompts = [
                "".join(self.text(part.text) if isinstance(part, Text) else "<image>" for part in request.document)
                for request in requests
            ]
            inputs = dict(self.processor(prompts, [image for request in requests for image in images[request.id]]))
        if not requests:
            return
        lengths = inputs["attention_mask"].sum(1).tolist()
        with catch_out_of_memory(), torch.no_grad():
            generated: torch.Tensor = self.model.generate_images(
                prompt_embeds=self.model.encode_prompts(**self._encode_images(inputs, requests, images)),
                num_images_per_prompt=candidates,
                seeds=[request.seed + j for request in requests for j in range(candidates)],
                output_type="tensor",
                **options,
            )
        for request, pixels, length in zip(requests, generated.split(candidates), lengths, strict=True):
            if not bool(torch.isfinite(pixels).all()):
                yield self._not_finite(request)
                continue
            document = tuple(Image(data=encode_png(image)) for image in to_pil(pixels))
            yield Response(request.id, document, prompt_tokens=length)

    def _answers_begun(self, requests: Sequence[Request], images: Images) -> dict[str, torch.Tensor]:
        """The processor's tensors of user turns and the beginnings of their answers, whose images the model generated and then read."""
        rows: list[list[int]] = []
        for request in requests:
            count = int(request.settings["user_parts"])
            turn = [
                {"type": "image"} if isinstance(part, Image) else {"type": "text", "text": self.text(part.text)}
                for part in request.document[:count]
            ]
            prompt = self.processor.apply_chat_template([{"role": "user", "content": turn}]) if turn else ""
            row: list[int] = self.tokenizer(prompt)["input_ids"]
            for part in request.document[count:]:
                # Each text by itself, as in training.
                begun = (
                    [self.processor.dream_id]
                    if isinstance(part, Image)
                    else self.tokenizer(self.text(part.text), add_special_tokens=False)["input_ids"]
                )
                row = [*row, *begun]
            rows.append(self.processor.expand(row))
        padded = self.tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
        shown = [image for request in requests for image in images[request.id]]
        inputs = {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]}
        return inputs | ({"pixel_values": self.processor.pixel_values(shown)} if shown else {})

    def _generate_interleaved(self, requests: Sequence[Request], images: Images) -> Iterator[Response]:
        settings = known_settings(requests[0], GENERATE_INTERLEAVED, "dreamllm")
        options = self._image_options(settings)
        settings = {"top_k": 0, **self.defaults, **settings}
        temperature, top_p, top_k = (float(settings[name]) for name in ("temperature", "top_p", "top_k"))
        user_turns = super().inputs
        requests, inputs, too_long = self._fitting(requests, lambda some: user_turns(some, images, "left"))
        yield from too_long
        if not requests:
            return
        with catch_out_of_memory():
            documents = self.model.generate_interleaved(
                inputs,
                self.processor,
                max_new_tokens=int(settings.get("max_new_tokens", 512)),
                max_images=int(settings.get("max_images", 4)),
                do_sample=temperature > 0,
                temperature=temperature or 1.0,
                top_k=int(top_k) or None,
                top_p=top_p if 0 < top_p < 1 else 1.0,
                seeds=[request.seed for request in requests],
                **options,
            )
        lengths = inputs["attention_mask"].sum(1).tolist()
        for request, document, length in zip(requests, documents, lengths, strict=True):
            if document.finish_reason == "not-finite":
                yield self._not_finite(request)
                continue
            parts = tuple(
                Text(part) if isinstance(part, str) else Image(data=encode_png(part)) for part in document.parts
            )
            tokens = len(document.token_ids)
            yield Response(request.id, parts, document.finish_reason, prompt_tokens=length, new_tokens=tokens)

    def _fitting(
        self, requests: Sequence[Request], inputs_of: Callable[[Sequence[Request]], dict[str, torch.Tensor]]
    ) -> tuple[list[Request], dict[str, torch.Tensor], list[Response]]:
        """The requests whose prompts leave room for an image in the model's positions, their tensors, and failures for the others."""
        positions = int(self.model.config.text_config.max_position_embeddings)
        room = positions - self.model.config.num_dream_queries - 2
        inputs = inputs_of(requests)
        lengths: list[int] = inputs["attention_mask"].sum(1).tolist()
        fitting = [request for request, length in zip(requests, lengths, strict=True) if length <= room]
        failed = [
            Response.failed(
                request.id,
                "prompt-too-long",
                f"a prompt of {length} tokens leaves no room for an image: the model has {positions} positions",
            )
            for request, length in zip(requests, lengths, strict=True)
            if length > room
        ]
        return fitting, inputs_of(fitting) if fitting and failed else inputs, failed

    def _not_finite(self, request: Request) -> Response:
        message = f"an image has pixels that are not finite in {self.dtype}: use --dtype float32"
        return Response.failed(request.id, "not-finite", message)


def _settings(images: ImageDefaults | None, text: InterleavedDefaults | None) -> dict[str, JSON]:
    """What a checkpoint says of its generation, by the names of tasks; of text, the temperature 0 is greedy."""
    settings: dict[str, JSON] = {} if images is None else images.model_dump(mode="json")
    if text is not None:
        settings |= {"temperature": text.temperature if text.do_sample else 0.0, "top_p": text.top_p}
    return settings


@dataclass(frozen=True)
class _LiveOptions(ModelOptions):
    settings: Mapping[str, JSON] = field(default_factory=dict[str, JSON])


class LiveDreamLLM(DreamLLM):
    """A DreamLLM in memory, as it is: nothing is loaded, cast or moved. `note` is printed beside every score."""

    def __init__(self, model: Any, processor: Any, note: str) -> None:
        self._given, self._note = (model, processor), note
        stated, where = vars(model.generation_config), "generation_config"
        settings = _settings(ImageDefaults.of(stated, where), InterleavedDefaults.of(stated, where))
        dtype = str(model.dtype).removeprefix("torch.")
        super().__init__(_LiveOptions("dreamllm", device=str(model.device), dtype=dtype, settings=settings))

    @classmethod
    def checkpoint_settings(cls, options: ModelOptions) -> Mapping[str, JSON]:
        assert isinstance(options, _LiveOptions)  # noqa: S101 - as made above
        return options.settings

    def load(self) -> tuple[Any, Any]:
        model, processor = self._given
        self.weights = weights_digest(model)
        self.defaults = _settings(model.image_defaults, model.interleaved_defaults)
        return model, processor

    def notes(self) -> Sequence[str]:
        return (*super().notes(), self._note)


@contextmanager
def _harness_errors() -> Generator[None]:
    """The library's errors as errors of the harness."""
    try:
        yield
    except CheckpointError as error:
        hint = "" if "--" in str(error) else " (a released checkpoint takes --model-arg clip=DIR and diffusion=DIR)"
        raise MissingWeightsError(f"--model dreamllm: {error}{hint}") from error
    except DreamLLMError as error:
        raise ModelError(f"--model dreamllm: {error}") from error
