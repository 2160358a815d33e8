"""What the documentation shows is so: its commands run and print what is shown, its Python runs, its links lead somewhere.

- In a ``console`` block, a line ``$ command`` is run and the lines after it are its whole output (stdout and stderr), compared by form:
  numbers and hashes match any others, ``...`` matches anything, runs of spaces and dashes of tables match each other.
- A command with a placeholder in capital letters (``DIR``, ``dreamllm:DIR``), and every command in another kind of block, is only parsed:
  its verb and options must exist.
- ``python`` blocks are run, in order, in one namespace; a ``text`` block directly after one is its output. A block whose fence names a
  file (``python examples/...``) is a part of that file, letter by letter; ``python fragment`` is only compiled.

A page's commands and code share a temporary folder. Commands run in this process, which has loaded torch already.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("dreambench", "dreamllm")
PLACEHOLDER = re.compile(r"(?<![\w-])[A-Z]{2,}(?:\.\w+)?(?![\w=-])")


class Block(NamedTuple):
    """A fenced block: the two words after the fence, its text, and the line it starts on."""

    language: str
    option: str
    text: str
    line: int
    follows: bool
    """Whether nothing but blank lines separates it from the block before."""


def blocks(page: Path) -> Iterator[Block]:
    text, end = page.read_text(encoding="utf-8"), 0
    for match in re.finditer(r"^( *)```(\w*) *([^\n]*)\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL):
        between = text[end : match.start()]
        body = re.sub(rf"^{match[1]}", "", match[4], flags=re.MULTILINE)
        yield Block(match[2], match[3], body, text.count("\n", 0, match.start()) + 1, bool(end) and not between.strip())
        end = match.end()


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """(command, expected output) of the ``$`` lines of a block; a line that ends with a backslash goes on."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, output = part.replace("\\\n", " ").partition("\n")
        yield command.strip(), output


def program_arguments(command: str) -> tuple[str, list[str]] | None:
    """(program, arguments) of a command of ours, without ``uv run``, a comment, or a pipe."""
    try:
        words = shlex.split(re.sub(r"\$\(.*?\)", "RUN", command.removeprefix("uv run ")), comments=True)
    except ValueError:
        return None
    if not words or words[0] not in PROGRAMS:
        return None
    arguments = words[1:]
    for mark in ("|", ">", "&&"):
        if mark in arguments:
            arguments = arguments[: arguments.index(mark)]
    return words[0], arguments


def parser(program: str) -> Any:
    import typer

    if program == "dreambench":
        from dreambench.cli import _build

        found = _build()
    else:
        from dreamllm.cli import app as found
    return typer.main.get_command(found) if isinstance(found, typer.Typer) else found


def check_parses(program: str, arguments: list[str], *, whole: bool) -> None:
    """The verb exists and has the options; where `whole`, the arguments are complete and of the right types as well."""
    command, words, name = parser(program), list(arguments), program
    while hasattr(command, "get_command") and words and not words[0].startswith("-"):
        name = words.pop(0)
        command = command.get_command(None, name)
        assert command is not None, f"{program} has no verb {name}"
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    used = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}
    assert used <= known, f"{program} {name} has no option {', '.join(sorted(used - known))}"
    if whole and "--help" not in words and not hasattr(command, "get_command"):
        try:
            command.make_context(name, words)
        except Exception as error:
            # Files of the example are made when the page runs.
            if "does not exist" not in str(error):
                pytest.fail(f"{program} {' '.join(arguments)}: {error}", pytrace=False)


def without_blocks(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def shell(command: str) -> str:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout


def run(command: str) -> str:
    """What a command prints, on both streams; programs other than ours, and ``$(...)``, run in a shell."""
    command = re.sub(r"\$\((.*?)\)", lambda match: shell(match[1]).strip(), command)
    ours = program_arguments(command)
    if ours is None:
        return shell(command)
    program, arguments = ours
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            if program == "dreambench":
                from dreambench.cli import main

                main(arguments)
            else:
                from dreamllm import cli

                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(sys, "argv", ["dreamllm", *arguments])
                    cli.main()
        except SystemExit as leaving:
            if leaving.code not in (0, None):
                pytest.fail(f"{command}: exit status {leaving.code}\n{printed.getvalue()}", pytrace=False)
    return printed.getvalue()


def form(expected: str) -> re.Pattern[str]:
    """A pattern that matches every output of the same form."""
    parts: list[str] = []
    for piece in re.split(
        r"(\.\.\.|\b[0-9a-f]{8,}\b|(?<!\w)-?\d[\d,]*(?:\.\d+)?|\d[\d,]*(?:\.\d+)?|\s+|[─━-]{3,})", expected.strip()
    ):
        if piece == "...":
            parts.append(r".*?")
        elif re.fullmatch(r"[0-9a-f]{8,}", piece):
            parts.append(r"[0-9a-f]+")
        elif re.fullmatch(r"-?\d[\d,]*(\.\d+)?", piece):
            parts.append(r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
        elif re.fullmatch(r"[─━-]{3,}", piece):
            parts.append(r"[─━-]+")
        elif piece.isspace():
            parts.append(r"\s+")
        else:
            parts.append(re.escape(piece))
    return re.compile("".join(parts), re.DOTALL)


def assert_form(printed: str, expected: str, where: str) -> None:
    if not form(expected).fullmatch(printed.strip()):
        pytest.fail(f"{where} printed\n{printed}\nwhich is not of the form\n{expected}", pytrace=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.filterwarnings("default")
def test_a_page_runs_as_it_stands(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("examples", "model"):  # commands run at the root of the repository
        (tmp_path / name).symlink_to(ROOT / name)
    namespace: dict[str, Any] = {"__name__": "documentation"}
    printed = None
    for block in blocks(page):
        where = f"{page.name}, line {block.line}"
        if "/" in block.option:
            assert block.text in (ROOT / block.option).read_text(encoding="utf-8"), f"{where}: not as in {block.option}"
        elif block.language == "python" and block.option == "fragment":
            compile(block.text, where, "exec")
        elif block.language == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(block.text, where, "exec"), namespace)  # noqa: S102 - our own documentation
            printed = output.getvalue()
            continue
        if block.language == "text" and block.follows and printed is not None:
            assert_form(printed, block.text, where)
        elif block.language == "console":
            for command, expected in commands(block):
                if not PLACEHOLDER.search(command):
                    assert_form(run(command), expected, f"{where}: {command}")
        printed = None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_has_its_verb_and_options(page: Path) -> None:
    for block in blocks(page):
        lines = block.text.replace("\\\n", " ").splitlines()
        shown = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        for line in shown or lines:
            ours = program_arguments(re.sub(r"[][]", "", re.split(r"\s{2,}", line)[0]))
            if ours is not None and block.language in ("console", "sh", "text", ""):
                check_parses(*ours, whole="..." not in line)
    for code in re.findall(r"`((?:dreambench|dreamllm) [^`]*)`", without_blocks(page)):
        ours = program_arguments(code)
        assert ours is not None, code
        check_parses(*ours, whole=False)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "examples/toybench/README.md"], ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, f"{page.name} links to {target}"
