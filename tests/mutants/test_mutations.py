"""The mutants of a file: valid, changed in one place, with the line numbers of the original."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.mutants.hook import instrumented
from tests.mutants.mutations import mutants

SOURCE = '''
def first(rows: list[int], limit: int = 3, *, strict: bool = True) -> int:
    """Not this 1 < 2."""
    if not rows and strict:
        raise ValueError(f"{limit + 1} are needed")
    rows.sort(
        key=abs,
    )
    print("talk", 1)
    total = sum(row for row in rows[1:] if row >= 0)
    return max(total, limit) if strict else -limit
'''


def test_the_mutants_of_a_function() -> None:
    found = [(mutant.before, mutant.after) for mutant in mutants(SOURCE, "a.py")]
    assert found == [
        ("limit=3", "limit=4"),
        ("limit=3", "limit=2"),
        ("strict=True", "strict=False"),
        ("not rows and strict", "not rows or strict"),
        ("not rows", "rows"),
        ("raise ValueError(f'{limit + 1} are needed')", "pass"),
        ("rows.sort(key=abs)", "pass"),
        ("rows.sort(key=abs)", "rows.sort()"),
        ("rows[1:]", "rows[:]"),
        ("rows[1:]", "rows[2:]"),
        ("rows[1:]", "rows[0:]"),
        ("row >= 0", "True"),
        ("row >= 0", "row > 0"),
        ("row >= 0", "row < 0"),
        ("row >= 0", "row >= 1"),
        ("return max(total, limit) if strict else -limit", "return None"),
        ("max(total, limit) if strict else -limit", "-limit if strict else max(total, limit)"),
        ("max(total, limit)", "max(limit, total)"),
        ("-limit", "limit"),
    ]


def test_a_mutant_parses_and_keeps_the_other_lines() -> None:
    path = Path(__file__).with_name("mutations.py")
    for source in (SOURCE, path.read_text("utf-8")):
        for mutant in mutants(source, "a.py")[::7]:
            changed = mutant.apply(source)
            assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))
            assert len(changed.splitlines()) == len(source.splitlines())
            after = mutant.end[0]
            assert changed.splitlines()[after:] == source.splitlines()[after:]


def test_each_statement_of_a_function_is_noted() -> None:
    ran: list[str] = []
    names = {"__statement_runs__": ran.append}
    exec(compile(instrumented(SOURCE, "a.py"), "a.py", "exec"), names)  # noqa: S102
    assert names["first"]([3, -1]) == 3  # type: ignore[operator]
    assert [key.removeprefix("a.py::first::").split("(")[0] for key in ran] == [
        "if not rows and strict:",
        "rows.sort",
        "print",
        "total = sum",
        "return max",
    ]
