"""From words as written to arguments as given: variables, substitutions, field splitting and globs."""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from firkin.drivers.memory.syntax import Arithmetic, Part, SyntaxFault, Text, Variable, Word, parse_word
from firkin.drivers.memory.tree import DIRECTORY, Fault, Tree

_GLOB = re.compile(r"[*?\[]")


@dataclass(slots=True)
class Variables:
    """A shell's memory: variables, which of them are exported, and positional parameters."""

    values: dict[str, str] = field(default_factory=dict)
    exported: set[str] = field(default_factory=set)
    arguments: list[str] = field(default_factory=list)
    name: str = "sh"
    status: int = 0
    pid: int = 0
    last_job: int = 0

    def lookup(self, name: str) -> str | None:
        special = {
            "?": str(self.status),
            "$": str(self.pid),
            "!": str(self.last_job or ""),
            "#": str(len(self.arguments)),
            "0": self.name,
            "-": "",
            "@": " ".join(self.arguments),
            "*": " ".join(self.arguments),
        }
        if name in special:
            return special[name]
        if name.isdigit():
            index = int(name) - 1
            return self.arguments[index] if index < len(self.arguments) else None
        return self.values.get(name)

    def environment(self) -> dict[str, str]:
        return {name: self.values[name] for name in self.values if name in self.exported}

    def copy(self) -> Variables:
        return Variables(
            dict(self.values), set(self.exported), list(self.arguments), self.name, self.status, self.pid, self.last_job
        )


Field = list[tuple[str, bool]]
Run = Callable[[str], Awaitable[str]]


class Expansion:
    """Expands words for one command. `run` executes a command substitution and returns its output."""

    def __init__(self, variables: Variables, tree: Tree, cwd: str, run: Run) -> None:
        self._variables = variables
        self._tree = tree
        self._cwd = cwd
        self._run = run

    async def text(self, word: Word) -> str:
        """The word as one string: no splitting, no globs."""
        return "".join([await self._value(part) for part in _with_home(word, self._variables)])

    async def arguments(self, words: list[Word]) -> list[str]:
        found: list[str] = []
        for word in words:
            for pieces in await self._fields(_with_home(word, self._variables)):
                found += self._globbed(pieces)
        return found

    async def _fields(self, word: Word) -> list[Field]:
        fields: list[Field] = []
        open_field = False
        for part in word:
            if isinstance(part, Variable) and part.name == "@" and part.quoted and not part.operator:
                pieces = list(self._variables.arguments)
            else:
                value = await self._value(part)
                split = not isinstance(part, Text) and not getattr(part, "quoted", False)
                if split:
                    open_field = _split_into(fields, value, open_field)
                    continue
                pieces = [value]
            for index, piece in enumerate(pieces):
                if not open_field or index:
                    fields.append([])
                fields[-1].append((piece, not isinstance(part, Text) or part.quoted))
                open_field = True
        return fields

    async def _value(self, part: Part) -> str:
        match part:
            case Text(text, _):
                return text
            case Arithmetic(text):
                return str(arithmetic(await self.text(parse_word(text)), self._variables))
            case Variable():
                return await self._variable(part)
            case _:
                return (await self._run(part.text)).rstrip("\n")

    async def _variable(self, part: Variable) -> str:
        value = self._variables.lookup(part.name)
        operator = part.operator
        if operator == "#" and not part.word:
            return str(len(value or ""))
        if operator in ("%", "%%", "#", "##"):
            return _trimmed(value or "", operator, await self.text(parse_word(part.word)))
        present = bool(value) if operator.startswith(":") else value is not None
        match operator[-1:]:
            case "+":
                return await self.text(parse_word(part.word)) if present else ""
            case "-" | "=" | "?" if not present:
                word = await self.text(parse_word(part.word))
                if operator[-1] == "?":
                    raise SyntaxFault(f"{part.name}: {word or 'parameter not set'}")
                if operator[-1] == "=":
                    self._variables.values[part.name] = word
                return word
        return value or ""

    def _globbed(self, pieces: Field) -> list[str]:
        plain = "".join(text for text, _ in pieces)
        if not any(not quoted and _GLOB.search(text) for text, quoted in pieces):
            return [plain]
        pattern = "".join(_escape(text) if quoted else text for text, quoted in pieces)
        return sorted(self._matches(pattern)) or [plain]

    def _matches(self, pattern: str) -> list[str]:
        starts = ["/"] if pattern.startswith("/") else [""]
        for name in [name for name in pattern.split("/") if name]:
            starts = [found for start in starts for found in self._below(start, name)]
        return starts

    def _below(self, start: str, pattern: str) -> list[str]:
        try:
            _, node = self._tree.locate(posixpath.join(self._cwd, start))
        except Fault:
            return []
        if node.kind != DIRECTORY:
            return []
        names = [name for name in node.children if pattern.startswith(".") or not name.startswith(".")]
        return [posixpath.join(start, name) for name in names if fnmatch.fnmatchcase(name, pattern)]


