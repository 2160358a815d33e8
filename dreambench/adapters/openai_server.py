"""``openai``: any vision model behind a chat-completions server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from dreambench.chat import (
    ChatServer,
    Conversation,
    MalformedReplyError,
    RefusedError,
    ServerUnavailableError,
    content_parts,
    in_parallel,
)
from dreambench.documents import JSON, Text
from dreambench.errors import ModelError
from dreambench.images import BrokenImageError
from dreambench.interfaces import Model, ModelOptions
from dreambench.requests import Kind, Request, Response

__all__ = ["ServedModel"]

_KNOWN = {"max_new_tokens", "do_sample", "temperature", "top_p", "num_beams", "preset"}


class ServedModel(Model):
    """``openai:MODEL@BASE_URL``; ``--model-arg`` concurrency, retries, timeout, key_env, token_field as in `ChatServer`.

    PNG and JPEG files are sent unchanged, others as PNG. Greedy unless ``do_sample``; a sampled request has the sample's seed, which
    servers without seeds ignore. A batch is four times the concurrency.
    """

    capabilities: ClassVar[frozenset[Kind]] = frozenset({"generate_text"})

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        options.only(*(name for name in ChatServer.model_fields if name not in ("model", "base_url")))
        options.without_weights()
        self.server = ChatServer.parse(options.location, options.arguments, "--model", options.offline)
        self.server.require_said()
        Conversation(
            self.server
        ).close()  # raises without the package openai, and for a key or a proxy that cannot be used

    def identity(self) -> Mapping[str, JSON]:
        return {"name": "openai", "model": self.server.model, "host": self.server.host}

    def batch_size(self, kind: Kind) -> int:
        return 4 * self.server.concurrency

    def answer(self, requests: Sequence[Request]) -> Iterator[Response]:
        for request in requests:
            _settings(request)
        try:
            yield from in_parallel(self.server, self._answer, requests)
        except ServerUnavailableError as error:
            raise ModelError(str(error)) from error

    def _answer(self, conversation: Conversation, request: Request) -> Response:
        max_tokens, settings = _settings(request)
        try:
            reply = conversation.ask(content_parts(request.document), max_tokens, settings)
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
    """The maximum of new tokens and the other settings of the body. Raises `ModelError` for settings that servers do not have."""
    options = {key: value for key, value in request.settings.items() if value is not None}
    unknown = sorted(set(options) - _KNOWN)
    if unknown or options.get("num_beams", 1) != 1:
        what = ", ".join(unknown) or "beam search (num_beams)"
        raise ModelError(
            f"the task sets {what}, which chat-completions servers do not have: choose other settings with --generation"
        )
    settings: dict[str, JSON] = {"temperature": 0}
    if options.get("do_sample"):
        settings = {
            "temperature": options.get("temperature", 1.0),
            "top_p": options.get("top_p", 1.0),
            "seed": request.seed,
        }
    elif options.get("temperature", 0) not in (0, 1) or options.get("top_p", 1) != 1:
        raise ModelError(
            "the task sets temperature or top_p without do_sample, where they have no effect: set do_sample=true"
        )
    return int(options.get("max_new_tokens", 512)), settings
