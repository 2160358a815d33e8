"""list, doctor."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

__all__ = ["doctor", "list_"]


class What(StrEnum):
    """What can be listed."""

    tasks = "tasks"
    models = "models"
    protocols = "protocols"


def list_(what: Annotated[What, typer.Argument(help="tasks, models or protocols.")]) -> None:
    """Name what is there.

    Example: dreambench list tasks
    """
    from dreambench.listing import models, protocols, tasks

    for line in {What.tasks: tasks, What.models: models, What.protocols: protocols}[what]():
        print(line)


def doctor() -> None:
    """Say what this machine has, what is missing, where it was looked for, and what to do about it.

    Example: dreambench doctor
    """
    from dreambench.doctor import examine

    for line in examine():
        print(line)
