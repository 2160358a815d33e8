"""``throughput.csv``: speeds that `dreambench bench` or pytest-benchmark measured, each beside the score that it gave.

``throughput/<date>-<8 hex>.json`` keeps of pytest-benchmark's JSON the `extra_info` of each case; the hex digits are of its content.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired

from pydantic import ConfigDict, TypeAdapter, ValidationError

# pydantic requires it before Python 3.12.
from typing_extensions import TypedDict

from dreambench.documents import JSON
from dreambench.errors import DataError
from dreambench.files import read_json, write_atomically
from dreambench.leaderboard.evidence import cleaned
from dreambench.records import first_complaint
from dreambench.report.text import flat

__all__ = ["COLUMNS", "add", "read_all"]

COLUMNS = {
    "task": "the benchmark",
    "model": "the model",
    "size": "of `dreambench bench`: tiny, standard or 7b",
    "rate": "items per time, of the whole command",
    "unit": "of the rate",
    "p50_s": "median seconds per item",
    "p95_s": "95th percentile of seconds per item",
    "peak_mb": "peak memory in MB",
    "seconds": "of the whole command by the clock",
    "cpu_s": "of the whole command in the processor",
    "share_model": "share of the command's time in the model",
    "share_preprocessing": "share in preprocessing",
    "share_storing": "share in storing answers",
    "share_scoring": "share in scoring",
    "share_imports": "share in loading Python modules",
    "share_loading": "share in loading weights",
    "metric": "what the same run scored",
    "value": "the score",
    "unit_of_value": "of the score",
    "n": "samples",
    "protocol": "of the score",
    "device": "what it ran on",
    "machine": "the machine in words",
    "versions": "versions of what the speed depends on",
    "date": "when it was measured (UTC)",
    "source": "file in `throughput/`",
}
_NUMBER = float | int | None
_TEXTS = str | dict[str, str | int | float | bool | None] | list[str] | None


class _Case(TypedDict):
    """A case's `extra_info`; other keys are dropped."""

    __pydantic_config__ = ConfigDict(extra="ignore", allow_inf_nan=False)  # pyright: ignore[reportGeneralTypeIssues]

    task: str
    model: str
    size: str
    unit: str
    rate: float
    p50_s: _NUMBER
    p95_s: _NUMBER
    peak_mb: _NUMBER
    seconds: NotRequired[_NUMBER]
    cpu_s: NotRequired[_NUMBER]
    share_model: _NUMBER
    share_preprocessing: _NUMBER
    share_storing: _NUMBER
    share_scoring: _NUMBER
    share_imports: _NUMBER
    share_loading: NotRequired[_NUMBER]
    metric: str | None
    value: _NUMBER
    unit_of_value: str | None
    n: int | None
    protocol: str | None
    device: str | None
    machine: _TEXTS
    versions: _TEXTS


class _File(TypedDict):
    date: str
    cases: list[_Case]


_CASE, _FILE = TypeAdapter(_Case), TypeAdapter(_File)
_STEM = re.compile(r"\d{8}-[0-9a-f]{8}")


def add(path: Path, out: Path) -> Path:
    """Keep the cases of pytest-benchmark's JSON that say which task they ran.

    Raises:
        DataError: it is no such file, has no such case, or one without all keys.
    """
    found: Any = read_json(path)
    try:
        date = str(found["datetime"])[:19]
        infos = [case["extra_info"] for case in found["benchmarks"]]
        cases = [cleaned(dict(_CASE.validate_python(info))) for info in infos if "task" in info]
    except (KeyError, TypeError, ValueError) as error:
        what = first_complaint(error) if isinstance(error, ValidationError) else f"no {error}"
        raise DataError(f"{path}: not the JSON of `dreambench bench` ({what})") from error
    day = "".join(re.findall(r"\d", date))[:8]
    if not cases or len(day) != 8:
        raise DataError(f"{path}: no case of `dreambench bench` with a task, or no date")
    cases.sort(key=lambda case: (case["task"], case["model"], case["size"]))
    data = (json.dumps({"date": date, "cases": cases}, indent=1, ensure_ascii=False) + "\n").encode()
    target = out / "throughput" / f"{day}-{hashlib.sha256(data).hexdigest()[:8]}.json"
    write_atomically(target, data)
    return target


def read_all(out: Path) -> list[Mapping[str, JSON]]:
    """The rows of throughput.csv, by task, model, size, device and date. `DataError` for a file that is a link, damaged or altered."""
    rows: list[dict[str, JSON]] = []
    folder = out / "throughput"
    for path in sorted(folder.glob("[!.]*")) if folder.is_dir() and not folder.is_symlink() else ():
        if path.is_symlink() or not path.is_file() or _STEM.fullmatch(path.stem) is None or path.suffix != ".json":
            raise DataError(f"{path} is no file that `dreambench leaderboard --benchmarks` wrote: remove it")
        wanted, found = path.stem[-8:], hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        if wanted != found:
            raise DataError(f"{path}: sha256 found {found}, wanted {wanted}: restore it")
        try:
            content = _FILE.validate_python(read_json(path))
        except ValidationError as error:
            raise DataError(f"{path} is damaged ({first_complaint(error)}): restore it") from error
        for case in content["cases"]:
            texts = {name: _words(case[name]) for name in ("machine", "versions")}
            rows.append({**case, **texts, "date": content["date"], "source": path.name})
    order = ("task", "model", "size", "device", "date", "source")
    return sorted(rows, key=lambda row: [str(row[name]) for name in order])


def _words(value: JSON) -> str:
    return value if isinstance(value, str) else ", ".join(f"{name} {of}".strip() for name, of in flat(value or {}))
