"""Small changes of a source file, each of which a good test suite should notice.

Python is changed where its syntax tree says, C++ where its tokens do, which clang-format keeps
apart: a binary operator has a space on either side, a pointer or a template has not. Left alone is
what no result depends on: comments, types, texts of errors, prefetches and the sharing of work.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple


class Mutation(NamedTuple):
    """One change: the text between two offsets of a file gives way to another."""

    file: str
    start: int
    end: int
    kind: str
    new: str

    def applied(self, source: str) -> str:
        return source[: self.start] + self.new + source[self.end :]


def identity(mutation: Mutation, source: str) -> str:
    """A name that stays while other lines of the file change."""
    begin = source.rfind("\n", 0, mutation.start) + 1
    line = source[begin:].partition("\n")[0]
    parts = (
        mutation.file, line.strip(),
        [other.strip() for other in source[:begin].splitlines()].count(line.strip()),
        mutation.start - begin - (len(line) - len(line.lstrip())),
        source[mutation.start : mutation.end], mutation.new,
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:10]


def mutations(file: str, source: str) -> list[Mutation]:
    """All changes of a source file, in order.

    Example:
        >>> [m.applied("a < 1\\n") for m in mutations("a.py", "a < 1\\n")]
        ['a <= 1\\n', 'a < 2\\n']
    """
    found = _python(file, source) if Path(file).suffix == ".py" else _cpp(file, source)
    return sorted(set(found))


ARITHMETIC = {"+": "-", "-": "+", "*": "+", "/": "*", "//": "*", "%": "*", "**": "*"}
COMPARISON = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==",
    "is": "is not", "is not": "is", "in": "not in", "not in": "in",
}  # fmt: skip
BITS = {"&": "|", "|": "&", "<<": ">>", ">>": "<<"}
# Functions that do not care about the order of their first two arguments, or must notice.
SYMMETRIC = {"max", "min", "equal", "min_of", "max_of", "fma", "mul", "add", "isinstance"}

# ---- Python

TOKENS = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%",
    ast.Pow: "**", ast.BitAnd: "&", ast.BitOr: "|", ast.LShift: "<<", ast.RShift: ">>",
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
    ast.Is: "is", ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in",
    ast.And: "and", ast.Or: "or",
}  # fmt: skip


def _python(file: str, source: str) -> Iterator[Mutation]:
    starts = [0]
    for text in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(text))
    raw = source.encode()

    def at(line: int, column: int) -> int:
        return len(raw[: starts[line - 1] + column].decode())

    def span(node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset)

    def between(left: ast.expr, right: ast.expr, token: str) -> tuple[int, int]:
        begin, end = span(left)[1], span(right)[0]
        pattern = re.escape(token).replace(r"\ ", r"\s+")
        match = re.search(pattern, source[begin:end])
        assert match is not None
        return begin + match.start(), begin + match.end()

    for node in _kept(ast.parse(source)):
        match node:
            case ast.BinOp(left, op, right) if type(op) in TOKENS:
                token = TOKENS[type(op)]
                new = (ARITHMETIC | BITS)[token]
                yield Mutation(file, *between(left, right, token), "arithmetic", new)
            case ast.Compare(left, ops, comparators):
                for a, op, b in zip([left, *comparators], ops, comparators, strict=False):
                    token = TOKENS[type(op)]
                    yield Mutation(file, *between(a, b, token), "comparison", COMPARISON[token])
            case ast.BoolOp(op, values):
                token = TOKENS[type(op)]
                new = "or" if token == "and" else "and"
                for a, b in pairwise(values):
                    yield Mutation(file, *between(a, b, token), "boolean", new)
            case ast.UnaryOp(ast.Not(), operand):
                yield Mutation(file, span(node)[0], span(operand)[0], "boolean", "")
            case ast.Constant(bool() as value):
                yield Mutation(file, *span(node), "boolean", str(not value))
            case ast.Constant(int() as value):
                yield Mutation(file, *span(node), "constant", str(value + 1))
            case ast.AugAssign(target, op, value) if type(op) in TOKENS:
                begin, end = between(target, value, TOKENS[type(op)] + "=")
                new = (ARITHMETIC | BITS)[TOKENS[type(op)]] + "="
                yield Mutation(file, begin, end, "arithmetic", new)
            case ast.Call(func, [first, second, *_]) if not isinstance(first, ast.Starred):
                a, b = source[slice(*span(first))], source[slice(*span(second))]
                name = ast.unparse(func).rpartition(".")[2]
                plain = not isinstance(second, ast.Starred) and not _is_text(first)
                if a != b and plain and name not in SYMMETRIC:
                    begin, end = span(first)[0], span(second)[1]
                    gap = source[span(first)[1] : span(second)[0]]
                    yield Mutation(file, begin, end, "swapped arguments", b + gap + a)
        if isinstance(node, (ast.If, ast.While, ast.IfExp)):
            if isinstance(node.test, (ast.Name, ast.Attribute, ast.Call)):
                begin, end = span(node.test)
                yield Mutation(file, begin, end, "boolean", f"(not {source[begin:end]})")
        elif _deletable(node):
            yield Mutation(file, *span(node), "deleted statement", "pass")


def _is_text(node: ast.expr) -> bool:
    """Whether it is the name of an argument or the beginning of a message: nobody swaps those."""
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _deletable(node: ast.AST) -> bool:
    match node:
        case ast.Raise() | ast.AugAssign() | ast.Continue() | ast.Break():
            return True
        case ast.Expr(ast.Call()):
            return True
        case ast.Assign([ast.Attribute() | ast.Subscript()]):
            return True
    return False


def _kept(node: ast.AST) -> Iterator[ast.AST]:
    """Walk a tree, but for annotations, decorators and what makes the text of an error."""
    yield node
    for name, value in ast.iter_fields(node):
        left_out = name in ("annotation", "returns", "decorator_list", "type_params")
        if left_out or (isinstance(node, ast.Raise) and name in ("exc", "cause")):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr):
                yield from _kept(child)


# ---- C++

# Blanked out: comments, texts, preprocessor lines, template heads, what only speed depends on.
HIDDEN = re.compile(
    r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])'|^[ ]*#[^\n]*"
    r"|^[ ]*template <[^;{]*?>$|^[^\n]*(?:prefetch|expect_unpack|\bfar\b|k\w+Cost\b)[^\n]*",
    re.MULTILINE | re.DOTALL,
)
MESSAGE = re.compile(r"TORCH_CHECK\w*\(")
BINARY = re.compile(r"(?<= )(<=|>=|==|!=|&&|\|\||<<|>>|[-+*/%<>&|])(?=\s)")
ASSIGNING = re.compile(r"(?<= )(\+|-|\*|/|\||&)=(?= )")
INTEGER = re.compile(r"(?<![\w.'])(\d+)(?![\w.'])")
WORDS = {"true": "false", "false": "true", "min_of": "max_of", "max_of": "min_of",
         "std::min": "std::max", "std::max": "std::min"}  # fmt: skip
WORD = re.compile(r"\b(" + "|".join(WORDS) + r")\b")
NOT = re.compile(r"!(?=[\w(])")
SIMPLE = r"[A-Za-z_][\w.\[\]]*"
TWO_ARGUMENTS = re.compile(rf"\b([A-Za-z_]\w*)(?:<[\w, ]+>)?\(({SIMPLE}), ({SIMPLE})(?=[,)])")
STATEMENT = re.compile(
    r"^[ ]*((?!return\b|if\b|for\b|using\b|else\b|case\b)"
    r"(?:[\w.:\[\]()*>+-]+(?: [-+|&*/]?= [^;\n{}]*)|[\w.:<>]+\([^;\n]*\)(?:\.\w+\([^;\n]*\))*"
    r"|continue|break));$",
    re.MULTILINE,
)


def _cpp(file: str, source: str) -> Iterator[Mutation]:
    plain = _masked(source)
    boolean = {"&&": "||", "||": "&&"}
    for match in BINARY.finditer(plain):
        for kind, table in (
            ("arithmetic", ARITHMETIC | BITS), ("comparison", COMPARISON), ("boolean", boolean)
        ):  # fmt: skip
            if match[1] in table:
                yield Mutation(file, match.start(), match.end(), kind, table[match[1]])
    for match in ASSIGNING.finditer(plain):
        new = (ARITHMETIC | BITS)[match[1]]
        yield Mutation(file, match.start(), match.end(), "arithmetic", f"{new}=")
    for match in INTEGER.finditer(plain):
        yield Mutation(file, match.start(), match.end(), "constant", str(int(match[1]) + 1))
    for match in WORD.finditer(plain):
        yield Mutation(file, match.start(), match.end(), "boolean", WORDS[match[1]])
    for match in NOT.finditer(plain):
        yield Mutation(file, match.start(), match.end(), "boolean", "")
    for match in TWO_ARGUMENTS.finditer(plain):
        if match[2] != match[3] and match[1] not in SYMMETRIC:
            yield Mutation(
                file, match.start(2), match.end(3), "swapped arguments", f"{match[3]}, {match[2]}"
            )
    for match in STATEMENT.finditer(plain):
        yield Mutation(file, match.start(1), match.end(1), "deleted statement", "")


def _masked(source: str) -> str:
    """The source with blanks for what is not mutated, every character in its place."""
    blank = re.compile(r"[^\n]")
    plain = HIDDEN.sub(lambda match: blank.sub(" ", match[0]), source)
    for match in MESSAGE.finditer(plain):
        depth, at, text = 1, match.end(), 0
        while depth:
            depth += {"(": 1, ")": -1}.get(plain[at], 0)
            text = text or (at if source[at] == '"' and plain[at] == " " else 0)
            at += 1
        if text:
            plain = plain[:text] + blank.sub(" ", plain[text : at - 1]) + plain[at - 1 :]
    return plain
