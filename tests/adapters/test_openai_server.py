"""openai: a served vision model, over real HTTP on the loopback."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import PIL.Image
import pytest
from adapters.images_for_tests import image_bytes
from judges.chat_server import Answer, serving

from dreambench.adapters.openai_server import ServedModel
from dreambench.documents import Image, Text, document_text
from dreambench.errors import DataError, ModelError, UsageError
from dreambench.interfaces import ModelOptions
from dreambench.requests import Request, Response


def load(url: str, offline: bool = False, **arguments: str) -> ServedModel:
    arguments = {"retries": "1", **arguments}
    return ServedModel(ModelOptions("openai", f"org/see-7b@{url}", arguments, offline=offline))


def comprehension(id_: str, text: str, *images: Image, **settings: object) -> Request:
    return Request(id_, "generate_text", (*images, Text(text)), settings, seed=41)


def test_a_document_is_sent_in_reading_order_with_its_images_bytes() -> None:
    png, jpeg, webp = (image_bytes(1, form=form) for form in ("PNG", "JPEG", "WEBP"))
    document = (Text("first"), Image(data=png), Text("then"), Image(data=jpeg), Image(data=webp))
    with serving(lambda body, number: Answer(" two cups \n")) as server:
        (response,) = load(server.url).answer([Request("1", "generate_text", document, {"max_new_tokens": 7})])
    assert response == Response("1", (Text("two cups"),), "stop", 11, 3, details={"answered_by": "org/see-7b-2024"})
    (body,) = server.bodies
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("org/see-7b", 7, 0)
    assert "seed" not in body
    (message,) = body["messages"]
    kinds = [part["type"] for part in message["content"]]
    assert kinds == ["text", "image_url", "text", "image_url", "image_url"]
    urls = [part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url"]
    assert urls[0] == "data:image/png;base64," + base64.b64encode(png).decode()
    assert urls[1] == "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    sent = PIL.Image.open(io.BytesIO(base64.b64decode(urls[2].removeprefix("data:image/png;base64,"))))
    assert sent.tobytes() == PIL.Image.open(io.BytesIO(webp)).convert("RGB").tobytes()


def test_sampling_settings_and_the_sample_s_seed_are_sent() -> None:
    with serving(lambda body, number: Answer("x")) as server:
        model = load(server.url, **{"token_field": "max_completion_tokens"})
        list(model.answer([comprehension("1", "?", do_sample=True, temperature=0.3, top_p=0.9, max_new_tokens=5)]))
    (body,) = server.bodies
    assert (body["temperature"], body["top_p"], body["seed"], body["max_completion_tokens"]) == (0.3, 0.9, 41, 5)
    assert "max_tokens" not in body


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"num_beams": 5}, "num_beams"), ({"top_k": 5}, "top_k"), ({"temperature": 0.2}, "without do_sample")],
)
def test_unsupported_settings_are_an_error_before_anything_is_sent(settings: dict[str, object], says: str) -> None:
    with serving(lambda body, number: Answer("x")) as server, pytest.raises(ModelError, match=says):
        list(load(server.url).answer([comprehension("1", "?"), comprehension("2", "?", **settings)]))
    assert not server.bodies


def test_an_error_concerns_its_own_request_only() -> None:
    def answer(body: object, number: int) -> Answer:
        text = json.dumps(body)
        if "refuse me" in text:
            return Answer("this content is not allowed", 400)
        if "filter me" in text:
            return Answer("", finish_reason="content_filter")
        if "garble me" in text:
            return Answer(body=b'{"choices": []}')
        if "silence me" in text:
            return Answer(None)
        if "surrogate" in text:
            return Answer(
                body=b'{"model": "m", "choices": [{"finish_reason": "length", "message": {"content": "\\ud800!"}}]}'
            )
        return Answer("fine")

    texts = ["refuse me", "filter me", "garble me", "silence me", "surrogate", "hello"]
    requests = [comprehension(text, text) for text in texts] + [
        comprehension("broken", "?", Image(data=b"GIF89a nothing"))
    ]
    with serving(answer) as server:
        found = {response.id: response for response in load(server.url).answer(requests)}
    errors = {id_: response.error.type for id_, response in found.items() if response.error}
    assert errors == {
        "refuse me": "refused",
        "filter me": "refused",
        "garble me": "malformed-reply",
        "silence me": "malformed-reply",
        "broken": "broken-image",
    }
    assert document_text(found["hello"].document) == "fine"
    assert document_text(found["surrogate"].document) == "?!"
    assert found["surrogate"].finish_reason == "length"
    assert len(server.bodies) == 6


def test_temporary_errors_are_retried_and_lasting_ones_end_the_run() -> None:
    with serving(
        lambda body, number: Answer("busy", 503, {"Retry-After-Ms": "5"}) if number == 1 else Answer("fine")
    ) as server:
        (response,) = load(server.url).answer([comprehension("1", "?")])
    assert document_text(response.document) == "fine"
    with serving(lambda body, number: Answer("busy", 503, {"Retry-After-Ms": "5"})) as server:
        with pytest.raises(ModelError, match="HTTP 503"):
            list(load(server.url).answer([comprehension("1", "?")]))
        assert len(server.bodies) == 2
    with pytest.raises(ModelError, match="cannot be reached"):
        list(load(server.url, retries="0").answer([comprehension("1", "?")]))
    with serving(lambda body, number: Answer("no model", 404)) as server, pytest.raises(ModelError, match="/v1"):
        list(load(server.url).answer([comprehension("1", "?")]))


def test_a_missing_image_is_an_error_that_names_the_option(tmp_path: Path) -> None:
    with serving(lambda body, number: Answer("x")) as server, pytest.raises(DataError, match="--images"):
        list(load(server.url).answer([comprehension("1", "?", Image(path=str(tmp_path / "gone.png")))]))


def test_the_key_comes_from_the_environment_and_appears_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hidden")
    with serving(lambda body, number: Answer("the key sk-hidden is wrong", 401)) as server:
        model = load(server.url)
        with pytest.raises(ModelError) as caught:
            list(model.answer([comprehension("1", "?")]))
    assert server.headers[0]["authorization"] == "Bearer sk-hidden"
    assert "hidden" not in str(caught.value) + json.dumps(dict(model.identity())) + repr(model.server)
    with pytest.raises(UsageError, match="NO_SUCH_KEY"):
        load(server.url, key_env="NO_SUCH_KEY")


def test_a_batch_is_four_times_the_concurrency() -> None:
    assert load("http://localhost/v1", concurrency="3").batch_size("generate_text") == 12
    with pytest.raises(UsageError, match="offline"):
        load("http://example.org/v1", offline=True)
    with pytest.raises(UsageError, match="no such argument"):
        load("http://localhost/v1", top_p="1")
