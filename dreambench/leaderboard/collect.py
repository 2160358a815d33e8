"""From a run to its evidence."""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from dreambench.documents import JSON
from dreambench.errors import DataError
from dreambench.files import inside, not_led_out, read_arrays, sha256_file, write_atomically
from dreambench.leaderboard.evidence import (
    CELLS,
    FACTS,
    FORMAT,
    LARGE,
    MANIFEST,
    NAME,
    Frechet,
    cleaned,
    manifest,
    read,
)
from dreambench.leaderboard.verify import check
from dreambench.report.runs import CompleteRun
from dreambench.scores import Score

if TYPE_CHECKING:
    from dreambench.metrics.frechet import GaussianStatistics

__all__ = ["add"]

LARGEST = 256
"""Features up to which statistics are committed: two triangles of 256 features have 0.5 MB, of Inception's 2048 they have 34 MB."""
OPTIONS = ("seed", "limit", "split", "batch_size", "device", "dtype")
"""What `facts.json` keeps of the `RunSpec`; the rest is paths, or stands in protocol and system."""


def add(run: CompleteRun, out: Path) -> bool:
    """Copy the evidence of a run to ``out/measured/<run>/``; False if the same is there already.

    Raises:
        DataError: the run has no scores over all samples, or is damaged, or its protocol holds a path of this machine.
    """
    if NAME.fullmatch(run.name) is None:
        raise DataError(f"{run.run.path}: call the run's folder by letters, digits, dots and dashes")
    folder = out / "measured" / run.name
    if folder.is_symlink() or folder.parent.is_symlink():
        raise DataError(f"{folder} is a link, and would be written through: put the folder in its place")
    files = dict(_files(run))
    with tempfile.TemporaryDirectory() as scratch:
        tried = Path(scratch) / run.name
        _store(tried, files)
        if problems := check(read(tried)).problems:
            raise DataError(f"{run.run.path} does not follow from its own files ({problems[0]}): score it again")
    return _store(folder, files)


