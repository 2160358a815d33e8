"""The mutants of a source file: one small change each, as text, so that all other lines keep their numbers."""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tests.mutants.hook import Function, header

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
# Keyword arguments that are words for people, only assert (`strict` of zip) or say what is the default here (`encoding`).
WORDS = {"help", "description", "metavar", "rich_help_panel", "title", "desc", "epilog", "short_help"}
WORDS |= {"strict", "verbose", "encoding"}
# Calls that only talk to people; and os.kill, because a mutant must not signal a stranger.
TALK = {"print", "debug", "info", "log", "kill"}


@dataclass(frozen=True)
class Mutant:
    """One change. `key` names it by what is changed in which function, not by line."""

    path: str
    function: str  # qualified name; "" at module level
    statement: str  # the header of the statement it is in
    line: int
    start: tuple[int, int]  # line and utf-8 column of the changed text
    end: tuple[int, int]
    text: str  # what stands there instead
    before: str
    after: str
    kind: str
    number: int = 0  # among equal changes in one function

    @property
    def key(self) -> str:
        again = f" #{self.number + 1}" if self.number else ""
        return f"{self.path}::{self.function}: {self.before} -> {self.after}{again}"

    def apply(self, source: str) -> str:
        lines = source.encode().splitlines(keepends=True)
        first, last = self.start[0] - 1, self.end[0] - 1
        head, tail = lines[first][: self.start[1]], lines[last][self.end[1] :]
        lines[first : last + 1] = [head + self.text.encode() + tail]
        return b"".join(lines).decode()


def mutants(source: str, path: str) -> list[Mutant]:
    """All mutants of a file, in the order of its text."""
    visitor = _Visitor(path)
    visitor.block(ast.parse(source).body, "", "")
    counts: Counter[str] = Counter()
    numbered: list[Mutant] = []
    for mutant in visitor.found:
        numbered.append(replace(mutant, number=counts[mutant.key]))
        counts[mutant.key] += 1
    return numbered


def _one_line(node: ast.AST) -> str:
    text = header(node) if isinstance(node, ast.stmt) else ast.unparse(node)
    return " ".join(text.split())


