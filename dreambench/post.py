"""How openai's client reaches a server that nobody vouches for: an exchange ends in time, a reply is bounded, no redirect is followed.

httpx has a timeout for each read, which a server that sends one byte at a time never reaches, and reads replies of any size;
`_Bounded` ends both. This module needs the package openai and is imported on use.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import urllib.request
from collections.abc import Mapping
from concurrent.futures import CancelledError
from urllib.parse import urlsplit

import httpx2
import openai

from dreambench.documents import JSON
from dreambench.errors import UsageError
from dreambench.safety import is_loopback

__all__ = ["MOST_BYTES", "BrokeOffError", "Poster", "cut_short"]

MOST_BYTES = 4 << 20
"""Bytes of a reply's body: a thousand times a long answer."""
_CUT = "dreambench_cut"


class BrokeOffError(httpx2.ReadError):
    """The connection was lost within a reply, or the reply is no HTTP."""


def cut_short(response: httpx2.Response) -> str | None:
    """Why a reply is not whole (too slow or too long, which a repetition would not change), or None."""
    return response.extensions.get(_CUT)


class _Bounded(httpx2.AsyncHTTPTransport):
    """Reads each reply as a whole, within `seconds` from connecting to the last byte, and up to `MOST_BYTES`."""

    def __init__(self, seconds: float, proxy: str | None) -> None:
        super().__init__(proxy=proxy)
        self._seconds = seconds

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        deadline = asyncio.get_running_loop().time() + self._seconds
        try:
            async with asyncio.timeout_at(deadline):
                response = await super().handle_async_request(request)
        except TimeoutError:
            raise httpx2.ReadTimeout("no answer", request=request) from None
        except httpx2.RemoteProtocolError as error:
            if "disconnected" in str(error):  # without a byte: it may have gone
                raise
            raise BrokeOffError(f"the reply is no HTTP ({error})", request=request) from error
        body, cut = bytearray(), None
        if response.headers.get("content-encoding", "identity") != "identity":
            cut = "the reply is compressed, which was not asked for"  # and has no bound once it is unpacked
        try:
            async with asyncio.timeout_at(deadline):
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > MOST_BYTES:
                        cut = f"the reply is longer than {MOST_BYTES >> 20} MiB"
                        break
        except TimeoutError:
            cut = "the reply was not complete in time"
        except httpx2.TransportError as error:
            raise BrokeOffError("the reply broke off", request=request) from error
        finally:
            await response.aclose()
        described = (b"content-length", b"content-encoding", b"transfer-encoding")
        headers = [pair for pair in response.headers.raw if pair[0].lower() not in described]
        content, extensions = (bytes(body), {}) if cut is None else (b"", {_CUT: cut})
        return httpx2.Response(
            response.status_code, headers=headers, content=content, request=request, extensions=extensions
        )


class Poster:
    """One openai client on an event loop of its own, for any number of threads. `close` ends the requests in progress."""

    def __init__(self, base_url: str, key: str, seconds: float, retries: int) -> None:
        # What the client would take from the environment belongs to another service.
        omitted = ["OpenAI-Organization", "OpenAI-Project", *([] if key else ["Authorization"])]
        self._headers: dict[str, str | openai.Omit] = {name: openai.Omit() for name in omitted}
        self._headers["Accept-Encoding"] = "identity"
        self._client = openai.AsyncOpenAI(
            api_key=key or "none",
            base_url=base_url,
            timeout=seconds,
            max_retries=retries,
            http_client=httpx2.AsyncClient(transport=_Bounded(seconds, _proxy(base_url)), follow_redirects=False),
        )
        self._loop = asyncio.new_event_loop()
        self._requests: set[asyncio.Task[httpx2.Response]] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def post(self, path: str, body: Mapping[str, JSON]) -> httpx2.Response:
        """The reply to a JSON body, read as a whole; see `cut_short`.

        Raises:
            openai.APIError: as openai's client raises it, after its retries.
            CancelledError: `close` was called.
        """
        with self._lock:
            if self._closed:
                raise CancelledError
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
                self._thread.start()
            future = asyncio.run_coroutine_threadsafe(self._post(path, body), self._loop)
        return future.result()

    async def _post(self, path: str, body: Mapping[str, JSON]) -> httpx2.Response:
        request = asyncio.ensure_future(
            self._client.post(path, body=dict(body), cast_to=httpx2.Response, options={"headers": self._headers})
        )
        self._requests.add(request)
        request.add_done_callback(self._requests.discard)
        return await request

    def close(self) -> None:
        """End the requests in progress."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._thread is not None:
                asyncio.run_coroutine_threadsafe(self._end(), self._loop)
                self._thread.join()
            self._loop.close()

    async def _end(self) -> None:
        # Only our own tasks: those that they began end with them.
        for request in self._requests:
            request.cancel()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)
        with contextlib.suppress(Exception):
            await self._client.close()
        self._loop.stop()


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for a host of another machine."""
    address = urlsplit(url)
    host = address.hostname or ""
    if is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    named = urllib.request.getproxies()
    proxy = named.get(address.scheme) or named.get("all")
    if not proxy:
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if urlsplit(proxy).scheme not in ("http", "https") or not urlsplit(proxy).hostname:
        raise UsageError(
            f"the proxy for {address.scheme} in the environment is not http://HOST:PORT: unset it, or list {host} in no_proxy"
        )
    return proxy