def _with_home(word: Word, variables: Variables) -> Word:
    """A leading unquoted ``~`` or ``~/`` is the home directory."""
    tilde = bool(word) and word[0] == Text("~", False)
    if tilde and (len(word) == 1 or word[1] == Text("/", False)):
        return (Text(variables.lookup("HOME") or "/", True), *word[1:])
    return word


def _split_into(fields: list[Field], value: str, open_field: bool) -> bool:
    """Append the white-space separated pieces of `value`; says whether the last field is still open."""
    for index, piece in enumerate(value.split()):
        if index or not open_field or value[0].isspace():
            fields.append([])
        fields[-1].append((piece, False))
    if not value:
        return open_field
    return bool(value.strip()) and not value[-1].isspace()


def _escape(text: str) -> str:
    return _GLOB.sub(lambda match: f"[{match.group()}]", text)


def _trimmed(value: str, operator: str, pattern: str) -> str:
    cuts = range(len(value) + 1)
    if operator[0] == "%":
        order = reversed(cuts) if operator == "%" else iter(cuts)
        return next((value[:cut] for cut in order if fnmatch.fnmatchcase(value[cut:], pattern)), value)
    order = iter(cuts) if operator == "#" else reversed(cuts)
    return next((value[cut:] for cut in order if fnmatch.fnmatchcase(value[:cut], pattern)), value)


_TOKEN = re.compile(r"\s*(\d+|[A-Za-z_]\w*|\*\*|<=|>=|==|!=|&&|\|\||[-+*/%()<>!])")
_PRECEDENCE = ({"||"}, {"&&"}, {"==", "!="}, {"<", ">", "<=", ">="}, {"+", "-"}, {"*", "/", "%"})


def arithmetic(text: str, variables: Variables) -> int:
    """The value of a shell arithmetic expression. Raises `SyntaxFault`."""
    tokens = [match.group(1) for match in _TOKEN.finditer(text)]
    if "".join(tokens) != re.sub(r"\s", "", text):
        raise SyntaxFault(f"bad arithmetic {text!r}")
    value = _binary(tokens, variables, 0)
    if tokens:
        raise SyntaxFault(f"bad arithmetic {text!r}")
    return value


def _binary(tokens: list[str], variables: Variables, level: int) -> int:
    if level == len(_PRECEDENCE):
        return _operand(tokens, variables)
    left = _binary(tokens, variables, level + 1)
    while tokens and tokens[0] in _PRECEDENCE[level]:
        operator = tokens.pop(0)
        left = _combined(operator, left, _binary(tokens, variables, level + 1))
    return left


def _combined(operator: str, left: int, right: int) -> int:
    if operator in "/%" and right == 0:
        raise SyntaxFault("division by 0")
    quotient = abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1) if operator in "/%" else 0
    return {
        "+": left + right,
        "-": left - right,
        "*": left * right if operator == "*" else 0,
        "/": quotient,
        "%": left - quotient * right,
        "<": int(left < right),
        ">": int(left > right),
        "<=": int(left <= right),
        ">=": int(left >= right),
        "==": int(left == right),
        "!=": int(left != right),
        "&&": int(bool(left and right)),
        "||": int(bool(left or right)),
    }[operator]


def _operand(tokens: list[str], variables: Variables) -> int:
    if not tokens:
        raise SyntaxFault("bad arithmetic: a number is missing")
    token = tokens.pop(0)
    if token in ("-", "+", "!"):
        value = _operand(tokens, variables)
        return {"-": -value, "+": value, "!": int(not value)}[token]
    if token == "(":
        value = _binary(tokens, variables, 0)
        if not tokens or tokens.pop(0) != ")":
            raise SyntaxFault("bad arithmetic: ')' is missing")
        return value
    if token.isdigit():
        return int(token)
    named = variables.lookup(token) or "0"
    if not re.fullmatch(r"-?\d+", named):
        raise SyntaxFault(f"bad arithmetic: {token} is {named[:40]!r}")
    return int(named)
