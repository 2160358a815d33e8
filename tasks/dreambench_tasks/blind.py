"""The blind baseline: what can be answered without reading the image, the caption or the instruction."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

from dreambench.documents import JSON, Image, Text, digest, document_text
from dreambench.errors import DataError
from dreambench.files import files_below, plain_or_gzip, read_json_or_lines
from dreambench.interfaces import Model, ModelOptions
from dreambench.requests import Kind, Request, Response

__all__ = ["Blind", "majority_answers", "question_type"]

_OPTION = re.compile(r"^([A-E])\. (.+)$", re.MULTILINE)
_QUESTION = re.compile(r"[^.?!:\n]+\?")
_FILES = ("v2_mscoco_train2014_annotations", "annotations")
_OTHER = "none of the above"
"""VQAv2's type of questions that begin like no type; here also of prompts without a question."""


class Blind(Model):
    """The blind baseline: the majority answer to a question, a random training image for a caption, text alone for a document

    Text: the most frequent training answer to questions with the same first words. Of lettered options (MMBench) it chooses the one that
    equals its answer, else A; to open questions (MM-Vet) it gives its answer. It never opens an image. Images: a training image drawn by
    the request's seed, whatever the prompt says. Documents: the text of a training document drawn by the seed, without its images.

    ``blind`` uses the training part of the embedded data. ``blind:DIR`` has VQAv2's training annotations in a folder, or training
    images, or both; ``blind:FILE`` is that file of annotations, or JSON lines {"question_type", "answer"}.
    """

    capabilities: ClassVar[frozenset[Kind]] = frozenset({"generate_text", "generate_image", "generate_interleaved"})
    sees: ClassVar[bool] = False

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        options.only()
        options.without_weights()
        location = options.location
        self.folder = Path(location) if location is not None and Path(location).is_dir() else None
        file = _training_file(location)
        if file is None and not self.images:
            raise DataError(
                f"--model blind:{location}: it holds neither {_FILES[0]}.json nor annotations.json (plain or .gz), nor images"
            )
        self.answers = {} if file is None else majority_answers(_pairs(file))
        if location is not None:
            can: dict[Kind, object] = {"generate_text": self.answers, "generate_image": self.folder and self.images}
            self.capabilities = frozenset(kind for kind, there in can.items() if there)  # pyright: ignore[reportAttributeAccessIssue]

    @cached_property
    def images(self) -> list[Path]:
        """The training images."""
        from dreambench.metrics.features import SUFFIXES, list_images
        from dreambench_tasks.playground import ensure_default

        if self.options.location is None:
            return list_images(ensure_default(split="train"))
        found = () if self.folder is None else files_below(self.folder, lambda n: Path(n).suffix.lower() in SUFFIXES)
        return sorted(map(Path, found))

    @cached_property
    def documents(self) -> list[str]:
        """The texts of the embedded training documents."""
        from dreambench_tasks.interleaved.data import read_documents
        from dreambench_tasks.playground import ensure_documents

        found = read_documents(ensure_documents(split="train")).documents
        return [" ".join(part.text for part in each.document if isinstance(part, Text)) for each in found]

    def identity(self) -> Mapping[str, JSON]:
        from dreambench.metrics.features import fingerprint
        from dreambench_tasks.playground import WORLD

        identity: dict[str, JSON] = {"name": "blind"}
        if self.answers:
            identity["answers_sha256"] = digest(self.answers)
        if self.options.location is None:
            identity["world"] = WORLD
        elif self.images:
            identity["images"] = fingerprint(self.images)
        return identity

    def batch_size(self, kind: Kind) -> int:
        return 4096 if kind == "generate_text" else 64

    def notes(self) -> Sequence[str]:
        return ("the blind baseline reads neither images nor captions: compare the other models with it",)

    def answer(self, requests: Sequence[Request]) -> Iterator[Response]:
        for request in requests:
            if request.kind == "generate_image":
                drawn = range(request.seed, request.seed + int(request.settings.get("candidates", 1)))
                yield Response(
                    request.id, tuple(Image(path=str(self.images[seed % len(self.images)])) for seed in drawn)
                )
            elif request.kind == "generate_interleaved":
                yield Response(request.id, (Text(self.documents[request.seed % len(self.documents)]),))
            else:
                yield Response(request.id, (Text(self._majority_answer(document_text(request.document))),))

    def _majority_answer(self, prompt: str) -> str:
        answer = self.answers[question_type(prompt, self.answers)]
        letters = {option.strip().casefold(): letter for letter, option in _OPTION.findall(prompt)}
        return letters.get(answer.casefold(), "A") if letters else answer


def majority_answers(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The most frequent answer to each question type, the alphabetically first of equals; ``none of the above`` always has one.

    Args:
        pairs: (question type, answer) of each training question.
    """
    by_type: dict[str, Counter[str]] = {}
    total: Counter[str] = Counter()
    for type_, answer in pairs:
        by_type.setdefault(type_.casefold(), Counter())[answer] += 1
        total[answer] += 1
    by_type.setdefault(_OTHER, total)
    return {type_: min(counts, key=lambda answer: (-counts[answer], answer)) for type_, counts in by_type.items()}


def question_type(prompt: str, types: Iterable[str]) -> str:
    """The longest of `types` with which the prompt's last question begins: VQAv2 types questions by their first words."""
    questions = [" ".join(sentence.casefold().split()) for sentence in _QUESTION.findall(prompt)]
    found = _beginning(tuple(types)).match(questions[-1]) if questions else None
    return found[0] if found else _OTHER


@cache
def _beginning(types: tuple[str, ...]) -> re.Pattern[str]:
    """The longest of `types` at the beginning of a question, as whole words."""
    return re.compile(rf"(?:{'|'.join(map(re.escape, sorted(types, key=len, reverse=True)))})\b")


def _training_file(location: str | None) -> Path | None:
    """The file of training answers: of a folder, the official name or a plain ``annotations.json``, perhaps gzipped, if it is there."""
    if location is None:
        from dreambench_tasks.playground import ensure_default

        folder = ensure_default(split="train")
    else:
        folder = Path(location)
        if not folder.is_dir():
            return folder
    return next(filter(None, (plain_or_gzip(folder / f"{stem}.json") for stem in _FILES)), None)


def _pairs(path: Path) -> list[tuple[str, str]]:
    """(question type, answer) of each training question; annotations of another split are refused."""
    try:
        content: Any = read_json_or_lines(path)
    except DataError as error:
        raise DataError(f"--model blind:{error}") from error
    try:
        if isinstance(content, dict) and "annotations" in content:
            split = str(content.get("data_subtype", "train"))
            if not split.startswith("train"):
                raise DataError(f"--model blind:{path}: annotations of the split {split}; give those of train")
            pairs = [(entry["question_type"], entry["multiple_choice_answer"]) for entry in content["annotations"]]
        else:
            lines = [content] if isinstance(content, dict) else content
            pairs = [(line["question_type"], line["answer"]) for line in lines]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"--model blind:{path}: neither VQAv2 annotations nor lines of question_type and answer"
        ) from error
    if not pairs or not all(isinstance(word, str) for pair in pairs for word in pair):
        raise DataError(f"--model blind:{path}: it holds no answers, or some that are not text")
    return pairs
