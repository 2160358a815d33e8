"""A run's file may be somebody else's: by itself it imports no code and calls no server on another machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dreambench import api
from dreambench.cli import main
from dreambench.errors import RunError, UsageError

PLUGIN = """
from pathlib import Path
from dreambench.adapters.echo import Echo
from dreambench_tasks.mmvet.task import MMVetTask

Path({marker!r}).write_text("imported")


class Own(MMVetTask):
    pass


class OwnModel(Echo):
    pass
"""


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that exists once the module `foreign_plugin` is imported."""
    (tmp_path / "plugins").mkdir()
    marker = tmp_path / "marker"
    (tmp_path / "plugins" / "foreign_plugin.py").write_text(PLUGIN.format(marker=str(marker)))
    monkeypatch.syspath_prepend(tmp_path / "plugins")
    monkeypatch.delitem(sys.modules, "foreign_plugin", raising=False)
    return marker


def foreign(folder: Path, **spec: object) -> Path:
    """A run whose run.json asks for `spec`."""
    made = api.run("mmvet", "echo", judge="rule", limit=2, out=folder).folder
    file = made / "run.json"
    begun = json.loads(file.read_text())
    begun["spec"] |= spec
    file.write_text(json.dumps(begun))
    return made


@pytest.mark.parametrize(
    ("spec", "option"),
    [
        ({"task": "foreign_plugin:Own"}, "--task foreign_plugin:Own"),
        ({"model": "foreign_plugin:OwnModel"}, "--model foreign_plugin:OwnModel"),
        ({"judge": "model:foreign_plugin:OwnModel"}, "--judge model:foreign_plugin:OwnModel"),
        ({"model": "openai:m@https://example.org/v1"}, "--model openai:m@https://example.org/v1"),
        ({"judge": "openai:m@https://example.org/v1,key_env=HOME"}, "--judge openai:m@https://example.org/v1"),
        ({"model_arg": {"log": "/dev/null"}}, "start the run yourself"),
    ],
)
def test_what_a_run_file_names_needs_the_user_s_word(
    spec: dict[str, object], option: str, tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = foreign(tmp_path / "runs", **spec)
    for logged in run.glob("judgements.jsonl"):  # so that there are answers left to grade
        logged.unlink()
    for words in (["score"], ["rerun", "--fresh"], ["report"], ["human", "export", "--out", "study"]):
        if words == ["score"] and not {"task", "judge"} & set(spec):
            continue
        with pytest.raises(SystemExit) as left:
            main(
                [words[0], *([words[1]] if words[0] == "human" else []), str(run), *words[1 + (words[0] == "human") :]]
            )
        captured = capsys.readouterr()
        assert not marker.exists(), words
        if words[0] in ("score", "rerun"):
            assert left.value.code == 2, words
            assert option in captured.err, words
            assert captured.err.count("error:") == 1


def test_the_user_s_word_equals_what_the_file_names(tmp_path: Path, marker: Path) -> None:
    run = foreign(tmp_path / "runs", task="foreign_plugin:Own", model="foreign_plugin:OwnModel")
    with pytest.raises(UsageError, match="was made with foreign_plugin:Own;"):
        api.score_run(run, task="foreign_plugin:Other")
    with pytest.raises(RunError, match="--model"):
        api.rerun(run, tmp_path / "again", task="foreign_plugin:Own", fresh=True)
    again = api.rerun(run, tmp_path / "again", task="foreign_plugin:Own", model="foreign_plugin:OwnModel", fresh=True)
    assert marker.exists()
    assert again.scores == api.score_run(run, task="foreign_plugin:Own").scores


def test_a_server_on_this_machine_and_registered_names_need_no_word(tmp_path: Path) -> None:
    run = foreign(tmp_path, model="openai:m@http://127.0.0.1:9/v1")
    assert api.score_run(run).metrics
    assert api.rerun(foreign(tmp_path / "b"), fresh=True).metrics
