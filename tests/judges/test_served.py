"""A judge behind a server: graded, refused, rate-limited, garbled, gone; and nothing requested twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from judges.chat_server import Answer, serving, wait_for_judgements

from dreambench.errors import JudgeError, UsageError
from dreambench.judges import GradeRequest, JudgementLog, calibrate, grade_missing, judged, parse_judge
from dreambench.judges.models import ServedJudge


def items(n: int, runs: int = 1) -> list[GradeRequest]:
    return [
        GradeRequest(f"v1_{i}", run, f"what is {i}?", f"answer {i}", f"I say {i}")
        for run in range(runs)
        for i in range(n)
    ]


def served_judge(url: str, extra: str = "") -> ServedJudge:
    judge = parse_judge(f"openai:gpt-test@{url},retries=2{extra}")
    assert isinstance(judge, ServedJudge)
    return judge


def graded(judge: ServedJudge, requests: list[GradeRequest]) -> dict[tuple[str, int], object]:
    return {(one.id, one.run): one for one in judge.grade(requests)}


def test_grades_each_item_in_each_run_with_pinned_settings() -> None:
    with serving(lambda body, number: Answer(f"0.{body['seed']} is fair")) as server:
        judge = served_judge(server.url, ",seed=3")
        assert judge.runs == 5
        judgements = list(judge.grade(items(4, runs=2)))
    assert {(one.id, one.run): one.score for one in judgements} == {
        (f"v1_{i}", run): (3 + run) / 10 for i in range(4) for run in range(2)
    }
    assert {one.answered_by for one in judgements} == {"gpt-test-2024"}
    for body in server.bodies:
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("gpt-test", 0, 8)
        assert [message["role"] for message in body["messages"]] == ["user"]
    assert any(prompt.endswith("\nwhat is 2? | answer 2 | I say 2 | ") for prompt in server.prompts())


def test_a_reply_that_is_no_grade_is_retried_at_higher_temperatures_and_then_unscored() -> None:
    with serving(lambda body, number: Answer("well" if number < 3 else "0.4")) as server:
        (judgement,) = served_judge(server.url).grade(items(1))
    assert judgement.score == 0.4
    assert [body["temperature"] for body in server.bodies] == [0, 0.5, 1.0]
    assert not server.prompts()[0].endswith("(digit): ")
    assert all(
        prompt.endswith(" | \nPredict the correctness of the answer (digit): ") for prompt in server.prompts()[1:]
    )

    for hopeless in ("well", "1.5", "-0.1", "nan", "inf", "", "½"):
        with serving(lambda body, number, text=hopeless: Answer(text)) as server:
            (judgement,) = served_judge(server.url).grade(items(1))
        assert judgement.score is None, hopeless
        assert judgement.reason == "the reply is not a grade, after 5 attempts"
        assert len(server.bodies) == 5


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"null",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": {}}]}',
        b'{"choices": [{"message": {"content": 5}, "finish_reason": "stop"}]}',
    ],
)
def test_a_malformed_reply_is_retried_at_the_same_temperature_and_then_unscored(body: bytes) -> None:
    with serving(lambda asked, number: Answer(body=body) if "I say 0" in str(asked) else Answer("1")) as server:
        judgements = {one.id: one for one in served_judge(server.url).grade(items(2))}
    judgement = judgements["v1_0"]
    assert judgement.score is None
    assert judgement.reason is not None
    assert "reply" in judgement.reason
    assert [one["temperature"] for one in server.bodies if "I say 0" in str(one)] == [0] * 5
    assert (judgements["v1_1"].score, len(server.bodies)) == (1, 6)


def test_a_server_that_completes_nothing_is_an_error_and_one_that_completes_another_request_is_not() -> None:
    page = Answer(body=b"<!doctype html><title>Please log in</title>", headers={"Content-Type": "text/html"})
    with (
        serving(lambda body, number: page) as server,
        pytest.raises(JudgeError, match=r"answers no request with a chat completion .*BASE_URL"),
    ):
        list(served_judge(server.url).grade(items(400)))
    # It gives up after the first items; on a busy machine, more are under way before that is noticed.
    assert len(server.bodies) < 5 * 400 / 2
    with serving(lambda body, number: page if "I say" in str(body) else Answer("yes")) as server:
        (judgement,) = served_judge(server.url).grade(items(1))
    assert judgement.score is None
    assert len(server.bodies) == 6


def test_a_rate_limit_is_retried_after_the_servers_delay() -> None:
    with serving(
        lambda body, number: Answer("slow down", 429, {"Retry-After": "1"}) if number == 1 else Answer("1.0")
    ) as server:
        began = time.monotonic()
        (judgement,) = served_judge(server.url).grade(items(1))
    assert judgement.score == 1
    assert time.monotonic() - began >= 1
    assert len(server.bodies) == 2


def test_a_refused_item_is_unscored_and_the_others_are_graded() -> None:
    def answer(body: dict[str, object], number: int) -> Answer:
        prompt = str(body["messages"])
        if "I say 1" in prompt:
            return Answer("too long", 400)
        if "I say 2" in prompt:
            return Answer("", finish_reason="content_filter")
        return Answer("0.5")

    with serving(answer) as server:
        judgements = {one.id: one for one in served_judge(server.url).grade(items(4))}
    assert {key: one.score for key, one in judgements.items()} == {"v1_0": 0.5, "v1_1": None, "v1_2": None, "v1_3": 0.5}
    assert judgements["v1_1"].reason == "the judge refused: HTTP 400: too long"
    assert "content filter" in str(judgements["v1_2"].reason)
    assert len(server.bodies) == 4


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Answer("no such model", 404), "HTTP 404"),
        (Answer("wrong", 401), "OPENAI_API_KEY"),
        (Answer("boom", 500, {"Retry-After-Ms": "1"}), "HTTP 500"),
        (Answer("slow down", 429, {"Retry-After-Ms": "1"}), "rate limit"),
    ],
)
def test_an_unavailable_server_is_an_error_with_advice(fault: Answer, says: str) -> None:
    with serving(lambda body, number: fault) as server, pytest.raises(JudgeError, match=says) as caught:
        list(served_judge(server.url).grade(items(2)))
    assert "\n" not in str(caught.value)
    tries = {404: 1, 401: 1}.get(fault.status, 3)
    assert 1 <= len(server.bodies) <= 2 * tries


def test_a_server_that_is_down_or_hangs_up_is_an_error() -> None:
    with serving(lambda body, number: Answer()) as server:
        url = server.url
    with pytest.raises(JudgeError, match="cannot be reached \\(1 attempt\\)"):
        list(parse_judge(f"openai:m@{url},retries=0").grade(items(1)))  # type: ignore[union-attr]
    with (
        serving(lambda body, number: Answer(hang_up=True)) as server,
        pytest.raises(JudgeError, match="cannot be reached"),
    ):
        list(parse_judge(f"openai:m@{server.url},retries=0").grade(items(1)))  # type: ignore[union-attr]


def test_the_key_is_sent_and_appears_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    with serving(lambda body, number: Answer("bad key sk-very-secret", 401)) as server:
        judge = served_judge(server.url, ",key_env=MY_KEY")
        with pytest.raises(JudgeError) as caught:
            list(judge.grade(items(1)))
    assert server.headers[0]["authorization"] == "Bearer sk-very-secret"
    assert "secret" not in str(caught.value)
    assert "secret" not in json.dumps(dict(judge.identity()))
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(UsageError, match="MY_KEY"):
        served_judge("http://localhost/v1", ",key_env=MY_KEY")


def test_no_more_requests_at_once_than_allowed() -> None:
    waiting = threading.Barrier(3, timeout=900)

    def answer(body: object, number: int) -> Answer:
        waiting.wait()
        return Answer("1")

    with serving(answer) as server:
        assert len(list(served_judge(server.url, ",concurrency=3").grade(items(9)))) == 9
    assert server.most_at_once == 3


def test_logged_judgements_are_not_requested_again(tmp_path: Path) -> None:
    """Also not after the server died half-way: its answers are kept, and the next start requests the rest."""
    path, requests = tmp_path / "judgements.jsonl", items(10, runs=3)
    with serving(lambda body, number: Answer("0.7") if number <= 12 else Answer("dead", 503)) as server:
        judge = parse_judge(f"openai:gpt-test@{server.url},retries=0,concurrency=2")
        assert isinstance(judge, ServedJudge)
        with pytest.raises(JudgeError, match="503"):
            grade_missing(judge, requests, JudgementLog(path))
    assert path.read_bytes().count(b'"key":') == 12
    with serving(lambda body, number: Answer("0.7")) as server:
        judge = served_judge(server.url)
        assert grade_missing(judge, requests, JudgementLog(path)) == 18
        assert len(server.bodies) == 18
        log = JudgementLog(path)
        assert grade_missing(judge, requests, log) == 0
        assert {one.score for one in judged(judge.identity(), requests, log)} == {0.7}
        changed = GradeRequest("v1_0", 0, "what is 0?", "answer 0", "I changed my mind")
        assert grade_missing(judge, [changed], log) == 1
        assert len(server.bodies) == 19


def test_a_killed_grading_resumes_without_repeating_requests(tmp_path: Path) -> None:
    """A process killed while it waits for an answer: the server never gets a question whose judgement was logged again."""
    path = tmp_path / "judgements.jsonl"
    program = f"""