class _Visitor:
    def __init__(self, path: str) -> None:
        self.path = path
        self.found: list[Mutant] = []
        self.prefix = ""  # of what is shown: the name of the argument whose default is changed

    # Statements ------------------------------------------------------------------------------------------------

    def block(self, body: list[ast.stmt], function: str, owner: str) -> None:
        for statement in body:
            self.statement(statement, function, owner)

    def statement(self, node: ast.stmt, function: str, owner: str) -> None:
        self.function, self.current = function, node
        if isinstance(node, ast.ClassDef):
            name = f"{owner}.{node.name}".lstrip(".")
            self.block(node.body, name, name)
        elif isinstance(node, Function):
            name = f"{owner}.{node.name}".lstrip(".")
            self.function = name
            for argument, default in _defaults(node.args):
                self.prefix = f"{argument}="
                self.expression(default, node.args)
            self.prefix = ""
            self.block(node.body, name, name)
        elif ast.unparse(node).startswith(("if TYPE_CHECKING", "__all__")):
            return
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            self.removals(node)
            for name, value in ast.iter_fields(node):
                if name in ("annotation", "target", "targets", "names", "msg", "type_params"):
                    continue
                if isinstance(node, ast.Raise | ast.Assert):
                    continue  # messages
                for child in value if isinstance(value, list) else [value]:
                    self.child(child, node, function, owner)

    def child(self, child: Any, parent: ast.AST, function: str, owner: str) -> None:
        if isinstance(child, ast.stmt):
            current = self.current
            self.statement(child, function, owner)
            self.function, self.current = function, current
        elif isinstance(child, ast.expr):
            self.expression(child, parent)
        elif isinstance(child, ast.excepthandler | ast.match_case):
            if isinstance(child, ast.match_case) and child.guard:
                self.expression(child.guard, child)
            self.block(child.body, function, owner)
        elif isinstance(child, ast.withitem):
            self.expression(child.context_expr, child)

    def removals(self, node: ast.stmt) -> None:
        match node:
            case ast.Raise() | ast.Continue() | ast.Break() if not isinstance(node, ast.Raise):
                other = ast.Break() if isinstance(node, ast.Continue) else ast.Continue()
                self.add("jump", node, ast.unparse(other))
            case ast.Raise():
                self.add("raise removed", node, "pass")
            case ast.Expr(value=ast.Call() as call) if _called(call) not in TALK:
                self.add("call removed", node, "pass")
            case ast.Expr(value=ast.Await()):
                self.add("call removed", node, "pass")
            case ast.Return(value=value) if value is not None:
                if not (isinstance(value, ast.Constant) and value.value is None):
                    self.add("return None", node, "return None")
            case ast.AugAssign(op=op) if type(op) in ARITHMETIC:
                changed = copy.copy(node)
                changed.op = ARITHMETIC[type(op)]()
                self.add("arithmetic", node, ast.unparse(changed))
            case ast.If(test=test) if not isinstance(test, ast.UnaryOp | ast.Compare | ast.BoolOp):
                self.swap("condition", test, ast.UnaryOp(ast.Not(), test), node)
            case ast.Delete():
                self.add("del removed", node, "pass")
            case _:
                pass

    # Expressions -----------------------------------------------------------------------------------------------

    def expression(self, node: ast.expr, parent: ast.AST) -> None:
        if isinstance(node, ast.JoinedStr):
            return  # nearly always a message
        if isinstance(node, ast.Call) and (_called(node) in TALK or _called(node) in ("cast", "TypeVar")):
            return
        for kind, changed in _changes(node):
            shown = (
                parent
                if isinstance(node, ast.Constant | ast.Slice) and isinstance(parent, ast.expr | ast.stmt)
                else node
            )
            self.swap(kind, node, changed, shown)
        for name, value in ast.iter_fields(node):
            if name == "annotation":
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.keyword):
                    if child.arg not in WORDS:
                        self.expression(child.value, node)
                elif isinstance(child, ast.comprehension):
                    self.comprehension(child)
                elif isinstance(child, ast.arguments):
                    for _, default in _defaults(child):
                        self.expression(default, child)
                elif isinstance(child, ast.expr):
                    thin = isinstance(node, ast.Slice | ast.UnaryOp) and isinstance(parent, ast.expr)
                    self.expression(child, parent if thin else node)  # shown with the text around it

    def comprehension(self, node: ast.comprehension) -> None:
        self.expression(node.iter, node)
        for test in node.ifs:
            self.swap("filter removed", test, ast.Constant(True), test)
            self.expression(test, node)

    # Text ------------------------------------------------------------------------------------------------------

    def swap(self, kind: str, node: ast.expr, changed: ast.expr, shown: ast.AST) -> None:
        """`changed` instead of `node`; `shown`, the node or one around it, is what the key shows."""
        before, after = _one_line(shown), ast.unparse(changed)
        if shown is not node:
            after = _one_line(_Replace(node, changed).visit(copy.copy(shown)) if _holds(shown, node) else changed)
        text = ast.unparse(changed)
        if not isinstance(node, ast.Slice):
            text = f"({text}" + "\n" * ((node.end_lineno or node.lineno) - node.lineno) + ")"
        self._found(kind, node, text, before, after)

    def add(self, kind: str, node: ast.stmt, text: str) -> None:
        lines = (node.end_lineno or node.lineno) - node.lineno
        self._found(kind, node, text + "\n" * lines, _one_line(node), text)

    def _found(self, kind: str, node: ast.stmt | ast.expr, text: str, before: str, after: str) -> None:
        start, end = (node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)
        before, after = _shortened(before, " ".join(after.split()))
        before, after = self.prefix + before, self.prefix + after
        statement = header(self.current)
        self.found.append(Mutant(self.path, self.function, statement, start[0], start, end, text, before, after, kind))


