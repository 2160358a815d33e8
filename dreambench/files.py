"""Reading and writing files: whole or absent when written, one `DreambenchError` that names file and line when they cannot be read."""

from __future__ import annotations

import codecs
import contextlib
import errno
import functools
import gc
import gzip
import hashlib
import io
import json
import math
import os
import re
import shutil
import socket
import sys
import time
import uuid
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from dreambench.documents import JSON
from dreambench.errors import DataError, DreambenchError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "FOLLOW_LINKS",
    "JSON_DECODER",
    "LINKS",
    "append_lines",
    "cache_folder",
    "discard",
    "files_below",
    "gc_paused",
    "inside",
    "not_led_out",
    "parse_json",
    "parse_yaml",
    "plain_or_gzip",
    "process_started",
    "read_arrays",
    "read_bytes",
    "read_json",
    "read_json_lines",
    "read_json_or_lines",
    "read_table",
    "read_text",
    "remove_leftovers",
    "replacing",
    "sha256_file",
    "sync_file",
    "temporary",
    "temporary_name",
    "truncate_torn_line",
    "write_arrays",
    "write_atomically",
    "write_once",
]

_Read = ParamSpec("_Read")
_Content = TypeVar("_Content")

# --- reading ----------------------------------------------------------------------------------------------------------


def _named_when_too_large(read: Callable[_Read, _Content]) -> Callable[_Read, _Content]:
    """A reader of a path whose MemoryError, such as that of a gzip bomb, names the path."""

    @functools.wraps(read)
    def reads(*arguments: _Read.args, **options: _Read.kwargs) -> _Content:
        try:
            return read(*arguments, **options)
        except MemoryError as reason:
            raise DataError(f"{arguments[0]}: out of memory while reading it; allow more (`ulimit -v`)") from reason

    return reads


@_named_when_too_large
def read_bytes(path: Path, error: type[DreambenchError] = DataError) -> bytes:
    """A file's bytes, decompressed if they are gzip, whatever the file is called, or the only file in a ``.zip``."""
    try:
        data = path.read_bytes()
        if path.suffix == ".zip":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                (name,) = archive.namelist()
                return archive.read(name)
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile) as reason:
        what = "it is no .zip with one file in it" if path.suffix == ".zip" else "its gzip data are damaged"
        what = reason.strerror if isinstance(reason, OSError) and reason.strerror else what
        raise error(f"{path}: cannot be read ({what})") from reason


def plain_or_gzip(path: Path, root: Path | None = None) -> Path | None:
    """`path`, or `path` with ``.gz`` appended: the one that exists, the plain one first; no link out of `root` (default: its folder).

    Raises `DataError` for a folder of that name, and for a link to nowhere.
    """
    found = next((found for found in (path, path.with_name(f"{path.name}.gz")) if os.path.lexists(found)), None)
    if found is not None and not found.is_file():
        raise DataError(f"{found} is no file: replace or rename it")
    return None if found is None else not_led_out(root or path.parent, found)


@_named_when_too_large
def read_text(path: Path, error: type[DreambenchError] = DataError) -> str:
    """A UTF-8 text file, plain or gzip, without a byte order mark."""
    data = read_bytes(path, error)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        raise error(f"{path}: not UTF-8 text (byte {reason.start})") from reason


