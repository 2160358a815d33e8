"""dreamllm: documents are generated as by the library, and a begun document reads as it did in training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dreambench.adapters.dreamllm import IMAGE_SETTINGS, DreamLLM
from dreambench.documents import Document, Image, Text
from dreambench.errors import ModelError
from dreambench.images import decode_rgb
from dreambench.interfaces import ModelOptions
from dreambench.requests import Request, Response
from dreambench_tasks import playground
from dreambench_tasks.interleaved.data import ReferenceDocument, read_documents
from dreamllm.data.samples import document as training_sample

FAST = {"scheduler": "ddim", "num_inference_steps": 2, "guidance_scale": 2.0}
WRITING = {**FAST, "max_new_tokens": 120, "max_images": 2, "temperature": 0.7, "top_p": 0.9}


@pytest.fixture(scope="module")
def model() -> DreamLLM:
    return DreamLLM(ModelOptions("dreamllm"))


@pytest.fixture(scope="module")
def references() -> list[ReferenceDocument]:
    return read_documents(playground.ensure_documents()).documents[:8]


def ask(model: DreamLLM, kind: Any, documents: list[Document], settings: dict[str, Any]) -> list[Response]:
    requests = [Request(str(n), kind, document, settings, seed=n) for n, document in enumerate(documents)]
    answers = {response.id: response for response in model.answer(requests)}
    return [answers[request.id] for request in requests]


def test_a_begun_document_has_the_tokens_that_it_has_in_training(
    model: DreamLLM, references: list[ReferenceDocument]
) -> None:
    reference = next(each for each in references if len(each.images) == 3)
    sample = training_sample(
        model.processor,
        [part.text if isinstance(part, Text) else decode_rgb(part) for part in reference.document],
        10_000,
        instruction=reference.instruction,
    )
    place = [index for index, part in enumerate(reference.document) if isinstance(part, Image)][2]
    begun = (Text(reference.instruction), *reference.document[:place])
    request = Request("0", "generate_image", begun, {"user_parts": 1})
    images = [decode_rgb(image) for image in reference.images[:2]]
    inputs = model._answers_begun([request], {"0": images})  # pyright: ignore[reportPrivateUsage]
    ids = inputs["input_ids"][0].tolist()
    third = [index for index, id_ in enumerate(sample.input_ids) if id_ == model.model.config.dream_start_token_id][2]
    assert ids == sample.input_ids[:third]
    assert len(inputs["pixel_values"]) == 2


def test_an_image_in_context_depends_on_all_that_precedes_it(
    model: DreamLLM, references: list[ReferenceDocument]
) -> None:
    reference = next(each for each in references if len(each.images) == 3)
    place = [index for index, part in enumerate(reference.document) if isinstance(part, Image)][1]
    whole = (Text(reference.instruction), *reference.document[:place])
    others = [whole, (Text("Draw a star."), *whole[1:]), tuple(part for part in whole if isinstance(part, Text))]
    answers = [ask(model, "generate_image", [document], {**FAST, "user_parts": 1})[0] for document in others]
    assert len({answer.document for answer in answers}) == 3
    again = ask(model, "generate_image", [whole, others[1]], {**FAST, "user_parts": 1})
    assert all(len(answer.document) == 1 for answer in again)


def test_documents_are_those_of_the_library(model: DreamLLM, references: list[ReferenceDocument]) -> None:
    answers = ask(model, "generate_interleaved", [(Text(each.instruction),) for each in references[:3]], WRITING)
    prompts = [
        model.processor.apply_chat_template([{"role": "user", "content": each.instruction}]) for each in references[:3]
    ]
    documents = model.model.generate_interleaved(
        model.processor(prompts),
        model.processor,
        max_new_tokens=120,
        max_images=2,
        do_sample=True,
        temperature=0.7,
        top_p=0.9,
        seeds=[0, 1, 2],
        **FAST,
    )
    for answer, expected in zip(answers, documents, strict=True):
        found = [part.text if isinstance(part, Text) else decode_rgb(part).tobytes() for part in answer.document]
        assert found == [part if isinstance(part, str) else part.tobytes() for part in expected.parts]
        assert answer.finish_reason == expected.finish_reason
        assert answer.new_tokens == len(expected.token_ids)


def test_what_a_task_leaves_open_is_generated_as_the_checkpoint_says(model: DreamLLM) -> None:
    stated = {name: value for name, value in model.defaults.items() if name in IMAGE_SETTINGS}
    assert set(stated) == {"scheduler", "num_inference_steps", "guidance_scale", "guidance_rescale"}
    assert stated.pop("num_inference_steps") == 20
    assert stated["guidance_scale"] == 1.5
    document = (Text("Draw a red star."),)
    ((open_,), (told,)) = (
        ask(model, "generate_image", [document], {"num_inference_steps": 2, **settings}) for settings in ({}, stated)
    )
    assert open_ == told
    side = decode_rgb(told.document[0]).width  # type: ignore[union-attr, arg-type]
    ((same,),) = (ask(model, "generate_image", [document], {"num_inference_steps": 2, "resolution": side}),)
    assert same == told
    with pytest.raises(ModelError, match=f"generates images of {side} x {side}"):
        ask(model, "generate_image", [document], {"num_inference_steps": 2, "resolution": side + 8})


def test_special_tokens_in_an_instruction_are_text(model: DreamLLM) -> None:
    (answer,) = ask(model, "generate_interleaved", [(Text("Draw <image> a <dream_start> star."),)], WRITING)
    assert answer.error is None


def test_a_prompt_without_room_for_an_image_fails_alone(model: DreamLLM) -> None:
    long = (Text("a red star " * 600),)
    for kind, settings in (("generate_interleaved", WRITING), ("generate_image", {**FAST, "user_parts": 1})):
        failed, answer = ask(model, kind, [long, (Text("Draw a red star."),)], settings)
        assert failed.error is not None
        assert failed.error.type == "prompt-too-long"
        assert answer.error is None


@pytest.mark.parametrize("kind", ["generate_interleaved", "generate_image"])
def test_pixels_that_are_not_finite_fail_their_request(
    model: DreamLLM, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    decode = model.model.decode_latents
    calls: list[str] = []

    def broken(latents: torch.Tensor, output_type: str = "pil") -> torch.Tensor:
        """The first image of all is broken. Documents that reach an image at different times are not decoded together."""
        pixels = decode(latents, "tensor")
        if not calls:
            pixels[0, 0, 0, 0] = torch.nan
        calls.append(output_type)
        return pixels

    monkeypatch.setattr(model.model, "decode_latents", broken)
    settings = WRITING if kind == "generate_interleaved" else {**FAST, "user_parts": 1}
    answers = ask(model, kind, [(Text("Draw a red star."),), (Text("Draw a blue star."),)], settings)
    assert sorted(answer.error.type if answer.error else "" for answer in answers) == ["", "not-finite"]


def test_unknown_settings_are_refused(model: DreamLLM) -> None:
    with pytest.raises(ModelError, match="the task sets num_beams"):
        ask(model, "generate_interleaved", [(Text("Draw a red star."),)], {"num_beams": 2})
