"""``diffusers``: any text-to-image pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from pydantic import BaseModel, PositiveInt
from transformers.utils import logging as transformers_logging

from dreambench.adapters.torch_tools import (
    catch_out_of_memory,
    group_by_settings,
    is_ours,
    known_settings,
    library_errors,
    require_finite,
    resolve_checkpoint,
    resolve_device,
    resolve_dtype,
    seeded_generator,
)
from dreambench.documents import JSON, Image, Text, digest, document_text
from dreambench.errors import MissingWeightsError, ModelError, UsageError
from dreambench.files import read_json, sha256_file
from dreambench.images import encode_png
from dreambench.interfaces import Model, ModelOptions
from dreambench.requests import Kind, Request, Response
from dreambench.spec import parse_arguments

if TYPE_CHECKING:
    import numpy as np

__all__ = ["SCHEDULERS", "Pipeline"]

SCHEDULERS: Mapping[str, tuple[str, Mapping[str, JSON]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "dpm-solver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
}
"""Values of the setting ``scheduler``, beside ``default``, the checkpoint's own."""

_PASSED_ON = (
    "num_inference_steps",
    "guidance_scale",
    "guidance_rescale",
    "height",
    "width",
    "negative_prompt",
    "eta",
)
_WITHOUT_EFFECT = {"guidance_rescale": 0, "resolution": 0, "negative_prompt": "", "eta": 0}
"""Values without effect, accepted also by pipelines that do not have the setting."""


class _Arguments(BaseModel):
    safety_checker: Literal["on", "off"] = "on"
    images_per_batch: PositiveInt = 16


class Pipeline(Model):
    """``diffusers:DIR_OR_HUB_ID``; ``--model-arg safety_checker=off`` skips the safety checker, ``images_per_batch=N`` (16).

    Settings: num_inference_steps, guidance_scale, guidance_rescale, height and width or resolution (both; 0 is the pipeline's
    default), negative_prompt, eta, scheduler (`SCHEDULERS` or ``default``), candidates. The noise of candidate j comes from a CPU
    generator with the request's seed + j. ``details["flagged"]`` holds the safety checker's verdicts.
    """

    capabilities: ClassVar[frozenset[Kind]] = frozenset({"generate_image"})

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        options.only(*_Arguments.model_fields)
        if not options.location:
            raise UsageError("--model diffusers: write diffusers:DIR or diffusers:HUB_ID")
        arguments = parse_arguments(_Arguments, options.arguments, "--model-arg")
        self.images_per_batch = arguments.images_per_batch
        self.device = resolve_device(options.device)
        self.dtype = resolve_dtype(options.dtype, self.device)
        folder = resolve_checkpoint(
            options.location,
            options.offline,
            "--model diffusers",
            partial(DiffusionPipeline.download, use_safetensors=True),
        )
        self.weights, self.configuration = _fingerprints(folder)
        self.pipeline: Any = _load(folder, arguments.safety_checker == "on")
        parts = {name: part for name, part in self.pipeline.components.items() if isinstance(part, torch.nn.Module)}
        with catch_out_of_memory(), library_errors(folder):
            self.pipeline.to(device=self.device)
            if any(weights.dtype != self.dtype for part in parts.values() for weights in part.parameters()):
                self.pipeline.to(dtype=self.dtype)  # which warns, even where nothing is to be cast
        for name, part in parts.items():
            require_finite(part, folder / name)
        self.pipeline.set_progress_bar_config(disable=True)
        diffusers_logging.set_verbosity_error()  # it warns of each prompt that is cut; the responses say so
        self._own_scheduler: Any = self.pipeline.scheduler
        self._accepted = frozenset(inspect.signature(self.pipeline.__call__).parameters)

    def identity(self) -> Mapping[str, JSON]:
        return {
            "name": "diffusers",
            "pipeline": type(self.pipeline).__name__,
            "weights_sha256": self.weights,
            "files_sha256": self.configuration,
            "safety_checker": getattr(self.pipeline, "safety_checker", None) is not None,
        }

    def parameters(self) -> int:
        parts = [part for part in self.pipeline.components.values() if isinstance(part, torch.nn.Module)]
        return sum(weights.numel() for part in parts for weights in part.parameters())

    def environment(self) -> Mapping[str, JSON]:
        return {
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "images_per_batch": self.images_per_batch,
        }

    def answer(self, requests: Sequence[Request]) -> Iterator[Response]:
        for batch in group_by_settings(requests):
            settings = self._settings(batch[0])
            candidates = int(settings.get("candidates", 1))
            if candidates < 1:
                raise ModelError("candidates is at least 1: choose another number")
            prompts = [_prompt(request) for request in batch]
            jobs = [
                (prompt, request.seed + j)
                for request, prompt in zip(batch, prompts, strict=True)
                for j in range(candidates)
            ]
            generated = self._generate_images(jobs, self._arguments(settings))
            for index, request in enumerate(batch):
                own = generated[index * candidates : (index + 1) * candidates]
                yield self._response(request, own, prompts[index])

    def _settings(self, request: Request) -> dict[str, JSON]:
        """The request's settings that have an effect. Raises `ModelError` for those that this pipeline does not have."""
        effective = {
            name: value
            for name, value in request.settings.items()
            if name not in _WITHOUT_EFFECT or value != _WITHOUT_EFFECT[name]
        }
        known = {name for name in _PASSED_ON if name in self._accepted} | {"candidates", "scheduler"}
        known |= {"resolution"} if {"height", "width"} <= self._accepted else set()
        return known_settings(
            replace(request, settings=effective), known, f"the pipeline {type(self.pipeline).__name__}"
        )

    def _arguments(self, settings: Mapping[str, JSON]) -> dict[str, Any]:
        """Keyword arguments of the pipeline; sets its scheduler as a side effect."""
        arguments: dict[str, Any] = {name: settings[name] for name in _PASSED_ON if name in settings}
        if "resolution" in settings:
            if "height" in settings or "width" in settings:
                raise ModelError("resolution and height or width are both set: choose one of them")
            arguments |= {"height": int(settings["resolution"]), "width": int(settings["resolution"])}
        self.pipeline.scheduler = self._scheduler(str(settings.get("scheduler", "default")))
        return arguments

    def _scheduler(self, name: str) -> Any:
        if name == "default":
            return self._own_scheduler
        if name not in SCHEDULERS:
            raise ModelError(f"there is no scheduler {name}: choose one of default, {', '.join(SCHEDULERS)}")
        class_name, changes = SCHEDULERS[name]
        kind = getattr(diffusers, class_name)
        if kind not in self._own_scheduler.compatibles and not isinstance(self._own_scheduler, kind):
            own = type(self._own_scheduler).__name__
            raise ModelError(f"this checkpoint's {own} cannot be replaced by {class_name}: choose scheduler=default")
        return kind.from_config(self._own_scheduler.config, **changes)

    def _generate_images(
        self, jobs: Sequence[tuple[str, int]], arguments: Mapping[str, Any]
    ) -> list[tuple[np.ndarray, bool | None]]:
        """For each (prompt, seed) the pixels, (height, width, 3) float in [0, 1], and the safety checker's verdict."""
        generated: list[tuple[np.ndarray, bool | None]] = []
        for start in range(0, len(jobs), self.images_per_batch):
            part = jobs[start : start + self.images_per_batch]
            options = dict(arguments)
            if "negative_prompt" in options:
                options["negative_prompt"] = [options["negative_prompt"]] * len(part)
            with torch.inference_mode(), catch_out_of_memory():
                output = self.pipeline(
                    prompt=[prompt for prompt, _ in part],
                    generator=[seeded_generator(seed) for _, seed in part],
                    output_type="np",
                    **options,
                )
            flags = getattr(output, "nsfw_content_detected", None) or [None] * len(part)
            generated.extend(zip(output.images, flags, strict=True))
        return generated

    def _response(self, request: Request, generated: Sequence[tuple[np.ndarray, bool | None]], prompt: str) -> Response:
        import numpy as np
        import PIL.Image

        details: dict[str, JSON] = {}
        if any(flag is not None for _, flag in generated):
            details["flagged"] = [bool(flag) for _, flag in generated]
        tokens, limit = self._prompt_length(prompt)
        if limit is not None and tokens is not None and tokens > limit:
            details["prompt_truncated_to"] = limit
        if not all(np.isfinite(pixels).all() for pixels, _ in generated):
            message = f"the image has NaN or infinite pixels in {self.dtype}: use --dtype float32"
            return replace(Response.failed(request.id, "not-finite", message), details=details)
        images = [PIL.Image.fromarray((pixels * 255).round().astype("uint8")) for pixels, _ in generated]
        document = tuple(Image(data=encode_png(image)) for image in images)
        return Response(request.id, document, prompt_tokens=tokens, details=details)

    def _prompt_length(self, prompt: str) -> tuple[int | None, int | None]:
        """The prompt's tokens and the text encoder's limit; None where the pipeline has several text encoders or none."""
        tokenizers = [part for name, part in self.pipeline.components.items() if name.startswith("tokenizer") and part]
        if len(tokenizers) != 1:
            return None, None
        return len(tokenizers[0](prompt, truncation=False, verbose=False)["input_ids"]), tokenizers[0].model_max_length


