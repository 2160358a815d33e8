"""A run's files: what was written is read back as it was, and a field of another type is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dreambench.errors import RunError
from dreambench.files import parse_json
from dreambench.records import AnswerLine, JudgementLine, MetricsFile, RunFile, check_protocols, parse, parse_score
from dreambench.scores import Protocol, Score

ANSWER = {"batch": "0", "of": 1, "id": "a", "document": [{"text": "x"}], "finish_reason": "stop"}
JUDGEMENT = {
    "key": "k",
    "judge": "j",
    "id": "a",
    "run": 0,
    "score": 1.0,
    "reason": None,
    "raw": "1",
    "answered_by": None,
}
METRICS = {"task": "t", "model": "m", "protocols": {}, "scores": [], "errors": {"n": 0, "types": {}}, "notes": []}
RUN = {
    **{"format": 3, "spec": {}, "task": "t", "model": "m", "protocols": {}, "system": {}, "notes": []},
    **{"environment": {"device": {}}, "plan": {"batch_size": 1}},
}
SCORE = Score("accuracy", 50.0, "%", 8, "p@1-0", interval=(40.0, 60.0), bounds=(1.0, 2.0), notes=("n",))


@pytest.mark.parametrize(
    ("kind", "value"), [(AnswerLine, ANSWER), (JudgementLine, JUDGEMENT), (MetricsFile, METRICS), (RunFile, RUN)]
)
def test_every_field_of_another_type_is_an_error_that_names_it(kind: Any, value: dict[str, Any]) -> None:
    assert parse(kind, {**value, "more": 1}, RunError, "file") == {**value, "more": 1}
    for name, whole in value.items():
        for other in (True, -1, 1.5, [1], {"x": [1]}, float("nan"), "7"):
            if type(other) is not type(whole) and not (whole is None and isinstance(other, str)):
                with pytest.raises(RunError, match=rf"^file is damaged \({name}.*\)!$"):
                    parse(kind, {**value, name: other}, RunError, "file", "!")
        with pytest.raises(RunError, match=name):
            parse(kind, {key: one for key, one in value.items() if key != name}, RunError, "file")


def test_a_score_is_read_as_it_was_written_and_in_no_other_way() -> None:
    assert parse_score(json.loads(json.dumps(SCORE.to_json()))) == SCORE
    for name, other in (("value", "50"), ("n", 8.5), ("n", True), ("interval", [1]), ("notes", "n"), ("more", 1)):
        with pytest.raises(ValueError, match=r"interval|value|notes|\bn\b|more"):
            parse_score({**SCORE.to_json(), name: other})


def test_a_protocol_must_have_its_hash() -> None:
    protocol = Protocol("p", 1, {"metric": "accuracy"})
    check_protocols({protocol.id: protocol.to_json()})
    for changed in ({"metric": "other"}, {"more": None}, {"version": 2}, {"name": None}, {"hash": "00000000"}):
        with pytest.raises(ValueError, match=protocol.id):
            check_protocols({protocol.id: {**protocol.to_json(), **changed}})


def test_halves_of_surrogate_pairs_are_refused_and_whole_ones_read() -> None:
    assert parse_json('"\\ud83d\\ude42"') == "🙂"
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        parse_json('{"a": ["\\ud800"]}')
