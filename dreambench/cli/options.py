"""Options that several verbs share, and how their text becomes values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from dreambench.errors import UsageError

__all__ = ["Data", "Features", "Judge", "Offline", "Out", "Protocol", "Seed", "absolute", "pairs", "read_ids", "words"]

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="The benchmark's official files, or datasets:MAPPING[=LOCATION], a Hub copy; default: the embedded data.",
    ),
]
Protocol = Annotated[
    list[str] | None, typer.Option("--protocol", help="NAME[,NAME...]: how to measure; the first gives the headline.")
]
Features = Annotated[
    str | None, typer.Option("--features", help="Feature extractor, for instance inception or efficientnet-lite0.")
]
Judge = Annotated[str | None, typer.Option("--judge", help="openai:MODEL@URL, grades:FILE, model:NAME or rule.")]
Seed = Annotated[int, typer.Option("--seed", help="Decides caption choice, noise and sampling, sample by sample.")]
Out = Annotated[Path, typer.Option("--out", help="The folder that holds runs.")]
Offline = Annotated[bool, typer.Option("--offline", help="Download nothing.")]


def words(values: Sequence[str] | None) -> list[str]:
    """Repeated and comma-separated values as one list."""
    return [word.strip() for value in values or () for word in value.split(",") if word.strip()]


def pairs(values: Sequence[str] | None, option: str) -> dict[str, str]:
    """KEY=VALUE words as a mapping."""
    found: dict[str, str] = {}
    for value in values or ():
        key, equals, text = value.partition("=")
        if not equals or not key:
            raise UsageError(f"{option} {value}: write KEY=VALUE")
        if key in found:
            raise UsageError(f"{option} {key} is given twice")
        found[key] = text
    return found


def absolute(path: Path | None) -> Path | None:
    """Where a path leads from here, so that a later call from elsewhere finds it again."""
    return None if path is None else path.absolute()


def read_ids(path: Path | None) -> list[str] | None:
    """Sample ids, one a line; empty lines do not count."""
    if path is None:
        return None
    try:
        ids = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--ids {path}: cannot be read as text ({error.__class__.__name__}); write one sample id a line"
        ) from error
    ids = [id_ for id_ in ids if id_]
    if not ids:
        raise UsageError(f"--ids {path}: the file holds no ids; write one sample id a line")
    [(most, times)] = Counter(ids).most_common(1)
    if times > 1:
        raise UsageError(f"--ids {path}: {most} stands there {times} times; a sample is asked once")
    return ids
