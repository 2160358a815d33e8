"""NaN and infinity of a model are typed errors: of the checkpoint at load, else of the request, never a score or an image."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters.tiny import save_llava, save_stable_diffusion
from safetensors.torch import load_file, save_file

from dreambench.adapters.diffusers_pipeline import Pipeline
from dreambench.adapters.transformers_model import VisionLanguageModel
from dreambench.documents import Text
from dreambench.errors import ModelError
from dreambench.interfaces import Model, ModelOptions
from dreambench.requests import Request, Response
from dreambench.runner import ask


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def model(folder: Path) -> VisionLanguageModel:
    return VisionLanguageModel(ModelOptions("transformers", str(folder), device="cpu", dtype="float32"))


def spoil(file: Path, value: float) -> str:
    """The name of the last tensor of a file, whose last number is now `value`."""
    weights = load_file(file)
    name = sorted(weights)[-1]
    weights[name].view(-1)[-1] = value
    save_file(weights, file, {"format": "pt"})
    return name


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_a_checkpoint_with_such_a_weight_is_refused(tmp_path: Path, value: float) -> None:
    spoil(save_llava(tmp_path / "llava") / "model.safetensors", value)
    with pytest.raises(ModelError, match=r"llava: the weight \S+ has NaN or infinite values in float32"):
        VisionLanguageModel(ModelOptions("transformers", str(tmp_path / "llava"), device="cpu"))
    folder = save_stable_diffusion(tmp_path / "sd")
    name = spoil(folder / "unet" / "diffusion_pytorch_model.safetensors", value)
    with pytest.raises(ModelError, match=rf"sd/unet: the weight {name} has NaN"):
        Pipeline(ModelOptions("diffusers", str(folder), device="cpu"))


def test_a_dtype_that_is_too_narrow_is_refused(tmp_path: Path) -> None:
    spoil(save_llava(tmp_path / "llava") / "model.safetensors", 1e6)
    with pytest.raises(ModelError, match=r"in float16: .* --dtype float32 if this dtype is too narrow"):
        VisionLanguageModel(ModelOptions("transformers", str(tmp_path / "llava"), device="cpu", dtype="float16"))


@contextmanager
def logits(model: VisionLanguageModel, change: Callable[[torch.Tensor], None]) -> Generator[None]:
    network: Any = model.model
    hook = network.get_output_embeddings().register_forward_hook(lambda _module, _inputs, output: change(output))
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_beams": 3}, {"do_sample": True, "top_p": 0.9, "top_k": 20}],
    ids=["greedy", "beams", "sampled"],
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_of_one_request_fail_that_request_only(
    model: VisionLanguageModel, settings: dict[str, Any], value: float
) -> None:
    texts = ["How many kites are there?", "yes or no?", "and the dog"]
    settings = {"max_new_tokens": 4} | settings
    requests = [Request(str(i), "generate_text", (Text(text),), settings, seed=i) for i, text in enumerate(texts)]
    whole, step = ask(model, requests), 0

    def change(output: torch.Tensor) -> None:
        nonlocal step
        step += 1
        if step == 2:
            output[len(output) // 3, :, 40] = value

    with logits(model, change):
        answers = ask(model, requests)
    assert [answers[0], answers[2]] == [whole[0], whole[2]]
    assert answers[1].error is not None
    assert answers[1].error.type == "not-finite"
    assert "at token 2: use --dtype float32" in answers[1].error.message
    assert answers[1].document == ()


def test_what_follows_the_end_of_an_answer_does_not_fail_it(model: VisionLanguageModel) -> None:
    request = Request("0", "generate_text", (Text("a"),))
    ids = [5, 6, model.eos[0], 0, 0]
    assert model._response(request, ids, 1, 3).error is None  # pyright: ignore[reportPrivateUsage]
    assert model._response(request, ids, 1, 2).error is not None  # pyright: ignore[reportPrivateUsage]


def test_log_likelihoods_of_one_request_fail_that_request_only(model: VisionLanguageModel) -> None:
    requests = [Request(str(i), "loglikelihood", (Text(text),), choices=("yes", "no")) for i, text in enumerate("abc")]
    whole = ask(model, requests)

    def change(output: torch.Tensor) -> None:
        output[1] = torch.nan

    with logits(model, change):
        answers = ask(model, requests)
    assert [answers[0], answers[2]] == [whole[0], whole[2]]
    assert answers[1].scores is None
    assert answers[1].error is not None
    assert answers[1].error.type == "not-finite"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_scores_of_any_adapter_are_finite_or_an_error(value: float) -> None:
    class Own(Model):
        capabilities = frozenset({"loglikelihood"})

        def identity(self) -> dict[str, str]:
            return {"name": "own"}

        def answer(self, requests: Sequence[Request]) -> Iterator[Response]:
            yield from (Response(request.id, scores=(-1.0, value)) for request in requests)

    model = Own(ModelOptions("own"))
    (answer,) = ask(model, [Request("0", "loglikelihood", (), choices=("a", "b"))])
    with pytest.raises(ModelError, match="gave 0 2 scores for 3 choices"):
        ask(model, [Request("0", "loglikelihood", (), choices=("a", "b", "c"))])
    assert answer.scores is None
    assert answer.error is not None
    assert answer.error.type == "not-finite"
