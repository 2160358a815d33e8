"""The verbs, put together."""

from __future__ import annotations

import typer

from dreambench.cli import fid, inspect, playground, runs

__all__ = ["build"]


def build() -> typer.Typer:
    """The whole application. Loads no verb's machinery: each imports what it needs when it runs."""
    app = typer.Typer(
        help="Evaluate models that read and generate images: exact, resumable, every score with its protocol and its interval.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.command("run")(runs.run)
    app.command("score")(runs.score)
    app.command("rerun")(runs.rerun)
    app.command("report")(runs.report)
    app.command("fid")(fid.fid)
    app.command("fid-stats")(fid.fid_stats)
    app.add_typer(playground.app, name="playground")
    app.command("list")(inspect.list_)
    app.command("doctor")(inspect.doctor)
    return app
