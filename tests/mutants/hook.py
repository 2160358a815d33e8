"""Loads the package's modules otherwise than they stand on disk: one of them mutated, or all of them noting which statements run.

Works in the process of the tests and, copied as `sitecustomize.py` into a folder on PYTHONPATH, in every Python process that a test starts.
It imports nothing but the standard library.
"""

from __future__ import annotations

import ast
import builtins
import os
import sys
from collections.abc import Callable, Iterator
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

PACKAGES = ("dreambench", "dreambench_tasks", "dreamllm")
ROOT, MUTANT, HITS = "MUTANTS_ROOT", "MUTANTS_SOURCE", "MUTANTS_HITS"  # environment variables
Function = (ast.FunctionDef, ast.AsyncFunctionDef)


def header(statement: ast.stmt) -> str:
    """The statement on one line, of a compound one only what precedes its body. It survives moves and another formatting."""
    if isinstance(statement, (*Function, ast.ClassDef)):
        return f"def {statement.name}"
    shallow: dict[str, Any] = dict(ast.iter_fields(statement))
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        if name in shallow:
            shallow[name] = [ast.Pass()] if name == "body" else []
    if isinstance(statement, ast.Try | ast.TryStar):
        return "try"
    text = ast.unparse(ast.fix_missing_locations(type(statement)(**shallow)))
    return " ".join(text.removesuffix("pass").split())


def statements(tree: ast.Module) -> Iterator[tuple[str, ast.stmt, list[ast.stmt]]]:
    """Every statement inside functions, with the qualified name of its function and the list that holds it."""

    def visit(node: ast.AST, names: tuple[str, ...], inside: bool) -> Iterator[tuple[str, ast.stmt, list[ast.stmt]]]:
        for _, value in ast.iter_fields(node):
            if not isinstance(value, list):
                continue
            for child in list(value):
                if isinstance(child, ast.stmt):
                    if inside:
                        yield ".".join(names), child, value
                    if isinstance(child, (*Function, ast.ClassDef)):
                        yield from visit(child, (*names, child.name), isinstance(child, Function))
                        continue
                if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
                    yield from visit(child, names, inside)

    yield from visit(tree, (), False)


def instrumented(source: str, path: str) -> ast.Module:
    """The module with a call before every statement of its functions; `path` is relative to the repository."""
    tree = ast.parse(source)
    for function, statement, block in list(statements(tree)):
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # a docstring must stay first
        key = f"{path}::{function}::{header(statement)}"
        call = ast.parse(f"__statement_runs__({key!r})").body[0]
        for node in ast.walk(call):
            ast.copy_location(node, statement)
        block.insert(next(i for i, other in enumerate(block) if other is statement), call)
    return tree


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, code: Callable[[str], CodeType]) -> None:
        super().__init__(name, path)
        self._code = code

    def get_code(self, fullname: str) -> CodeType:
        return self._code(self.path)


class _Finder(MetaPathFinder):
    """Compiles the modules for which `code` (a function of the file's path) has something else to say."""

    def __init__(self, code: Callable[[str], CodeType], chosen: Callable[[str], bool]) -> None:
        self._code, self._chosen = code, chosen

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in PACKAGES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or not isinstance(spec.loader, SourceFileLoader) or not self._chosen(spec.loader.path):
            return None
        spec.loader = _Loader(spec.loader.name, spec.loader.path, self._code)
        return spec


def load_mutant(path: str, source: str) -> None:
    """From now on the file `path` is imported with this source."""
    sys.meta_path.insert(0, _Finder(lambda _: compile(source, path, "exec", dont_inherit=True), lambda p: p == path))


SEEN: set[str] = set()


def note_hits(log: str, root: str, compiled: dict[str, CodeType] | None = None) -> None:
    """From now on each statement that runs is written to the file `log`, once for each test: `test<tab>statement`."""
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def runs(key: str) -> None:
        if key not in SEEN:
            SEEN.add(key)
            test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
            os.write(out, f"{test}\t{key}\n".encode(errors="backslashreplace"))

    def code(path: str) -> CodeType:
        if compiled and path in compiled:
            return compiled[path]
        tree = instrumented(Path(path).read_text("utf-8"), os.path.relpath(path, root))
        return compile(tree, path, "exec", dont_inherit=True)

    builtins.__statement_runs__ = runs  # type: ignore[attr-defined]
    sys.meta_path.insert(0, _Finder(code, lambda path: path.startswith(root)))


if __name__ == "sitecustomize":
    if MUTANT in os.environ:
        changed, _, file = os.environ[MUTANT].partition("\n")
        load_mutant(file, Path(changed).read_text("utf-8"))
    elif HITS in os.environ:
        note_hits(os.environ[HITS], os.environ[ROOT])
