"""``text-only:MODEL``: any model without images, the blind row that says how much of its score needs none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from dreambench.documents import JSON, Document, Text
from dreambench.errors import UsageError
from dreambench.interfaces import Model, ModelOptions
from dreambench.registry import model_class, parse_model
from dreambench.requests import Kind, Request, Response

__all__ = ["TextOnly"]


class TextOnly(Model):
    """``text-only:MODEL``, for instance text-only:dreamllm: MODEL gets prompts without their images, and its documents lose theirs

    Everything else is the model's own: arguments, prompt wording, decoding, seeds. Of an interleaved document the model's text remains as
    it wrote it, beside images that are then left out.
    """

    capabilities: ClassVar[frozenset[Kind]] = frozenset({"generate_text", "generate_interleaved", "loglikelihood"})
    sees: ClassVar[bool] = False

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        kind, inner = _model(options)
        self.model: Model = kind(inner)
        capabilities = self.model.capabilities & TextOnly.capabilities
        if not capabilities:
            raise UsageError(
                f"--model text-only:{options.location}: {inner.name} generates images only; give another model"
            )
        self.capabilities = capabilities  # pyright: ignore[reportAttributeAccessIssue]

    @classmethod
    def checkpoint_settings(cls, options: ModelOptions) -> Mapping[str, JSON]:
        kind, inner = _model(options)
        return kind.checkpoint_settings(inner)

    def identity(self) -> Mapping[str, JSON]:
        return {**self.model.identity(), "images": "none"}

    def environment(self) -> Mapping[str, JSON]:
        return self.model.environment()

    def parameters(self) -> int | None:
        return self.model.parameters()

    def batch_size(self, kind: Kind) -> int:
        return self.model.batch_size(kind)

    def notes(self) -> Sequence[str]:
        return (
            *self.model.notes(),
            "the model was given no images, and its documents hold none: compare it with itself",
        )

    def answer(self, requests: Sequence[Request]) -> Iterator[Response]:
        for response in self.model.answer([replace(one, document=_texts(one.document)) for one in requests]):
            yield replace(response, document=_texts(response.document)) if response.document else response


def _model(options: ModelOptions) -> tuple[type[Model], ModelOptions]:
    """The class of MODEL and how to load it."""
    name, location = parse_model(options.location or "")
    if not name:
        raise UsageError("--model text-only: write text-only:MODEL, for instance text-only:dreamllm")
    kind = model_class(name)
    if not (kind.sees and kind.generates):
        raise UsageError(f"--model text-only:{options.location}: {name} reads no images anyway; give a model that does")
    return kind, replace(options, name=name, location=location)


def _texts(document: Document) -> Document:
    """The texts of a document; one empty text where there are none, which is a prompt still."""
    return tuple(part for part in document if isinstance(part, Text)) or (Text(""),)