def _store(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Write what differs, the manifest last; False if all is there. The location of a large file stays."""
    known = manifest(folder) if (folder / MANIFEST).is_file() else {}
    wanted: dict[str, dict[str, str]] = {}
    for name, data in files.items():
        if not (folder / name).is_file() or (folder / name).read_bytes() != data:
            write_atomically(folder / name, data)
        wanted[name] = {"sha256": sha256_file(folder / name)}
        if name.endswith(LARGE):
            wanted[name]["location"] = known.get(name, {}).get("location", "")
    if wanted == known:
        return False
    write_atomically(folder / MANIFEST, (json.dumps({"files": wanted}, indent=1, sort_keys=True) + "\n").encode())
    for gone in known.keys() - files.keys():
        (folder / gone).unlink(missing_ok=True)
    return True


def _files(run: CompleteRun) -> Sequence[tuple[str, bytes]]:
    """Names and contents, without the manifest."""
    scores = [score for score in run.scores if score.group is None]
    if not scores:
        raise DataError(f"{run.run.path} has no scores over all samples: score it with its references first")
    run_file, spec = run.run.run_file(), run.run.run_file()["spec"]
    for protocol in run.metrics["protocols"].values():
        if cleaned(protocol) != protocol:
            raise DataError(f"{run.run.path}: its protocol {protocol['name']} holds a path or a secret of this machine")
    not_led_out(run.run.path, run.run.path / CELLS)
    frechet = [(one, data) for score in scores if (found := _frechet(run, score)) for one, data in [found]]
    device = run_file["environment"]
    facts: dict[str, JSON] = {
        "format": FORMAT,
        "run": run.name,
        "table": _table(run),
        "task": run.metrics["task"],
        "model": _label(run.metrics["model"]),
        "date": run.date,
        "parameters": run_file.get("parameters"),
        "protocols": run.metrics["protocols"],
        "system": cleaned(run.metrics["system"]),
        "environment": {name: cleaned(device.get(name, {})) for name in ("device", "machine", "versions")},
        "options": {**{name: cleaned(spec.get(name)) for name in OPTIONS}, "ids": len(spec.get("ids") or ()) or None},
        "notes": cleaned(list(run.metrics["notes"])),
        "errors": run.metrics["errors"]["n"],
        "frechet": [one for one, _ in frechet],
        "scores": cleaned([score.to_json() for score in scores]),
    }
    files = [(FACTS, (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode())]
    if cells := _cells(run, scores):
        files.append((CELLS, cells))
    return [*files, *((one["file"], data) for one, data in frechet)]


def _label(model: str) -> str:
    """``NAME[:LOCATION]`` without folders, servers and commands."""
    name, colon, location = model.partition(":")
    if name == "openai":
        location = location.partition("@")[0]
    elif name == "process" or PurePath(location).is_absolute() or location[:1] in (".", "~") or "\\" in location:
        location = re.split(r"[\\/]", location.split()[0].rstrip("\\/"))[-1] if location.split() else ""
    return cleaned(f"{name}{colon}{location}")


def _table(run: CompleteRun) -> str:
    """Which table its scores belong to, by what scores.parquet says of its answers: documents, generated images, or texts."""
    columns = run.table.columns
    if "images" in columns:
        return "interleaved"
    is_generated = "image" in columns and run.table["image"].dropna().astype(str).str.startswith("images/").any()
    return "text_to_image" if is_generated else "comprehension"


def _cells(run: CompleteRun, scores: Sequence[Score]) -> bytes | None:
    """scores.parquet with the columns that the scores' cells name."""
    cells = [score.cells for score in scores if score.cells is not None]
    names = {"id", *(name for one in cells for name in (one.column, one.cluster, *one.where) if name)}
    if not cells:
        return None
    if missing := sorted(names - {"id"} - set(run.table.columns)):
        raise DataError(f"{run.run.path / CELLS} has no column {missing[0]}, which a score is the mean of")
    data = io.BytesIO()
    run.table[[name for name in run.table.columns if name in names]].to_parquet(data, index=False, compression="zstd")
    return data.getvalue()


def _frechet(run: CompleteRun, score: Score) -> tuple[Frechet, bytes] | None:
    """The statistics behind a score that is the Fréchet distance of its protocol."""
    if score.metric != run.metrics["protocols"].get(score.protocol, {}).get("metric") or score.value is None:
        return None
    from dreambench.metrics.frechet import GaussianStatistics, load_statistics

    def place(name: str) -> Path | None:
        path = inside(run.run.path, f"features/{score.protocol}/{name}.npz")
        return path if path is not None and path.is_file() else None

    generated, real, saved = map(place, ("generated", "real", "real-statistics"))
    if generated is None or (real is None and saved is None):
        return None
    ours = GaussianStatistics.from_features(_features(generated))
    if real is None:
        assert saved is not None  # noqa: S101 - it was found above
        theirs = load_statistics(saved, ours.dim).statistics
    else:
        theirs = GaussianStatistics.from_features(_features(real))
    name = f"statistics-{score.protocol}{LARGE if ours.dim > LARGEST else '.npz'}"
    if NAME.fullmatch(name) is None:
        raise DataError(f"{run.run.path}: the protocol's name {score.protocol} cannot be part of a file's name")
    known = Frechet(
        protocol=score.protocol, metric=score.metric, file=name, dim=ours.dim, n=ours.n or 0, reference_n=theirs.n
    )
    return known, _packed(generated=ours, reference=theirs)


def _features(path: Path) -> Any:
    arrays = read_arrays(path)
    if "features" not in arrays:
        raise DataError(f"{path} holds no features")
    return arrays["features"]


def _packed(**sides: GaussianStatistics) -> bytes:
    """Mean (d,), the covariance's upper triangle (d (d + 1) / 2,), float64, and n (-1: unknown) of each side, as ``.npz``."""
    import numpy as np

    arrays: dict[str, Any] = {}
    for side, of in sides.items():
        arrays[f"{side}_mean"] = of.mean
        arrays[f"{side}_triangle"] = of.covariance[np.triu_indices(of.dim)]
        arrays[f"{side}_n"] = np.array(-1 if of.n is None else of.n)
    data = io.BytesIO()
    np.savez(data, **arrays)
    return data.getvalue()
