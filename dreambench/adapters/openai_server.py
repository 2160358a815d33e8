"""Any vision model behind a chat-completions server."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from dreambench.chat import (
    ChatServer,
    Conversation,
    MalformedReplyError,
    RefusedError,
    ServerGoneError,
    in_parallel,
)
from dreambench.documents import JSON, Image, Text
from dreambench.errors import ModelError
from dreambench.images import BrokenImageError, decode_rgb, encode_png
from dreambench.interfaces import Model, ModelOptions
from dreambench.requests import Kind, Request, Response

__all__ = ["ServedModel"]

_KNOWN = {"max_new_tokens", "do_sample", "temperature", "top_p", "num_beams", "preset"}
_TYPES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg"}


class ServedModel(Model):
    """``openai:MODEL@BASE_URL``; ``--model-arg`` concurrency, retries, timeout, key_env, token_field as in `ChatServer`.

    PNG and JPEG files are sent as they are, others as PNG of their pixels. Greedy unless ``do_sample``; a sampled request carries the
    sample's own seed, which servers that know no seed ignore. A batch is four rounds of the server's concurrency.
    """

    capabilities: ClassVar[frozenset[Kind]] = frozenset({"generate_text"})

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        options.only("concurrency", "retries", "timeout", "key_env", "token_field")
        options.without_weights()
        self.server = ChatServer.parse(options.location, options.arguments, "--model", options.offline)
        self.server.open().close()  # says at once if the package openai is missing

    def identity(self) -> Mapping[str, JSON]:
        return {"name": "openai", "model": self.server.model, "host": self.server.host}

    def batch_size(self, kind: Kind) -> int:
        return 4 * self.server.concurrency

    def answer(self, requests: Sequence[Request]) -> Iterator[Response]:
        for request in requests:
            _settings(request)
        with self.server.open() as conversation:
            try:
                yield from in_parallel(
                    lambda request: self._answer(conversation, request), requests, self.server.concurrency
                )
            except ServerGoneError as error:
                raise ModelError(str(error)) from error

    def _answer(self, conversation: Conversation, request: Request) -> Response:
        max_tokens, settings = _settings(request)
        try:
            content = [
                {"type": "text", "text": part.text}
                if isinstance(part, Text)
                else {"type": "image_url", "image_url": {"url": _data_url(part)}}
                for part in request.document
            ]
            reply = conversation.ask([{"role": "user", "content": content}], max_tokens, settings)
        except BrokenImageError as error:
            return Response.failed(request.id, "broken-image", str(error))
        except RefusedError as error:
            return Response.failed(request.id, "refused", str(error))
        except MalformedReplyError as error:
            return Response.failed(request.id, "malformed-reply", str(error))
        return Response(
            request.id,
            (Text(reply.text.strip()),),
            reply.finish_reason,
            reply.prompt_tokens,
            reply.new_tokens,
            details={} if reply.model is None else {"answered_by": reply.model},
        )


def _settings(request: Request) -> tuple[int, dict[str, JSON]]:
    """The most new tokens, and the settings for the request's body. What a server cannot be asked for is a `ModelError`."""
    given = {key: value for key, value in request.settings.items() if value is not None}
    unknown = sorted(set(given) - _KNOWN)
    if unknown or given.get("num_beams", 1) != 1:
        what = ", ".join(unknown) or "beam search (num_beams)"
        raise ModelError(
            f"the task sets {what}, which a chat-completions server does not have: choose other settings with --generation"
        )
    settings: dict[str, JSON] = {"temperature": 0}
    if given.get("do_sample"):
        settings = {
            "temperature": given.get("temperature", 1.0),
            "top_p": given.get("top_p", 1.0),
            "seed": request.seed,
        }
    elif given.get("temperature", 0) not in (0, 1) or given.get("top_p", 1) != 1:
        raise ModelError(
            "the task sets temperature or top_p without do_sample, where they mean nothing: set do_sample=true"
        )
    return int(given.get("max_new_tokens", 512)), settings


def _data_url(image: Image) -> str:
    decoded, data = decode_rgb(image), image.read()
    kind = next((kind for start, kind in _TYPES.items() if data.startswith(start)), None)
    if kind is None:
        kind, data = "image/png", encode_png(decoded)
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
