"""The model that comes with the package: small, trained, with a card, able to answer questions and to write illustrated stories."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

import dreamllm
from dreambench.adapters.dreamllm import DreamLLM
from dreambench.errors import MissingWeightsError
from dreambench.interfaces import ModelOptions
from dreambench_tasks.interleaved.metrics import sentences
from dreambench_tasks.playground import instruction
from dreambench_tasks.playground.truth import parse_sentence
from dreamllm.files import embedded_checkpoint
from evaluate import comprehension


@pytest.fixture(scope="module")
def folder() -> Path:
    return embedded_checkpoint()


def test_nothing_replaces_a_missing_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dreamllm, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(MissingWeightsError, match="install the package again"):
        DreamLLM(ModelOptions("dreamllm", device="cpu"))


def test_it_is_small_trained_and_described(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) < 25e6
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stages = ("alignment-comprehension", "alignment-generation", "igpt", "sft")
    assert all(f"{stage} (recipe " in config["training"] for stage in stages)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert all(f"| {stage} |" in card for stage in stages)


def test_it_answers_questions_and_writes_illustrated_stories(folder: Path) -> None:
    scores = {
        score.metric: score.value
        for score in comprehension(DreamLLM(ModelOptions("dreamllm", device="cpu")), "test", 48)
    }
    # 1.00 and 0.98 in the card
    assert (scores["one object: What is in the [place]?"] or 0) >= 46 / 48
    assert (scores["several objects: What is in the [place]?"] or 0) >= 44 / 48
    model, processor = dreamllm.load(folder, dtype="float32")
    prompts = [processor.apply_chat_template([{"role": "user", "content": instruction("val", i)[0]}]) for i in range(4)]
    documents = model.generate_interleaved(
        processor(prompts), processor, max_new_tokens=160, seeds=[0, 1, 2, 3], num_inference_steps=4, guidance_scale=1
    )
    for document in documents:
        assert document.images
        for text, part in pairwise(document.parts):
            if not isinstance(part, str):  # an image follows the sentence that tells what it shows
                assert isinstance(text, str)
                assert parse_sentence(sentences(text)[-1])
