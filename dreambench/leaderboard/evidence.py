"""The evidence behind measured rows, ``measured/<run>/``: what of a run is committed so that its scores can be computed again.

``facts.json`` holds protocols, system, environment, options without paths, and the scores over all samples; ``scores.parquet`` the columns
that these scores are means of, without texts; ``statistics-<protocol>.npz`` mean and covariance behind a Fréchet distance, of more than
256 features as ``….large.npz``, which stays out of version control; ``manifest.json`` the sha256 of each. Evidence comes from
others: no link in it is followed, and it is read as the types that wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field

# pydantic requires it before Python 3.12.
from typing_extensions import TypedDict

from dreambench.documents import JSON, digest
from dreambench.errors import DataError
from dreambench.files import read_arrays, read_json, read_table, sha256_file
from dreambench.records import check_protocols, first_complaint, parse, parse_score
from dreambench.report.runs import BLIND
from dreambench.safety import redact
from dreambench.scores import Protocol, Score

if TYPE_CHECKING:
    import pandas as pd

    from dreambench.metrics.frechet import GaussianStatistics

__all__ = ["CELLS", "FACTS", "FORMAT", "LARGE", "MANIFEST", "NAME", "TABLES"]
__all__ += ["Evidence", "Frechet", "cleaned", "evidence_folders", "manifest", "read"]

TABLES = ("comprehension", "text_to_image", "interleaved")
LARGE = ".large.npz"
MANIFEST, FACTS, CELLS = "manifest.json", "facts.json", "scores.parquet"
FORMAT = 1
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@\[\]+-]*")
_PATH = re.compile(r"(?<![\w./])(?!//)/(?:[^\s/:,;'\"()]+/)+|(?<!\w)[A-Za-z]:\\(?:[^\s\\:,;'\"()]+\\)+")
"""The folders of an absolute path in a text, not those of an address."""
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_Count = Annotated[int, Field(ge=0)]


def cleaned(value: JSON) -> JSON:
    """Without the folders of absolute paths, and without the secrets that this process knows."""
    if isinstance(value, dict):
        return {name: cleaned(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [cleaned(inner) for inner in value]
    return _PATH.sub("…/", redact(value)) if isinstance(value, str) else value


class Frechet(TypedDict):
    """The statistics behind a Fréchet distance. `reference_n` is None where the reference's file does not say."""

    protocol: str
    metric: str
    file: str
    dim: _Count
    n: _Count
    reference_n: _Count | None


class _Facts(TypedDict):
    __pydantic_config__ = _STRICT  # pyright: ignore[reportGeneralTypeIssues]

    format: int
    run: str
    table: str
    task: str
    model: str
    date: str | None
    parameters: _Count | None
    protocols: dict[str, dict[str, JSON]]
    system: dict[str, JSON]
    environment: dict[str, dict[str, JSON]]
    options: dict[str, JSON]
    notes: list[str]
    errors: _Count
    frechet: list[Frechet]
    scores: list[dict[str, JSON]]


class _File(TypedDict, total=False):
    sha256: str
    location: str


class _Manifest(TypedDict):
    __pydantic_config__ = _STRICT  # pyright: ignore[reportGeneralTypeIssues]

    files: dict[str, _File]


@dataclass(frozen=True)
class Evidence:
    """A folder of ``measured/``, whose files are what its manifest says."""

    folder: Path
    facts: Mapping[str, JSON]

    @property
    def run(self) -> str:
        return self.facts["run"]

    @cached_property
    def scores(self) -> list[Score]:
        """Those over all samples, in the run's order."""
        return [parse_score(line) for line in self.facts["scores"]]

    @cached_property
    def system_id(self) -> str:
        """First 8 hex digits of the sha256 of the system."""
        return digest(self.facts["system"])[:8]

    @property
    def is_blind(self) -> bool:
        """Whether its model answers without seeing the images."""
        return str(self.facts["model"]).partition(":")[0] in BLIND

    @cached_property
    def table(self) -> pd.DataFrame:
        return read_table(self.folder / CELLS).to_pandas()

    def frechet(self, score: Score) -> Frechet | None:
        """The statistics that this score is the distance of."""
        found = (
            one for one in self.facts["frechet"] if (one["protocol"], one["metric"]) == (score.protocol, score.metric)
        )
        return next(found, None)

    def statistics(self, of: Frechet) -> tuple[GaussianStatistics, GaussianStatistics] | None:
        """Those of the generated and of the reference images; None where a large file is not here."""
        path = self.folder / of["file"]
        if not path.is_file():
            return None
        arrays = read_arrays(path)
        try:
            return _unpacked(arrays, "generated"), _unpacked(arrays, "reference")
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise DataError(f"{path} holds no mean and triangle of a covariance ({error})") from error


