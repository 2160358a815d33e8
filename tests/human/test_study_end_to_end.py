"""Twelve raters of different care, a planted order of systems: export, import and analyse find both.

tests/browser/test_study.py has the same study rated in a browser, tests/labelstudio in Label Studio.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from human import planted
from human.studies import chain

from dreambench.documents import canonical_json
from dreambench.human.design import Mode


@pytest.mark.parametrize("mode", ["rating", "pairwise"])
def test_import_and_analysis_recover_what_was_planted(mode: Mode, tmp_path: Path) -> None:
    key = planted.export(tmp_path, mode)
    study = tmp_path / "study"
    items = {item.id: item for item in key.items}
    (question,) = key.questions
    files: list[str] = []
    for rater in key.raters:
        given = [
            (id_, question.id, planted.answer(rater, items[id_], question, place))
            for place, id_ in enumerate(rater.items)
        ]
        lines = [canonical_json(rating.model_dump(mode="json")) + "\n" for rating in chain(key, rater, given)]
        files.append(str(tmp_path / f"{rater.id}.jsonl"))
        Path(files[-1]).write_text("".join(lines))
    planted.run("human", "import", str(study), *files, "--json", str(tmp_path / "import.json"))
    report = json.loads((tmp_path / "import.json").read_text())
    assert [rater["rater"] for rater in report["raters"] if rater["left_out"]] == [planted.INATTENTIVE]
    assert report["needed"] == 36, "the votes of the rater who is left out"
    planted.check_analysis(study, mode)
