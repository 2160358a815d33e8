"""DreamLLM under test. The model itself is the library `dreamllm`; here requests become its calls and its answers responses."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image as PILImage
from transformers.utils import logging as transformers_logging

import dreamllm
from dreambench.adapters.torch_tools import (
    catch_out_of_memory,
    group_by_settings,
    known_settings,
    resolve_checkpoint,
    resolve_device,
    resolve_dtype,
    weights_digest,
)
from dreambench.documents import JSON, Document, Image, Text
from dreambench.errors import DataError, MissingWeightsError, ModelError
from dreambench.images import BrokenImageError, decode_rgb, encode_png
from dreambench.interfaces import Model, ModelOptions
from dreambench.requests import Failure, Kind, Request, Response
from dreambench.threads import threads_for
from dreamllm.checkpoint import load
from dreamllm.errors import CheckpointError, DreamLLMError
from dreamllm.image_decoder import to_pil

__all__ = ["DreamLLM", "embedded_checkpoint"]

TEXT_SETTINGS = ("max_new_tokens", "num_beams", "do_sample", "temperature", "top_p", "assistant_prefix")
IMAGE_SETTINGS = (
    "scheduler",
    "num_inference_steps",
    "guidance_scale",
    "guidance_rescale",
    "negative_prompt",
    "resolution",
    "candidates",
)


def embedded_checkpoint() -> Path:
    """The trained checkpoint that ships with the package; MissingWeightsError where it was left out."""
    folder = Path(dreamllm.__file__).parent / "embedded"
    if not (folder / "model.safetensors").is_file():
        raise MissingWeightsError(
            f"the embedded DreamLLM is not in {folder}: install the package again, or name a checkpoint with --model dreamllm:DIR"
        )
    return folder


class DreamLLM(Model):
    """DreamLLM: the embedded checkpoint, or ``dreamllm:DIR_OR_HUB_ID`` in our layout or the released one.

    ``--model-arg clip=DIR`` and ``diffusion=DIR`` give the sub-models that a released checkpoint names but does not hold, and
    ``plugins=DIR`` the folder of its three .bin files where that is another one.
    """

    capabilities: ClassVar[frozenset[Kind]] = frozenset({"generate_text", "generate_image", "loglikelihood"})

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        options.only("clip", "diffusion", "plugins")
        self.device = resolve_device(options.device)
        self.dtype = resolve_dtype(options.dtype, self.device)
        transformers_logging.disable_progress_bar()
        with _one_line():
            place = options.location
            folder = (
                embedded_checkpoint()
                if place is None
                else resolve_checkpoint(place, options.offline, "--model dreamllm")
            )
            model, self.processor = load(folder, **options.arguments)
        self._weights = weights_digest(model)
        module: Any = model
        self.model = module.to(device=self.device, dtype=self.dtype)

    def identity(self) -> Mapping[str, JSON]:
        return {
            "name": "dreamllm",
            "weights_sha256": self._weights,
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
        with threads_for(self.model), _one_line():
            for group in group_by_settings(requests):
                if group[0].kind == "generate_image":
                    yield from self._generate_images(group)
                elif group[0].kind == "loglikelihood":
                    yield from self._loglikelihood(group)
                else:
                    yield from self._read(group)

    # --- reading ------------------------------------------------------------------------------------------------------

    def _read(self, requests: Sequence[Request]) -> Iterator[Response]:
        settings = known_settings(requests[0], TEXT_SETTINGS, "dreamllm")
        prefix = settings.pop("assistant_prefix", "")
        readable, images, failed = self._open_images(requests)
        yield from failed
        # A sampled answer must not depend on its batch mates, and generate() draws for a whole batch from one generator.
        batches = [[one] for one in readable] if settings.get("do_sample") else [readable]
        for batch in batches:
            if batch:
                yield from self._generate(batch, images, prefix, settings)

    def _generate(
        self, requests: Sequence[Request], images: Mapping[str, PILImage.Image], prefix: str, settings: dict[str, Any]
    ) -> Iterator[Response]:
        inputs = self._tokens([self._chat(request.document, prefix) for request in requests])
        options = {"do_sample": False, "num_beams": 1, "max_new_tokens": 64, **settings}
        with catch_out_of_memory(self.device), torch.no_grad(), torch.random.fork_rng(devices=self._cuda()):
            torch.manual_seed(requests[0].seed)
            sequences = self.model.generate(
                inputs["input_ids"].to(self.device),
                attention_mask=inputs["attention_mask"].to(self.device),
                image_features=self._image_features(requests, images),
                pad_token_id=self.processor.tokenizer.pad_token_id,
                **options,
            )
        eos = self.model.config.eos_token_id
        for request, sequence, mask in zip(requests, sequences, inputs["attention_mask"], strict=True):
            new = sequence[len(mask) :].tolist()
            ended = eos in new
            new = new[: new.index(eos)] if ended else new
            text = self.processor.decode(new).strip()
            yield Response(
                request.id,
                (Text(text),),
                finish_reason="stop" if ended else "length",
                prompt_tokens=int(mask.sum()),
                new_tokens=len(new) + ended,
            )

    def _chat(self, document: Document, prefix: str) -> str:
        """The prompt of one turn, with the first words of its answer if any."""
        prompt = self.processor.apply_chat_template([{"role": "user", "content": self._placeholders(document)}])
        return f"{prompt} {prefix}" if prefix else prompt

    def _tokens(self, texts: Sequence[str]) -> Any:
        """`input_ids` and `attention_mask` (B, T), padded on the left, images' spans in place: images are encoded apart, each once."""
        rows = [self.processor.expand(self.processor.tokenizer(text)["input_ids"]) for text in texts]
        return self.processor.tokenizer.pad({"input_ids": rows}, return_tensors="pt")

    def _placeholders(self, document: Document) -> str:
        """Images as ``<image>``; a special token that stands in a text of the data is defused, or it would claim an image."""
        parts: list[str] = []
        for part in document:
            if isinstance(part, Image):
                parts.append("<image>")
            else:
                text = part.text
                for token in self.processor.tokenizer.all_special_tokens:
                    text = text.replace(token, f"{token[0]} {token[1:]}")
                parts.append(text)
        return "".join(parts)

    def _open_images(
        self, requests: Sequence[Request]
    ) -> tuple[list[Request], dict[str, PILImage.Image], list[Response]]:
        """Requests whose images decode, those images by digest, and an error response for each other request."""
        images: dict[str, PILImage.Image] = {}
        readable: list[Request] = []
        failed: list[Response] = []
        for request in requests:
            try:
                for part in request.document:
                    if isinstance(part, Image) and part.digest() not in images:
                        images[part.digest()] = decode_rgb(part)
            except (DataError, BrokenImageError) as error:
                failed.append(Response(request.id, error=Failure("broken-image", str(error))))
            else:
                readable.append(request)
        return readable, images, failed

    def _image_features(self, requests: Sequence[Request], images: Mapping[str, PILImage.Image]) -> Any:
        """(n, N, H) over the batch's images in reading order; an image that several questions share is encoded once."""
        order = [part.digest() for request in requests for part in request.document if isinstance(part, Image)]
        if not order:
            return None
        unique = list(dict.fromkeys(order))
        pixels = self.processor.pixel_values([images[name] for name in unique]).to(self.device, self.dtype)
        features = self.model.encode_images(pixels)
        return features[[unique.index(name) for name in order]]

    # --- log-likelihood ---------------------------------------------------------------------------------------------------

    def _loglikelihood(self, requests: Sequence[Request]) -> Iterator[Response]:
        """Sum of the log-probabilities of each choice's tokens after the prompt."""
        known_settings(requests[0], ("assistant_prefix",), "dreamllm")
        prefix = requests[0].settings.get("assistant_prefix", "")
        readable, images, failed = self._open_images(requests)
        yield from failed
        for request in readable:
            prompt = self._chat(request.document, prefix)
            start = len(self._tokens([prompt])["input_ids"][0])
            inputs = self._tokens([f"{prompt} {choice}" for choice in request.choices])
            features = self._image_features([request] * len(request.choices), images)
            with catch_out_of_memory(self.device), torch.no_grad():
                mask = inputs["attention_mask"].to(self.device)
                ids = inputs["input_ids"].to(self.device)
                position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
                output = self.model(
                    input_ids=ids, attention_mask=mask, position_ids=position_ids, image_features=features
                )
                logs = torch.log_softmax(output.logits[:, :-1].float(), dim=-1)
            tokens = logs.gather(-1, ids[:, 1:, None])[..., 0]
            # Left padding: a choice's tokens stand at the end, after `start` tokens of prompt.
            lengths = mask.sum(-1).tolist()
            scores = tuple(float(row[-(int(n) - start) :].sum()) for row, n in zip(tokens, lengths, strict=True))
            yield Response(request.id, scores=scores, prompt_tokens=start)

    # --- image generation -----------------------------------------------------------------------------------------------------

    def _generate_images(self, requests: Sequence[Request]) -> Iterator[Response]:
        settings = known_settings(requests[0], IMAGE_SETTINGS, "dreamllm")
        candidates = int(settings.get("candidates", 1))
        self._check_resolution(settings.get("resolution"))
        readable, images, failed = self._open_images(requests)
        yield from failed
        if not readable:
            return
        inputs = self._tokens([self._placeholders(request.document) for request in readable])
        negative = settings.get("negative_prompt")
        with catch_out_of_memory(self.device):
            embeds = self.model.encode_prompts(
                inputs["input_ids"], inputs["attention_mask"], image_features=self._image_features(readable, images)
            )
            generated: Any = self.model.generate_images(
                prompt_embeds=embeds,
                negative_prompts=self.processor(text=negative) if negative else None,
                num_images_per_prompt=candidates,
                scheduler=settings.get("scheduler", "ddim"),
                num_inference_steps=int(settings.get("num_inference_steps", 50)),
                guidance_scale=float(settings.get("guidance_scale", 7.5)),
                guidance_rescale=float(settings.get("guidance_rescale", 0.0)),
                seeds=[request.seed + j for request in readable for j in range(candidates)],
                output_type="tensor",
            )
        for index, request in enumerate(readable):
            mine = generated[index * candidates : (index + 1) * candidates]
            if not bool(torch.isfinite(mine).all()):
                message = f"the image has pixels that are not finite in {self.dtype}: use --dtype float32"
                yield Response.failed(request.id, "not-finite", message)
                continue
            document = tuple(Image(data=encode_png(image)) for image in to_pil(mine))
            yield Response(request.id, document, prompt_tokens=int(inputs["attention_mask"][index].sum()))

    def _check_resolution(self, asked: int | None) -> None:
        side = self.model.config.image_decoder_config.resolution
        if asked and asked != side:
            raise ModelError(
                f"resolution={asked} was asked for, this model generates images {side} x {side}: leave it out"
            )

    def _cuda(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []


@contextmanager
def _one_line() -> Generator[None]:
    """The library's errors in the harness's tree."""
    try:
        yield
    except CheckpointError as error:
        hint = "" if "--" in str(error) else " (a released checkpoint takes --model-arg clip=DIR and diffusion=DIR)"
        raise MissingWeightsError(f"--model dreamllm: {error}{hint}") from error
    except DreamLLMError as error:
        raise ModelError(f"--model dreamllm: {error}") from error