def evidence_folders(out: Path) -> list[Path]:
    """The folders of ``out/measured``, in the order of their names. Hidden ones are left out."""
    measured = out / "measured"
    if measured.is_symlink():
        raise DataError(f"{measured} is a link: put the folder in its place")
    return sorted(path for path in measured.glob("[!.]*")) if measured.is_dir() else []


def read(folder: Path) -> Evidence:
    """A folder of evidence. `DataError` where a file is a link, damaged, missing, not named, or other than its manifest says."""
    again = "restore it, or add its run again with `dreambench leaderboard RUN`"
    if folder.is_symlink() or not folder.is_dir():
        raise DataError(f"{folder} is no folder of evidence: remove it")
    entries = {path.name: path for path in sorted(folder.iterdir())}
    for path in entries.values():
        if path.is_symlink() or not path.is_file():
            raise DataError(f"{path} is a link or no file: {again}")
    files = manifest(folder)
    for name, known in files.items():
        if name in entries and (found := sha256_file(entries[name])) != known.get("sha256"):
            raise DataError(f"{entries[name]}: sha256 found {found}, wanted {known.get('sha256')}: {again}")
        if name not in entries and not name.endswith(LARGE):
            raise DataError(f"{folder / name} is missing: {again}")
    others = [name for name in entries if name not in files and name != MANIFEST and not name.endswith(f"{LARGE}.dvc")]
    if others or FACTS not in files:
        raise DataError(f"{folder / (others or [FACTS])[0]} is not in the manifest: {again}")
    return Evidence(folder, _facts(folder, files, again))


def manifest(folder: Path) -> Mapping[str, Any]:
    """sha256, and of large files the location, by name of file."""
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise DataError(f"{path} is missing: restore it, or remove {folder} and add its run again")
    found = parse(_Manifest, read_json(path), DataError, str(path))["files"]
    if wrong := [name for name in found if NAME.fullmatch(name) is None]:
        raise DataError(f"{path} names {wrong[0]!r}, which is no name of a file: restore it")
    return found


def _facts(folder: Path, files: Mapping[str, JSON], again: str) -> Mapping[str, JSON]:
    path = folder / FACTS
    found: dict[str, JSON] = parse(_Facts, read_json(path), DataError, str(path), f": {again}")
    try:
        check_protocols(found["protocols"])
        scores = [parse_score(line) for line in found["scores"]]
    except ValueError as error:
        raise DataError(f"{path} is damaged ({first_complaint(error)}): {again}") from error
    wrong = [
        *(["another format"] if found["format"] != FORMAT else []),
        *(["a run of another name"] if found["run"] != folder.name else []),
        *(["an unknown table"] if found["table"] not in TABLES else []),
        *(
            f"a protocol that is not {id_}"
            for id_, one in found["protocols"].items()
            if Protocol.from_json(one).id != id_
        ),
        *(f"the unknown protocol {one.protocol}" for one in scores if one.protocol not in found["protocols"]),
        *(f"no {CELLS} for {one.metric}" for one in scores if one.cells is not None and CELLS not in files),
        *(f"the unknown file {one['file']}" for one in found["frechet"] if one["file"] not in files),
    ]
    if wrong:
        raise DataError(f"{path} is damaged ({wrong[0]}): {again}")
    return found


def _unpacked(arrays: Mapping[str, Any], side: str) -> GaussianStatistics:
    import numpy as np

    from dreambench.metrics.frechet import GaussianStatistics

    mean, triangle, n = (arrays[f"{side}_{name}"] for name in ("mean", "triangle", "n"))
    if mean.ndim != 1 or triangle.shape != (mean.size * (mean.size + 1) // 2,) or n.shape != ():
        raise ValueError(f"shapes {mean.shape}, {triangle.shape} and {n.shape}")
    upper = np.zeros((mean.size, mean.size))
    upper[np.triu_indices(mean.size)] = triangle
    return GaussianStatistics.from_moments(mean, upper + np.triu(upper, 1).T, None if n < 0 else int(n))
