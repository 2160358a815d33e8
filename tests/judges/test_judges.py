"""The rule, local models, `parse_judge` and the log."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreambench.errors import DreambenchError, JudgeError, UsageError
from dreambench.judges import (
    GradeRequest,
    GradesFile,
    Judgement,
    JudgementLog,
    calibrate,
    grade_missing,
    judged,
    parse_judge,
)
from dreambench.judges.base import RuleJudge, contained_fraction
from dreambench.judges.models import ModelJudge


@pytest.mark.parametrize(
    ("reference", "prediction", "score"),
    [
        ("cat", "There is a Cat!", 1.0),
        ("cat", "a category", 0.0),
        ("the red car", "A red car is parked", 1.0),
        ("red car", "a car that is red", 0.0),
        ("x=-1 <AND> x=-5", "x = -1 or x = -5", 1.0),
        ("-1", "x = 1", 0.0),
        ("1", "x = -1", 0.0),
        ("2", "3-2=1", 1.0),
        ("1,000", "about 1000 people", 1.0),
        ("apple<AND>pear<AND>plum<AND>fig", "fig and apple", 0.5),
        ("red <OR> crimson <AND> two", "two crimson ones", 1.0),
        ("red <OR> crimson <AND> two", "a red one", 0.5),
        ("+", "a + b", 1.0),
        ("+", "a - b", 0.0),
        ("cat", "", 0.0),
        ("", "cat", None),
        ("<AND>", "cat", None),
    ],
)
def test_the_rule_counts_the_parts_of_the_reference(reference: str, prediction: str, score: float | None) -> None:
    assert contained_fraction(reference, prediction) == score


def test_the_rule_agrees_with_the_calibration(tmp_path: Path) -> None:
    seen = calibrate(RuleJudge(), JudgementLog(tmp_path / "judgements.jsonl"))
    assert (seen.n, seen.agreed) == (12, 12)


@pytest.mark.parametrize(
    ("score", "reason"), [(None, None), (0.5, "why"), (1.1, None), (-0.1, None), (float("nan"), None)]
)
def test_a_judgement_has_a_score_in_its_range_or_a_reason(score: float | None, reason: str | None) -> None:
    with pytest.raises(ValueError, match=r"either a score or a reason|lies in"):
        Judgement("1", 0, score, reason=reason)


def test_an_empty_reference_is_unscored_never_0() -> None:
    (judgement,) = RuleJudge().grade([GradeRequest("1", 0, "?", " ", "x")])
    assert judgement.score is None
    assert judgement.reason == "the reference is empty"


def test_a_model_judges_through_the_model_interface() -> None:
    """The toy repeats a prompt's last word, which here is the bar of the row: no grade, so unscored."""
    judge = parse_judge("model:echo,runs=2")
    assert isinstance(judge, ModelJudge)
    assert judge.runs == 2
    assert judge.identity()["model"] == {"name": "echo", "version": 1}
    items = [GradeRequest(str(i), 0, "?", "x", "y") for i in range(40)]
    judgements = list(judge.grade(items))
    assert sorted(int(judgement.id) for judgement in judgements) == list(range(40))
    assert {judgement.reason for judgement in judgements} == {"the reply is not a grade, after 5 attempts"}


