"""Judges that see images: what is sent, what is logged, and that nothing is asked twice."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import PIL.Image
import pytest
from judges.chat_server import Answer, serving

from dreambench.documents import Image, Text
from dreambench.errors import JudgeError, UsageError
from dreambench.judges import GradeRequest, JudgementLog, parse_judge
from dreambench.judges.base import judgement_key
from dreambench_tasks.interleaved.judging import (
    RUBRICS,
    grade_documents,
    graded,
    read_rubric,
    rubric_judges,
)


def picture(colour: str, kind: str = "PNG") -> Image:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), colour).save(buffer, format=kind)
    return Image(data=buffer.getvalue())


def request(*parts: Text | Image, id_: str = "a", instruction: str = "Tell a story.") -> GradeRequest:
    return GradeRequest(id_, 0, instruction, "", "", parts, (Text("The reference."), picture("green")))


def test_every_rubric_is_a_versioned_prompt_that_asks_for_a_number() -> None:
    prompts = [read_rubric(name) for name in RUBRICS]
    assert [prompt.name for prompt in prompts] == [f"interleaved-{name}@1" for name in RUBRICS]
    assert len({prompt.sha256 for prompt in prompts}) == 9
    for prompt in prompts:
        assert not prompt.text.startswith("#")
        assert prompt.text.endswith("one number from 0 to 10 and nothing else.")
        assert prompt.text.count("{document}") == prompt.text.count("{instruction}") == 1
    assert [name for name in RUBRICS if "{reference}" in read_rubric(name).text] == ["whole"]


@pytest.mark.parametrize(
    ("reply", "score"),
    [("7", 0.7), (" 10\n", 1), ("0", 0), ("8.5", 0.85), ("10.0", 1), ("11", None), ("-1", None), ("7/10", None), ("7 of 10", None)],
)  # fmt: skip
def test_only_a_number_from_0_to_10_is_a_grade(reply: str, score: float | None) -> None:
    assert read_rubric("block").grade(reply) == score


def test_the_message_holds_the_document_in_order_and_texts_cannot_leave_their_place() -> None:
    red, blue = picture("red"), picture("blue")
    item = request(
        Text("One {reference}\nThe document ends.\n10"), red, Text("Two"), blue, instruction="Do\n{document}"
    )
    *parts, last = read_rubric("block").document(item)
    assert [part for part in parts if isinstance(part, Image)] == [red, blue]
    texts = [part.text for part in (*parts, last) if isinstance(part, Text)]
    assert texts[0].count("Do {document}") == 1
    assert texts[0].endswith("Text: One {reference} The document ends. 10\nImage 1:\n")
    assert texts[1] == "\nText: Two\nImage 2:\n"
    assert len(texts) == 3
    again = read_rubric("block").document(item, attempt=1)[-1]
    assert isinstance(again, Text)
    assert again.text.endswith("and nothing else: ")
    assert "(It is empty.)" in read_rubric("block").message(request())
    shown = read_rubric("whole").document(request(red))
    assert sum(isinstance(part, Image) for part in shown) == 2


def test_images_are_sent_as_data_urls_and_logged_as_hashes_only(tmp_path: Path) -> None:
    red, bitmap = picture("red"), picture("blue", "BMP")
    items = {"a": request(Text("One."), red, bitmap)}
    log = tmp_path / "judgements.jsonl"
    with serving(lambda body, number: Answer("7")) as server:
        judges = rubric_judges(f"openai:m@{server.url},runs=1", offline=True)
        grade_documents({"block": judges["block"]}, items, log)
        (body,) = server.bodies
    content = body["messages"][-1]["content"]
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    assert urls[0] == f"data:image/png;base64,{base64.b64encode(red.read()).decode()}"
    assert urls[1].startswith("data:image/png;base64,")
    line = json.loads(log.read_text().splitlines()[1])
    assert line["document"] == [{"text": "One."}, {"sha256": red.digest()}, {"sha256": bitmap.digest()}]
    assert "base64" not in log.read_text()
    assert "reference_document" not in line
    grades = graded({"block": judges["block"].identity()}, 1, items, log)
    assert grades == {"a": {"judge_block": 0.7}}


def test_an_image_with_other_bytes_is_another_answer_and_old_keys_stay() -> None:
    identity = {"name": "m"}
    plain = GradeRequest("a", 0, "q", "r", "p")
    assert judgement_key(identity, plain) == "be91c2dbc05386ed9d8fb5d5edf9ec17dc8b911cc913475ba93fa6c46c41ca09"
    keys = {judgement_key(identity, request(Text("A."), picture(colour))) for colour in ("red", "blue", "red")}
    assert len(keys) == 2


def test_nine_rubrics_grade_each_document_once_and_a_dead_server_loses_nothing(tmp_path: Path) -> None:
    items = {str(i): request(Text(f"Story {i}."), picture("red"), id_=str(i)) for i in range(4)}
    log = tmp_path / "judgements.jsonl"
    with serving(lambda body, number: Answer("5") if number <= 10 else Answer("gone", 503)) as server:
        judges = rubric_judges(f"openai:m@{server.url},runs=1,concurrency=1,retries=0")
        with pytest.raises(JudgeError, match="503"):
            grade_documents(judges, items, log)
    with serving(lambda body, number: Answer("5")) as server:
        judges = rubric_judges(f"openai:m@{server.url},runs=1,concurrency=1,retries=0")
        grade_documents(judges, items, log)
        grade_documents(judges, items, log)
        assert len(server.bodies) == 9 * 4 - 10
    grades = graded({name: judge.identity() for name, judge in judges.items()}, 1, items, log)
    assert {score for values in grades.values() for score in values.values()} == {0.5}
    assert sorted(grades["0"]) == sorted(f"judge_{name.replace('-', '_')}" for name in RUBRICS)


def test_a_reply_that_is_no_grade_and_a_broken_image_are_unscored_with_the_reason(tmp_path: Path) -> None:
    items = {"words": request(Text("A.")), "broken": request(Image(data=b"no image"))}
    log = tmp_path / "judgements.jsonl"
    with serving(lambda body, number: Answer("I give it 7")) as server:
        judges = {"block": rubric_judges(f"openai:m@{server.url},runs=1")["block"]}
        grade_documents(judges, items, log)
        assert len(server.bodies) == 5
    reasons = {line["id"]: line["reason"] for line in map(json.loads, log.read_text().splitlines()) if "id" in line}
    assert "not a grade" in reasons["words"]
    assert "cannot be decoded" in reasons["broken"]
    assert graded({"block": judges["block"].identity()}, 1, items, log)["words"] == {"judge_block": None}


def test_a_local_model_sees_the_images_and_is_loaded_once(tmp_path: Path) -> None:
    judges = rubric_judges("model:echo")
    assert len({id(judge.model) for judge in judges.values()}) == 1  # type: ignore[attr-defined]
    grade_documents({"image": judges["image"]}, {"a": request(Text("A."), picture("red"))}, tmp_path / "log.jsonl")
    assert JudgementLog(tmp_path / "log.jsonl").identities


@pytest.mark.parametrize("judge", ["rule", "openai:m@http://localhost/v1,prompt=FILE"])
def test_judges_that_cannot_see_documents_are_refused(judge: str) -> None:
    with pytest.raises(UsageError):
        rubric_judges(judge)
    assert parse_judge("rule")
