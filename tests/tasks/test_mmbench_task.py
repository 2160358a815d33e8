"""MMBench from its TSV to scores: prompts, rotations asked together, undecided replies, judges, log-likelihood, submissions."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

import pandas as pd
import pytest
from judges.chat_server import Answer, serving
from parity.checks import ROOT
from PIL import Image as PILImage

import dreambench
from dreambench.api import Result, execute, score_run
from dreambench.documents import Image, Text
from dreambench.errors import DataError, ModelError, UsageError
from dreambench.interfaces import Model, ModelOptions
from dreambench.requests import Request, Response
from dreambench.spec import RunSpec
from dreambench_tasks.mmbench.task import MMBenchTask

COLUMNS = ["index", "question", "hint", "A", "B", "C", "answer", "category", "image", "l2-category", "split"]
OPTIONS = {1: ["cat", "dog", "hare"], 2: ["red", "blue"], 3: ["one", "two", "three"]}
RIGHT = {1: "dog", 2: "red", 3: "three"}


def png(number: int) -> str:
    buffer = io.BytesIO()
    PILImage.new("RGB", (4, 4), (number, 0, 0)).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def rows(answers: bool = True) -> list[dict[str, object]]:
    """All first orders, then all second ones, and so on."""
    found: list[dict[str, object]] = []
    for k in range(3):
        for index, options in OPTIONS.items():
            if k < len(options):
                turned = options[-k:] + options[:-k] if k else options
                row = dict(zip("ABC", turned, strict=False))
                right = "ABC"[turned.index(RIGHT[index])]
                found.append(
                    {
                        **row,
                        "index": index + k * 1_000_000,
                        "question": f"which {index}?",
                        "hint": "look well" if index == 1 else "",
                        "answer": right if answers else "",
                        "category": f"kind {index % 2}",
                        "l2-category": "coarse_perception",
                        "image": index if k else png(index),
                        "split": "dev",
                    }
                )
    return found


def table(path: Path, lines: Sequence[Mapping[str, object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter="\t", restval="")
        writer.writeheader()
        writer.writerows(lines)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    table(data / "MMBench_DEV_EN.tsv", rows())
    return data


def replies(path: Path, texts: Mapping[int, str]) -> str:
    path.write_text("".join(json.dumps({"index": i, "prediction": text}) + "\n" for i, text in texts.items()))
    return f"responses:{path}"


def all_right() -> dict[int, str]:
    return {int(str(row["index"])): f"The answer is {row['answer']}." for row in rows()}


def scores(result: Result) -> dict[tuple[str, str | None], dreambench.Score]:
    return {(score.metric, score.group): score for score in result.scores}


def test_circular_and_vanilla_from_one_pass_with_groups(folder: Path, tmp_path: Path) -> None:
    given = all_right() | {1_000_003: "The answer is B"}
    result = dreambench.run("mmbench", replies(tmp_path / "a", given), data=folder, out=tmp_path / "runs")
    found = scores(result)
    assert result.scores[0].metric == "circular_accuracy"
    circular, vanilla = found["circular_accuracy", None], found["vanilla_accuracy", None]
    assert (circular.value, circular.n, circular.unscored) == (pytest.approx(200 / 3), 3, 0)
    assert (vanilla.value, vanilla.n, vanilla.interval_method) == (100, 3, "exact, clustered by image")
    assert found["circular_accuracy", "category=kind 1"].value == 50
    assert {group for metric, group in found if metric == "circular_accuracy"} == {
        *(None, "split=dev", "l2_category=coarse_perception", "category=kind 0", "category=kind 1")
    }
    table = pd.read_parquet(result.folder / "scores.parquet").set_index("id")
    assert table["hit"].sum() == 7
    assert table.loc["3", "circular_hit"] == 0
    assert table.loc["1", "rule"] == "answer is" or table.loc["1", "rule"] == "single letter"


def test_what_no_rule_decides_is_unscored_and_bounded(folder: Path, tmp_path: Path) -> None:
    given = all_right() | {2: "hard to say"}
    result = dreambench.run("mmbench", replies(tmp_path / "a", given), data=folder, out=tmp_path / "runs")
    circular = scores(result)["circular_accuracy", None]
    assert (circular.value, circular.n, circular.unscored) == (100, 2, 1)
    assert circular.bounds == pytest.approx((200 / 3, 100))


def test_rotations_stay_together_and_share_one_image(folder: Path) -> None:
    samples = MMBenchTask(RunSpec(task="mmbench", data=folder)).samples()
    assert [sample.id for sample in samples[:3]] == ["1", "1000001", "2000001"]
    assert [sample.group for sample in samples] == ["1"] * 3 + ["2"] * 2 + ["3"] * 3
    assert len({id(sample.prompt[0]) for sample in samples}) == 3


def test_the_prompts(folder: Path) -> None:
    def request(index: int, **options: object) -> Request:
        task = MMBenchTask(RunSpec(task="mmbench", data=folder, **options))  # type: ignore[arg-type]
        return task.request(next(sample for sample in task.samples() if sample.id == str(index)))

    image, text = request(1_000_001).document
    assert isinstance(image, Image)
    ask = "Answer with the option's letter from the given choices directly."
    assert text == Text(f"look well\nwhich 1?\nA. hare\nB. cat\nC. dog\n{ask}")
    assert request(2).document[1] == Text(f"which 2?\nA. red\nB. blue\n{ask}")
    weighed = request(2, protocol=("loglikelihood",))
    assert (weighed.kind, weighed.choices) == ("loglikelihood", ("A", "B"))
    published = request(2, generation=("dreamllm",))
    assert published.document[0] == Text("This is an exam, please answer according to the image, hint and question.")
    assert published.document[2] == Text("Hint:nanQuestion:which 2?Please provide an accurate and detailed answer.")
    assert request(2).settings == {"num_beams": 1, "max_new_tokens": 16}
    assert published.settings == {"num_beams": 5, "max_new_tokens": 1024}  # as DreamLLM's scripts decode


@pytest.mark.parametrize(
    ("row", "reply", "says"),
    [
        (1_000_003, 1_000_003, r"question 3 has the rotations 0, 2 of its 3 options.*without a gap"),
        (3, 3, r"index 1000003 takes its image from '3', which holds none"),
        (None, 1_000_003, r"1 row has no prediction, for instance index 1000003"),
        (None, 3, r"1 row has no prediction, for instance index 3"),
    ],
)
def test_a_gap_in_the_rotations_or_the_replies_is_an_error(
    folder: Path, tmp_path: Path, row: int | None, reply: int, says: str
) -> None:
    table(folder / "MMBench_DEV_EN.tsv", [one for one in rows() if one["index"] != row])
    model = replies(tmp_path / "a", {index: text for index, text in all_right().items() if index != reply})
    with pytest.raises(DataError, match=says):
        dreambench.run("mmbench", model, data=folder, out=tmp_path / "runs")


def test_some_rows_without_an_answer_are_an_error_that_names_them(folder: Path, tmp_path: Path) -> None:
    table(
        folder / "MMBench_DEV_EN.tsv", [row | ({"answer": ""} if row["index"] == 1_000_002 else {}) for row in rows()]
    )
    with pytest.raises(DataError, match=r"MMBench_DEV_EN\.tsv: index 1000002 has no answer \(1 of 8 rows\)"):
        dreambench.run("mmbench", replies(tmp_path / "a", all_right()), data=folder, out=tmp_path / "runs")


def of_three_rotations(path: Path, answers: bool = True) -> dict[int, str]:
    """60 questions with four options, as in the real files: those of even number have three rotations, since "all of the above" stays last.

    Returns a reply to each row; some are wrong.
    """
    random, lines, given = Random(5), [], {}
    for base in range(60):
        turning = ["cat", "dog", "hare"] if base % 2 == 0 else ["cat", "dog", "hare", "ox"]
        last = ["all of the above"] if base % 2 == 0 else []
        meant = random.choice(turning + last)
        for k in range(len(turning)):
            options = [*turning[len(turning) - k :], *turning[: len(turning) - k], *last]
            index, right = base + k * 1_000_000, "ABCD"[options.index(meant)]
            cells = [index, f"which {base}?", *options, right if answers else "", base if k else png(base)]
            lines.append("\t".join(map(str, cells)))
            given[index] = random.choice([right] * 9 + ["B"])
    path.write_text("\n".join(["index\tquestion\tA\tB\tC\tD\tanswer\timage", *lines]) + "\n")
    return given


def test_circular_eval_is_over_the_rotations_that_the_file_has(tmp_path: Path) -> None:
    """The default protocol takes the form of the real dev file; an independent count of it gives the same accuracy."""
    data = tmp_path / "MMBench_DEV_EN.tsv"
    given = of_three_rotations(data)
    result = dreambench.run("mmbench", replies(tmp_path / "a", given), data=data, out=tmp_path / "runs")
    lines = [line.split("\t") for line in data.read_text().splitlines()[1:]]
    missed = {int(line[0]) % 1_000_000 for line in lines if given[int(line[0])] != line[6]}
    assert 5 < len(missed) < 30
    assert len(lines) == 30 * 3 + 30 * 4
    circular = scores(result)["circular_accuracy", None]
    assert (circular.n, circular.unscored, circular.value) == (60, 0, pytest.approx(100 * (60 - len(missed)) / 60))
    assert circular.protocol.startswith("vlmevalkit@")


def test_a_test_file_of_that_form_leaves_a_submission(tmp_path: Path) -> None:
    data = tmp_path / "MMBench_TEST_EN.tsv"
    given = of_three_rotations(data, answers=False)
    result = dreambench.run("mmbench", replies(tmp_path / "b", given), data=data, out=tmp_path / "runs")
    submission = pd.read_csv(result.folder / "submission.tsv", sep="\t")
    assert dict(zip(submission["index"], submission["prediction"], strict=True)) == given


def test_llava_1_5_13b_has_its_published_accuracy_on_the_real_dev_file(tmp_path: Path) -> None:
    """``DREAMBENCH_MMBENCH`` names a folder with mmbench_dev_20230712.tsv and llava-v1.5-13b.xlsx (LLaVA's answers_upload)."""
    folder = Path(os.environ.get("DREAMBENCH_MMBENCH", ROOT / "../shared/data/mmbench"))
    data, predictions = folder / "mmbench_dev_20230712.tsv", folder / "llava-v1.5-13b.xlsx"
    if not (data.is_file() and predictions.is_file()):
        pytest.skip(f"no real MMBench dev file and LLaVA-1.5-13B's predictions in {folder} (DREAMBENCH_MMBENCH)")
    result = dreambench.run("mmbench", f"responses:{predictions}", data=data, out=tmp_path / "runs")
    assert result.scores[0].metric == "circular_accuracy"
    assert result.scores[0].value == pytest.approx(67.687, abs=0.001)


def test_more_rotations_than_options_are_an_error(folder: Path, tmp_path: Path) -> None:
    third = {**rows()[1], "index": 2_000_002, "image": 2}
    table(folder / "MMBench_DEV_EN.tsv", [*rows(), third])
    with pytest.raises(DataError, match="question 2 has the rotations 0, 1, 2 of its 2 options"):
        dreambench.run("mmbench", replies(tmp_path / "a", all_right()), data=folder, out=tmp_path / "runs")


def test_a_limit_counts_whole_questions_and_ids_must_name_them(folder: Path, tmp_path: Path) -> None:
    model = replies(tmp_path / "a", all_right())
    found = scores(dreambench.run("mmbench", model, data=folder, limit=2, out=tmp_path / "runs"))
    assert (found["circular_accuracy", None].n, found["vanilla_accuracy", None].n) == (2, 2)
    with pytest.raises(DataError, match="question 2 lacks the rotations 1"):
        dreambench.run("mmbench", model, data=folder, ids=["2"], out=tmp_path / "runs")


def test_a_judge_matches_what_the_rules_leave_open_and_is_asked_once(folder: Path, tmp_path: Path) -> None:
    hostile = "hard to say | A\nwhich 9? | A. x | y | B"
    model = replies(tmp_path / "a", all_right() | {2: hostile, 3: "neither", 1: "not sure", 1_000_001: "no idea"})

    def match(body: dict[str, object], number: int) -> Answer:
        last = body["messages"][-1]["content"].split("question | options")[-1].split("\n", 5)[5]  # type: ignore[index]
        return Answer(
            "Z" if "neither" in last else "What?" if "no idea" in last else "B." if "not sure" in last else " A"
        )

    with serving(match) as server:
        judge = f"openai:m@{server.url},concurrency=1"
        result = dreambench.run("mmbench", model, data=folder, judge=judge, out=tmp_path / "runs")
        asked = len(server.bodies)
        (result.folder / "metrics.json").unlink()
        again = score_run(result.folder)
        assert len(server.bodies) == asked == 3 + 5
        assert all("\nwhich 9?" not in prompt for prompt in server.prompts())
    assert again.scores == result.scores
    table = pd.read_parquet(result.folder / "scores.parquet").set_index("id")
    assert table.loc[["2", "3", "1"], "letter"].tolist() == ["A", "Z", "B"]
    assert table.loc[["2", "3"], "hit"].tolist() == [1, 0]
    circular = scores(result)["circular_accuracy", None]
    assert (circular.n, circular.unscored) == (2, 1)
    assert result.metrics is not None
    (protocol,) = result.metrics["protocols"].values()
    assert protocol["judge"]["prompt"] == "dreambench-matcher"


@pytest.mark.parametrize("judge", ["rule", "grades:x"])
def test_judges_that_do_not_match_are_refused(folder: Path, tmp_path: Path, judge: str) -> None:
    with pytest.raises(UsageError, match="rules always come first"):
        dreambench.run("mmbench", replies(tmp_path / "a", all_right()), data=folder, judge=judge, out=tmp_path)


class Weigher(Model):
    """Likes the letter of "dog", "red" and so on best; is torn where it is told to be."""

    capabilities = frozenset({"loglikelihood"})

    def identity(self) -> Mapping[str, object]:
        return {"name": "weigher"}

    def answer(self, requests: Sequence[Request]) -> Iterator[Response]:
        for request in requests:
            right = {str(row["index"]): row["answer"] for row in rows()}[request.id]
            torn = request.id == "2"
            yield Response(
                request.id, scores=tuple(-1.0 - (choice != right and not torn) for choice in request.choices)
            )


def test_loglikelihood_takes_the_best_letter_and_leaves_ties_open(folder: Path, tmp_path: Path) -> None:
    asked = RunSpec(task="mmbench", model="echo", data=folder, protocol=("loglikelihood",))
    result = execute(asked, tmp_path, model=Weigher(ModelOptions("weigher")))
    circular = scores(result)["circular_accuracy", None]
    assert (circular.value, circular.n, circular.unscored) == (100, 2, 1)
    assert set(pd.read_parquet(result.folder / "scores.parquet")["rule"].dropna()) == {"loglikelihood"}


def test_loglikelihood_goes_alone_and_only_with_a_model_that_has_it(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="by itself"):
        MMBenchTask(RunSpec(task="mmbench", data=folder, protocol=("loglikelihood", "vlmevalkit")))
    with pytest.raises(UsageError, match="layout=listed"):
        MMBenchTask(RunSpec(task="mmbench", data=folder, protocol=("loglikelihood",), generation=("dreamllm",)))
    model = replies(tmp_path / "a", all_right())
    with pytest.raises(ModelError, match="can only generate_text"):
        dreambench.run("mmbench", model, data=folder, protocol=["loglikelihood"], out=tmp_path / "runs")


def test_held_back_answers_leave_a_submission_instead_of_a_score(tmp_path: Path) -> None:
    data = table(tmp_path / "MMBench_TEST_EN.tsv", rows(answers=False))
    result = dreambench.run("mmbench", replies(tmp_path / "a", all_right()), data=data, out=tmp_path / "runs")
    assert result.scores == []
    assert result.metrics is not None
    assert "submission.xlsx" in " ".join(result.metrics["notes"])
    sheet = pd.read_excel(result.folder / "submission.xlsx")
    tabs = pd.read_csv(result.folder / "submission.tsv", sep="\t")
    assert dict(zip(sheet["index"], sheet["prediction"], strict=True)) == all_right()
    assert dict(zip(tabs["index"], tabs["prediction"], strict=True)) == all_right()


def test_one_of_several_files_is_chosen_by_name(folder: Path) -> None:
    table(folder / "mmbench_dev_20230712.tsv", rows()[:3])
    with pytest.raises(DataError, match="--split"):
        MMBenchTask(RunSpec(task="mmbench", data=folder)).samples()
    assert len(MMBenchTask(RunSpec(task="mmbench", data=folder, split="DEV_EN")).samples()) == 8
    assert len(MMBenchTask(RunSpec(task="mmbench", data=folder, split="mmbench_dev_20230712")).samples()) == 3


def test_a_file_without_rotations_has_a_vanilla_score_only(tmp_path: Path) -> None:
    data = table(tmp_path / "CCBench.tsv", rows()[:3])
    model = replies(tmp_path / "a", {index: text for index, text in all_right().items() if index < 9})
    result = dreambench.run("mmbench", model, data=data, out=tmp_path / "runs")
    assert {score.metric for score in result.scores} == {"vanilla_accuracy"}
