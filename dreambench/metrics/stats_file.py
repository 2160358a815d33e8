"""Saved reference statistics: `.npz` files with mean, covariance, number of items, and what they were computed from.

pytorch-fid's and its relatives' files hold `mu` and `sigma` only; they are read, with a warning of what is unknown.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreambench.errors import DataError
from dreambench.metrics.gaussian import GaussianStatistics

__all__ = ["SavedStatistics", "load_statistics", "save_statistics"]

FORMAT = 1


@dataclass(frozen=True)
class SavedStatistics:
    """Statistics with the identity they were saved with, None for a foreign file; `warning` says what is unknown."""

    statistics: GaussianStatistics
    identity: dict[str, Any] | None
    warning: str | None


def save_statistics(path: str | Path, statistics: GaussianStatistics, identity: Mapping[str, Any]) -> None:
    """Write `mu`, `sigma`, `n` and the identity (JSON: extractor, resize, fingerprint of the images); all at once, or not at all."""
    path = Path(path)
    if path.suffix != ".npz":
        raise DataError(f"{path}: statistics are saved as .npz")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez(
            file,
            mu=statistics.mean,
            sigma=statistics.covariance,
            n=np.array(-1 if statistics.n is None else statistics.n),
            format=np.array(FORMAT),
            identity=np.array(json.dumps(dict(identity), sort_keys=True)),
        )
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_statistics(path: str | Path, dim: int | None = None) -> SavedStatistics:
    """Read ours or a foreign file. Raises DataError when it is missing, damaged, or not of `dim` features."""
    path = Path(path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such statistics file; make one with `dreambench fid-stats DIR --out {path}`"
        ) from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        reason = type(error).__name__  # numpy's own words would advise to unpickle it
        raise DataError(f"{path}: not a statistics file, an .npz with mu and sigma ({reason})") from error
    for name in ("mu", "sigma"):
        if name not in found:
            raise DataError(
                f"{path}: not a statistics file: {name} is missing (it holds {', '.join(found) or 'nothing'})"
            )
        if found[name].dtype.kind != "f":
            raise DataError(f"{path}: {name} holds {found[name].dtype}, not floating-point numbers")
    identity = _identity(path, found)
    n = int(found["n"]) if "n" in found and found["n"].shape == () and found["n"].dtype.kind in "iu" else -1
    try:
        statistics = GaussianStatistics.from_moments(found["mu"], found["sigma"], n if n > 0 else None)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if dim is not None and statistics.dim != dim:
        raise DataError(f"{path}: statistics of {statistics.dim} features; the extractor has {dim}")
    unknown = [what for what, known in (("number of images", n > 0), ("extractor and resize", identity)) if not known]
    warning = (
        f"{path}: unknown {' and '.join(unknown)}; comparable only if they are the protocol's" if unknown else None
    )
    return SavedStatistics(statistics, identity, warning)


def _identity(path: Path, found: dict[str, np.ndarray]) -> dict[str, Any] | None:
    if "identity" not in found:
        return None
    try:
        identity: Any = json.loads(str(found["identity"]))
    except ValueError as error:
        raise DataError(f"{path}: its identity is not JSON ({error})") from error
    if not isinstance(identity, dict):
        raise DataError(f"{path}: its identity is not a JSON object")
    return identity
