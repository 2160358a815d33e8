"""Seeded damage to files: of any kind, of JSON, of text, of archives, of images and of tables."""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["Mutation", "mutations"]

DEPTH = 200_000
MANY_KEYS = 60
RAW = {
    "null": "null",
    "true": "true",
    "-1": "-1",
    "0": "0",
    "1.5": "1.5",
    "1e400": "1e400",
    "1e30": "1" + "0" * 30,
    "NaN": "NaN",
    "empty text": '""',
    "text": '"x"',
    "a number as text": '"7"',
    "empty list": "[]",
    "empty object": "{}",
    "list of a list": "[[]]",
    "an object": '{"x": 1}',
    f"{DEPTH} deep": "[" * DEPTH + "]" * DEPTH,
    "huge text": '"' + "a" * (1 << 20) + '"',
    "half a surrogate": '"\\ud800"',
    "null character": '"a\\u0000b"',
    "terminal codes": '"\\u001b[2J\\u202e<script>"',
    "a path up": '"../../../../etc/passwd"',
}
"""What takes the place of a JSON value."""
_MARK = "hostile-mark-"


@dataclass(frozen=True)
class Mutation:
    """A change of one file."""

    name: str
    apply: Callable[[Path], object]
    changes: bool = False
    """The result may be another valid file."""
    must_fail: bool = False


def mutations(file: Path, rng: random.Random) -> Iterator[Mutation]:
    """Every kind of damage that fits the file: a few of each at random places."""
    data = file.read_bytes()
    plain = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    suffixes = "".join(file.suffixes[-2:]).removesuffix(".gz")
    yield from _any_file(data, rng, text=_is_text(data), table=suffixes.endswith((".tsv", ".csv", ".txt", ".yaml")))
    if data is not plain:
        yield from _gzip(plain)
        return
    if suffixes.endswith((".json", ".jsonl")):
        yield from _json_file(plain, rng, lines=suffixes.endswith(".jsonl"))
    elif suffixes.endswith((".tsv", ".csv")):
        yield from _table(plain, rng, "\t" if suffixes.endswith(".tsv") else ",")
    elif suffixes.endswith((".png", ".jpg", ".webp")):
        yield from _image()
    elif suffixes.endswith(".safetensors"):
        yield from _safetensors(plain, rng)
    elif suffixes.endswith(".parquet"):
        yield from _parquet(file, rng)
    elif suffixes.endswith(".npz"):
        yield from _arrays(file)


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in data


def _write(data: bytes | Callable[[], bytes]) -> Callable[[Path], object]:
    """Writes these bytes, or what a function makes when the case runs: thousands of cases are prepared at once."""
    return lambda path: path.write_bytes(data if isinstance(data, bytes) else data())


def _instead(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def apply(path: Path) -> None:
        path.unlink()
        make(path)

    return apply


# --- any file ---------------------------------------------------------------------------------------------------------


def _any_file(data: bytes, rng: random.Random, *, text: bool, table: bool) -> Iterator[Mutation]:
    yield Mutation("empty", _write(b""))
    yield Mutation("a line break", _write(b"\n"))
    yield Mutation("a folder", _instead(Path.mkdir), must_fail=True)
    yield Mutation("missing", _instead(lambda path: None))
    yield Mutation("a link to nowhere", _instead(lambda path: path.symlink_to("nowhere")))
    yield Mutation("a link to itself", _instead(lambda path: path.symlink_to(path.name)))
    yield Mutation("random bytes", _write(rng.randbytes(2000)))
    yield Mutation("zeros", _write(bytes(2000)))
    yield Mutation("a PNG", _write(_png(8, 8)), changes=data[:4] == b"\x89PNG")
    yield Mutation("an HTML page", _write(b"<!DOCTYPE html><html><body>404</body></html>\n"))
    yield Mutation("a pickle", _write(b"\x80\x04\x95\x11\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x93."))
    for _ in range(6):
        at = rng.randrange(max(1, len(data)))
        yield Mutation(f"cut at byte {at}", _write(data[:at]), changes=table)
    for _ in range(8):
        at, bit = rng.randrange(max(1, len(data))), 1 << rng.randrange(8)
        flipped = data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :] if data else b"\x01"
        yield Mutation(f"bit {bit} of byte {at} flipped", _write(flipped), changes=True)
    at = rng.randrange(max(1, len(data)))
    yield Mutation(f"100 random bytes at {at}", _write(data[:at] + rng.randbytes(100) + data[at:]), changes=True)
    yield Mutation(f"100 zeros at {at}", _write(data[:at] + bytes(100) + data[at + 100 :]), changes=True)
    yield Mutation("twice", _write(data + data), changes=table)
    yield Mutation("rubbish behind", _write(data + b"rubbish"), changes=table)
    if text:
        words = data.decode()
        yield Mutation("with a byte order mark", _write(b"\xef\xbb\xbf" + data))
        yield Mutation("UTF-16", _write(words.encode("utf-16")), must_fail=True)
        yield Mutation("UTF-16 without a mark", _write(words.encode("utf-16-le")))
        yield Mutation("UTF-32", _write(words.encode("utf-32")), must_fail=True)
        letters = [i for i, letter in enumerate(words) if letter.isalpha()]
        if letters:
            at = rng.choice(letters)
            yield Mutation(
                f"Latin-1 at {at}", _write((words[:at] + "é" + words[at + 1 :]).encode("latin-1", "replace"))
            )
            yield Mutation(f"é at {at}", _write((words[:at] + "é" + words[at + 1 :]).encode()), changes=True)
        yield Mutation("Windows line breaks", _write(words.replace("\n", "\r\n").encode()))
        yield Mutation("a line of 20 MB", _write(lambda: data + b" " * 20_000_000))


