"""`text-only:MODEL` is the model itself without images: nothing else changes, and nothing of an image gets in or out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import dreambench
from dreambench.adapters.dreamllm import DreamLLM
from dreambench.adapters.echo import Echo
from dreambench.adapters.text_only import TextOnly
from dreambench.documents import Image, Text
from dreambench.errors import UsageError
from dreambench.interfaces import ModelOptions
from dreambench.requests import Request, Response
from dreambench_tasks import playground


class Counts(Echo):
    """Answers with the number of parts of its prompt that are not text."""

    def answer(self, requests: Sequence[Request]) -> Iterator[Response]:
        for request in requests:
            yield Response(request.id, (Text(str(sum(isinstance(part, Image) for part in request.document))),))


def text_only(location: str, **options: Any) -> TextOnly:
    return TextOnly(ModelOptions("text-only", location, **options))


def test_the_model_gets_no_image_and_gives_none() -> None:
    seen = (Image("/nowhere.png"), Text("how many?"))
    (response,) = text_only(f"{__name__}:Counts").answer([Request("1", "generate_text", seen)])
    assert response.document == (Text("0"),)
    (response,) = text_only("echo").answer([Request("1", "generate_interleaved", seen)])
    assert response.document == (Text("how many?"), Text("many"))
    (response,) = text_only("echo").answer([Request("1", "loglikelihood", seen, choices=("a", "bc"))])
    assert (response.scores, response.document) == ((-1.0, -2.0), ())
    (response,) = text_only("echo").answer([Request("1", "generate_text", seen[:1])])
    assert response.document == (Text(""),)


def test_it_generates_as_the_checkpoint_of_the_model_says() -> None:
    options = ModelOptions("text-only", "dreamllm")
    assert TextOnly.checkpoint_settings(options) == DreamLLM.checkpoint_settings(ModelOptions("dreamllm")) != {}


def test_it_is_recorded_in_the_system_and_in_the_run_s_id(tmp_path: Path) -> None:
    """Of data without image files; the arguments are the model's own, and refused by it."""
    data = playground.write(tmp_path / "world", n=4, formats=["vqav2"])
    seeing = dreambench.run("vqav2", "echo", data=data, out=tmp_path)
    for image in (data / "val2017").iterdir():
        image.unlink()
    blind = dreambench.run("vqav2", "text-only:echo", data=data, out=tmp_path)
    assert blind.metrics is not None
    assert seeing.metrics is not None
    assert blind.metrics["system"]["model"] == {**seeing.metrics["system"]["model"], "images": "none"}
    assert blind.metrics["protocol"] == seeing.metrics["protocol"]
    assert blind.folder.name.startswith("vqav2-text-only-echo-")
    assert any("no images" in note for note in blind.metrics["notes"])
    with pytest.raises(UsageError, match="colour"):
        text_only("echo", arguments={"colour": "red"})


def test_what_reads_no_image_or_makes_only_images_is_refused(tmp_path: Path) -> None:
    for location in ("blind", f"folder:{tmp_path}", "responses:answers.json", "text-only:echo"):
        with pytest.raises(UsageError, match="reads no images anyway"):
            text_only(location)
    for location in (None, ""):
        with pytest.raises(UsageError, match="write text-only:MODEL"):
            TextOnly(ModelOptions("text-only", location))
    with pytest.raises(UsageError, match="no model is called ehco: did you mean echo"):
        text_only("ehco")
    assert text_only("echo").capabilities == Echo.capabilities - {"generate_image"}
