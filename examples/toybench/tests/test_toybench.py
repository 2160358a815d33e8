"""The model answers everything; wrong answers and failed requests are told apart."""

from pathlib import Path

import pytest

import dreambench
from dreambench import Image, Response, Sample, Text
from toybench.task import score_sample

QUESTION = Sample("a", (Image("a.png"), Text("What color is the square?")), {"colors": ["red"]}, "1")


def test_the_model_answers_every_request(tmp_path: Path) -> None:
    result = dreambench.run("toy", "palette", out=tmp_path)
    assert [(score.group, score.value, score.n) for score in result.scores] == [
        (None, 100.0, 60),
        ("kind=generate_text", 100.0, 40),
        ("kind=generate_image", 100.0, 20),
    ]
    assert all(score.interval is not None for score in result.scores)


@pytest.mark.parametrize(
    ("response", "correct"),
    [
        (Response("a", (Text("Red."),)), True),
        (Response("a", (Text("blue"),)), False),
        (Response.failed("a", "refused", "no answer"), None),
    ],
)
def test_only_answers_are_right_or_wrong(response: Response, correct: bool | None) -> None:
    assert score_sample(QUESTION, response)["correct"] is correct
