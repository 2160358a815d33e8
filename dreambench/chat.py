"""Chat-completions servers, called with bounded retries, for the adapter and the judge."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from dreambench.documents import JSON, Document, Image, Text, document_text
from dreambench.errors import DreambenchError, MissingExtraError, UsageError, counted
from dreambench.images import decode, encode_png
from dreambench.safety import is_loopback, keep_secret, printable, redact
from dreambench.spec import parse_arguments
from dreambench.trust import require_said

if TYPE_CHECKING:
    import httpx2

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
_BASE_URL = re.compile(r"https?://(\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::([0-9]{1,5}))?(/[\w.~/%:+,=-]*)?")
_UNPROVEN = 16
"""Results without a completion that may pass before the server is tried with a request of ours."""


class ServerUnavailableError(DreambenchError):
    """No request to this server can succeed: it is down, or does not know the model or the key."""


class RefusedError(DreambenchError):
    """The server refuses this request; a retry would not help."""


class MalformedReplyError(DreambenchError):
    """The reply is not a chat completion with text, or not whole."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The first choice of a chat completion, without the key. Token counts are the server's own."""

    text: str
    finish_reason: str
    model: str | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None


class ChatServer(BaseModel):
    """``MODEL@BASE_URL``, and how it is called.

    The key is read from the environment variable `key_env` when the server is called; it is in no log, message or identity, also where
    the server repeats it. An attempt ends after `timeout` seconds, from connecting to the last byte, and a reply at 4 MiB. Rate limits
    (429), 408, 409, 5xx and lost connections are retried up to `retries` times, with exponential back-off or after the time that the
    server's Retry-After names (up to a minute). Redirects are never followed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    base_url: str
    concurrency: PositiveInt = 8
    retries: NonNegativeInt = 6
    timeout: float = Field(120.0, gt=0, le=86_400, allow_inf_nan=False)
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
        url = "http" + rest
        if (known := _BASE_URL.fullmatch(url)) is None or int(known[2] or 1) not in range(1, 1 << 16):
            raise UsageError(
                f"{option} openai:{model}@…: BASE_URL is written into the run, so it has a host, and no credentials or query;"
                " put the key into the environment variable OPENAI_API_KEY, or into one that key_env names"
            )
        server = parse_arguments(cls, {"model": model, "base_url": url, **arguments}, option)
        if offline and not is_loopback(server.host):
            raise UsageError(f"{option} openai:{model}@{server.host}: --offline allows only servers on this machine")
        if not server.key and server.key_env is not None:
            # Not a name that looks like the key itself.
            name = f" {server.key_env}" if server.key_env.isupper() else ""
            raise UsageError(f"{option}: the environment variable{name} named by key_env is empty")
        return server

    @property
    def host(self) -> str:
        """The server's host name, without the port."""
        return urlsplit(self.base_url).hostname or ""

    def require_said(self) -> None:
        """`RunError` if only a run's file names this server, and it is on another machine: it would get the data and the key."""
        if not is_loopback(self.host):
            require_said(self.base_url, "a server that would get the data and your key")

    @property
    def key(self) -> str:
        """The key, which is never written out; empty where there is none."""
        key = os.environ.get(self.key_env or "OPENAI_API_KEY", "").strip()
        if key and not (key.isascii() and key.isprintable()):
            raise UsageError(f"the key in {self.key_env or 'OPENAI_API_KEY'} has characters that no key has")
        keep_secret(key)
        return key


