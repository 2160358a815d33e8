"""The blind guesser by its place: a folder of VQAv2's training files, or the embedded data's training part."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from dreambench.adapters.blind import BlindGuesser, question_type
from dreambench.documents import Text, document_text
from dreambench.errors import DataError
from dreambench.interfaces import ModelOptions
from dreambench.requests import Request, Response

__all__ = ["Blind"]

_OPTION = re.compile(r"^([A-E])\. (.+)$", re.MULTILINE)
_FILES = ("v2_mscoco_train2014_annotations", "annotations")


class Blind(BlindGuesser):
    """What is right without looking: the most frequent training answer to questions that begin alike

    ``blind`` learns from the training part of the embedded data, ``blind:DIR`` from VQAv2's training annotations in a folder,
    ``blind:FILE`` from that file. It never opens an image. Of lettered options (MMBench) it names the one that reads as its guess, or
    else A; asked openly (MM-Vet) it gives its guess. A question that begins like no type has the most frequent answer to such.
    """

    sees: ClassVar[bool] = False

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(replace(options, location=str(_annotations(options.location))))

    def answer(self, requests: Sequence[Request]) -> Iterator[Response]:
        for request in requests:
            text = document_text(request.document)
            guess = self.answers[question_type(text, self.answers)]
            options = {words.strip().casefold(): letter for letter, words in _OPTION.findall(text)}
            letter = options.get(guess.casefold(), "A")
            yield Response(request.id, (Text(letter if options else guess),))


def _annotations(location: str | None) -> Path:
    """The file of training answers. A folder may hold the official name, or a plain ``annotations.json``, perhaps gzipped."""
    if location is None:
        from dreambench_tasks.playground import ensure_default

        folder = ensure_default(split="train")
    else:
        folder = Path(location)
        if not folder.is_dir():
            return folder
    for stem in _FILES:
        for suffix in (".json", ".json.gz"):
            if (path := folder / f"{stem}{suffix}").is_file():
                return path
    raise DataError(
        f"--model blind:{folder}: no {_FILES[0]}.json (plain or .gz) in it, nor an annotations.json of training questions"
    )