@contextlib.contextmanager
def gc_paused() -> Generator[None]:
    """No cyclic garbage collection, as context or decorator: it would search hundreds of thousands of new records again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def parse_json(text: str) -> JSON:
    """The value of a JSON text.

    Raises `ValueError` (or `RecursionError`) for what is not JSON, and for what it would be a guess to read: a key twice in one object,
    ``NaN``, ``Infinity``, numbers that are infinite as float64, and halves of surrogate pairs.
    """
    try:
        value = JSON_DECODER.decode(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair, which is no text") from None
    except _UnreadableNumberError as reason:
        # A literal may also stand in a text before; the words around it then mislead, but not the error itself.
        at = max(text.find(reason.literal), 0)
        raise ValueError(f"{reason}, near {text[max(at - 60, 0) : at + 20]!r}") from None


def parse_yaml(text: str) -> JSON:
    """The value of a YAML (or JSON) text. Raises `ValueError`, in one line, for what is neither and for a key twice in one mapping."""
    import yaml

    class Loader(yaml.SafeLoader):
        """PyYAML takes the last of two equal keys."""

        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            node = super().compose_mapping_node(anchor)
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(set(keys)) < len(keys):
                raise ValueError(f"a key stands twice in one mapping ({', '.join(keys)})")
            return node

    try:
        return yaml.load(text, Loader)  # noqa: S506  (a SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: also a date that is none
        raise ValueError(" ".join(str(error).split())) from error


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class _UnreadableNumberError(ValueError):
    def __init__(self, literal: str) -> None:
        super().__init__(f"{literal[:40]} is no finite number")
        self.literal = literal


def _object(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
    found = dict(pairs)
    if len(found) != len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {key!r} stands twice in one object, {str(pairs)[:100]}")
    return found


def _finite(literal: str) -> float:
    number = float(literal)
    if math.isinf(number):
        raise _UnreadableNumberError(literal)
    return number


def _constant(literal: str) -> float:
    raise _UnreadableNumberError(literal)


JSON_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_finite, parse_constant=_constant)


@_named_when_too_large
@gc_paused()
def read_json(path: Path, error: type[DreambenchError] = DataError) -> JSON:
    """The value in a JSON file, plain or gzip, as `parse_json` reads it."""
    try:
        return parse_json(read_text(path, error))
    except (ValueError, RecursionError) as reason:
        raise error(f"{path} is not JSON ({reason})") from reason


def read_json_lines(
    path: Path, error: type[DreambenchError] = DataError, *, torn: bool = False, damaged: str = ""
) -> Iterator[tuple[int, JSON]]:
    """(line number, value) of each line of a JSON Lines file, plain or gzip; empty lines are skipped.

    With `torn`, so is a last line without a line break, which a killed process leaves. `damaged` is what the error says after the
    number of a damaged line, instead of the reason.
    """
    data = read_bytes(path, error).removeprefix(codecs.BOM_UTF8)
    if torn:
        data = data[: data.rfind(b"\n") + 1]
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            try:
                value = parse_json(line.decode())
            except (ValueError, RecursionError) as reason:
                raise error(f"{path}, line {number}{damaged or f': not JSON ({reason})'}") from reason
            yield number, value


def read_arrays(path: Path, error: type[DreambenchError] = DataError) -> dict[str, Any]:
    """The arrays of an ``.npz`` file by name. Pickled objects are refused."""
    import numpy as np

    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as reason:
        what = type(reason).__name__  # numpy's own words would advise to unpickle it
        raise error(f"{path}: cannot be read as .npz arrays ({what})") from reason


def read_table(path: Path) -> pa.Table:
    """A Parquet file as a table, read without threads: pyarrow waits for ever for one that cannot start (`ulimit -v`).

    Raises OSError, or pyarrow's errors, which are ValueErrors.
    """
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        return pq.ParquetFile(file, pre_buffer=False).read(use_threads=False)


def read_json_or_lines(path: Path) -> JSON:
    """The object or list in a JSON file, or the list of the values in a JSON Lines file. `DataError` where it is neither."""
    try:
        value = read_json(path)
    except DataError as whole:
        values: list[JSON] = []
        try:
            for _, value in read_json_lines(path):
                values.append(value)
        except DataError:
            if values:
                raise
            raise whole from None
        return values
    if not isinstance(value, (dict, list)):
        raise DataError(f"{path} holds neither a JSON object, a list nor lines of them")
    return value


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- writing ----------------------------------------------------------------------------------------------------------


def process_started(pid: int) -> str | None:
    """When process `pid` started, by the kernel, so that a reused pid is not mistaken for it; None where unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def temporary_name(path: Path) -> Path:
    """A hidden name beside `path`, of the same suffix, that says which process of which host writes there: see `remove_leftovers`."""
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    pid = os.getpid()
    owner = f"{_host()}-{pid}-{process_started(pid) or 0}-{uuid.uuid4().hex[:8]}"
    stem = os.fsdecode(os.fsencode(path.stem)[:150])  # with the rest at most the 255 bytes that file systems allow
    return path.with_name(f".{stem}.{owner}.tmp{path.suffix[:20]}")