class Conversation:
    """A client of a `ChatServer`, which threads can share. Raises `MissingExtraError` without the package openai."""

    def __init__(self, server: ChatServer) -> None:
        try:
            from dreambench.post import Poster
        except ModuleNotFoundError as error:
            if error.name not in ("openai", "httpx2"):
                raise
            raise MissingExtraError("openai", "judge", f"openai:{server.model}") from error
        self.server = server
        self.completed = False
        """Whether any reply was a chat completion, even one that refuses."""
        self.first_failure = ""
        """Why the first request without a completion had none."""
        self._poster = Poster(server.base_url, server.key, server.timeout, server.retries)

    def close(self) -> None:
        """End the requests in progress."""
        self._poster.close()

    def ask(self, content: JSON, max_tokens: int, settings: Mapping[str, JSON]) -> Reply:
        """The completion of one user message; `settings` are added to the request's body.

        Raises:
            ServerUnavailableError, RefusedError, MalformedReplyError: see there.
        """
        body = {
            "model": self.server.model,
            "messages": [{"role": "user", "content": content}],
            self.server.token_field: max_tokens,
            **settings,
        }
        try:
            completion = _completion(self._send(body))
        except (RefusedError, MalformedReplyError) as error:
            self.first_failure = self.first_failure or str(error)
            raise
        self.completed = True
        return _read(*completion)

    def _send(self, body: Mapping[str, JSON]) -> httpx2.Response:
        """The whole reply with a status of success."""
        import openai

        from dreambench.post import BrokeOffError, cut_short

        try:
            response = self._poster.post("/chat/completions", body)
        except openai.APIStatusError as error:
            if error.status_code in (400, 413, 422):
                raise RefusedError(f"HTTP {error.status_code}: {_message(error.response)}") from None
            if (why := cut_short(error.response)) is not None:
                raise MalformedReplyError(f"HTTP {error.status_code}: {why}") from None
            raise ServerUnavailableError(self._status_advice(error.response)) from None
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, BrokeOffError):
                raise MalformedReplyError(_line(str(error.__cause__))) from None
            raise ServerUnavailableError(self._no_reply_advice(error)) from None
        except CancelledError:
            raise ServerUnavailableError("interrupted") from None
        if (why := cut_short(response)) is not None:
            raise MalformedReplyError(why)
        return response

    def prove(self) -> None:
        """After requests of which none had a completion: `ServerUnavailableError` unless the server completes one of ours."""
        reason = self.first_failure
        if reason and not self.completed:
            try:
                self.ask("Answer with the word yes.", 16, {"temperature": 0})
            except (RefusedError, MalformedReplyError):
                raise ServerUnavailableError(
                    f"the server {self.server.base_url} answers no request with a chat completion ({reason}): check"
                    f" that BASE_URL is complete (it often ends in /v1) and serves {self.server.model}"
                ) from None

    def _no_reply_advice(self, error: Exception) -> str:
        import openai

        late = isinstance(error, openai.APITimeoutError)
        what = f"gave no answer within {self.server.timeout:g} s" if late else "cannot be reached"
        attempts = counted(self.server.retries + 1, "attempt")
        why = (
            ""
            if late or error.__cause__ is None
            else f" ({_line(str(error.__cause__)) or type(error.__cause__).__name__})"
        )
        return f"the server {self.server.base_url} {what} ({attempts}): start it and run the same command again to resume{why}"

    def _status_advice(self, response: httpx2.Response) -> str:
        name, status = self.server.key_env or "OPENAI_API_KEY", response.status_code
        advice = {
            401: f"put a valid key into the environment variable {name}",
            403: f"the key in {name} may not use {self.server.model}",
            404: f"check that it serves {self.server.model} and that BASE_URL is complete (it often ends in /v1)",
            429: "its rate limit persists: run the same command again later, or with a lower concurrency",
        }.get(status, "run the same command again later to resume")
        message = _message(response)
        if 300 <= status < 400:
            message = f"a redirect to {_line(response.headers.get('location', 'nowhere'))}"
            advice = (
                "redirects are not followed, because the key and the data would go with them; give the final BASE_URL"
            )
        return f"the server {self.server.base_url} answers HTTP {status} ({message}): {advice}"


def _message(response: httpx2.Response) -> str:
    """The server's own words about an error, or the beginning of the body."""
    value: Any = response.content.decode(errors="replace")
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(value)
        value = value.get("error", value) if isinstance(value, dict) else value
        value = value.get("message", value) if isinstance(value, dict) else value
    return _line(value if isinstance(value, str) else json.dumps(value)) or "no message"


def _completion(response: httpx2.Response) -> tuple[Any, Any]:
    """The body of a chat completion and its first choice. `MalformedReplyError` where there is no choice with a message."""
    try:
        completion: Any = json.loads(response.content.decode("utf-8-sig"))
        choice = completion["choices"][0]
        if not isinstance(choice["message"], dict):
            raise TypeError
    except (ValueError, RecursionError) as error:
        raise MalformedReplyError(f"the reply is not a chat completion in JSON ({type(error).__name__})") from None
    except (KeyError, IndexError, TypeError) as error:
        raise MalformedReplyError(f"the reply has no first choice with a message ({type(error).__name__})") from None
    return completion, choice


def _read(completion: Any, choice: Any) -> Reply:
    """The fields of a completion. What is of another type than it should be counts as absent."""
    message, usage = choice["message"], completion.get("usage")
    if choice.get("finish_reason") == "content_filter":
        raise RefusedError("the server's content filter withheld the answer")
    if not isinstance(message.get("content"), str):
        if isinstance(message.get("refusal"), str):
            raise RefusedError(f"the model refused: {_line(message['refusal'])}")
        raise MalformedReplyError("the reply's message has no text")
    reason, model = choice.get("finish_reason"), completion.get("model")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    return Reply(
        _clean(message["content"]),
        (_line(reason) if isinstance(reason, str) else "") or "stop",
        _line(model) if isinstance(model, str) else None,
        *(count if type(count) is int and 0 <= count < 1 << 53 else None for count in counts),
    )


def _clean(text: str) -> str:
    """What a server wrote, as it enters the process: without known keys, and without lone surrogates, which no file can hold."""
    return redact(text).encode("utf-8", "replace").decode()


def _line(text: str) -> str:
    """The same, as one line for messages and names."""
    return printable(" ".join(_clean(text).split())[:300])


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
    Until the first chat completion results are held back: a server that gives none, such as a login page, is an error, not a list of
    failed items.
    """
    with closing(Conversation(server)) as conversation:
        pool = ThreadPoolExecutor(server.concurrency)
        futures = [pool.submit(work, conversation, item) for item in items]
        failure: BaseException | None = None
        held: list[R] = []
        try:
            for future in as_completed(futures):
                if future.cancelled():
                    continue
                error = future.exception()
                if error is None:
                    held.append(future.result())
                    if len(held) >= _UNPROVEN:
                        conversation.prove()
                    if conversation.completed:
                        yield from _emptied(held)
                elif failure is None:
                    failure = error
                    for other in futures:
                        other.cancel()
            if failure is None:
                conversation.prove()
                yield from held
        finally:
            # Without waiting: closing the conversation ends the calls in progress of an interrupted caller.
            pool.shutdown(wait=False, cancel_futures=True)
        if failure is not None:
            raise failure


def _emptied(held: list[R]) -> Iterator[R]:
    while held:
        yield held.pop(0)
