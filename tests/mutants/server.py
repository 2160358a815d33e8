"""Runs tests in forked children of a process that has imported torch, transformers and the other libraries, but nothing of ours."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from tests.mutants import hook
from tests.mutants.mutations import Mutant

ROOT = Path(__file__).parents[2]
FLAGS = ("-q", "--benchmark-disable", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "--tb=no", "-x")
WARNING = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"
BASE = "torch torchvision transformers diffusers accelerate datasets pandas pyarrow.parquet scipy.stats PIL.Image pydantic typer rich"
GIB = 2**30
# Folders of tests in the order of recording. Those of speed, browsers, documentation and the playground are not asked: a mutant
# that only they find counts as a survivor.
FOLDERS = ("statistics", "tasks", "judges", "model", "human", "harness", "report", "metrics", "adapters", "parity")


def preload(cache: Path) -> None:
    """Import the libraries that the tests of earlier runs have imported, by the names in the cache."""
    names = BASE.split()
    listed = cache / "modules.json"
    names += json.loads(listed.read_text()) if listed.exists() else []
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)


class _Notes:
    """pytest plugin: seconds of CPU, outcome and the first failure of each test."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []
        self.passed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        began = sum(os.times()[:4])
        hook.SEEN.clear()
        result = yield
        self.seconds[item.nodeid] = round(sum(os.times()[:4]) - began, 3)
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.when == "call" and report.passed:
            self.passed.add(report.nodeid)


@dataclass
class _Ended:
    status: int | None  # of pytest; None: it ran out of time or died
    notes: dict[str, Any]
    seconds: float
    output: str


def _forked(prepare: Callable[[Path], None], tests: list[str], limit: float) -> _Ended:
    """Run tests in a child, in a folder of its own for temporary files, which is removed afterwards."""
    scratch = Path(tempfile.mkdtemp(prefix="mutants-"))
    began = sum(os.times()[2:4])
    child = os.fork()
    if child == 0:
        status = 99
        try:
            status = _child(scratch, prepare, tests)
        except BaseException:
            (scratch / "output").write_text(traceback.format_exc())
        finally:
            os._exit(status)
    status: int | None = None
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        ended, raw = os.waitpid(child, os.WNOHANG)
        if ended:
            status = os.waitstatus_to_exitcode(raw)
            break
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what the tests left running, too
    if status is None:
        os.waitpid(child, 0)
    notes = json.loads((scratch / "notes.json").read_text()) if (scratch / "notes.json").exists() else {}
    output = (scratch / "output").read_text("utf-8", "replace") if (scratch / "output").exists() else ""
    shutil.rmtree(scratch, ignore_errors=True)
    return _Ended(status, notes, sum(os.times()[2:4]) - began, output)


def _child(scratch: Path, prepare: Callable[[Path], None], tests: list[str]) -> int:
    os.setsid()
    output = os.open(scratch / "output", os.O_WRONLY | os.O_CREAT, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 8 * GIB, used + 8 * GIB))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    temporary = scratch / "tmp"
    site = scratch / "site"
    for folder in (temporary, site):
        folder.mkdir()
    shutil.copy(hook.__file__, site / "sitecustomize.py")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), before]))
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(temporary / "hypothesis")
    os.chdir(ROOT)
    sys.path[:] = [path for path in sys.path if path not in ("", str(ROOT))] + [str(ROOT)]
    prepare(scratch)
    notes = _Notes()
    status = pytest.main([*FLAGS, "-W", WARNING, f"--basetemp={temporary}/pytest", *tests], plugins=[notes])
    ours = (*hook.PACKAGES, "tests", "toybench", "conftest", "test_")
    found = {
        "seconds": notes.seconds,
        "passed": sorted(notes.passed),
        "failed": notes.failed,
        "modules": [name for name in sys.modules if not name.startswith(ours) and _third_party(name)],
    }
    (scratch / "notes.json").write_text(json.dumps(found))
    sys.stdout.flush()
    return int(status)


def _third_party(name: str) -> bool:
    file = getattr(sys.modules[name], "__file__", None) or ""
    return "site-packages" in file or file.startswith(sys.base_prefix)


# Recording ---------------------------------------------------------------------------------------------------------


def record(cache: Path, everything: bool, until: float, only: list[str]) -> None:
    """For each test file that is new or has changed: which statements each of its tests runs, and for how long it runs.

    With `only`, no other files are recorded than those whose path contains one of these words.
    """
    compiled: dict[str, CodeType] = {}
    files = [file for folder in FOLDERS for file in sorted((ROOT / "tests" / folder).rglob("test_*.py"))]
    modules = set(json.loads((cache / "modules.json").read_text()) if (cache / "modules.json").exists() else [])
    for file in files:
        name = file.relative_to(ROOT).as_posix()
        if only and not any(word in name for word in only):
            continue
        target = cache / "hits" / (name.replace("/", "__") + ".json")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if not everything and target.exists() and json.loads(target.read_text())["sha256"] == digest:
            continue
        if time.monotonic() > until:
            return
        if not compiled:
            compiled = _compiled()
        hits = Path(tempfile.mkdtemp(prefix="mutants-hits-")) / "hits.tsv"

        def prepare(_: Path, hits: Path = hits, compiled: dict[str, CodeType] = compiled) -> None:
            os.environ.update({hook.HITS: str(hits), hook.ROOT: str(ROOT)})
            hook.note_hits(str(hits), str(ROOT), compiled)

        ended = _forked(prepare, ["--maxfail=1000", name], 3600)
        if ended.status not in (0, 1, 5):
            print(f"no record of {name}: {ended.output}", flush=True)
            continue
        record = {"sha256": digest, **_read_hits(hits, ended.notes)}
        shutil.rmtree(hits.parent)
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(record))
        modules |= set(ended.notes.get("modules", []))
        (cache / "modules.json").write_text(json.dumps(sorted(modules)))
        state = f"{len(ended.notes.get('passed', []))} passed, {len(ended.notes.get('failed', []))} failed"
        print(f"recorded {name}: status {ended.status}, {state}, {ended.seconds:.1f} s", flush=True)
        for failed in ended.notes.get("failed", []):
            print(f"  failed: {failed}", flush=True)
    known = {file.relative_to(ROOT).as_posix().replace("/", "__") + ".json" for file in files}
    for stale in (cache / "hits").iterdir():
        if stale.name not in known:
            stale.unlink()


