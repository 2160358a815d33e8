"""POST to a server that nobody vouches for: the whole exchange ends in time, the reply is bounded, and no redirect is followed.

The standard library's client serves because every byte passes through `_Wire`: a general client has a timeout for each read, which a server
that sends one byte at a time never reaches, and reads a reply of any size.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import ipaddress
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from dreambench.errors import UsageError

__all__ = ["MOST_BYTES", "CutShortError", "NoReplyError", "Poster", "Received", "is_loopback"]

MOST_BYTES = 4 << 20
"""Bytes of a reply with its headers: a thousand times a long answer."""
_BROKEN = (OSError, http.client.HTTPException, ValueError)


class NoReplyError(Exception):
    """No status came back. ``str(error)`` says why; `late` if the time was over."""

    def __init__(self, reason: str, late: bool = False) -> None:
        super().__init__(reason)
        self.late = late


class CutShortError(Exception):
    """A reply began and is not whole: too slow, too long (which a repetition would not change), or broken off (`lost`)."""

    def __init__(self, reason: str, lost: bool = False) -> None:
        super().__init__(reason)
        self.lost = lost


@dataclass(frozen=True, slots=True)
class Received:
    """A whole reply."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine by itself, without asking a name server."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _TooLongError(Exception):
    pass


class _Wire(io.RawIOBase):
    """A socket as http.client uses one, with an end in time and in bytes received."""

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self._socket, self._deadline, self._left = connected, deadline, MOST_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._wait()
        n = self._socket.recv_into(buffer)
        self._left -= n
        if self._left < 0:
            raise _TooLongError
        return n

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def sendall(self, data: bytes) -> None:
        self._wait()
        self._socket.sendall(data)

    def encrypt(self, context: ssl.SSLContext, host: str) -> None:
        self._wait()
        self._socket = context.wrap_socket(self._socket, server_hostname=host)

    def close(self) -> None:
        """Nothing: http.client closes its socket while it still reads from it."""

    def hang_up(self) -> None:
        self._socket.close()

    def _wait(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)


class Poster:
    """Posts to one address, from any number of threads. `close` ends the exchanges in progress."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url)
        self._host = self._address.hostname or ""
        self._port = self._address.port or (443 if self._address.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if self._address.scheme == "https" else None
        self._proxy = _proxy(self._address.scheme, self._host)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def post(self, headers: Mapping[str, str], body: bytes, seconds: float) -> Received:
        """The reply. The exchange, from connecting to the last byte, takes at most `seconds`.

        Raises:
            NoReplyError, CutShortError: see there.
        """
        deadline = time.monotonic() + seconds
        to = self._proxy or self._address
        try:
            connected = socket.create_connection((to.hostname or "", to.port or self._port), seconds)
        except _BROKEN as error:
            raise NoReplyError(_why(error), isinstance(error, TimeoutError)) from None
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A second handle, which stays this connection's when TLS takes the first one over.
        wire, handle = _Wire(connected, deadline), connected.dup()
        try:
            with self._lock:
                if self._closed:
                    raise NoReplyError("interrupted")
                self._open.add(handle)
            return self._exchange(wire, headers, body)
        finally:
            with self._lock:
                self._open.discard(handle)
            wire.hang_up()
            handle.close()

    def _exchange(self, wire: _Wire, headers: Mapping[str, str], body: bytes) -> Received:
        client = http.client.HTTPConnection(self._host, self._port)
        target = self._address.path
        response = None
        try:
            if self._proxy is not None and self._tls is None:
                target, headers = self._address.geturl(), {**headers, **_proxy_key(self._proxy)}
            elif self._proxy is not None:
                self._tunnel(wire, self._proxy)
            if self._tls is not None:
                wire.encrypt(self._tls, self._host)
            client.sock = wire
            client.request("POST", target, body, dict(headers))
            response = client.getresponse()
            chunks: list[bytes] = []
            while chunk := response.read(1 << 16):
                chunks.append(chunk)
            if response.length:
                raise http.client.IncompleteRead(b"", response.length)
            return Received(response.status, {k.lower(): v for k, v in response.getheaders()}, b"".join(chunks))
        except _TooLongError:
            raise CutShortError(f"the reply is longer than {MOST_BYTES >> 20} MiB") from None
        except _BROKEN as error:
            late = isinstance(error, TimeoutError)
            if response is None:
                raise NoReplyError(_why(error), late) from None
            raise CutShortError(
                "the reply was not complete in time" if late else "the reply broke off", not late
            ) from None

    def _tunnel(self, wire: _Wire, proxy: SplitResult) -> None:
        place = f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"
        lines = [f"CONNECT {place} HTTP/1.1", f"Host: {place}", *map(": ".join, _proxy_key(proxy).items())]
        wire.sendall("".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1"))
        reply = b""
        while b"\r\n\r\n" not in reply and len(reply) < 1 << 16 and (byte := wire.read(1)):
            reply += byte
        status = reply.partition(b"\r\n")[0].split(b" ")[1:2]
        if status != [b"200"]:
            raise OSError(f"the proxy {proxy.hostname} does not connect")


def _proxy(scheme: str, host: str) -> SplitResult | None:
    """The proxy that the environment names for a host of another machine."""
    if is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    url = urllib.request.getproxies().get(scheme) or urllib.request.getproxies().get("all")
    if not url:
        return None
    proxy = urlsplit(url if "://" in url else f"http://{url}")
    if proxy.scheme != "http" or not proxy.hostname:
        raise UsageError(
            f"the proxy for {scheme} in the environment is not http://HOST:PORT: unset it, or list {host} in no_proxy"
        )
    return proxy._replace(netloc=proxy.netloc if proxy.port else f"{proxy.netloc}:80")


def _proxy_key(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _why(error: BaseException) -> str:
    """A reason without what the server sent."""
    return (isinstance(error, OSError) and (error.strerror or (str(error) if not error.errno else ""))) or type(
        error
    ).__name__
