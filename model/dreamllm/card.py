"""What a checkpoint's model card says of the world that the model knows, in the YAML front matter of README.md:

knows: colored shapes on plain backgrounds
words: [image, images, please]  # that it need not know
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMED = 3  # words that a notice names


def read_card(folder: Path) -> dict[str, Any]:
    """The front matter of a checkpoint's README.md; empty without one. A card is prose for people: one that is broken says nothing."""
    from huggingface_hub import metadata_load

    try:
        return metadata_load(folder / "README.md") or {}
    except Exception:  # of YAML, of its values, of the file
        return {}


class WorldNotice:
    """A line for the first prompt that leaves the world of a checkpoint whose card names one; released checkpoints name none."""

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        card, self.tokenizer = read_card(folder), tokenizer
        self.knows = " ".join(str(card.get("knows") or "").split())[:200]
        words = card.get("words")
        self.words = {str(word).lower() for word in words} if isinstance(words, list) else set[str]()

    def about(self, prompt: str) -> str | None:
        """The line, at most once; None for a prompt within the world, and without one."""
        unknown = list(dict.fromkeys(self._unknown(prompt))) if self.knows else []
        if not unknown:
            return None
        knows, self.knows = self.knows, ""
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        return f"this checkpoint knows only {knows}; unknown to it: {', '.join(unknown[:NAMED])}{more}"

    def _unknown(self, prompt: str) -> Iterator[str]:
        """The words that are neither the card's nor a token as a whole, as each word of a small world is."""
        for word in re.findall(r"[^\W\d_]{2,}", re.sub("<image>|<dream>", " ", prompt)):
            forms = (word, word.lower(), word.capitalize())
            if word.lower() not in self.words and all(len(self.tokenizer.tokenize(form)) > 1 for form in forms):
                yield word[:40]
