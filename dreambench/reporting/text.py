"""Text that models and data wrote, made safe for where it is shown."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["latex", "markdown", "printable"]

# Characters that reverse what follows them, so that a reader sees another text than a program does.
DIRECTION = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Cc: control characters, with which text commands a terminal; Cs: halves of pairs, which no encoding takes; Zl, Zp: line breaks.
ACTIVE = frozenset({"Cc", "Cs", "Zl", "Zp"})
MARKDOWN = re.compile(r"([\\`*_{}\[\]<>~|&$#])")
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "…": r"\ldots{}",
    **{special: f"\\{special}" for special in "{}$&#_%"},
    # After the end of a row, these would be its options.
    **{option: f"{{{option}}}" for option in "[]*"},
}


def printable(text: str, keep: str = "") -> str:
    r"""`text` with control characters, line breaks and changes of direction written out (``\x1b``), but for those in `keep`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode()
        if character not in keep and (unicodedata.category(character) in ACTIVE or character in DIRECTION)
        else character
        for character in text
    )


def markdown(text: str) -> str:
    """A cell of a Markdown table that renders as `text`."""
    return MARKDOWN.sub(r"\\\1", printable(text))


def latex(text: str) -> str:
    """A cell of a LaTeX table that prints as `text`."""
    return "".join(LATEX.get(character, character) for character in printable(text))
