"""Chat-completions servers, called through the `openai` client with bounded retries, for the adapter and the judge."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from dreambench.documents import JSON, Document, Image, Text, document_text
from dreambench.errors import DreambenchError, MissingExtraError, UsageError, counted
from dreambench.images import decode, encode_png
from dreambench.spec import parse_arguments

if TYPE_CHECKING:
    import openai

__all__ = [
    "ChatServer",
    "Conversation",
    "MalformedReplyError",
    "RefusedError",
    "Reply",
    "ServerUnavailableError",
    "content_parts",
    "in_parallel",
    "message_content",
]

T = TypeVar("T")
R = TypeVar("R")

_TYPES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg"}
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class ServerUnavailableError(DreambenchError):
    """No request to this server can succeed: it is down, or does not know the model or the key."""


class RefusedError(DreambenchError):
    """The server refuses this request; a retry would not help."""


class MalformedReplyError(DreambenchError):
    """The reply is not a chat completion with text."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The first choice of a chat completion. Token counts are the server's own."""

    text: str
    finish_reason: str
    model: str | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None


class ChatServer(BaseModel):
    """``MODEL@BASE_URL``, and how it is called.

    The key is read from the environment variable `key_env` when the client is made; it is in no log, message or identity. Rate limits
    (429), 408, 409, 5xx and lost connections are retried up to `retries` times, with exponential back-off or after the time that the
    server's Retry-After names (up to a minute).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    base_url: str
    concurrency: PositiveInt = 8
    retries: NonNegativeInt = 6
    timeout: float = Field(120.0, gt=0, allow_inf_nan=False)
    key_env: str | None = None
    token_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # noqa: S105 - a field's name

    @classmethod
    def parse(
        cls, location: str | None, arguments: Mapping[str, str], option: str, offline: bool = False
    ) -> ChatServer:
        """From ``MODEL@BASE_URL`` and the arguments concurrency, retries, timeout, key_env, token_field. Raises `UsageError`."""
        model, at, rest = (location or "").partition("@http")
        if not model or not at:
            raise UsageError(
                f"{option} openai:{location or ''}: write openai:MODEL@BASE_URL with a BASE_URL that begins with http"
            )
        address = urlsplit("http" + rest)
        if address.username or address.password or address.query or address.hostname is None:
            raise UsageError(
                f"{option} openai:{model}@…: BASE_URL is written into the run, so it has a host and no credentials or query;"
                " put the key into the environment variable OPENAI_API_KEY, or into one that key_env names"
            )
        if offline and address.hostname not in _LOOPBACK:
            raise UsageError(
                f"{option} openai:{model}@{address.hostname}: --offline allows only servers on this machine"
            )
        key_env = arguments.get("key_env")
        if key_env is not None and not os.environ.get(key_env):
            raise UsageError(f"{option}: the environment variable {key_env} named by key_env is empty")
        return parse_arguments(cls, {"model": model, "base_url": "http" + rest, **arguments}, option)

    @property
    def host(self) -> str:
        """The server's host name, without the port."""
        return urlsplit(self.base_url).hostname or ""


