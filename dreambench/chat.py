"""A server that speaks the chat-completions protocol: reached through the `openai` client, with bounded patience."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from dreambench.documents import JSON
from dreambench.errors import DreambenchError, MissingExtraError, UsageError

if TYPE_CHECKING:
    import openai

__all__ = ["ChatServer", "MalformedReplyError", "RefusedError", "Reply", "ServerGoneError", "in_parallel"]

T = TypeVar("T")
R = TypeVar("R")

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class ServerGoneError(DreambenchError):
    """Nothing more can be had from this server: it is down, knows no such model or accepts no such key."""


class RefusedError(DreambenchError):
    """The server will not answer this request, however often it is asked."""


class MalformedReplyError(DreambenchError):
    """The reply is not a chat completion with a text in it."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The first choice of a chat completion. Token counts are the server's own."""

    text: str
    finish_reason: str
    model: str | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None


@dataclass(frozen=True)
class ChatServer:
    """``MODEL@BASE_URL`` and how patiently it is asked.

    The key is read from the environment variable `key_env` when the first request is made; it is in no log, message or identity.
    Rate limits (429), 408, 409, 5xx and lost connections are tried again up to `retries` times, with exponential back-off or as long as
    the server's Retry-After says (up to a minute).
    """

    model: str
    base_url: str
    key_env: str | None = None
    concurrency: int = 8
    retries: int = 6
    timeout: float = 120.0
    token_field: str = "max_tokens"  # noqa: S105 - a field's name

    @classmethod
    def parse(
        cls, location: str | None, arguments: Mapping[str, str], option: str, offline: bool = False
    ) -> ChatServer:
        """From ``MODEL@BASE_URL`` and the arguments concurrency, retries, timeout, key_env, token_field."""
        model, at, rest = (location or "").partition("@http")
        if not model or not at:
            raise UsageError(
                f"{option} openai:{location or ''}: write openai:MODEL@BASE_URL, BASE_URL beginning with http"
            )
        address = urlsplit("http" + rest)
        if address.username or address.password or address.query or address.hostname is None:
            raise UsageError(
                f"{option} openai:{model}@…: a BASE_URL has a host and no credentials or query in it, for it is written"
                " into the run; put the key into the environment variable OPENAI_API_KEY or name another by key_env"
            )
        if offline and address.hostname not in _LOOPBACK:
            raise UsageError(
                f"{option} openai:{model}@{address.hostname}: --offline allows servers on this machine only"
            )
        key_env = arguments.get("key_env")
        if key_env is not None and not os.environ.get(key_env):
            raise UsageError(f"{option}: the environment variable {key_env} named by key_env is empty")
        token_field = arguments.get("token_field", "max_tokens")
        if token_field not in ("max_tokens", "max_completion_tokens"):
            raise UsageError(f"{option}: token_field is max_tokens or max_completion_tokens, not {token_field}")
        return cls(
            model,
            "http" + rest,
            key_env,
            int(_number(arguments, "concurrency", 8, 1, option)),
            int(_number(arguments, "retries", 6, 0, option)),
            _number(arguments, "timeout", 120, 0.001, option),
            token_field,
        )

    @property
    def host(self) -> str:
        """The server's host name, without the port."""
        return urlsplit(self.base_url).hostname or ""

    def open(self) -> Conversation:
        """Make the client; nothing is sent yet. Raises `MissingExtraError` without the package openai."""
        return Conversation(self)


class Conversation:
    """A client of a `ChatServer`; safe to share among threads. Close it after use, for instance by `with`."""

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

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connections."""
        self._client.close()

    def ask(self, messages: Sequence[Mapping[str, JSON]], max_tokens: int, settings: Mapping[str, JSON]) -> Reply:
        """One chat completion. `settings` go into the request's body as they are.

        Raises `ServerGoneError`, `RefusedError` or `MalformedReplyError`.
        """
        import openai
        from openai.types.chat import ChatCompletion

        body = {
            "model": self.server.model,
            "messages": list(messages),
            self.server.token_field: max_tokens,
            **settings,
        }
        try:
            completion = self._client.post("/chat/completions", body=body, cast_to=ChatCompletion)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise RefusedError(self._clean(f"HTTP {error.status_code}: {_said(error)}")) from None
        except openai.APIStatusError as error:
            if error.status_code == 413:
                raise RefusedError(self._clean(f"HTTP 413: {_said(error)}")) from None
            raise ServerGoneError(self._status_advice(error.status_code, _said(error))) from None
        except openai.APIConnectionError as error:
            slow = isinstance(error, openai.APITimeoutError)
            what = f"gave no answer within {self.server.timeout:g} s" if slow else "cannot be reached"
            raise ServerGoneError(
                f"the server {self.server.base_url} {what}, tried {self.server.retries + 1} times: start it and run the"
                " same command again, it goes on where it stopped"
            ) from None
        except (ValueError, TypeError, openai.APIError) as error:
            raise MalformedReplyError(f"the reply is not JSON of a chat completion ({type(error).__name__})") from None
        return _read(completion)

    def _status_advice(self, status: int, message: str) -> str:
        name = self.server.key_env or "OPENAI_API_KEY"
        advice = {
            401: f"put a valid key into the environment variable {name}",
            403: f"the key in {name} may not use {self.server.model}",
            404: f"is {self.server.model} served there, and does BASE_URL end as the server wants it (often /v1)?",
            429: "its rate limit lasts: run the same command again later, or with a lower concurrency",
        }.get(status, "run the same command again when it is well, it goes on where it stopped")
        return self._clean(f"the server {self.server.base_url} answers HTTP {status} ({message}): {advice}")

    def _clean(self, message: str) -> str:
        """One line without the key, which some servers quote."""
        if self._key:
            message = message.replace(self._key, "***")
        return " ".join(message.split())[:500]


def _said(error: openai.APIStatusError) -> str:
    """The server's own words."""
    body = error.body
    message = body.get("message") if isinstance(body, dict) else None
    return message if isinstance(message, str) else error.message


def _read(completion: object) -> Reply:
    """The text of a completion; whatever is not one is malformed: the client does not check the shape it was sent."""
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
        # A lone surrogate is legal in JSON but in no file that we could write.
        text.encode("utf-8", "replace").decode(),
        str(finish_reason or "stop"),
        model if isinstance(model, str) else None,
        getattr(usage, "prompt_tokens", None),
        getattr(usage, "completion_tokens", None),
    )


def in_parallel(work: Callable[[T], R], items: Sequence[T], concurrency: int) -> Iterator[R]:
    """Results as they come, at most `concurrency` under way. After an error nothing new begins; what is under way ends and is given
    first, because it has been paid for."""
    pool = ThreadPoolExecutor(concurrency)
    futures = [pool.submit(work, item) for item in items]
    failure: Exception | None = None
    try:
        for future in as_completed(futures):
            if future.cancelled():
                continue
            error = future.exception()
            if error is None:
                yield future.result()
            elif failure is None:
                failure = error if isinstance(error, Exception) else RuntimeError(str(error))
                for other in futures:
                    other.cancel()
    finally:
        # Not waiting: an interrupted caller closes the client, which ends what is under way.
        pool.shutdown(wait=False, cancel_futures=True)
    if failure is not None:
        raise failure


def _number(arguments: Mapping[str, str], key: str, default: float, least: float, option: str) -> float:
    """A number among the arguments, at least `least`."""
    text = arguments.get(key)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not value >= least or value == float("inf"):
        raise UsageError(f"{option}: {key}={text} is not a number of at least {least:g}")
    return value