def test_a_models_grades_are_parsed_and_other_replies_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    from dreambench.adapters.echo import Echo
    from dreambench.documents import Text, document_text
    from dreambench.interfaces import OutOfMemoryError
    from dreambench.requests import Request, Response

    sizes: list[int] = []

    def answer(self: Echo, requests: list[Request]) -> list[Response]:
        sizes.append(len(requests))
        if len(requests) > 3:
            raise OutOfMemoryError("no room")
        answers: list[Response] = []
        for request in requests:
            prompt = document_text(request.document)
            if "broken" in prompt:
                answers.append(Response.failed(request.id, "broken", ""))
            elif "hesitant" in prompt and not request.settings.get("do_sample"):
                answers.append(Response(request.id, (Text("hm"),)))
            else:
                answers.append(Response(request.id, (Text("0.25"),)))
        return answers

    monkeypatch.setattr(Echo, "answer", answer)
    judge = parse_judge("model:echo")
    assert isinstance(judge, ModelJudge)
    words = ["plain", "hesitant", "broken", "plain", "hesitant", "plain"]
    items = [GradeRequest(str(i), 0, word, "x", "y") for i, word in enumerate(words)]
    graded = {int(judgement.id): judgement for judgement in judge.grade(items)}
    assert [graded[i].score for i in range(6)] == [0.25, 0.25, None, 0.25, 0.25, 0.25]
    assert graded[2].reason == "the judge did not answer: broken"
    assert sizes == [6, 3, 3, 2]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("gpt-4", "a judge is openai:MODEL@BASE_URL"),
        ("openai:gpt-4", "BASE_URL"),
        ("openai:@http://x", "BASE_URL"),
        ("openai:m@http://me:secret@host/v1", "no credentials"),
        ("openai:m@http://host/v1?key=secret", "no credentials"),
        ("openai:m@http://x/v1,temperature=1", "temperature: there is no such key"),
        ("openai:m@http://x/v1,runs=0", "runs=0"),
        ("openai:m@http://x/v1,runs=2,runs=3", "given once"),
        ("openai:m@http://x/v1,concurrency=no", "concurrency=no"),
        ("openai:m@http://x/v1,price_in=1", "both price_in and price_out"),
        ("openai:m@http://x/v1,token_field=n", "max_completion_tokens"),
        ("grades:", "grades:FILE"),
        ("grades:/nowhere/g.json", "no such file"),
        ("replay:/nowhere/g.jsonl", "no such file"),
        ("model:", "a judge is"),
        ("rule,runs=3", "a judge is"),
        ("model:echo,price_in=3", "price_in: there is no such key"),
    ],
)
def test_a_wrong_judge_is_one_line_that_says_what_is_accepted(spec: str, says: str) -> None:
    with pytest.raises(DreambenchError, match=says) as caught:
        parse_judge(spec)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_offline_allows_only_servers_on_this_machine() -> None:
    parse_judge("openai:m@http://localhost:9/v1", offline=True)
    with pytest.raises(UsageError, match="offline"):
        parse_judge("openai:m@https://api.example.org/v1", offline=True)


def test_a_grades_file_is_returned_for_the_task_to_read(tmp_path: Path) -> None:
    path = tmp_path / "a,b=c.json"
    path.write_text("{}", encoding="utf-8")
    assert parse_judge(f"grades:{path}") == GradesFile(path)


def test_equal_content_is_graded_once_and_found_under_both_ids(tmp_path: Path) -> None:
    log = JudgementLog(tmp_path / "judgements.jsonl")
    items = [GradeRequest(name, 0, "?", "cat", "a cat") for name in ("a", "b")]
    assert grade_missing(RuleJudge(), items, log) == 1
    assert [(judgement.id, judgement.score) for judgement in judged(RuleJudge().identity(), items, log)] == [
        ("a", 1.0),
        ("b", 1.0),
    ]


def test_the_log_survives_a_torn_line_and_names_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "judgements.jsonl"
    identity = RuleJudge().identity()
    items = [GradeRequest(str(i), 0, "?", "cat", f"{i} cats") for i in range(3)]
    grade_missing(RuleJudge(), items, JudgementLog(path))
    whole = path.read_bytes()
    for cut in range(0, len(whole), 31):
        path.write_bytes(whole[:cut])
        log = JudgementLog(path)
        grade_missing(RuleJudge(), items, log)
        assert path.read_bytes() == whole
    log = JudgementLog(path)
    more = GradeRequest("9", 0, "?", "dog", "dog")
    grade_missing(RuleJudge(), [more], log)
    grade_missing(RuleJudge(), [GradeRequest("10", 0, "?", "emu", "emu")], log)
    assert path.read_bytes().count(b'"key":') == 5
    assert path.read_bytes().startswith(whole)
    path.write_bytes(b"nonsense\n" + whole)
    with pytest.raises(JudgeError, match="line 1"):
        JudgementLog(path)
    path.write_bytes(whole[:-5])
    with pytest.raises(JudgeError, match=r"judgements\.jsonl, line 4: not a judgement"):
        parse_judge(f"replay:{path}")
    path.write_bytes(whole.rstrip())
    assert parse_judge(f"replay:{path}")
    assert judged(identity, [GradeRequest("x", 0, "?", "?", "?")], log)[0].reason == "not graded"


def test_two_judges_in_one_log_do_not_mix_and_are_not_replayed_as_one(tmp_path: Path) -> None:
    path = tmp_path / "judgements.jsonl"
    item = GradeRequest("1", 0, "?", "cat", "cat")
    with JudgementLog(path) as log:
        log.add({"name": "one"}, item, Judgement("1", 0, 1.0))
        log.add({"name": "two"}, item, Judgement("1", 0, 0.0))
    read = JudgementLog(path)
    assert [judged({"name": name}, [item], read)[0].score for name in ("one", "two")] == [1.0, 0.0]
    with pytest.raises(JudgeError, match="2 judges"):
        parse_judge(f"replay:{path}")


def test_a_judge_without_a_price_estimates_nothing(tmp_path: Path) -> None:
    """What ``--dry-run`` prints of a rule or of stored grades."""
    assert list(parse_judge("rule").estimate([])) == []
