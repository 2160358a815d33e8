"""Small runs of the comprehension benchmarks on the embedded data, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreambench.api import run
from dreambench.report.runs import CompleteRun, load

LIMITS = {"vqav2": 12, "mmbench": 6, "mmvet": 6}


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CompleteRun]:
    """By task: a run of the majority-answer baseline."""
    out = tmp_path_factory.mktemp("exported")
    return {task: load(run(task, "blind", limit=limit, out=out).folder) for task, limit in LIMITS.items()}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process may reach another machine."""
    import socket

    def refuse(self: socket.socket, address: object) -> None:
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name, value in {"MLFLOW_TRACKING_URI": "http://example.org", "TRACKIO_SPACE_ID": "some/space"}.items():
        monkeypatch.setenv(name, value)


def dated(folder: Path) -> CompleteRun:
    """A run made by hand, with a date."""
    made = load(folder)
    made.run.note_timing(0, {"batch": "0", "n": 1, "at": "2026-01-02T03:04:05+00:00"})
    return load(folder)
