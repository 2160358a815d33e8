"""POST as the served models use it: one deadline, bounded replies, no redirects, proxies only on the way to other machines."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
import time
from collections.abc import Generator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx2
import openai
import pytest

from dreambench.errors import UsageError
from dreambench.post import MOST_BYTES, BrokeOffError, Poster, cut_short
from dreambench.safety import is_loopback

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
PROXIES = [f"{name}_proxy" for name in ("http", "https", "all", "no")]


@dataclass
class Raw:
    """A listener that writes given pieces, and what it received."""

    port: int
    received: list[bytes] = field(default_factory=list[bytes])


@contextmanager
def listening(*pieces: bytes, pause: float = 0.0, times: int = 1) -> Generator[Raw]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        raw = Raw(listener.getsockname()[1])

        def serve() -> None:
            for _ in range(times):
                connection, _ = listener.accept()
                with connection:
                    raw.received.append(connection.recv(65536))
                    for piece in pieces:
                        try:
                            connection.sendall(piece)
                        except OSError:
                            return
                        time.sleep(pause)
                    with contextlib.suppress(OSError):  # to close with something unread would lose what was sent
                        connection.shutdown(socket.SHUT_WR)
                        connection.settimeout(5)
                        while connection.recv(65536):
                            pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield raw
        thread.join(10)


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def post(url: str, seconds: float = 5.0, key: str = "") -> httpx2.Response:
    poster = Poster(url, key, seconds, retries=0)
    try:
        return poster.post("/x", {})
    finally:
        poster.close()


def test_the_deadline_is_that_of_the_whole_exchange() -> None:
    with listening(b"", pause=2) as raw, pytest.raises(openai.APITimeoutError):
        post(f"http://127.0.0.1:{raw.port}", 0.2)
    with listening(*[b"H"] * 30, pause=0.05) as raw:
        began = time.monotonic()
        with pytest.raises(openai.APITimeoutError):
            post(f"http://127.0.0.1:{raw.port}", 0.5)
        assert 0.3 < time.monotonic() - began < 1.4
    with listening(ANSWER[:-2].replace(b"2\r", b"99\r"), *[b" "] * 30, pause=0.05) as raw:
        began = time.monotonic()
        assert cut_short(post(f"http://127.0.0.1:{raw.port}", 0.5)) == "the reply was not complete in time"
        assert 0.3 < time.monotonic() - began < 1.4


def test_a_reply_has_a_size() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
    with listening(head % (MOST_BYTES + 1), b"x" * (MOST_BYTES + 1)) as raw:
        response = post(f"http://127.0.0.1:{raw.port}", 20)
    assert (cut_short(response), response.content) == ("the reply is longer than 4 MiB", b"")
    with listening(head % MOST_BYTES, b"x" * MOST_BYTES) as raw:
        response = post(f"http://127.0.0.1:{raw.port}", 20)
    assert (cut_short(response), len(response.content)) == (None, MOST_BYTES)


def test_a_reply_that_breaks_off_is_told_from_one_that_does_not_begin() -> None:
    with listening(ANSWER.replace(b"2\r", b"9\r")) as raw, pytest.raises(openai.APIConnectionError) as caught:
        post(f"http://127.0.0.1:{raw.port}")
    assert isinstance(caught.value.__cause__, BrokeOffError)
    with listening() as raw, pytest.raises(openai.APIConnectionError) as caught:
        post(f"http://127.0.0.1:{raw.port}")
    assert not isinstance(caught.value.__cause__, BrokeOffError)


def test_a_compressed_reply_is_bounded_too() -> None:
    """It is not asked for; a server that compresses all the same sends at most 4 MiB, of any expansion."""
    packed = gzip.compress(b"x" * (8 * MOST_BYTES))
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    with listening(head, packed) as raw:
        response = post(f"http://127.0.0.1:{raw.port}", 20)
    assert b"accept-encoding: identity\r\n" in raw.received[0].lower()
    assert cut_short(response) == "the reply is compressed, which was not asked for"


def test_a_redirect_is_not_followed() -> None:
    reply = b"HTTP/1.1 307 Go\r\nLocation: /y\r\nContent-Length: 0\r\n\r\n"
    with listening(reply) as raw, pytest.raises(openai.APIStatusError) as caught:
        post(f"http://127.0.0.1:{raw.port}", key="k")
    assert caught.value.status_code == 307
    assert len(raw.received) == 1


def test_closing_ends_an_exchange_in_progress() -> None:
    with listening(b"H", *[b"T"] * 100, pause=0.02) as raw:
        poster = Poster(f"http://127.0.0.1:{raw.port}", "", 30, retries=5)
        threading.Timer(0.2, poster.close).start()
        began = time.monotonic()
        with pytest.raises(CancelledError):
            poster.post("/x", {})
        assert time.monotonic() - began < 1.9
        with pytest.raises(CancelledError):
            poster.post("/x", {})


def test_the_environment_of_another_service_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-other")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-other")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    with listening(ANSWER) as raw:
        assert post(f"http://127.0.0.1:{raw.port}").content == b"ok"
    assert b"other" not in raw.received[0]
    assert b"authorization" not in raw.received[0].lower()


def test_a_proxy_serves_other_machines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(ANSWER) as proxy:
        monkeypatch.setenv("http_proxy", f"http://user:pass@127.0.0.1:{proxy.port}")
        assert post("http://models.example.org/v1", key="k").content == b"ok"
    assert proxy.received[0].startswith(b"POST http://models.example.org/v1/x HTTP/1.1\r\n")
    assert b"Basic dXNlcjpwYXNz\r\n" in proxy.received[0]
    with listening(b"HTTP/1.1 403 No\r\n\r\n") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{proxy.port}")
        with pytest.raises(openai.APIConnectionError):
            post("https://models.example.org/v1", key="k")
    assert proxy.received[0].startswith(b"CONNECT models.example.org:443 HTTP/1.1\r\n")
    assert b"Bearer" not in proxy.received[0]
    with listening(ANSWER) as raw:
        monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
        assert post(f"http://127.0.0.1:{raw.port}/v1").content == b"ok"
    assert raw.received[0].startswith(b"POST /v1/x HTTP/1.1\r\n")
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1")
    with pytest.raises(UsageError, match="no_proxy"):
        Poster("https://models.example.org/v1", "", 1, 0)
    monkeypatch.setenv("no_proxy", "example.org")
    Poster("https://models.example.org/v1", "", 1, 0).close()


def test_tls_is_verified() -> None:
    with listening(b"not TLS") as raw, pytest.raises(openai.APIConnectionError):
        post(f"https://127.0.0.1:{raw.port}", key="k")
    assert b"Bearer" not in raw.received[0]


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
        ("127.1", False),
        ("0.0.0.0", False),  # noqa: S104
        ("2130706433", False),
        ("::ffff:10.0.0.1", False),
        ("", False),
    ],
)
def test_loopback_is_known_by_its_own_names(host: str, own: bool) -> None:
    assert is_loopback(host) is own