import sys
from pathlib import Path
from dreambench.judges import JudgementLog, grade_missing, parse_judge, GradeRequest
items = [GradeRequest(str(i), 0, f"question {{i}}", "x", "y") for i in range(12)]
grade_missing(parse_judge(f"openai:m@{{sys.argv[1]}},concurrency=1"), items, JudgementLog(Path({str(path)!r})))
"""
    logged, killed = threading.Event(), threading.Event()

    def first(body: object, number: int) -> Answer:
        if number == 6:
            wait_for_judgements(tmp_path, 5)
            logged.set()
            killed.wait(900)
        return Answer("1")

    with serving(first) as server:
        process = subprocess.Popen([sys.executable, "-c", program, server.url], env={**os.environ, "no_proxy": "*"})
        assert logged.wait(900)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed.set()
        before = server.prompts()[:5]
    path.write_bytes(path.read_bytes() + b'{"key": "torn')
    with serving(lambda body, number: Answer("1")) as server:
        subprocess.run([sys.executable, "-c", program, server.url], check=True, timeout=900)
        after = server.prompts()
    assert len(before) == 5
    assert not set(before) & set(after)
    assert len(after) == 7
    assert path.read_bytes().count(b'"key":') == 12


def test_judgements_are_replayed_without_the_judge_under_its_identity(tmp_path: Path) -> None:
    log, requests = JudgementLog(tmp_path / "judgements.jsonl"), items(3, runs=2)
    with serving(lambda body, number: Answer("no idea" if "I say 1" in str(body) else "0.3")) as server:
        judge = served_judge(server.url)
        grade_missing(judge, requests, log)
    replay = parse_judge(f"replay:{log.path}")
    assert not hasattr(replay, "path")
    assert replay.identity() == judge.identity()  # type: ignore[union-attr]
    assert replay.runs == 2  # type: ignore[union-attr]
    again = list(replay.grade(requests))  # type: ignore[union-attr]
    assert again == judged(judge.identity(), requests, log)
    (unknown,) = replay.grade([GradeRequest("v1_0", 0, "what is 0?", "answer 0", "another answer")])  # type: ignore[union-attr]
    assert unknown.score is None


def test_the_calibration_counts_agreement_and_is_requested_once(tmp_path: Path) -> None:
    with serving(lambda body, number: Answer("1.0")) as server:
        log = JudgementLog(tmp_path / "judgements.jsonl")
        seen = calibrate(served_judge(server.url), log)
        assert calibrate(served_judge(server.url), log) == seen
        assert len(server.bodies) == seen.n == 12
    assert seen.agreed == 6
    assert seen.lines()[0] == "calibration: the judge agrees with 6 of 12 obvious grades"
    assert len(seen.lines()) == 7


def test_the_estimate_names_calls_tokens_and_cost_or_that_it_is_unknown() -> None:
    calls, cost = served_judge("http://localhost/v1").estimate(items(10, runs=5))
    assert "50 calls" in calls
    assert "unknown" in cost
    requests = items(10, runs=5)
    judge = served_judge("http://localhost/v1", ",price_in=10,price_out=30")
    tokens = sum(len(judge.prompt.message(item)) for item in requests) / 4
    assert f"{(tokens * 10 + 50 * 8 * 30) / 1e6:.2f}" in judge.estimate(requests)[1]


def test_who_answered_is_kept_with_grades_and_with_replies_that_are_none(tmp_path: Path) -> None:
    one, two, three = items(3)

    def reply(body: object, number: int) -> Answer:
        text = str(body)
        if "what is 2?" in text:
            return Answer(body=b'{"choices": [{"message": {"content": "0.5"}, "finish_reason": "stop"}]}')
        return Answer("0.5" if "what is 0?" in text else "well")

    with serving(reply) as server, JudgementLog(tmp_path / "log.jsonl") as log:
        judge = served_judge(server.url)
        grade_missing(judge, [one, two, three], log)
        identity = judge.identity()
    again = JudgementLog(tmp_path / "log.jsonl")
    found = [again.get(identity, item) for item in (one, two, three)]
    assert [judgement and judgement.score for judgement in found] == [0.5, None, 0.5]
    assert [judgement and judgement.answered_by for judgement in found] == ["gpt-test-2024", "gpt-test-2024", None]
