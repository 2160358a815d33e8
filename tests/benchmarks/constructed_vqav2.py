"""A VQAv2 split of any size, written in a stream: ``python tests/benchmarks/constructed_vqav2.py DIR QUESTIONS``.

Five questions an image and ten answers a question, in the official format; the images are empty files, which ``echo`` does not open.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

WORDS = [
    "red",
    "two",
    "bench",
    "dog",
    "left",
    "kitchen",
    "noon",
    "wood",
    "pizza",
    "3",
    "yes",
    "no",
    "skate-board",
    "phrase",
]
QUESTION_TYPES = [
    f"what is the {word}" for word in ("color", "shape", "size", "time", "name", "sport", "animal", "room")
]


def question(rng: random.Random, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A question and its annotation; its answers are one word, mostly, and others."""
    ids = {"question_id": 1000 * (number // 5) + number % 5, "image_id": number // 5}
    kind = rng.choice(QUESTION_TYPES)
    text = f"{kind.capitalize()} of the {rng.choice(WORDS)} next to the {rng.choice(WORDS)} {rng.randrange(1000)}?"
    favourite = rng.choice((*WORDS, str(rng.randrange(1000))))
    # As in the real ones, about one of fourteen answers is nowhere else in the file.
    others = [
        f"{rng.choice(WORDS)} {rng.randrange(10**6)}",
        *(f"{rng.choice(WORDS)} {rng.choice(WORDS)}" for _ in range(3)),
    ]
    given = [favourite if rng.random() < 0.7 else rng.choice(others) for _ in range(10)]
    answers = [{"answer": one, "answer_confidence": "yes", "answer_id": place} for place, one in enumerate(given, 1)]
    types = {"question_type": kind, "answer_type": rng.choice(["yes/no", "number", "other"])}
    return {**ids, "question": text}, {**ids, **types, "multiple_choice_answer": favourite, "answers": answers}


def write(folder: Path, n: int, seed: int = 0) -> Path:
    """``questions.json``, ``annotations.json`` and the images of `n` questions."""
    (folder / "images").mkdir(parents=True)
    rng = random.Random(seed)
    with (folder / "questions.json").open("w") as questions, (folder / "annotations.json").open("w") as annotations:
        questions.write('{"info": {}, "questions": [')
        annotations.write('{"info": {}, "annotations": [')
        for number in range(n):
            asked, annotation = question(rng, number)
            questions.write(f"{', ' if number else ''}{json.dumps(asked)}")
            annotations.write(f"{', ' if number else ''}{json.dumps(annotation)}")
            if number % 5 == 0:
                (folder / "images" / f"{number // 5:012d}.jpg").touch()
        questions.write("]}")
        annotations.write("]}")
    return folder


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]))
