"""What a server may do instead of answering: each function writes to the connection as it likes."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

__all__ = ["KEY", "MISBEHAVIOUR", "Misbehaviour", "leaked", "reply", "respond"]

KEY = "sk-9Zq/+hostile=Key_77"
GOOD = "0.5"
"""The right answer: a grade, should a judge be asked."""
Send = Callable[[bytes], None]
Act = Callable[[Send, socket.socket, int], None]
"""Called with `send`, the connection, and how often this request was made."""
Outcome = Literal["good", "fails", "no text", "down", "good or fails", "fails or down"]


@dataclass(frozen=True)
class Misbehaviour:
    """One way to misbehave, and what must come of a request that meets it.

    ``good``: the sample has its answer. ``fails``: it has a typed error, and the others their answers; if every request meets it, the run
    ends with status 2. ``no text``: the same, but it is a chat completion, and if every one is like that, every sample has its error.
    ``down``: the run ends with status 2.
    """

    name: str
    act: Act
    becomes: Outcome
    slow: bool = False
    """Whether it lasts until the deadline."""


def respond(
    body: bytes, status: str = "200 OK", *headers: str, length: object = None, kind: str = "application/json"
) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", "Connection: close", *headers]
    if length != "none":
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1") + body


def completion(content: Any = GOOD, *, choice: Any = None, message: Any = None, **fields: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content} | (message or {})
    first = {"index": 0, "finish_reason": "stop", "message": message} | (choice or {})
    usage = {"prompt_tokens": 11, "completion_tokens": 3}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "usage": usage,
        "choices": [first],
    } | fields


def reply(content: Any = GOOD, **fields: Any) -> bytes:
    return json.dumps(completion(content, **fields)).encode()


def leaked(text: str) -> bool:
    """Whether a form of the key is in a text."""
    forms = [KEY, quote(KEY, safe=""), json.dumps(KEY)[1:-1], KEY.encode().hex(), "\\u0073\\u006b\\u002d\\u0039"]
    return any(form in text for form in [*forms, base64.b64encode(KEY.encode()).decode()[:-4]])


def _bodies() -> Iterator[tuple[str, bytes, Outcome]]:
    """Bodies of a reply with status 200."""
    good = reply()
    yield "a login page", b"<!doctype html><html><title>Please log in</title></html>", "fails"
    yield "nothing", b"", "fails"
    yield "spaces", b" \r\n\t ", "fails"
    yield "half of the JSON", good[: len(good) // 2], "fails"
    yield "JSON and more", good + b"}", "fails"
    yield "two completions", good + b"\n" + good, "fails"
    yield "a stream of events", b"data: " + good + b"\n\ndata: [DONE]\n\n", "fails"
    for value in (None, [], {}, 5, "0.5", True, [completion()], {"choices": None}, {"choices": {}}, {"choices": []}):
        yield f"JSON {json.dumps(value)[:30]}", json.dumps(value).encode(), "fails"
    for choice in (
        None,
        [],
        "0.5",
        {},
        {"message": None},
        {"message": []},
        {"message": "0.5"},
        {"text": "0.5"},
    ):
        yield f"the choice {json.dumps(choice)[:30]}", json.dumps({"choices": [choice]}).encode(), "fails"
    for content in (None, 5, 0.5, True, {}, [], [{"type": "text", "text": "0.5"}]):
        yield f"the content {json.dumps(content)[:30]}", reply(content), "no text"
    yield "an empty message", json.dumps({"choices": [{"message": {}}]}).encode(), "no text"
    yield "an error in a reply", json.dumps({"error": {"message": "no"}}).encode(), "fails"
    yield "calls of tools", reply(None, message={"tool_calls": [{"id": "1"}]}), "no text"
    yield "a refusal", reply(None, message={"refusal": "I will not"}), "no text"
    yield "a refusal that is a number", reply(None, message={"refusal": 5}), "no text"
    yield "a content filter", reply(choice={"finish_reason": "content_filter"}), "no text"
    for name, usage in {
        "NaN": '{"prompt_tokens": NaN, "completion_tokens": Infinity}',
        "1e400": '{"prompt_tokens": 1e400, "completion_tokens": -1}',
        "words": '{"prompt_tokens": "11", "completion_tokens": {}}',
        "a list": "[1, 2]",
        "2**80": f'{{"prompt_tokens": {2**80}, "completion_tokens": true}}',
        "null": "null",
    }.items():
        body = json.dumps(completion(usage="?")).replace('"?"', usage)
        yield f"usage {name}", body.encode(), "good"
    yield "a number of 5,000 digits", json.dumps(completion(usage="?")).replace('"?"', "9" * 5000).encode(), "fails"
    for field in ("model", "finish_reason"):
        for value in (5, None, [], {"a": 1}, "\ud800", "\x1b]0;owned\x07\u202e\n", "x" * 100_000, float("nan")):
            fields = {"model": value} if field == "model" else {"choice": {"finish_reason": value}}
            yield f"{field} {json.dumps(value)[:20]}", reply(**fields), "good"
    yield "half a surrogate pair", reply(GOOD + "\ud800"), "good or fails"
    yield "control characters", reply(GOOD + " \x00\x1b]0;owned\x07\x1b[2J\x9b\u202e\u2028\r\n"), "good"
    yield "a long answer", reply(GOOD + " x" * 500_000), "good"
    yield "bytes that are not UTF-8", good.replace(b"0.5", b"\xff\xfe\xc3("), "fails"
    yield "Latin-1", good.replace(b"0.5", "0.5 é".encode("latin-1")), "fails"
    yield "UTF-16", good.decode().encode("utf-16"), "fails"
    yield "a byte order mark", b"\xef\xbb\xbf" + good, "good"
    yield "deep JSON", b"[" * 500_000, "fails"
    yield (
        "deep JSON within usage",
        good.replace(b'{"prompt', b'{"a":' + b'{"a":' * 200_000 + b"1" + b"}" * 200_000 + b',"prompt'),
        "fails",
    )
    yield "repeated keys", good.replace(b'"choices"', b'"choices": 5, "choices"'), "good"
    yield "many choices", reply(n=1, extra=[completion()] * 3000), "good"
    yield "gzip without a word", gzip.compress(good), "fails"
    for name, form in {
        "plainly": KEY,
        "for a URL": quote(KEY, safe=""),
        "in base64": base64.b64encode(f"Bearer {KEY}".encode()).decode(),
        "in hex": KEY.encode().hex(),
        "in capitals": KEY.upper(),
    }.items():
        yield f"the key {name}", reply(f"{GOOD} {form}"), "good"
    yield (
        "the key as escapes",
        good.replace(b"0.5", b"0.5 " + "".join(f"\\u{ord(c):04x}" for c in KEY).encode()),
        "good",
    )
    yield "the key as the model", reply(model=KEY), "good"
    yield "the key as the reason", reply(choice={"finish_reason": KEY}), "good"
    yield "the key in a refusal", reply(None, message={"refusal": f"not with {KEY}"}), "no text"
    yield "the key in a page", f"<html>{KEY}</html>".encode(), "fails"


def _statuses() -> Iterator[tuple[str, bytes, Outcome]]:
    """Other replies of one piece."""
    good, error = reply(), json.dumps({"error": {"message": f"no, {KEY} \x1b]0;owned\x07"}}).encode()
    for status in (400, 413, 422):
        yield f"status {status} with the key", respond(error, f"{status} No"), "fails"
    for status in (401, 402, 403, 404, 405, 408, 409, 418, 429, 451, 500, 502, 503, 504, 599, 600, 999):
        yield f"status {status} with the key", respond(error, f"{status} No"), "down"
    for name, body in {
        "deep": b"[" * 300_000,
        "bytes": b"\xff" * 1000,
        "list": b'[{"error": 5}]',
        "nothing": b"",
    }.items():
        yield f"status 400 with {name}", respond(body, "400 No"), "fails"
        yield f"status 500 with {name}", respond(body, "500 No"), "down"
    for status in (201, 206, 299):
        yield f"status {status}", respond(good, f"{status} Well"), "good"
    yield "status 204", respond(b"", "204 No Content"), "fails"
    for status in (300, 301, 302, 303, 307, 308):
        yield (
            f"a redirect {status}",
            respond(b"", f"{status} Go", f"Location: http://ELSEWHERE/v1?key={quote(KEY)}"),
            "down",
        )
    for place in ("/v1/chat/completions", "file:///etc/passwd", "", "\x1b]0;owned\x07", "//ELSEWHERE/v1", "x" * 60_000):
        yield f"a redirect to {place[:20]!r}", respond(b"", "302 Go", f"Location: {place}"), "down"
    for wait in ("1e400", "-1", "NaN", "0", "99999999999", "Wed, 21 Oct 2099 07:28:00 GMT", "\x00", ""):
        yield f"Retry-After {wait!r}", respond(error, "429 Slow", f"Retry-After: {wait}"), "fails or down"
    yield "a length that is too short", respond(good, length=len(good) // 2), "fails"
    yield "a length that is too long", respond(good, length=len(good) + 1000), "fails"
    yield "a length of 10**15", respond(good, length=10**15), "fails"
    for length in ("-1", "abc", "1e3", "", "9" * 5000):
        yield f"the length {length[:10]!r}", respond(good, length=length), "good or fails"
    yield "no length", respond(good, length="none"), "good"
    chunked = ("Transfer-Encoding: chunked",)
    in_chunks: list[tuple[str, bytes, Outcome]] = [
        ("chunks", b"%x\r\n%s\r\n0\r\n\r\n" % (len(good), good), "good"),
        ("chunks without an end", b"%x\r\n%s\r\n" % (len(good), good), "fails"),
        ("half a chunk", b"%x\r\n%s" % (len(good) * 2, good), "fails"),
        ("a chunk of negative size", b"-1\r\n" + good, "good or fails"),
        ("a chunk without a size", b"zz\r\n" + good, "fails"),
        ("a chunk of 10**15 bytes", b"%x\r\n%s" % (10**15, good), "fails"),
        ("a chunk's line without an end", b"1" * 100_000, "fails"),
        ("trailers without end", b"0\r\n" + b"x: y\r\n" * 5000, "fails"),
    ]
    for name, body, becomes in in_chunks:
        yield name, respond(body, "200 OK", *chunked, length="none"), becomes
    yield "gzip", respond(gzip.compress(good), "200 OK", "Content-Encoding: gzip"), "fails"
    yield "a gzip bomb", respond(gzip.compress(b"[" * 300_000_000, 1), "200 OK", "Content-Encoding: gzip"), "fails"
    yield "nothing at all", b"", "down"
    yield "half a status line", b"HTTP/1.", "down"
    yield "bytes that are no HTTP", bytes(range(256)) * 10, "fails"
    yield "HTTP/0.9", good, "down"
    yield "HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "fails"
    yield "a status that is a word", b"HTTP/1.1 OK 200\r\n\r\n", "fails"
    yield "an upgrade", respond(b"", "101 Switching Protocols", "Upgrade: websocket"), "fails"
    yield "a status line of 100 KB", b"HTTP/1.1 200 " + b"x" * 100_000 + b"\r\n\r\n", "fails"
    yield "a header of 100 KB", respond(good, "200 OK", "X: " + "x" * 100_000), "good or fails"
    yield "a thousand headers", respond(good, "200 OK", *(f"X-{n}: y" for n in range(1000))), "good or fails"
    yield "headers without colons", respond(good, "200 OK", "nothing", "\x01\x02"), "good or fails"
    yield "the key in a header", respond(good, "200 OK", f"X-Key: {KEY}", f"Set-Cookie: {KEY}"), "good"
    yield "continue, then an answer", b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + respond(good), "good"


def _endless(start: bytes, piece: bytes, pause: float = 0.0) -> Act:
    def act(send: Send, connection: socket.socket, number: int) -> None:
        send(start)
        while True:
            send(piece)
            time.sleep(pause)

    return act


def _reset(send: Send, connection: socket.socket, number: int) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _once(first: bytes) -> Act:
    """Misbehaves at the first attempt only."""
    return lambda send, connection, number: send(first if number == 1 else respond(reply()))


def _silent(send: Send, connection: socket.socket, number: int) -> None:
    time.sleep(60)


def _acts() -> Iterator[tuple[str, Act, Outcome]]:
    head = respond(b"", length="none")
    yield "an endless body", _endless(head, b" " * (1 << 16)), "fails"
    yield "an endless body of small pieces", _endless(head, b"[{},"), "fails"
    chunked = respond(b"-1\r\n", "200 OK", "Transfer-Encoding: chunked", length="none")
    yield "an endless chunk of negative size", _endless(chunked, b" " * (1 << 16)), "fails"
    yield "endless headers", _endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"), "fails or down"
    yield "an endless header", _endless(b"HTTP/1.1 200 OK\r\nX: ", b"y" * 1000), "fails or down"
    yield "an endless status line", _endless(b"HTTP/1.1 200 ", b"y" * 1000), "fails or down"
    yield "continue without end", _endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "down"
    yield "an endless error", _endless(respond(b"", "500 No", length="none"), b"no " * 1000), "fails"
    yield "a byte of the body at a time", _endless(head, b" ", 0.1), "fails"
    yield "a byte of the headers at a time", _endless(b"HTTP/1.1 200 OK\r\nX: ", b"y", 0.1), "down"
    yield "a byte of the status at a time", _endless(b"HTTP/1.1 200 ", b"y", 0.1), "down"
    yield "silence", _silent, "down"
    yield "silence after the headers", lambda send, connection, number: (send(head), time.sleep(60))[0], "fails"
    yield "a reset", _reset, "down"
    for status in (408, 409, 429, 500, 503):
        yield f"status {status} once", _once(respond(b"", f"{status} No", "Retry-After-Ms: 5")), "good"
    yield "a broken reply once", _once(respond(reply(), length=10**6)), "good"
    yield "nothing once", _once(b""), "good"


def _whole(data: bytes) -> Act:
    return lambda send, connection, number: send(data)


MISBEHAVIOUR = [
    *(Misbehaviour(name, _whole(respond(body)), becomes) for name, body, becomes in _bodies()),
    *(Misbehaviour(name, _whole(data), becomes) for name, data, becomes in _statuses()),
    *(Misbehaviour(name, act, becomes, "once" not in name) for name, act, becomes in _acts()),
]
