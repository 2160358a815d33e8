"""A complete run is printed, not repeated: if the code of its task or model has changed since, that is said with what to type next."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dreambench
from dreambench.api import Result, execute, rerun, score_run
from dreambench.environment import code_sha256
from dreambench.interfaces import ModelOptions
from dreambench.spec import RunSpec

TASK, MODEL = "ownbench.task:Own", "ownmodel:Own"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A task in a package with a module of rules, and a model in a module of its own."""
    folder = tmp_path / "site"
    (folder / "ownbench" / "parts").mkdir(parents=True)
    (folder / "ownbench" / "__init__.py").write_text("")
    (folder / "ownbench" / "task.py").write_text("from toybench import Toy\n\nclass Own(Toy):\n    pass\n")
    (folder / "ownbench" / "parts" / "rules.py").write_text("RIGHT = 1\n")
    (folder / "ownmodel.py").write_text("from dreambench.adapters.echo import Echo\n\nclass Own(Echo):\n    pass\n")
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] in ("ownbench", "ownmodel")]:
        del sys.modules[name]


def start(tmp_path: Path, *, fresh: bool = False) -> tuple[Result, list[str]]:
    said: list[str] = []
    result = execute(RunSpec(task=TASK, model=MODEL), tmp_path / "runs", fresh=fresh, say=said.append)
    return result, [line for line in said if "code" in line]


def test_a_changed_task_is_said_until_it_has_scored_again(package: Path, tmp_path: Path) -> None:
    first, said = start(tmp_path)
    assert (first.repeated, first.changed, said) == (False, (), [])
    assert start(tmp_path)[0].changed == ()
    (package / "unrelated.py").write_text("")
    assert start(tmp_path)[0].changed == ()
    before = (first.folder / "metrics.json").read_bytes()
    (package / "ownbench" / "parts" / "rules.py").write_text("RIGHT = 2\n")
    again, said = start(tmp_path)
    assert (again.repeated, again.folder) == (True, first.folder)
    assert said == list(again.changed) == [
        f"the code of the task {TASK} has changed since it scored {first.folder}: `dreambench score {first.folder} --task {TASK}`"
        " scores the answers again"
    ]  # fmt: skip
    assert (first.folder / "metrics.json").read_bytes() == before
    score_run(first.folder, task=TASK)
    assert start(tmp_path)[0].changed == ()


def test_a_changed_model_is_said_until_it_has_answered_anew(package: Path, tmp_path: Path) -> None:
    first, _ = start(tmp_path)
    (package / "ownmodel.py").write_text((package / "ownmodel.py").read_text() + "\n")
    again, said = start(tmp_path)
    assert again.folder == first.folder
    assert said == [
        f"the code of the model {MODEL} has changed since it answered in {first.folder}: --fresh asks it anew"
    ]
    (first.folder / "metrics.json").unlink()
    assert start(tmp_path)[1] == said, "also where the run goes on"
    start(tmp_path, fresh=True)
    assert start(tmp_path)[1] == []


def test_a_run_that_does_not_know_its_code_is_printed(package: Path, tmp_path: Path) -> None:
    folder = start(tmp_path)[0].folder
    for name in ("run.json", "metrics.json"):
        content = json.loads((folder / name).read_text())
        del content["code"]
        (folder / name).write_text(json.dumps(content))
    (package / "ownmodel.py").write_text((package / "ownmodel.py").read_text() + "\n")
    assert start(tmp_path)[0].changed == ()


def test_a_rerun_keeps_a_complete_run_unless_told_to_start_anew(tmp_path: Path) -> None:
    folder = dreambench.run("toy", "echo", out=tmp_path / "runs").folder
    (folder / "kept").write_text("")
    assert rerun(folder).repeated
    assert (folder / "kept").exists()
    assert not rerun(folder, fresh=True).repeated
    assert not (folder / "kept").exists()


def test_the_code_of_a_class_does_not_depend_on_where_it_lies(package: Path, tmp_path: Path) -> None:
    del package
    result = start(tmp_path)[0]
    made = json.loads((result.folder / "run.json").read_text())["code"]["model"]
    assert made == code_sha256(type(_model()))
    assert str(tmp_path) not in made


def _model() -> object:
    import ownmodel  # type: ignore[import-not-found]

    return ownmodel.Own(ModelOptions("own"))
