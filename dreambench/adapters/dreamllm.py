"""DreamLLM: text and log-likelihood as for any model of transformers, and image generation by the library `dreamllm`."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from transformers.utils import logging as transformers_logging

from dreambench.adapters.torch_tools import (
    catch_out_of_memory,
    group_by_settings,
    known_settings,
    resolve_checkpoint,
    threads_for,
    weights_digest,
)
from dreambench.adapters.transformers_model import Images, VisionLanguageModel, open_images
from dreambench.documents import JSON, Image, Text
from dreambench.errors import DataError, MissingWeightsError, ModelError
from dreambench.images import BrokenImageError, encode_png
from dreambench.requests import Kind, Request, Response
from dreamllm.checkpoint import load
from dreamllm.errors import CheckpointError, DreamLLMError
from dreamllm.image_decoder import to_pil

__all__ = ["DreamLLM"]

IMAGE_SETTINGS = (
    "scheduler",
    "num_inference_steps",
    "guidance_scale",
    "guidance_rescale",
    "negative_prompt",
    "resolution",
    "candidates",
)


class DreamLLM(VisionLanguageModel):
    """The embedded checkpoint, or ``dreamllm:DIR_OR_HUB_ID`` in the native or the released layout.

    ``--model-arg clip=DIR`` and ``diffusion=DIR`` give the sub-models that a released checkpoint names but does not hold, and
    ``plugins=DIR`` the folder of its three .bin files if they are elsewhere.
    """

    capabilities: ClassVar[frozenset[Kind]] = frozenset({"generate_text", "generate_image", "loglikelihood"})
    argument_names: ClassVar[tuple[str, ...]] = ("clip", "diffusion", "plugins")
    image_errors: ClassVar[tuple[type[Exception], ...]] = (BrokenImageError, DataError)
    model: Any
    processor: Any

    def load(self) -> tuple[Any, Any]:
        transformers_logging.disable_progress_bar()
        location, offline = self.options.location, self.options.offline
        folder = None if location is None else resolve_checkpoint(location, offline, "--model dreamllm")
        with _harness_errors():
            model, processor = load(folder, **self.options.arguments)
        self.weights = weights_digest(model)
        module: Any = model
        return module.to(self.dtype), processor

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
            for group in group_by_settings([request for request in requests if request.kind == "generate_image"]):
                yield from self._generate_images(group)
            yield from super().answer([request for request in requests if request.kind != "generate_image"])

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

    def _generate_images(self, requests: Sequence[Request]) -> Iterator[Response]:
        settings = known_settings(requests[0], IMAGE_SETTINGS, "dreamllm")
        candidates = int(settings.get("candidates", 1))
        side, resolution = self.model.config.image_decoder_config.resolution, settings.get("resolution")
        if resolution and resolution != side:
            raise ModelError(f"resolution={resolution}: this model generates images of {side} x {side}; leave it out")
        images, failed = open_images(requests, self.image_errors)
        yield from failed
        readable = [request for request in requests if request.id in images]
        if not readable:
            return
        prompts = [
            "".join(self.text(part.text) if isinstance(part, Text) else "<image>" for part in request.document)
            for request in readable
        ]
        inputs = self.processor(prompts, [image for request in readable for image in images[request.id]])
        negative = settings.get("negative_prompt")
        with catch_out_of_memory(), torch.no_grad():
            generated: torch.Tensor = self.model.generate_images(
                prompt_embeds=self.model.encode_prompts(**self._encode_images(dict(inputs), readable, images)),
                negative_prompts=self.processor(text=negative) if negative else None,
                num_images_per_prompt=candidates,
                scheduler=settings.get("scheduler", "ddim"),
                num_inference_steps=int(settings.get("num_inference_steps", 50)),
                guidance_scale=float(settings.get("guidance_scale", 7.5)),
                guidance_rescale=float(settings.get("guidance_rescale", 0.0)),
                seeds=[request.seed + j for request in readable for j in range(candidates)],
                output_type="tensor",
            )
        for request, pixels, mask in zip(readable, generated.split(candidates), inputs["attention_mask"], strict=True):
            if not bool(torch.isfinite(pixels).all()):
                message = f"the image has pixels that are not finite in {self.dtype}: use --dtype float32"
                yield Response.failed(request.id, "not-finite", message)
                continue
            document = tuple(Image(data=encode_png(image)) for image in to_pil(pixels))
            yield Response(request.id, document, prompt_tokens=int(mask.sum()))


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
