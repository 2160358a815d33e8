"""Reading answers in the harness's own form: JSON lines ``{"id": "<sample id>", "text": "..."}``."""

from __future__ import annotations

import json
from pathlib import Path

from dreambench.errors import DataError

__all__ = ["read_lines"]


def read_lines(path: Path) -> dict[str, str]:
    """Texts by sample id. A line of another shape, or an id given twice, is a `DataError` that names the line."""
    texts: dict[str, str] = {}
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error.__class__.__name__})") from error
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            answer = json.loads(line)
            id_, text = answer["id"], answer["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f'{path}, line {number}: not of the form {{"id": "...", "text": "..."}}') from error
        if not isinstance(id_, str | int) or not isinstance(text, str):
            raise DataError(f"{path}, line {number}: id must be a string or a number and text a string")
        if str(id_) in texts:
            raise DataError(f"{path}, line {number}: a second answer to {id_}")
        texts[str(id_)] = text
    return texts
