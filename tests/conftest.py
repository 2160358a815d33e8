"""What holds for every test: one thread, no network beyond this machine, no hub."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# A suite that a shell runs in the background has its interrupts ignored, and so would its children have.
signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "toybench"


def _install_example() -> list[str]:
    """Entries of PYTHONPATH that make the example package what `pip install` would: importable, with its entry points."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    site = Path(tempfile.mkdtemp(prefix="dreambench-tests-"))
    atexit.register(shutil.rmtree, site, ignore_errors=True)
    info = site / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [
        line
        for group, points in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {target}" for name, target in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return [str(EXAMPLE / "src"), str(site)]


PYTHONPATH = _install_example()
sys.path[:0] = PYTHONPATH

_connect = socket.socket.connect


def pytest_report_header() -> str:
    """The versions that the environment resolved to, so that a log shows what was tested."""
    names = (
        "torch",
        "transformers",
        "diffusers",
        "accelerate",
        "datasets",
        "torchmetrics",
        "numpy",
        "pandas",
        "pillow",
        "pydantic",
    )
    return "versions: " + ", ".join(f"{name} {metadata.version(name)}" for name in names)


def _only_loopback(self: socket.socket, address: object) -> None:
    host = address[0] if isinstance(address, tuple) else None
    if self.family in (socket.AF_INET, socket.AF_INET6) and host not in ("127.0.0.1", "::1", "localhost"):
        raise PermissionError(f"a test reached for the network: {address}")
    return _connect(self, address)  # type: ignore[arg-type]


socket.socket.connect = _only_loopback  # type: ignore[method-assign, assignment]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test is a process of somebody's launch."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def outside_environment() -> dict[str, str]:
    """An environment for a child process in which the example package `toybench` is installed."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*PYTHONPATH, *filter(None, [os.environ.get("PYTHONPATH")])])}