def _compiled() -> dict[str, CodeType]:
    code: dict[str, CodeType] = {}
    for folder in ("dreambench", "model/dreamllm", "tasks/dreambench_tasks"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = hook.instrumented(path.read_text("utf-8"), path.relative_to(ROOT).as_posix())
            code[str(path)] = compile(tree, str(path), "exec", dont_inherit=True)
    return code


def _read_hits(hits: Path, notes: dict[str, Any]) -> dict[str, Any]:
    numbers: dict[str, int] = {}
    ran: dict[str, set[int]] = defaultdict(set)
    for line in hits.read_text("utf-8").splitlines() if hits.exists() else ():
        test, _, key = line.partition("\t")
        if test and key:
            ran[test].add(numbers.setdefault(key, len(numbers)))
    tests = {
        test: {"seconds": notes["seconds"].get(test, 0), "ran": sorted(ran.get(test, ()))}
        for test in notes.get("passed", [])  # those too that run nothing but by a module's fixture
    }
    return {"statements": list(numbers), "tests": tests}


class Coverage:
    """Statement, function and file -> the tests that run them."""

    def __init__(self, cache: Path) -> None:
        self.seconds: dict[str, float] = {}
        self._runs: dict[str, set[str]] = defaultdict(set)
        for path in sorted((cache / "hits").iterdir()):
            recorded = json.loads(path.read_text())
            names = recorded["statements"]
            for test, found in recorded["tests"].items():
                self.seconds[test] = found["seconds"]
                for number in found["ran"]:
                    file, function, _ = names[number].split("::", 2)
                    parts = function.split(".")
                    around = {f"{file}::{'.'.join(parts[:n])}" for n in range(1, len(parts) + 1)}
                    for key in (names[number], file, *around):
                        self._runs[key].add(test)

    def tests(self, mutant: Mutant) -> list[str]:
        """Cheapest first; with less weight the other tests of the same files, which may share a fixture that runs the statement.

        If nothing is known of the statement (it is new, or runs at import), these are the tests of its function or file.
        """
        function = f"{mutant.path}::{mutant.function}"
        keys = [f"{function}::{mutant.statement}", function, mutant.path]
        parts = mutant.function.split(".")
        keys[2:2] = [f"{mutant.path}::{'.'.join(parts[:n])}" for n in range(len(parts) - 1, 0, -1)]
        found: set[str] = next(filter(None, (self._runs.get(key) for key in keys)), set())
        files = {test.partition("::")[0] for test in found}
        beside = {test for test in self.seconds if test.partition("::")[0] in files} - found
        cost = {test: self.seconds[test] * (1 if test in found else 4) for test in found | beside}
        return sorted(cost, key=lambda test: (cost[test], test))


# Trying ------------------------------------------------------------------------------------------------------------


@dataclass
class Verdict:
    """What became of a mutant: how is "failed" (by names the test), "timeout", "crash" or "survived"."""

    key: str
    how: str
    by: str
    tests: int
    seconds: float

    @property
    def killed(self) -> bool:
        return self.how != "survived"


def try_mutant(mutant: Mutant, coverage: Coverage, cpu: float) -> Verdict:
    tests: list[str] = []
    total = 0.0
    for test in coverage.tests(mutant):
        total += coverage.seconds[test]
        if tests and total > cpu:
            break
        tests.append(test)
    if not tests:
        return Verdict(mutant.key, "survived", "no test runs it", 0, 0.0)
    path = ROOT / mutant.path
    source = mutant.apply(path.read_text("utf-8"))

    def prepare(scratch: Path) -> None:
        changed = scratch / "mutant.py"
        changed.write_text(source, "utf-8")
        os.environ[hook.MUTANT] = f"{changed}\n{path}"
        hook.load_mutant(str(path), source)

    limit = 90 + 10 * min(total, cpu)
    ended = _forked(prepare, tests, limit)
    if ended.status in (4, 5):  # a name is not there: the file has changed since, or parameters come from the source
        ended = _forked(prepare, sorted({test.partition("::")[0] for test in tests}), limit)
    how = {None: "timeout", 0: "survived", 1: "failed", 2: "failed"}.get(ended.status, "crash")
    by = (ended.notes.get("failed") or [ended.output.strip().rpartition("\n")[2][:200]])[0]
    return Verdict(mutant.key, how, by if how != "survived" else "", len(tests), round(ended.seconds, 1))
