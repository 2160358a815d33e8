"""The items of a long list in a JSON file, one after another, so that a file of a gigabyte is never held whole."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from dreambench.documents import JSON
from dreambench.errors import DataError
from dreambench.files import JSON_DECODER

__all__ = ["read_json_items"]

CHUNK = 1 << 20
"""Characters that are read at once."""
_SPACE = re.compile(r"[ \t\r\n]*")


def read_json_items(path: Path, name: str) -> Iterator[JSON]:
    """The items of the list `name` of the object in a JSON file, plain or gzip, as `dreambench.files.parse_json` reads them.

    Raises:
        DataError: the file cannot be read, is not JSON from beginning to end, or is no object with such a list.
    """
    count = 0
    try:
        with path.open("rb") as file:
            gzipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            content = cast("IO[bytes]", gzip.GzipFile(fileobj=file) if gzipped else file)
            with io.TextIOWrapper(content, encoding="utf-8-sig") as text:
                for item in _items(_Stream(text), name):
                    yield item
                    count += 1
    except LookupError as reason:
        raise DataError(f'{path} has no list "{name}"') from reason
    except UnicodeDecodeError as reason:
        raise DataError(f"{path}: not UTF-8 text, after item {count} of {name}") from reason
    except (OSError, EOFError, zlib.error) as reason:
        what = (isinstance(reason, OSError) and reason.strerror) or "its gzip data are damaged"
        raise DataError(f"{path}: cannot be read ({what})") from reason
    except (ValueError, RecursionError) as reason:
        what = reason.msg if isinstance(reason, json.JSONDecodeError) else reason
        raise DataError(f"{path} is not JSON ({what}, after item {count} of {name})") from reason


def _items(stream: _Stream, name: str) -> Iterator[JSON]:
    """The items of `name` in the object that is all of `stream`; whatever else it holds is read and passed over."""
    names: set[str] = set()
    if stream.peek() not in ("{", ""):
        raise LookupError(name)
    stream.take("{")
    mark = stream.take("}") if stream.peek() == "}" else ","
    while mark == ",":
        if stream.peek() != '"':
            stream.take('"')
        key = stream.value()
        if key in names:
            raise ValueError(f"the key {key!r} stands twice")
        names.add(key)
        stream.take(":")
        if key != name:
            stream.value()
        elif stream.peek() != "[":
            raise LookupError(name)
        else:
            yield from _list(stream)
        mark = stream.take(",}")
    if stream.peek():
        stream.take("")
    if name not in names:
        raise LookupError(name)


def _list(stream: _Stream) -> Iterator[JSON]:
    stream.take("[")
    mark = stream.take("]") if stream.peek() == "]" else ","
    while mark == ",":
        yield stream.value()
        mark = stream.take(",]")


class _Stream:
    """JSON text in a window that moves on."""

    def __init__(self, file: IO[str]) -> None:
        self.file, self.text, self.at = file, "", 0

    def _more(self, size: int = CHUNK) -> bool:
        chunk = self.file.read(size)
        self.text, self.at = self.text[self.at :] + chunk, 0
        return bool(chunk)

    def peek(self) -> str:
        """The next character that is not white space; nothing at the end."""
        while True:
            self.at = cast(Any, _SPACE.match(self.text, self.at)).end()
            if self.at < len(self.text) or not self._more():
                return self.text[self.at : self.at + 1]

    def take(self, expected: str) -> str:
        """The next character, which must be one of `expected`."""
        found = self.peek()
        if not found or found not in expected:
            raise json.JSONDecodeError(
                f"{' or '.join(expected) or 'the end'} is expected, not {found!r}", self.text, self.at
            )
        self.at += 1
        return found

    def value(self) -> JSON:
        """The next value."""
        self.peek()
        size = CHUNK
        while True:
            try:
                value, end = JSON_DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError:
                # It may only be cut off. Twice as much each time, so that a file that is broken early is not read a thousand times.
                if not self._more(size):
                    raise
                size *= 2
            else:
                # A number at the end of the window may go on.
                if end < len(self.text) or not self._more():
                    self.at = end
                    return value
