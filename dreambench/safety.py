"""Text made safe for where it goes: without the keys that this process knows, and without characters that command a terminal; and which
hosts are this machine."""

from __future__ import annotations

import base64
import contextlib
import functools
import ipaddress
import os
import re
import sys
import unicodedata
from collections.abc import Generator, Iterator
from typing import Any, TextIO
from urllib.parse import quote

__all__ = [
    "REDACTED",
    "Redacting",
    "holds_secret",
    "is_loopback",
    "keep_secret",
    "printable",
    "redact",
    "redacted_output",
    "secret_name",
]

REDACTED = "[redacted]"
SHORTEST = 6
"""Characters of a key below which it is no secret: ``EMPTY`` and ``none``, which local servers are given, are words of answers as well."""
_NAME = re.compile(r"(.*_)?(api_?key|key|token|secret|password|passwd|credentials?)", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"://[^\s/?#@]*:[^\s/?#@]*@")


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine by itself, without asking a name server."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def secret_name(name: str) -> bool:
    """Whether a variable or an argument of this name holds a secret, as ``HF_TOKEN`` and ``api_key`` do."""
    return _NAME.fullmatch(name) is not None


@functools.cache
def _known() -> set[str]:
    """The secrets; at first those of the environment. A path to a key is none."""
    return {
        value.strip()
        for name, value in os.environ.items()
        if secret_name(name) and len(value.strip()) >= 8 and not value.startswith(("/", "~", "."))
    }


def keep_secret(value: str) -> None:
    """From now on `redact` knows this key."""
    if len(value) >= SHORTEST:
        _known().add(value)


def redact(text: str) -> str:
    """`text` without the known secrets, whether they stand there plainly, escaped for a URL or JSON, in base64 or in hex."""
    known = _known()
    return _pattern(frozenset(known)).sub(REDACTED, text) if known else text


def holds_secret(text: str) -> bool:
    """Whether `text` has a known secret, or an address with a password, in it."""
    return redact(text) != text or _URL_PASSWORD.search(text) is not None


@functools.lru_cache(maxsize=8)
def _pattern(secrets: frozenset[str]) -> re.Pattern[str]:
    forms = {form for secret in secrets for form in _forms(secret)}
    return re.compile("|".join(map(re.escape, sorted(forms, key=lambda form: (-len(form), form)))), re.IGNORECASE)


def _forms(secret: str) -> Iterator[str]:
    data = secret.encode()
    yield from (secret, quote(secret, safe=""), data.hex())
    yield "".join(f"\\u{ord(character):04x}" for character in secret)
    yield secret.replace("\\", "\\\\").replace('"', '\\"')
    for shift in range(
        3
    ):  # where the secret begins within a group of three bytes, and the characters that it alone decides
        encoded = base64.b64encode(bytes(shift) + data).rstrip(b"=")
        whole = encoded[(0, 2, 3)[shift] : len(encoded) - bool((shift + len(data)) % 3)].decode()
        if len(whole) >= SHORTEST:
            yield from (whole, whole.replace("+", "-").replace("/", "_"))


class Redacting:
    """A text stream that redacts what is written to it; everything else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def redacted_output() -> Generator[None]:
    """Standard output and standard error as `Redacting` streams."""
    out, err = Redacting(sys.stdout), Redacting(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


# --- control characters -----------------------------------------------------------------------------------------------

# Characters that reverse what follows them, so that a reader sees another text than a program does.
DIRECTION = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Cc: control characters, which can command a terminal; Cs: lone surrogates, which cannot be encoded; Zl, Zp: line breaks.
ACTIVE = frozenset({"Cc", "Cs", "Zl", "Zp"})


def printable(text: str, keep: str = "") -> str:
    r"""`text` with control characters, line breaks and changes of direction written out (``\x1b``), except those in `keep`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode()
        if character not in keep and (unicodedata.category(character) in ACTIVE or character in DIRECTION)
        else character
        for character in text
    )
