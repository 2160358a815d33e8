"""The command line. Each verb is a plain function that reads options and calls the Python API."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Generator
from importlib import metadata
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

__all__ = ["main"]

INTERRUPTED, TERMINATED = 130, 143
LONGEST = 1000
"""Characters of an error's line."""
RESUMES = "interrupted: every stored answer is kept; run the same command again to resume"


class _Commands(TyperGroup):
    """Also offers the typer applications of the entry-point group `dreambench.commands`, loaded when called or listed."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *sorted(metadata.entry_points(group="dreambench.commands").names)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        entries = () if own else metadata.entry_points(group="dreambench.commands", name=cmd_name)
        return next((get_group(entry.load()) for entry in entries), own)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit status.

    0 done, 1 a threshold missed, 2 the user must act, 130 interrupted by Ctrl-C, 143 by SIGTERM.
    """
    from dreambench.errors import DreambenchError, refusal
    from dreambench.safety import redacted_output

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without a dash is no reason to lose a table
    with redacted_output(), _stopped_by_sigterm() as interrupted:
        status: object = 0
        try:
            # Not standalone, the parser gives a verb's `typer.Exit`, and Ctrl-C, back as a number.
            status = _build()(args=arguments, prog_name="dreambench", standalone_mode=False)
            sys.stdout.flush()
        except KeyboardInterrupt:
            _leave(RESUMES, interrupted())
        except DreambenchError as error:
            _leave(f"error: {error}", error.exit_status)
        except (OSError, SystemExit) as error:
            # The parser turns a broken pipe into an exit.
            if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
                _drop_output()  # its reader has left (`| head`); there is nobody to tell
                sys.exit(0)
            if isinstance(error, SystemExit):
                raise
            # A full disk, a folder that may not be written, a file where a folder should be: the user's to solve.
            _drop_output()
            _leave(f"error: {refusal(error)}", 2)
        except MemoryError:
            _leave("error: out of memory; allow more (`ulimit -v`), or ask for less at a time", 2)
        except Exception as error:
            _leave_if_usage(error, interrupted())
            traceback.print_exc()
            sys.exit(1)
        if status == INTERRUPTED:
            _leave(RESUMES, interrupted())
    sys.exit(status if isinstance(status, int) else 0)


@contextlib.contextmanager
def _stopped_by_sigterm() -> Generator[Callable[[], int]]:
    """SIGTERM interrupts like Ctrl-C, so that locks are released; gives the exit status of an interruption."""
    owner, status = os.getpid(), INTERRUPTED

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal status
        signal.signal(
            number, signal.SIG_IGN if os.getpid() == owner else signal.SIG_DFL
        )  # a second one does not disturb
        if os.getpid() != owner:  # a process that a library has forked
            os.kill(os.getpid(), number)
            return
        status = TERMINATED
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield lambda: status
        return
    try:
        yield lambda: status
    finally:
        signal.signal(signal.SIGTERM, before)


def _drop_output() -> None:
    """What is left in stdout's buffer cannot be written; the interpreter would try again at the end, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _build() -> typer.Typer:
    """The whole application. No verb loads its machinery before it runs, so that ``--help`` is quick."""
    from dreambench.cli import exchange, human, leaderboard, runs, tools

    app = typer.Typer(
        cls=_Commands,
        help="Evaluate models that understand and generate images: exact, resumable, every score with protocol and interval.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )

    @app.callback(invoke_without_command=True)
    def version(  # pyright: ignore[reportUnusedFunction] - typer calls it
        version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
    ) -> None:
        if version:
            print(f"dreambench {metadata.version('dreambench')}")
            raise typer.Exit

    for verb in (
        runs.run,
        runs.score,
        runs.rerun,
        runs.report,
        runs.compare,
        tools.fid,
        tools.fid_stats,
        tools.bench,
        tools.doctor,
    ):
        app.command(verb.__name__.replace("_", "-"))(verb)
    app.command("export")(exchange.export)
    app.command("contamination")(exchange.contamination)
    app.command("list")(tools.list_)
    app.command("leaderboard")(leaderboard.leaderboard)
    app.add_typer(human.human, name="human")
    return app


def _leave_if_usage(error: Exception, interrupted: int) -> None:
    """The parser's own complaints, in our one-line form."""
    status = getattr(error, "exit_code", None)
    if status is None:
        return
    if type(error).__name__ == "Abort":
        _leave(RESUMES, interrupted)
    message = getattr(error, "format_message", lambda: "")()
    if message:
        _leave(f"error: {' '.join(message.split()).replace('Value error, ', '')} (--help shows an example)", 2)
    sys.exit(status)


def _leave(line: str, status: int) -> None:
    from dreambench.safety import printable

    text = printable(" ".join(line.split()))
    if len(text) > LONGEST:  # a file's megabyte in the place of a name
        text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
    print(f"dreambench: {text}", file=sys.stderr)
    sys.exit(status)
