"""To come."""

from __future__ import annotations


def plan_study(*, mode: str) -> None:
    raise NotImplementedError
