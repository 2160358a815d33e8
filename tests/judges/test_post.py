"""POST as the served models use it: one deadline, bounded replies, no redirects, proxies only on the way to other machines."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from dreambench.errors import UsageError
from dreambench.post import MOST_BYTES, CutShortError, NoReplyError, Poster, is_loopback

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

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield raw
        thread.join(0.1 if pause > 1 else 10)


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_the_deadline_is_that_of_the_whole_exchange() -> None:
    with listening(b"", pause=3) as raw:
        began = time.monotonic()
        with pytest.raises(NoReplyError) as caught:
            Poster(f"http://127.0.0.1:{raw.port}/").post({}, b"{}", 0.2)
        assert caught.value.late
        assert time.monotonic() - began < 2
    for pieces in ([b"H"] * 30, [ANSWER[:-2].replace(b"2\r", b"99\r"), *[b" "] * 30]):
        with listening(*pieces, pause=0.05) as raw:
            began = time.monotonic()
            with pytest.raises((NoReplyError, CutShortError)):
                Poster(f"http://127.0.0.1:{raw.port}/").post({}, b"{}", 0.3)
            assert 0.2 < time.monotonic() - began < 1


def test_a_reply_has_a_size() -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {MOST_BYTES}\r\n\r\n".encode()
    with listening(head, b"x" * MOST_BYTES) as raw, pytest.raises(CutShortError, match="longer than 4 MiB"):
        Poster(f"http://127.0.0.1:{raw.port}/").post({}, b"", 20)
    half = head.replace(str(MOST_BYTES).encode(), str(MOST_BYTES // 2).encode())
    with listening(half, b"x" * (MOST_BYTES // 2)) as raw:
        assert len(Poster(f"http://127.0.0.1:{raw.port}/").post({}, b"", 20).body) == MOST_BYTES // 2


def test_a_reply_is_whole() -> None:
    with listening(ANSWER.replace(b"2\r", b"3\r")) as raw, pytest.raises(CutShortError, match="broke off") as caught:
        Poster(f"http://127.0.0.1:{raw.port}/").post({}, b"", 5)
    assert caught.value.lost


def test_closing_ends_an_exchange_in_progress() -> None:
    with listening(b"H", *[b"T"] * 30, pause=0.02, times=2) as raw:
        poster = Poster(f"http://127.0.0.1:{raw.port}/")
        threading.Timer(0.1, poster.close).start()
        began = time.monotonic()
        with pytest.raises(NoReplyError):
            poster.post({}, b"", 30)
        assert time.monotonic() - began < 1
        with pytest.raises(NoReplyError, match="interrupted"):
            poster.post({}, b"", 1)


def test_a_proxy_serves_other_machines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(ANSWER) as proxy:
        monkeypatch.setenv("http_proxy", f"http://user:pass@127.0.0.1:{proxy.port}")
        assert Poster("http://models.example.org/v1/x").post({"Authorization": "Bearer k"}, b"{}", 5).body == b"ok"
    assert proxy.received[0].startswith(b"POST http://models.example.org/v1/x HTTP/1.1\r\nHost: models.example.org\r\n")
    assert b"Proxy-Authorization: Basic dXNlcjpwYXNz\r\n" in proxy.received[0]
    with listening(b"HTTP/1.1 403 No\r\n\r\n") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{proxy.port}")
        with pytest.raises(NoReplyError, match=r"the proxy 127\.0\.0\.1 does not connect"):
            Poster("https://models.example.org/v1/x").post({"Authorization": "Bearer k"}, b"{}", 5)
    assert proxy.received[0].startswith(b"CONNECT models.example.org:443 HTTP/1.1\r\n")
    assert b"Bearer" not in proxy.received[0]
    with listening(ANSWER) as raw:
        monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
        assert Poster(f"http://127.0.0.1:{raw.port}/v1").post({}, b"{}", 5).body == b"ok"
    assert raw.received[0].startswith(b"POST /v1 HTTP/1.1\r\n")
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1")
    with pytest.raises(UsageError, match="no_proxy"):
        Poster("https://models.example.org/v1")
    monkeypatch.setenv("no_proxy", "example.org")
    Poster("https://models.example.org/v1")


def test_tls_is_verified() -> None:
    with listening(b"not TLS") as raw, pytest.raises(NoReplyError):
        Poster(f"https://127.0.0.1:{raw.port}/").post({"Authorization": "Bearer k"}, b"{}", 5)
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