_TEMPORARY = re.compile(r"\..*\.([0-9a-f]{8})-([0-9]+)-([0-9]+)-[0-9a-f]{8}\.tmp(\..*)?", re.DOTALL)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left unfinished in `folder` under a `temporary_name`; what a living process writes stays.

    A process of another host, or of a system that does not say when a process started, counts as dead after a day without a change.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _TEMPORARY.fullmatch(entry.name)
            if found is None:
                continue
            host, pid, started = found.groups()[:3]
            with contextlib.suppress(OSError):
                if host == _host() and started != "0":
                    dead = process_started(int(pid)) != started
                else:
                    dead = time.time() - entry.stat(follow_symlinks=False).st_mtime > _ABANDONED_S
                if dead:
                    discard(Path(entry.path))


def discard(path: Path) -> None:
    """Remove a file or a folder that may be gone already. Errors are passed over: there is nothing more to try."""
    try:
        _discard(path)
    except KeyboardInterrupt:
        _discard(path)
        raise


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def temporary(path: Path) -> Generator[Path]:
    """A `temporary_name` for a file or folder that will take the place of `path`; what is still there at the end is removed.

    The first use in a folder also removes what killed processes left there, so that the next start of a verb clears up after the last.
    """
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    if (absolute := str(folder.absolute())) not in _cleared:
        _cleared.add(absolute)
        remove_leftovers(folder)
    name = temporary_name(path)
    try:
        yield name
    except OSError as error:
        if error.errno is not None and isinstance(error.filename, str | None):
            error.filename = (error.filename or str(name)).replace(str(name), str(path))  # which the user knows
        raise
    finally:
        discard(name)


_ABANDONED_S = 24 * 3600
_cleared: set[str] = set()


def sync_file(path: Path) -> None:
    """What was written to a file is on disk when this returns."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path: Path) -> Generator[Path]:
    """A temporary path beside `path`, of the same suffix; what was written there is synced and takes its place at the end."""
    with temporary(path) as unfinished:
        yield unfinished
        sync_file(unfinished)
        unfinished.replace(path)
    _sync_folder(path.parent)


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Replace `path` by `data`; a reader sees the old bytes or the new ones, also after a crash."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(data)


def write_arrays(path: Path, **arrays: Any) -> None:
    """Replace the ``.npz`` file `path` by these arrays."""
    import numpy as np

    with replacing(path) as unfinished:
        np.savez(unfinished, **arrays)


def write_once(path: Path, data: bytes) -> bool:
    """Create `path` with `data` unless it exists; True for the process that created it. Never seen half-written."""
    with temporary(path) as unfinished:
        unfinished.write_bytes(data)
        sync_file(unfinished)
        try:
            os.link(unfinished, path)
        except FileExistsError:
            return False
    _sync_folder(path.parent)
    return True


def append_lines(path: Path, lines: Sequence[str], *, sync: bool = True) -> None:
    """Append lines (each with its line break), all of them or none; with `sync` they are on disk when this returns.

    One process at a time may append to a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = memoryview("".join(lines).encode())
    # Not through a buffered file, which would write the rest of a failed batch once more while it is closed.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    try:
        length = os.fstat(descriptor).st_size
        try:
            while data:
                data = data[os.write(descriptor, data) :]
            if sync:
                os.fsync(descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, length)
            raise
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        os.close(descriptor)
    if sync and not length:
        _sync_folder(path.parent)


def truncate_torn_line(path: Path) -> None:
    """Cut off a last line without a line break, which a killed process leaves."""
    if path.exists():
        with path.open("rb+") as file:
            end = length = file.seek(0, os.SEEK_END)
            found = -1
            while end and found < 0:
                start = max(0, end - (1 << 16))
                file.seek(start)
                found = file.read(end - start).rfind(b"\n")
                end = start
            if end + found + 1 < length:
                file.truncate(end + found + 1)


