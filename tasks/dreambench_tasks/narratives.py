"""Localized Narratives on COCO, in the official JSON Lines."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambench.errors import DataError
from dreambench.files import sha256_file

__all__ = ["Narratives", "read_narratives"]

FILES = ("coco_val_localized_narratives.jsonl", "lncoco_captions_val2017.jsonl")


@dataclass(frozen=True)
class Narratives:
    """Narratives by COCO image id, ids ascending, those of one image in the file's order."""

    path: Path
    sha256: str
    by_image: dict[int, list[str]]


def read_narratives(data: Path) -> Narratives:
    """`data` is the file, or a folder that holds it, or whose ``annotations`` do; plain or gzipped. DataError where a line is malformed."""
    path = data if data.is_file() else _find(data)
    by_image: dict[int, list[str]] = {}
    raw = path.read_bytes()
    try:
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record: Any = json.loads(line)
            image_id, caption = int(record["image_id"]), record["caption"]
            if not isinstance(caption, str) or not caption.strip():
                raise TypeError("caption is empty or no text")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number}: needs image_id and caption ({error})") from error
        by_image.setdefault(image_id, []).append(caption.strip())
    if not by_image:
        raise DataError(f"{path} holds no narratives")
    return Narratives(path, sha256_file(path), dict(sorted(by_image.items())))


def _find(data: Path) -> Path:
    for folder in (data, data / "annotations"):
        for name in FILES:
            for suffix in ("", ".gz"):
                if (folder / f"{name}{suffix}").is_file():
                    return folder / f"{name}{suffix}"
    raise DataError(
        f"{data}: no {FILES[0]} (plain or .gz) in it: give the folder that holds it, or the file, with --data"
    )
