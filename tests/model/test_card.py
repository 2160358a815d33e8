"""Outside the world that its card names, a checkpoint says once, in one line on stderr, what it knows."""

from __future__ import annotations

import sys

import pytest

from dreamllm import cli
from dreamllm.card import WorldNotice
from dreamllm.checkpoint import save

CARD = "---\nlicense: mit\nknows: colored shapes\nwords: [sofa, Please]\n---\n\n# A model\n"


def notice(folder, processor, card: str | None = CARD) -> WorldNotice:
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    return WorldNotice(folder, processor.tokenizer)


@pytest.mark.parametrize(
    "prompt",
    [
        "A red circle, on the left of a blue circle.",
        "<image> WHAT color is the Triangle? A, B or C?",
        "Draw a yellow star on a SOFA please: 3 + 4",
        "",
    ],
)
def test_a_prompt_of_its_words_is_within_the_world(tmp_path, processor, prompt) -> None:
    assert notice(tmp_path, processor).about(prompt) is None


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("a cat", "cat"),
        ("a red Cat, a cat and a dog", "Cat, cat, dog"),
        ("an astronaut rides horses under palms", "astronaut, rides, horses and 1 more"),
        ("eine Katze", "eine, Katze"),
        ("кот", "кот"),
        ("一只猫", "一只猫"),
    ],
)
def test_another_word_is_named_and_only_once(tmp_path, processor, prompt, unknown) -> None:
    said = notice(tmp_path, processor)
    assert said.about(prompt) == f"this checkpoint knows only colored shapes; unknown to it: {unknown}"
    assert said.about(prompt) is None


@pytest.mark.parametrize(
    "card",
    [
        None,
        "# A model\n",
        "---\nlicense: mit\n---\n",
        "---\nknows: [\n---\n",
        "---\n- knows\n---\n",
        "---\nknows:\n---\n",
    ],
)
def test_without_a_world_there_is_no_notice(tmp_path, processor, card) -> None:
    """As in released checkpoints, and with cards that are broken."""
    assert notice(tmp_path, processor, card).about("a cat") is None


def test_every_verb_says_it_once_on_stderr(monkeypatch, capsys, tmp_path, model, processor) -> None:
    save(tmp_path / "m", model, processor)
    (tmp_path / "m" / "README.md").write_text(
        CARD.replace("colored shapes", r'"col\x1bored\n shapes"'), encoding="utf-8"
    )
    lines = iter(["a red circle", "a cat", "another cat"])

    def say(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", say)
    for command in (
        ["generate", "a cat", "--max-new-tokens", "2"],
        ["generate-image", "a cat", str(tmp_path / "x.png"), "--steps", "1"],
        ["generate-interleaved", "a cat", str(tmp_path / "d"), "--max-new-tokens", "2", "--max-images", "0"],
        ["chat", "--max-new-tokens", "2"],
    ):
        monkeypatch.setattr(sys, "argv", ["dreamllm", *command, "--model", str(tmp_path / "m"), "--device", "cpu"])
        with pytest.raises(SystemExit):
            cli.main()
        output = capsys.readouterr()
        said = [line for line in output.err.splitlines() if "knows only" in line]
        assert len(said) == 1, command
        assert said[0].startswith("dreamllm: this checkpoint knows only ")
        assert "\x1b" not in said[0]
        assert "knows only" not in output.out