def _common(one: str, other: str) -> int:
    """How many characters the two begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _shortened(before: str, after: str, around: int = 40) -> tuple[str, str]:
    """Long texts without most of what they begin and end with in common."""
    head = _common(before, after)
    tail = min(_common(before[::-1], after[::-1]), min(len(before), len(after)) - head)
    if head > around + 10:
        before, after = ("…" + text[head - around :] for text in (before, after))
    if tail > around + 10:
        before, after = (text[: len(text) - tail + around] + "…" for text in (before, after))
    return before, after


class _Replace(ast.NodeTransformer):
    """Replaces one node, by identity, copying what lies around it."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        if node is self.old:
            return self.new
        return super().visit(copy.copy(node))

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for name, value in ast.iter_fields(node):
            if isinstance(value, list):
                setattr(node, name, [self.visit(item) if isinstance(item, ast.AST) else item for item in value])
            elif isinstance(value, ast.AST):
                setattr(node, name, self.visit(value))
        return node


def _holds(outer: ast.AST, inner: ast.AST) -> bool:
    return any(node is inner for node in ast.walk(outer))


def _defaults(arguments: ast.arguments) -> list[tuple[str, ast.expr]]:
    """The arguments that have a default, by name."""
    positional = [*arguments.posonlyargs, *arguments.args][-len(arguments.defaults) or len(arguments.args) + 1 :]
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    pairs = [*zip(positional, arguments.defaults, strict=False), *named]
    return [(argument.arg, default) for argument, default in pairs if default is not None]


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _changes(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    def changed(**fields: Any) -> Any:
        other = copy.copy(node)
        for name, value in fields.items():
            setattr(other, name, value)
        return other

    match node:
        case ast.Compare(ops=[op], comparators=[right]):
            for other in COMPARISONS[type(op)]:
                yield "comparison", changed(ops=[other()])
            if isinstance(right, ast.Constant) and isinstance(right.value, str) and right.value:
                yield "string", changed(comparators=[ast.Constant(f"{right.value}~")])
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                for other in COMPARISONS[type(op)]:
                    yield "comparison", changed(ops=[*ops[:i], other(), *ops[i + 1 :]])
        case ast.BinOp(op=op, left=left, right=right) if type(op) in ARITHMETIC:
            if not any(_is_text(side) for side in (left, right)):  # text and paths: a TypeError
                yield "arithmetic", changed(op=ARITHMETIC[type(op)]())
        case ast.BoolOp(op=op):
            yield "and/or", changed(op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not(), operand=operand) | ast.UnaryOp(op=ast.USub(), operand=operand):
            yield "not" if isinstance(node.op, ast.Not) else "sign", operand
        case ast.Constant(value=bool(value)):
            yield "boolean", ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield "number", ast.Constant(value + 1)
            if value not in (0, 0.0):
                yield "number", ast.Constant(value - 1)
        case ast.IfExp(body=body, orelse=orelse):
            yield "branches", changed(body=orelse, orelse=body)
        case ast.Slice(lower=lower, upper=upper, step=step):
            if lower is not None:
                yield "slice", changed(lower=None)
            if upper is not None:
                yield "slice", changed(upper=None)
            if step is not None:
                yield "slice", changed(step=None)
        case ast.Call(args=args, keywords=keywords):
            trivial = _called(node) in ("isinstance", "issubclass") or any(isinstance(a, ast.Starred) for a in args[:2])
            if len(args) >= 2 and not trivial and ast.dump(args[0]) != ast.dump(args[1]):
                yield "arguments swapped", changed(args=[args[1], args[0], *args[2:]])
            for i, keyword in enumerate(keywords):
                if keyword.arg and keyword.arg not in WORDS:
                    yield "keyword dropped", changed(keywords=[*keywords[:i], *keywords[i + 1 :]])
        case _:
            pass