def _prompt(request: Request) -> str:
    if not all(isinstance(part, Text) for part in request.document):
        raise ModelError(f"{request.id}: the prompt contains an image, and this pipeline accepts text only")
    return document_text(request.document)


def _fingerprints(folder: Path) -> tuple[str, str]:
    """sha256 of the pipeline's weights and of its other files, without variants such as ``.fp16``."""
    if not (folder / "model_index.json").is_file():
        raise MissingWeightsError(
            f"{folder}: no model_index.json in it; give the folder of a diffusers pipeline, or a hub id"
        )
    index = read_json(folder / "model_index.json")
    weights: list[JSON] = []
    others: list[JSON] = [["model_index.json", sha256_file(folder / "model_index.json")]]
    for name in sorted(name for name, value in index.items() if isinstance(value, list)):
        for path in sorted((folder / name).glob("*")):
            entry = f"{name}/{path.name}"
            if path.suffix == ".safetensors" and "." not in path.stem:
                weights.append([entry, sha256_file(path)])
            elif path.suffix in {".json", ".txt", ".model", ".jinja"}:
                others.append([entry, sha256_file(path)])
    if not weights:
        raise MissingWeightsError(f"{folder}: no component has a .safetensors file; other formats are not read")
    return digest(weights), digest(others)


def _load(folder: Path, safety_checker: bool) -> DiffusionPipeline:
    """The pipeline, from safetensors; code in the folder is not run."""
    for library in (transformers_logging, diffusers_logging):
        library.disable_progress_bar()
    options: dict[str, Any] = {} if safety_checker else {"safety_checker": None, "requires_safety_checker": False}
    try:
        pipeline: Any = DiffusionPipeline.from_pretrained(
            str(folder),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            **options,
        )
    except BaseException as error:  # of damaged files, every parser and model of the library raises its own
        if is_ours(error):
            raise
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise MissingWeightsError(f"{folder}: diffusers cannot load a pipeline from it ({line})") from error
    accepted = inspect.signature(pipeline.__call__).parameters
    if not {"prompt", "generator"} <= set(accepted) or "image" in accepted:
        raise ModelError(f"{folder}: {type(pipeline).__name__} does not generate images from text alone")
    return pipeline
