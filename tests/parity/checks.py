"""One comparison of a recorded value with ours, and the three questions asked of every fixture folder.

A parity module yields `Check`s. Beside them it lists `Exempt`ions. `problems` says which values differ, `uncovered` which leaves
of the fixture files are neither compared nor exempt, and `unnoticed` which checks miss an error of ten times their tolerance.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def fixture_folder(variable: str, default: str) -> Path | None:
    """The folder an environment variable names, else `default` beside the checkout; None when there is none.

    A folder that is named but missing is an error: a test run that was pointed somewhere must not skip.
    """
    named = os.environ.get(variable)
    folder = Path(named) if named else ROOT / default
    if folder.is_dir():
        return folder
    if named:
        raise FileNotFoundError(f"{variable}={named} is not a folder")
    return None


def score_folder(name: str) -> Path:
    """The recorded values of one score; without them the module that asks is skipped."""
    root = fixture_folder("DREAMBENCH_GOLDEN", "../shared/golden/scores")
    if root is None or not (root / name).is_dir():
        pytest.skip(f"no recorded scores/{name} (DREAMBENCH_GOLDEN)", allow_module_level=True)
    return root / name


@dataclass(frozen=True)
class Check:
    """`actual` (ours) against `expected` (recorded): equal where both tolerances are 0, else within atol + rtol * |expected|.

    `key` names the leaf of the fixture, for instance ``expected.json:accuracy/overall``. `mask` (bool, broadcastable) says where
    the recorded array means anything, for instance where the attention mask is 1.
    """

    key: str
    expected: Any
    actual: Any
    atol: float = 0.0
    rtol: float = 0.0
    mask: Any = None

    @property
    def exact(self) -> bool:
        return self.atol == 0 and self.rtol == 0

    def problem(self) -> str | None:
        """None when the values agree, else one line that says how far apart they are."""
        if isinstance(self.expected, str | bool | type(None) | dict) or isinstance(
            self.actual, str | type(None) | dict
        ):
            same = type(self.expected) is type(self.actual) and self.expected == self.actual
            return None if same else f"{self.key}: recorded {self.expected!r}, ours {self.actual!r}"
        expected, actual = np.asarray(self.expected), np.asarray(self.actual)
        if expected.shape != actual.shape:
            return f"{self.key}: recorded shape {expected.shape}, ours {actual.shape}"
        if expected.dtype.kind in "USO" or self.exact:
            same = np.array_equal(expected, actual, equal_nan=expected.dtype.kind == "f")
            return None if same else f"{self.key}: differs (must be equal)"
        expected, actual = expected.astype(np.float64), actual.astype(np.float64)
        if self.mask is not None:
            keep = np.broadcast_to(np.asarray(self.mask, dtype=bool), expected.shape)
            if not keep.any():
                return f"{self.key}: the mask leaves nothing to compare"
            expected, actual = expected[keep], actual[keep]
        close = np.isclose(actual, expected, rtol=self.rtol, atol=self.atol, equal_nan=True)
        if close.all():
            return None
        worst = float(np.nanmax(np.abs(actual - expected)))
        return f"{self.key}: off by up to {worst:.3g} (atol {self.atol:g}, rtol {self.rtol:g}) in {int((~close).sum())} places"

    def perturbed(self) -> Check:
        """The same check with one recorded element moved by ten times the tolerance (changed at all, where it must be equal)."""
        if isinstance(self.expected, str | bool | type(None) | dict):
            return replace(self, expected=f"not {self.expected}")
        expected = np.array(self.expected, order="C")
        if expected.dtype.kind in "USO":
            return replace(self, expected=np.char.add(expected.astype(str), "~"))
        if expected.dtype.kind == "b":
            return replace(self, expected=~expected)
        if expected.size == 0:
            return replace(self, expected=np.zeros((1, *expected.shape)))
        if expected.dtype.kind == "f" or not self.exact:
            expected = expected.astype(np.float64)
        flat = expected.reshape(-1)
        keep = (
            np.ones(expected.shape, bool)
            if self.mask is None
            else np.broadcast_to(np.asarray(self.mask, bool), expected.shape)
        )
        index = int(np.flatnonzero(keep.reshape(-1))[0])
        flat[index] += 1 if self.exact else 10 * (self.atol + self.rtol * abs(flat[index]))
        return replace(self, expected=expected)


@dataclass(frozen=True)
class Exempt:
    """Leaves of a fixture that are not compared, by `fnmatch` pattern, and why."""

    pattern: str
    reason: str


def leaves(value: Any, prefix: str) -> Iterator[str]:
    """The paths of a JSON value's leaves: ``file:a/b``; a list of scalars is one leaf."""
    if isinstance(value, dict) and value:
        separator = "/" if ":" in prefix else ":"
        for name, child in value.items():
            yield from leaves(child, f"{prefix}{separator}{name}")
    elif isinstance(value, list) and any(isinstance(child, dict) for child in value):
        separator = "/" if ":" in prefix else ":"
        for index, child in enumerate(value):
            yield from leaves(child, f"{prefix}{separator}{index}")
    else:
        yield prefix


def problems(checks: Sequence[Check]) -> list[str]:
    """One line for each value that differs."""
    assert checks, "nothing was compared"
    return [problem for check in checks if (problem := check.problem())]


def unnoticed(checks: Sequence[Check]) -> list[str]:
    """The keys of the checks that an error of ten tolerances passes."""
    return [check.key for check in checks if check.perturbed().problem() is None]


def uncovered(all_keys: Sequence[str], checks: Iterable[Check], exemptions: Iterable[Exempt]) -> list[str]:
    """The keys that are neither compared nor exempt."""
    assert all_keys, "nothing was recorded"
    compared = {check.key for check in checks}
    patterns = [exemption.pattern for exemption in exemptions]
    return [
        key
        for key in all_keys
        if key not in compared and not any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)
    ]
