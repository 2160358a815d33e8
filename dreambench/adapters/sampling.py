"""How a text is decoded, and sampling in which every row of a batch has random numbers of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dreambench.adapters.torch_tools import known_settings, seeded_generator
from dreambench.errors import ModelError
from dreambench.requests import Request

__all__ = ["Decoding", "SeededSampling"]


@dataclass(frozen=True)
class Decoding:
    """The settings of a reading request, by transformers' names; these are their values where a task says nothing."""

    max_new_tokens: int = 512
    num_beams: int = 1
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    @classmethod
    def of(cls, request: Request, model: str) -> Decoding:
        """A request's settings; ``assistant_prefix`` is a part of the prompt and not among them.

        An unknown setting, or one that would have no effect beside the others, is a `ModelError`.
        """
        known = ["assistant_prefix", *(field.name for field in fields(cls))]
        settings = known_settings(request, known, f"the model {model}")
        settings.pop("assistant_prefix", None)
        decoding = cls(**settings)
        warm = {"temperature": (0, 1), "top_p": (1,), "top_k": (0,)}
        idle = [name for name, plain in warm.items() if getattr(decoding, name) not in plain]
        if not decoding.do_sample and idle:
            raise ModelError(
                f"the task sets {', '.join(idle)} without do_sample, where it means nothing: set do_sample=true"
            )
        if decoding.do_sample and (decoding.num_beams > 1 or decoding.temperature <= 0):
            raise ModelError("do_sample goes with num_beams=1 and a temperature above 0: choose other settings")
        if decoding.max_new_tokens < 1 or decoding.num_beams < 1:
            raise ModelError("max_new_tokens and num_beams are at least 1: choose other settings")
        return decoding


class SeededSampling(LogitsProcessor):
    """Makes the greatest score of a row a draw from its distribution, with the row's own random numbers.

    The greatest of log p - log e, e exponentially distributed, is distributed as p (the Gumbel-max trick), so that greedy decoding
    over these scores *is* sampling; and because each row has a generator of its own, a draw depends on the row's seed and
    distribution, not on its batch mates or on the device.
    """

    def __init__(self, decoding: Decoding, seeds: Sequence[int]) -> None:
        self.generators = [seeded_generator(seed) for seed in seeds]
        self.warpers = LogitsProcessorList([TemperatureLogitsWarper(float(decoding.temperature))])
        if decoding.top_k > 0:
            self.warpers.append(TopKLogitsWarper(decoding.top_k))
        if decoding.top_p < 1:
            self.warpers.append(TopPLogitsWarper(decoding.top_p))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        warped = self.warpers(input_ids, scores.float())  # pyright: ignore[reportArgumentType]
        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=one) for one in self.generators])
        return warped - noise.clamp_min(torch.finfo(torch.float32).tiny).log().to(scores.device)