def _gzip(plain: bytes) -> Iterator[Mutation]:
    packed = gzip.compress(plain)
    yield Mutation("gzip cut", _write(packed[: len(packed) // 2]), must_fail=True)
    yield Mutation("gzip without its end", _write(packed[:-8]), must_fail=True)
    yield Mutation("gzip of another checksum", _write(packed[:-8] + bytes(8)), must_fail=True)
    yield Mutation("gzip of gzip", _write(gzip.compress(packed)), must_fail=True)
    yield Mutation("gzip with rubbish behind", _write(packed + b"rubbish"))
    yield Mutation("two gzip members", _write(gzip.compress(plain[:20]) + gzip.compress(plain[20:])))
    yield Mutation("not compressed", _write(plain))
    yield Mutation("a gzip bomb of 4 GB", lambda path: path.write_bytes(_bomb()), must_fail=True)


def _bomb() -> bytes:
    """4 GB of spaces as 4 MB of gzip."""
    member = gzip.compress(b" " * (64 << 20))
    return member * 64


# --- JSON -------------------------------------------------------------------------------------------------------------


def _places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from _places(one, (*path, key))


def _set(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    if not path:
        return new
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return value


def _get(value: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _distinct_places(value: Any, rng: random.Random) -> list[tuple[str | int, ...]]:
    """One place of each kind, where items of a list, and of an object with very many keys, are of one kind."""
    kinds: dict[tuple[str, ...], list[tuple[str | int, ...]]] = {}
    for path in _places(value):
        kind: list[str] = []
        inner = value
        for key in path:
            many = isinstance(inner, list) or len(inner) > MANY_KEYS or str(key).isdigit()
            kind.append("*" if many else str(key))
            inner = inner[key]
        kinds.setdefault(tuple(kind), []).append(path)
    return [rng.choice(paths) for paths in kinds.values()]


def _json_values(value: Any, rng: random.Random) -> Iterator[_Text]:
    """(name, function for the JSON text, changes, must fail) of mutations of a JSON value."""
    for path in _distinct_places(value, rng):
        where, old = ".".join(map(str, path)) or "all", _get(value, path)
        for name, raw in RAW.items():
            both_text = isinstance(old, str) and raw.startswith('"')
            both_real = isinstance(old, float) and name in ("-1", "0", "1.5", "1e30")
            yield f"{where} = {name}", partial(_replaced, value, path, raw), both_text or both_real, False
        if isinstance(old, dict) and old:
            key = rng.choice(list(old))
            rest = {other: one for other, one in old.items() if other != key}
            yield f"{where} without {key}", partial(_dumped, value, path, rest), False, False
            yield f"{where} with {key} twice", partial(_repeated, value, path, key), False, True
            yield f"{where} with a key too many", partial(_dumped, value, path, {**old, "hostile": [1]}), False, False
        if isinstance(old, list) and old:
            for name, new in (
                ("an item twice", [*old, old[0]]),
                ("without an item", old[1:]),
                ("backwards", old[::-1]),
            ):
                yield f"{where} {name}", partial(_dumped, value, path, new), name != "an item twice", False


def _dumped(value: Any, path: tuple[str | int, ...], new: Any) -> str:
    return json.dumps(_set(value, path, new), ensure_ascii=False)


def _replaced(value: Any, path: tuple[str | int, ...], raw: str) -> str:
    return _dumped(value, path, _MARK).replace(f'"{_MARK}"', raw)


def _repeated(value: Any, path: tuple[str | int, ...], key: str) -> str:
    twice = _dumped(value, path, {_MARK + key: None, **_get(value, path)})
    return twice.replace(f'"{_MARK}{key}"', json.dumps(key))


def _json_file(data: bytes, rng: random.Random, *, lines: bool) -> Iterator[Mutation]:
    for name, text, changes, must_fail in _json_lines(data, rng) if lines else _json_values(json.loads(data), rng):
        yield Mutation(name, _write(partial(_encoded, text)), changes, must_fail)


def _encoded(text: Callable[[], str]) -> bytes:
    return text().encode("utf-8", "surrogatepass")


_Text = tuple[str, Callable[[], str], bool, bool]


def _json_lines(data: bytes, rng: random.Random) -> Iterator[_Text]:
    """Damage to one line of each shape, and to the lines as such."""
    texts = data.decode().splitlines()
    shapes: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(texts):
        value = json.loads(line)
        shapes[tuple(sorted(value)) if isinstance(value, dict) else ()] = number

    def joined(number: int, *new: str) -> str:
        return "".join(f"{line}\n" for line in (*texts[:number], *new, *texts[number + 1 :]))

    for number in shapes.values():
        for name, text, changes, must_fail in _json_values(json.loads(texts[number]), rng):
            yield f"line {number + 1}: {name}", lambda n=number, text=text: joined(n, text()), changes, must_fail
    at = rng.randrange(len(texts))
    yield f"line {at + 1} twice", lambda: joined(at, texts[at], texts[at]), False, False
    yield f"without line {at + 1}", lambda: joined(at), True, False
    yield f"line {at + 1} torn", lambda: joined(at, texts[at][:-5]), False, True
    yield "no last line break", lambda: "\n".join(texts), False, False
    yield "a JSON list", lambda: "[" + ",\n".join(texts) + "]", False, False


# --- tables -----------------------------------------------------------------------------------------------------------


def _table(data: bytes, rng: random.Random, separator: str) -> Iterator[Mutation]:
    lines = [line.split(separator) for line in data.decode().splitlines()]

    def joined(rows: list[list[str]]) -> bytes:
        return "".join(separator.join(row) + "\n" for row in rows).encode()

    values = ("", "nan", "-1", "1.5", "1e400", "9" * 400, "x" * 200_000, '"', "A\0B", "\x1b[2J", "=1+1", "é", "true")
    for column, name in enumerate(lines[0]):
        for value in values:
            number = rng.randrange(1, len(lines))
            changed = [row[:] for row in lines]
            if column < len(changed[number]):
                changed[number][column] = value
                yield Mutation(f"row {number}: {name} = {value[:12]!r}", _write(joined(changed)), changes=True)
        without = [row[:column] + row[column + 1 :] for row in lines]
        yield Mutation(f"without the column {name}", _write(joined(without)), changes=True)
        yield Mutation(f"the column {name} twice", _write(joined([[*row, *row[column : column + 1]] for row in lines])))
    yield Mutation("a row twice", _write(joined([*lines, lines[1]])), changes=True)
    yield Mutation("only the header", _write(joined(lines[:1])), changes=True)
    yield Mutation("a short row", _write(joined([*lines, lines[1][:1]])), changes=True)
    yield Mutation("a long row", _write(joined([*lines, [*lines[1], "more", "and more"]])), changes=True)
    yield Mutation("another separator", _write(data.replace(separator.encode(), b";")), must_fail=True)


def _parquet(file: Path, rng: random.Random) -> Iterator[Mutation]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(file)

    def write(table: pa.Table) -> Callable[[Path], object]:
        return lambda path: pq.write_table(table, path)

    for name in table.column_names:
        at = table.column_names.index(name)
        yield Mutation(f"without the column {name}", write(table.drop_columns([name])))
        for kind, values in (
            ("null", pa.nulls(len(table), table.column(at).type)),
            ("integers", pa.array(range(len(table)))),
            ("reals", pa.array([float("nan")] * len(table))),
            ("lists", pa.array([["x"]] * len(table))),
            ("texts", pa.array(["x"] * len(table))),
            ("JSON numbers", pa.array(["1"] * len(table))),
            ("deep JSON", pa.array(["[" * 5000 + "]" * 5000] * len(table))),
            ("JSON objects", pa.array(['{"text": 1}'] * len(table))),
            ("JSON lists", pa.array(['[{"text": 1}]'] * len(table))),
            ("bytes", pa.array([b"\xff\xfe"] * len(table))),
        ):
            both_text = pa.types.is_string(table.column(at).type) and kind == "texts"
            yield Mutation(f"{name}: {kind}", write(table.set_column(at, name, values)), changes=both_text)
    yield Mutation("no rows", write(table.slice(0, 0)))
    yield Mutation("one row less", write(table.slice(1)))
    yield Mutation("a row twice", write(pa.concat_tables([table, table.slice(0, 1)])))
    yield Mutation("no columns", write(table.select([])))


def _arrays(file: Path) -> Iterator[Mutation]:
    import numpy as np

    with np.load(file, allow_pickle=False) as found:
        arrays: dict[str, Any] = dict(found)

    def write(**changed: Any) -> Callable[[Path], object]:
        def apply(path: Path) -> None:
            with path.open("wb") as out:
                np.savez(out, **{name: value for name, value in {**arrays, **changed}.items() if value is not None})

        return apply

    for name, array in arrays.items():
        # Other programs write mu and sigma only; a note says what is then unknown.
        yield Mutation(f"without {name}", write(**{name: None}), changes=name in ("n", "identity"))
        for kind, value in (
            ("a scalar", np.float64(1)),
            ("empty", np.zeros(0)),
            ("text", np.array("x")),
            ("objects", np.array([{}], dtype=object)),
            ("complex", array.astype(complex) * 1j if array.dtype.kind in "fiu" else np.array(1j)),
            ("booleans", np.ones(array.shape, bool)),
            ("NaN", np.full(array.shape, np.nan)),
            ("infinite", np.full(array.shape, np.inf)),
            ("negative", np.full(array.shape, -1.0)),
            ("one axis more", np.ones((*array.shape, 2))),
            ("shorter", array[:-1] if array.ndim else np.zeros(2)),
        ):
            yield Mutation(f"{name}: {kind}", write(**{name: value}), changes=(name, kind) == ("mu", "negative"))
    yield Mutation("no arrays", write(**dict.fromkeys(arrays)))


# --- images and weights -----------------------------------------------------------------------------------------------


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, rows: bytes | None = None) -> bytes:
    """A grey PNG; without `rows` its pixels are black."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packed = zlib.compress(bytes((width + 1) * height) if rows is None else rows)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _image() -> Iterator[Mutation]:
    from PIL import Image

    def save(image: Image.Image, form: str, **options: Any) -> Callable[[Path], object]:
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        return _write(buffer.getvalue())

    red = Image.new("RGB", (64, 64), "red")
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 60).save(whole, "PNG")
    yield Mutation("a PNG cut in half", _write(whole.getvalue()[: len(whole.getvalue()) // 2]))
    yield Mutation("a PNG of 369 megapixels", lambda path: path.write_bytes(_png(19_200, 19_200)))
    yield Mutation("a PNG of 10^18 pixels", _write(_png(1 << 30, 1 << 30, b"")))
    yield Mutation("a PNG of no pixels", _write(_png(0, 0, b"")))
    yield Mutation("a PNG with a bomb of text", _write(_bomb_of_text()), changes=True)
    yield Mutation("16 bits", save(Image.new("I;16", (64, 64), 40_000), "PNG"), changes=True)
    yield Mutation("one pixel", save(Image.new("RGB", (1, 1)), "PNG"), changes=True)
    yield Mutation("1 × 2,000 pixels", save(Image.new("RGB", (1, 2000)), "PNG"), changes=True)
    yield Mutation("CMYK", save(Image.new("CMYK", (64, 64), (1, 2, 3, 4)), "JPEG"), changes=True)
    yield Mutation("bilevel", save(Image.new("1", (64, 64)), "PNG"), changes=True)
    yield Mutation("transparent", save(Image.new("RGBA", (64, 64), (255, 0, 0, 7)), "PNG"), changes=True)
    yield Mutation("palette", save(red.convert("P"), "PNG", transparency=0), changes=True)
    yield Mutation("animated GIF", save(red, "GIF", save_all=True, append_images=[red.rotate(9)]), changes=True)
    yield Mutation("animated PNG", save(red, "PNG", save_all=True, append_images=[red.rotate(9)]), changes=True)
    yield Mutation("TIFF", save(red, "TIFF"), changes=True)
    yield Mutation("reals", save(Image.new("F", (64, 64), float("nan")), "TIFF"), changes=True)
    yield Mutation("SVG", _write(b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'))
    yield Mutation("EPS", _write(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nquit\n"))


def _bomb_of_text() -> bytes:
    text = b"Comment\0\0" + zlib.compress(bytes(200 << 20), 9)
    return _png(8, 8).replace(_chunk(b"IEND", b""), _chunk(b"zTXt", text) + _chunk(b"IEND", b""))


def _safetensors(data: bytes, rng: random.Random) -> Iterator[Mutation]:
    (length,) = struct.unpack("<Q", data[:8])
    header, tensors = json.loads(data[8 : 8 + length]), data[8 + length :]

    def packed(header: bytes, tensors: bytes = tensors) -> bytes:
        return struct.pack("<Q", len(header)) + header + tensors

    for size in (0, 1, 1 << 40, (1 << 64) - 1):
        yield Mutation(f"header of {size} bytes", _write(struct.pack("<Q", size) + data[8:]), must_fail=True)
    names = [name for name in header if name != "__metadata__"]
    for _ in range(2):
        name = rng.choice(names)
        other = rng.choice(names)
        old = header[name]
        shape, (begin, end) = old["shape"], old["data_offsets"]
        for what, fields in (
            ("dtype", {"dtype": "F99"}),
            ("dtype I64", {"dtype": "I64"}),
            ("dtype F8", {"dtype": "F8_E4M3"}),
            ("shape", {"shape": [*shape, 2]}),
            ("negative shape", {"shape": [-1]}),
            ("real shape", {"shape": [1.5]}),
            ("huge shape", {"shape": [1 << 62, 1 << 62]}),
            ("null shape", {"shape": None}),
            ("offsets", {"data_offsets": [begin, end + (1 << 40)]}),
            ("reversed offsets", {"data_offsets": [end, begin]}),
            ("text offsets", {"data_offsets": "x"}),
        ):
            changed = json.dumps({**header, name: {**old, **fields}}).encode()
            yield Mutation(f"{name}: {what}", _write(packed(changed)), must_fail=True)
        rest = {one: value for one, value in header.items() if one != name}
        yield Mutation(f"without {name}", _write(packed(json.dumps(rest).encode())), must_fail=True)
        renamed = json.dumps({**rest, "hostile": old}).encode()
        yield Mutation(f"{name} renamed", _write(packed(renamed)), must_fail=True)
        twice = json.dumps({**header, _MARK: old}).replace(_MARK, other).encode()
        yield Mutation(f"{other} twice", _write(packed(twice)), must_fail=True)
        # Weights that are no numbers; half a tensor of zeros is another model.
        if old["dtype"] == "F32" and end > begin:
            for what, bits in (("NaN", 0x7FC00000), ("infinite", 0x7F800000), ("huge", 0x7F7FFFFF)):
                damaged = tensors[:begin] + struct.pack("<I", bits) + tensors[begin + 4 :]
                must_fail = what != "huge"
                yield Mutation(f"{name}: a {what} weight", _write(data[: 8 + length] + damaged), True, must_fail)
    yield Mutation("metadata of numbers", _write(packed(json.dumps({**header, "__metadata__": {"x": 1}}).encode())))
    yield Mutation("deep header", _write(packed(RAW[f"{DEPTH} deep"].encode())), must_fail=True)
    yield Mutation("a header of rubbish", _write(packed(b"rubbish")), must_fail=True)
