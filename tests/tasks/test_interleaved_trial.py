"""The trial: corruptions change what they say they change, verdicts follow their intervals, the recorded table repeats."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from judges.chat_server import Answer, serving

from dreambench.cli import main
from dreambench.documents import Document, Image, Text, document_text
from dreambench.errors import DataError, UsageError
from dreambench.files import sha256_file
from dreambench_tasks.interleaved.corruptions import CORRUPTIONS, corrupted
from dreambench_tasks.interleaved.data import ReferenceData, ReferenceDocument, read_documents
from dreambench_tasks.interleaved.judging import metric_name, rubric_judges
from dreambench_tasks.interleaved.metrics import sentences
from dreambench_tasks.interleaved.trial import (
    HEADLINES,
    REFERENCE,
    Trial,
    automatic_values,
    compare_values,
    read_trial,
    recorded_trial,
    run_trial,
    standing,
    variants,
)
from dreambench_tasks.interleaved.trial_output import (
    TrialOptions,
    conduct,
    table,
    to_csv,
    to_json,
    to_markdown,
    to_text,
)
from dreambench_tasks.playground import clip_directory, ensure_documents, write


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReferenceData:
    folder = write(tmp_path_factory.mktemp("world") / "data", "val", 30, formats=["documents"])
    return read_documents(folder)


def shown(document: Document) -> list[str]:
    return [part.digest() for part in document if isinstance(part, Image)]


def test_each_corruption_changes_what_it_says_and_nothing_else(data: ReferenceData) -> None:
    documents = data.documents
    every = {digest for reference in documents for digest in shown(reference.document)}
    for name in CORRUPTIONS:
        changed = corrupted(documents, name)
        assert changed == corrupted(documents, name), "the same seed gives the same documents"
        applied = 0
        for reference, document in zip(documents, changed, strict=True):
            before = shown(reference.document)
            if document is None:
                assert len(before) < 2 or name == "text reversed"
                continue
            applied += 1
            after = shown(document)
            if name == "text reversed":
                assert after == before
                told, retold = (
                    [s for p in d if isinstance(p, Text) for s in sentences(p.text)]
                    for d in (reference.document, document)
                )
                assert retold == told[::-1]
                continue
            assert document_text(document) == document_text(reference.document)
            if name == "shuffled":
                assert sorted(after) == sorted(before)
                positions = [part for part in reference.document if isinstance(part, Image)]
                moved = [part for part in document if isinstance(part, Image)]
                assert all(a.path != b.path for a, b in zip(positions, moved, strict=True))
            elif name == "other images":
                assert set(after) <= every
                assert {p.path for p in document if isinstance(p, Image)}.isdisjoint(
                    p.path for p in reference.document if isinstance(p, Image)
                )
            elif name == "repeated":
                assert len(set(after)) < len(after) == len(before)
            elif name == "grey":
                assert len(set(after)) == 1
            else:
                assert len(after) == len(before) - 1
        assert applied >= 20, name


def test_other_seeds_give_other_corruptions(data: ReferenceData) -> None:
    assert corrupted(data.documents, "other images", 0) != corrupted(data.documents, "other images", 1)
    assert corrupted(data.documents[:1], "other images") == [None], "a single document has no others"


def made(**metrics: list[tuple[float, float]]) -> Trial:
    """A trial in which every corruption has the same pairs of values."""
    n = len(next(iter(metrics.values())))
    reference = [{name: pairs[i][0] for name, pairs in metrics.items()} for i in range(n)]
    spoilt = [{name: pairs[i][1] for name, pairs in metrics.items()} for i in range(n)]
    rows = compare_values({REFERENCE: reference, **dict.fromkeys(CORRUPTIONS, spoilt)})
    return Trial(
        command="",
        versions={},
        data_sha256="",
        clip_sha256=None,
        judges={},
        documents=n,
        images=n,
        seed=0,
        rows=tuple(rows),
    )


def test_verdicts_follow_the_interval_and_the_better_side() -> None:
    trial = made(
        clip_score=[(2.0, 1.0), (1.9, 1.0), (1.8, 1.1)],
        layout_agreement=[(1, 1), (1, 1), (1, 1)],
        image_consistency=[(0.5, 0.9), (0.5, 0.8), (0.4, 0.9)],
        repeated_images=[(0, 0.5), (0, 0.5), (0, 0.5)],
        repeated_ngrams=[(0.5, 0.4), (0.1, 0.2), (0.3, 0.3)],
    )
    assert trial.verdict("clip_score") == "orders all"
    assert trial.verdict("layout_agreement") == f"fails: blind to {', '.join(CORRUPTIONS)}"
    assert trial.verdict("image_consistency") == f"fails: misled by {', '.join(CORRUPTIONS)}"
    assert trial.verdict("repeated_images") == "orders all", "lower is better"
    assert trial.of("repeated_ngrams", "blind") == list(CORRUPTIONS)
    assert trial.headlines == ["clip_score", "repeated_images"]
    assert not any(name in trial.metrics for name in ("words", "images")), "no side is the better one"


def test_a_metric_enters_the_headline_only_with_all_that_it_is_meant_to_see_and_nothing_that_misleads_it() -> None:
    trial = made(clip_score=[(2.0, 1.0), (1.9, 1.0), (1.8, 1.1)])

    def with_verdict(corruption: str, verdict: str) -> Trial:
        rows = [
            row.model_copy(update={"verdict": verdict}) if row.corruption == corruption else row for row in trial.rows
        ]
        return trial.model_copy(update={"rows": tuple(rows)})

    assert "removed" not in HEADLINES["clip_score"]
    assert with_verdict("removed", "blind").enters_headline("clip_score")
    assert not with_verdict("removed", "misled").enters_headline("clip_score")
    assert not with_verdict("grey", "blind").enters_headline("clip_score")
    assert with_verdict("removed", "blind").verdict("clip_score") == "does not order all: blind to removed"
    assert all(set(meant) <= set(CORRUPTIONS) for meant in HEADLINES.values())


def test_strict_truth_sees_every_corruption_that_concerns_it(data: ReferenceData) -> None:
    values = automatic_values(data.documents, variants(data.documents), None)
    truth = [one["shows_what_is_told"] for one in values[REFERENCE] if one is not None]
    assert set(truth) == {1.0}
    trial = {(row.metric, row.corruption): row for row in compare_values(values)}
    for corruption in HEADLINES["shows_what_is_told"]:
        assert trial["shows_what_is_told", corruption].verdict == "sees"
    assert trial["shows_what_is_told", "removed"].verdict == "blind"
    assert trial["layout_agreement", "removed"].verdict == "sees"
    assert trial["layout_agreement", "grey"].difference == 0


def test_the_recorded_trial_is_of_the_embedded_data_and_its_part_without_networks_repeats() -> None:
    recorded, embedded = recorded_trial(), read_documents(ensure_documents())
    assert (recorded.documents, recorded.data_sha256) == (len(embedded.documents), embedded.sha256)
    assert recorded.documents >= 200
    assert recorded.images >= 400
    assert recorded.clip_sha256 == sha256_file(clip_directory() / "model.safetensors")
    assert {"shows_what_is_told", "story_is_shown", "layout_agreement"} <= set(recorded.headlines)
    # Later images show more and score lower, so that a document without them has a higher mean.
    assert "clip_score" not in recorded.headlines
    assert recorded.verdict("image_consistency") != "orders all"
    untold = replace(embedded, documents=[replace(one, truth=None) for one in embedded.documents])
    kept = {(row.metric, row.corruption): row for row in recorded.rows}
    again = run_trial(untold, None).rows
    assert {row.metric for row in again} >= {"layout_agreement", "image_count_match", "repeated_images", "malformed"}
    for row in again:
        before = kept[row.metric, row.corruption]
        assert (row.n, row.undefined, row.verdict) == (before.n, before.undefined, before.verdict)
        assert row.difference == pytest.approx(before.difference, abs=1e-9)
        assert row.interval == pytest.approx(before.interval, abs=1e-9)


def test_tables_hold_every_row_and_are_read_back(tmp_path: Path, data: ReferenceData) -> None:
    trial = recorded_trial()
    (tmp_path / "trial.json").write_text(to_json(trial))
    assert read_trial(tmp_path / "trial.json") == trial
    assert len(to_csv(trial).splitlines()) == len(trial.rows) + 1
    text = to_markdown(trial)
    for metric in trial.metrics:
        assert f"| {metric} |" in text
        assert metric in to_text(trial)
    headline = f"headline: {', '.join(trial.headlines)}"
    count = f"{trial.documents} documents, {trial.images} images: ✓ sees the corruption, · blind to it, ✗ misled by it"
    assert to_text(trial).splitlines()[-2:] == [count, headline]
    assert len(table(trial).rows) == len(trial.metrics)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DataError, match="not the table of a trial"):
        read_trial(tmp_path / "other.json")


def test_judges_are_tried_like_metrics_and_asked_once(tmp_path: Path, data: ReferenceData) -> None:
    """A judge that gives 5 to everything, as published ones did, is blind to everything; one that sees grey images passes there."""

    def grade(body: dict[str, Any], number: int) -> Answer:
        content = body["messages"][-1]["content"]
        images = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
        perceptual = "perceptual quality" in content[0]["text"]
        return Answer("9" if perceptual and len(set(images)) == len(images) else "5")

    few = replace(data, documents=[one for one in data.documents if len(one.images) > 1][:6])
    with serving(grade) as server:
        judges = rubric_judges(f"openai:m@{server.url},runs=1", offline=True)
        chosen = {name: judges[name] for name in ("perceptual-quality", "whole")}
        log = tmp_path / "judgements.jsonl"
        trial = run_trial(few, None, [chosen], log)
        asked = len(server.bodies)
        assert run_trial(few, None, [chosen], log) == trial
        assert len(server.bodies) == asked <= 2 * 7 * 6
        with pytest.raises(ValueError, match="log"):
            run_trial(few, None, [chosen], None)
        assert len(server.bodies) == asked
    assert trial.verdict(metric_name("whole")) == f"fails: blind to {', '.join(CORRUPTIONS)}"
    assert trial.of(metric_name("perceptual-quality"), "sees") == ["repeated", "grey"]
    assert set(trial.judges) == {"judge_perceptual_quality", "judge_whole"}


def test_the_command_writes_its_tables(
    tmp_path: Path, data: ReferenceData, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(data.documents[0].images[0].path or "").parents[1]
    with pytest.raises(SystemExit) as left:
        main(["trial", "--task", "interleaved", "--data", str(folder), "--limit", "8", "--out", str(tmp_path / "out")])
    assert left.value.code == 0
    printed = capsys.readouterr()
    assert "headline: " in printed.out
    assert "no --clip" in printed.err
    trial = json.loads((tmp_path / "out" / "trial.json").read_text())
    assert trial["documents"] == 8
    assert trial["command"] == "dreambench trial --task interleaved --limit 8 --data …"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"trial.json", "trial.csv", "trial.md"}


def test_the_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["trial", "--help"])
    printed = capsys.readouterr().out
    assert "Example: dreambench trial --task interleaved" in printed
    assert "COMMAND" not in printed


def test_a_run_says_which_of_its_metrics_the_recorded_trial_covers() -> None:
    trial = recorded_trial()
    automatic = [name for name in HEADLINES if not name.startswith("judge_")]
    passed = [name for name in automatic if name in trial.headlines]
    failed = [name for name in automatic if name not in passed]
    tried = [
        f"headline metrics of documents, which passed their trial on corrupted references: {', '.join(passed)}",
        *(f"{name} did not pass its trial: {trial.verdict(name)}" for name in failed),
    ]
    assert "layout_agreement" in passed
    assert failed
    assert standing(automatic, None) == standing(automatic, {"clip_sha256": trial.clip_sha256}) == tried
    assert standing(["judge_whole", *automatic], None)[:-1] == tried
    last = (
        "no trial is recorded for {}; try them with `dreambench trial --task interleaved` before they enter a headline"
    )
    assert standing(["judge_whole", *automatic], None)[-1] == last.format("judge_whole")
    other = standing(automatic, {"clip_sha256": "of another"})
    assert other[-1] == last.format("clip_score, image_consistency")
    assert not any(name in line for name in ("clip_score", "image_consistency") for line in other[:-1])
    assert standing(["clip_score"], {"clip_sha256": "of another"}) == [last.format("clip_score")]


def test_the_command_that_repeats_a_trial_names_what_is_not_the_default() -> None:
    assert TrialOptions("interleaved").command == "dreambench trial --task interleaved"
    options = TrialOptions("interleaved", limit=0, seed=1, judges=("rule",), clip=Path("/secret"))
    assert options.command == "dreambench trial --task interleaved --limit 0 --seed 1 --clip … --judges …"


def test_wrong_options_are_one_line() -> None:
    with pytest.raises(UsageError, match="only the metrics of the task interleaved"):
        conduct(TrialOptions("vqav2"))
    with pytest.raises(UsageError, match="--out"):
        conduct(TrialOptions("interleaved", judges=("model:echo",)))


def test_a_document_of_one_image_and_one_sentence_has_no_shuffle() -> None:
    lone = ReferenceDocument("a", "", "", (Text("One."), Image(data=b"x")))
    with pytest.raises(DataError, match="cannot be decoded"):
        corrupted([lone], "grey")
    assert (
        corrupted([lone], "shuffled") == corrupted([lone], "repeated") == corrupted([lone], "text reversed") == [None]
    )