class Conversation:
    """A client of a `ChatServer`, which threads can share. Raises `MissingExtraError` without the package openai."""

    def __init__(self, server: ChatServer) -> None:
        try:
            import openai
        except ModuleNotFoundError as error:
            if error.name != "openai":
                raise
            raise MissingExtraError("openai", "judge", f"openai:{server.model}") from error
        self.server = server
        self._key = os.environ.get(server.key_env or "OPENAI_API_KEY", "")
        self._client = openai.OpenAI(
            api_key=self._key or "none",
            base_url=server.base_url,
            timeout=server.timeout,
            max_retries=server.retries,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(self, content: JSON, max_tokens: int, settings: Mapping[str, JSON]) -> Reply:
        """The completion of one user message; `settings` are added to the request's body.

        Raises:
            ServerUnavailableError, RefusedError, MalformedReplyError: see there.
        """
        import openai
        from openai.types.chat import ChatCompletion

        body = {
            "model": self.server.model,
            "messages": [{"role": "user", "content": content}],
            self.server.token_field: max_tokens,
            **settings,
        }
        try:
            completion = self._client.post("/chat/completions", body=body, cast_to=ChatCompletion)
        except openai.APIStatusError as error:
            if error.status_code in (400, 413, 422):
                raise RefusedError(self._clean(f"HTTP {error.status_code}: {_message(error)}")) from None
            raise ServerUnavailableError(self._status_advice(error.status_code, _message(error))) from None
        except openai.APIConnectionError as error:
            slow = isinstance(error, openai.APITimeoutError)
            what = f"gave no answer within {self.server.timeout:g} s" if slow else "cannot be reached"
            raise ServerUnavailableError(
                f"the server {self.server.base_url} {what} ({counted(self.server.retries + 1, 'attempt')}): start it and"
                " run the same command again to resume"
            ) from None
        except (ValueError, TypeError, openai.APIError) as error:
            raise MalformedReplyError(f"the reply is not a chat completion in JSON ({type(error).__name__})") from None
        return _read(completion)

    def _status_advice(self, status: int, message: str) -> str:
        name = self.server.key_env or "OPENAI_API_KEY"
        advice = {
            401: f"put a valid key into the environment variable {name}",
            403: f"the key in {name} may not use {self.server.model}",
            404: f"check that it serves {self.server.model} and that BASE_URL is complete (it often ends in /v1)",
            429: "its rate limit persists: run the same command again later, or with a lower concurrency",
        }.get(status, "run the same command again later to resume")
        return self._clean(f"the server {self.server.base_url} answers HTTP {status} ({message}): {advice}")

    def _clean(self, message: str) -> str:
        """One line, without the key, which some servers quote."""
        if self._key:
            message = message.replace(self._key, "***")
        return " ".join(message.split())[:500]


def _message(error: openai.APIStatusError) -> str:
    """The server's message, or else the client's."""
    body = error.body
    message = body.get("message") if isinstance(body, dict) else None
    return message if isinstance(message, str) else error.message


def _read(completion: object) -> Reply:
    """The first choice of a completion, whose shape the client does not check."""
    try:
        choice = completion.choices[0]  # pyright: ignore[reportAttributeAccessIssue]
        text, finish_reason = choice.message.content, choice.finish_reason
        model, usage = completion.model, completion.usage  # pyright: ignore[reportAttributeAccessIssue]
    except (AttributeError, IndexError, TypeError) as error:
        raise MalformedReplyError(f"the reply has no first choice with a message ({type(error).__name__})") from None
    if finish_reason == "content_filter":
        raise RefusedError("the server's content filter withheld the answer")
    if not isinstance(text, str):
        refusal = getattr(choice.message, "refusal", None)
        if isinstance(refusal, str):
            raise RefusedError(f"the model refused: {' '.join(refusal.split())[:300]}")
        raise MalformedReplyError("the reply's message has no text")
    return Reply(
        # A lone surrogate is legal in JSON, but cannot be written to a file.
        text.encode("utf-8", "replace").decode(),
        str(finish_reason or "stop"),
        model if isinstance(model, str) else None,
        getattr(usage, "prompt_tokens", None),
        getattr(usage, "completion_tokens", None),
    )


def message_content(document: Document) -> JSON:
    """The content of a user message: a string where there is nothing but text, else `content_parts`."""
    if all(isinstance(part, Text) for part in document):
        return document_text(document)
    return content_parts(document)


def content_parts(document: Document) -> list[JSON]:
    """A document as parts of a message: PNG and JPEG files unchanged as data URLs, others as PNG. Raises `BrokenImageError`."""
    return [
        {"type": "text", "text": part.text}
        if isinstance(part, Text)
        else {"type": "image_url", "image_url": {"url": _data_url(part)}}
        for part in document
    ]


def _data_url(image: Image) -> str:
    data = image.read()
    decoded = decode(data, image.path or "an image")
    kind = next((kind for start, kind in _TYPES.items() if data.startswith(start)), None)
    if kind is None:
        kind, data = "image/png", encode_png(decoded)
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def in_parallel(server: ChatServer, work: Callable[[Conversation, T], R], items: Sequence[T]) -> Iterator[R]:
    """Results of `work` as they complete, with at most the server's `concurrency` calls at a time.

    After an error no new call starts; the results of calls in progress are yielded before it is raised, because they were paid for.
    """
    with closing(Conversation(server)) as conversation:
        pool = ThreadPoolExecutor(server.concurrency)
        futures = [pool.submit(work, conversation, item) for item in items]
        failure: BaseException | None = None
        try:
            for future in as_completed(futures):
                if future.cancelled():
                    continue
                error = future.exception()
                if error is None:
                    yield future.result()
                elif failure is None:
                    failure = error
                    for other in futures:
                        other.cancel()
        finally:
            # Without waiting: closing the client ends the calls in progress of an interrupted caller.
            pool.shutdown(wait=False, cancel_futures=True)
        if failure is not None:
            raise failure
