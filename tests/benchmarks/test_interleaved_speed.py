"""Interleaved generation of a batch: text, apart from images, beside the same documents one at a time."""

from __future__ import annotations

import time
from typing import Any

import pytest

import dreamllm
from dreambench_tasks.playground import instruction
from dreamllm import interleaved

DOCUMENTS = 16


class TextClock:
    """CPU time of this process that stands still while images are generated and read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images = 0.0
        insert = interleaved.InterleavedGeneration._insert_images

        def timed(*arguments: Any) -> Any:
            began = time.process_time()
            try:
                return insert(*arguments)
            finally:
                self.images += time.process_time() - began

        monkeypatch.setattr(interleaved.InterleavedGeneration, "_insert_images", timed)

    def __call__(self) -> float:
        return time.process_time() - self.images


def test_documents_together_take_less_text_time(faster, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    model, processor = dreamllm.load(device="cpu", dtype="float32")
    instructions = [instruction("val", index)[0] for index in range(DOCUMENTS)]
    prompts = [processor.apply_chat_template([{"role": "user", "content": text}]) for text in instructions]

    def documents(numbers: range) -> list[interleaved.InterleavedDocument]:
        inputs = processor([prompts[number] for number in numbers])
        options: dict[str, Any] = {"max_new_tokens": 160, "num_inference_steps": 1, "guidance_scale": 1}
        return model.generate_interleaved(inputs, processor, seeds=numbers, **options)

    together, alone = faster(
        lambda: documents(range(DOCUMENTS)),
        lambda: [document for number in range(DOCUMENTS) for document in documents(range(number, number + 1))],
        at_least=4,
        rounds=5,
        clock=TextClock(monkeypatch),
    )
    assert [document.token_ids for document in together] == [document.token_ids for document in alone]
    assert {len(document.images) for document in together} == {1, 2, 3}
