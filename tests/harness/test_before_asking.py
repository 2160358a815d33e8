"""What is wrong with a run is said before its model is loaded or asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

import dreambench
from dreambench import api
from dreambench.adapters.echo import Echo
from dreambench.documents import Image, Text
from dreambench.errors import DataError, UsageError
from dreambench.interfaces import ModelOptions
from dreambench.requests import Kind, Request, Response, Sample
from dreambench.spec import RunSpec
from toybench import Toy

LOADED: list[str] = []


class OnePlace(Toy):
    """Toy, with the images of its first two samples elsewhere."""

    def samples(self) -> list[Sample]:
        whole = list(super().samples())
        moved = [Image(path=str(Path(f"/nowhere/{sample.id}.png"))) for sample in whole[:2]]
        return [
            Sample(sample.id, (image, *(part for part in sample.prompt if isinstance(part, Text))), sample.targets)
            for sample, image in zip(whole, moved, strict=False)
        ] + whole[2:]


class Seeing(Echo):
    """Notes that it was loaded and asked."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        LOADED.append(type(self).__name__)

    def answer(self, requests: Sequence[Request]) -> Iterator[Response]:
        LOADED.append("asked")
        return super().answer(requests)


class Blind(Seeing):
    """Reads no images, so it needs none."""

    sees: ClassVar[bool] = False


def test_missing_images_are_an_error_before_a_model_that_reads_them_is_loaded(tmp_path: Path) -> None:
    LOADED.clear()
    with pytest.raises(DataError, match=r"2 of \d+ images are missing, the first /nowhere/\S+\.png: .*--images DIR"):
        dreambench.run(f"{__name__}:OnePlace", f"{__name__}:Seeing", out=tmp_path)
    assert LOADED == []
    assert list(tmp_path.iterdir()) == []
    assert dreambench.run(f"{__name__}:OnePlace", f"{__name__}:Blind", out=tmp_path).scores[0].n == 60
    assert LOADED[:2] == ["Blind", "asked"]


def test_generation_settings_mean_nothing_to_answers_made_elsewhere(tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"id": "v1_0", "text": "red"}\n')
    arguments = {"judge": "rule", "out": tmp_path / "runs"}
    for setting in ("dreamllm", "max_new_tokens=5"):
        with pytest.raises(
            UsageError, match=r"--generation has no effect on answers that were made elsewhere \(responses:"
        ):
            dreambench.run("mmvet", f"responses:{answers}", generation=[setting], **arguments)
    (tmp_path / "documents.jsonl").write_text('{"id": "story-0", "document": [{"text": "A red circle."}]}\n')
    with pytest.raises(UsageError, match=r"that were made elsewhere \(documents:"):
        dreambench.run("interleaved", f"documents:{tmp_path}", generation=["max_new_tokens=5"], out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    assert dreambench.run("mmvet", f"responses:{answers}", **arguments).scores[0].n == 1


def test_a_model_that_does_not_exist_is_an_error_before_the_data_are_read() -> None:
    api.check(RunSpec(task="vqav2", model="echo"))
    with pytest.raises(UsageError, match="nosuch"):
        api.check(RunSpec(task="vqav2", model="nosuch"))


def test_echo_answers_each_kind_in_its_form() -> None:
    kinds: tuple[Kind, ...] = ("generate_text", "generate_image", "generate_interleaved")
    requests = [Request(kind, kind, (Text("a red ring"),)) for kind in kinds]
    text, image, document = Echo(ModelOptions("echo")).answer(requests)
    assert (text.document, text.prompt_tokens, text.new_tokens) == ((Text("ring"),), 3, 1)
    assert [type(part) for part in image.document] == [Image]
    assert [type(part) for part in document.document] == [Text, Image, Text]
    assert document.new_tokens == 4