def _sync_folder(folder: Path) -> None:
    """A rename is durable only once its folder is synced; not every system allows that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- places -----------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Files that can be made again at any time: ``$XDG_CACHE_HOME/dreambench``, ``~/.cache/dreambench`` or ``%LOCALAPPDATA%``."""
    if sys.platform == "win32" and "LOCALAPPDATA" in os.environ:
        return Path(os.environ["LOCALAPPDATA"]) / "dreambench"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dreambench"


# One rule about links, everywhere: a link below a folder that the user named must not lead out of it, or somebody else's data would pass
# off any file of this machine as theirs. The folder itself may be a link; and whoever trusts the data says so with this variable.
FOLLOW_LINKS = "DREAMBENCH_FOLLOW_LINKS"
LINKS = f" (a link out of it is allowed with {FOLLOW_LINKS}=1, if you trust the data)"


def _root(folder: Path) -> Path:
    """Where links below `folder` may lead: the folder; for a snapshot in the Hub's cache, which is links to files beside it, the copy."""
    resolved = folder.resolve()
    return resolved.parents[1] if resolved.parent.name == "snapshots" else resolved


def inside(folder: Path, name: str) -> Path | None:
    """`folder / name` if that lies within `folder`, else None: names found in data never lead out of it, nor need they be possible."""
    root = folder.resolve()
    try:
        path = (root / name).resolve()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()
        plain = Path(os.path.normpath(root / name))
    # Too long a name, a null character, or (before Python 3.13) a circle of links.
    except (OSError, ValueError, RuntimeError):
        return None
    if os.environ.get(FOLLOW_LINKS) == "1" and plain.is_relative_to(root):
        return path
    return path if path.is_relative_to(_root(folder)) and plain.is_relative_to(root) else None


def not_led_out(folder: Path, path: Path) -> Path:
    """`path`, which was found below `folder`. `DataError` if links lead it out of there."""
    try:
        leads_to = path.resolve()
        if os.environ.get(FOLLOW_LINKS) == "1" or leads_to.is_relative_to(_root(folder)):
            return path
    except (OSError, RuntimeError, ValueError):  # such as a circle of links, or a null character
        leads_to = Path("nowhere")
    raise DataError(
        f"{path} is a link out of {folder}, to {leads_to}: name that place itself (--data, --images), or, if you trust these data,"
        f" allow such links with {FOLLOW_LINKS}=1"
    )


def files_below(folder: Path, wanted: Callable[[str], object], root: Path | None = None) -> Iterator[str]:
    """Paths of the files below a folder whose name is `wanted`, folder by folder in order of name; hidden ones are left out.

    Links may lead within `root` (default: `folder`). Raises `DataError` for a link of that name, or to a folder, that leads out, for a
    folder of that name, and for one that cannot be listed.
    """
    follow = os.environ.get(FOLLOW_LINKS) == "1"
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=_cannot_list, followlinks=follow):
        if follow:
            # A circle of links would never end.
            folders[:] = [name for name in folders if not _met(os.path.realpath(f"{place}{os.sep}{name}"), seen)]
        folders[:] = sorted(name for name in folders if name[0] != ".")
        if mistaken := [name for name in folders if wanted(name)]:
            raise DataError(f"{place}{os.sep}{mistaken[0]} is a folder with the name of a file: replace or rename it")
        names = sorted(name for name in names if name[0] != "." and wanted(name))
        for name in (*folders, *names):
            if os.path.islink(path := f"{place}{os.sep}{name}"):  # noqa: PTH114 - a hundred thousand times
                not_led_out(root or folder, Path(path))
        yield from (f"{place}{os.sep}{name}" for name in names)


def _met(path: str, seen: set[str]) -> bool:
    known = path in seen
    seen.add(path)
    return known


def _cannot_list(error: OSError) -> None:
    """Without it, os.walk would skip a folder that it cannot list."""
    raise DataError(f"{error.filename}: {error.strerror}; make it readable, or give another folder") from error
