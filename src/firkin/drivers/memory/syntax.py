"""The shell's grammar: text in, a tree of commands out.

Enough of POSIX sh for tests: lists, pipelines, background jobs, groups,
subshells, if, while, until, for, functions, redirections, here-documents, and
quoting. `case` and aliases are refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_OPERATORS = "|&;<>()\n"
_BLANK = " \t"
_CLOSERS = frozenset({"then", "else", "elif", "fi", "do", "done", "}", "esac"})


class Incomplete(Exception):
    """More text is needed: a quote or a block is still open."""


class SyntaxFault(Exception):
    pass


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    quoted: bool


@dataclass(frozen=True, slots=True)
class Variable:
    """``${name}``, or with an operator such as ``:-`` and its word."""

    name: str
    quoted: bool
    operator: str = ""
    word: str = ""


@dataclass(frozen=True, slots=True)
class Substitution:
    text: str
    quoted: bool


@dataclass(frozen=True, slots=True)
class Arithmetic:
    text: str


Part = Text | Variable | Substitution | Arithmetic
Word = tuple[Part, ...]


@dataclass(slots=True)
class Redirection:
    """``descriptor operator word``; for a here-document the word is its text."""

    descriptor: int
    operator: str
    word: Word


@dataclass(slots=True)
class Simple:
    assignments: list[tuple[str, Word]] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    redirections: list[Redirection] = field(default_factory=list)


@dataclass(slots=True)
class Group:
    body: list[Item]
    subshell: bool = False


@dataclass(slots=True)
class If:
    branches: list[tuple[list[Item], list[Item]]]
    otherwise: list[Item]


@dataclass(slots=True)
class Loop:
    condition: list[Item]
    body: list[Item]
    until: bool


@dataclass(slots=True)
class For:
    name: str
    words: list[Word] | None
    body: list[Item]


@dataclass(slots=True)
class Function:
    name: str
    body: Node


@dataclass(slots=True)
class Redirected:
    inner: Node
    redirections: list[Redirection]


@dataclass(slots=True)
class Pipeline:
    parts: list[Node]
    negated: bool = False


@dataclass(slots=True)
class Item:
    """Pipelines joined by && and ||: each has the operator that stands before it."""

    chain: list[tuple[str, Pipeline]]
    background: bool = False


Node = Simple | Group | If | Loop | For | Function | Redirected


def parse(text: str) -> list[Item]:
    """Raises `Incomplete` or `SyntaxFault`."""
    parser = _Parser(text)
    items = parser.items()
    if parser.documents_wanted:
        raise Incomplete
    if parser.at < len(text):
        raise SyntaxFault(f"syntax error near {text[parser.at : parser.at + 10]!r}")
    return items


def parse_word(text: str) -> Word:
    """`text` as the inside of double quotes."""
    return tuple(_Parser(text).quoted(""))


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self._documents: list[tuple[Redirection, str, bool]] = []

    @property
    def documents_wanted(self) -> bool:
        return bool(self._documents)

    # -- lists ----------------------------------------------------------------------------------

    def items(self) -> list[Item]:
        found: list[Item] = []
        while True:
            self._blank(newlines=True)
            if self.at >= len(self.text) or self.text[self.at] == ")" or self._peek_word() in _CLOSERS:
                return found
            found.append(self._item())
            self._blank()
            if self._take("&"):
                found[-1].background = True
            elif not self._take(";") and not self._peek("\n"):
                return found

    def _item(self) -> Item:
        chain = [("", self._pipeline())]
        while True:
            self._blank()
            operator = self._take("&&") or self._take("||")
            if not operator:
                return Item(chain)
            self._blank(newlines=True)
            chain.append((operator, self._pipeline()))

    def _pipeline(self) -> Pipeline:
        self._need()
        negated = self._peek_word() == "!" and bool(self._take("!"))
        parts = [self._command()]
        while True:
            self._blank()
            if self._peek("||") or not self._take("|"):
                return Pipeline(parts, negated)
            self._blank(newlines=True)
            parts.append(self._command())

    # -- commands -------------------------------------------------------------------------------

    def _command(self) -> Node:
        self._blank()
        self._need()
        compound = self._compound()
        if compound is None:
            return self._simple()
        redirections = []
        while (redirection := self._redirection()) is not None:
            redirections.append(redirection)
        return Redirected(compound, redirections) if redirections else compound

    def _compound(self) -> Node | None:
        if self._take("("):
            body = self.items()
            self._expect(")")
            return Group(body, subshell=True)
        match self._peek_word():
            case "{":
                return Group(self._block("{", "}"))
            case "if":
                return self._if()
            case "while" | "until" as word:
                condition = self._block(word, "do")
                return Loop(condition, self._block("", "done"), word == "until")
            case "for":
                return self._for()
            case "case" | "select" | "function" as word:
                raise SyntaxFault(f"{word!r} is not offered by the shell in memory")
        return None

    def _block(self, opener: str, closer: str) -> list[Item]:
        self.at += len(opener)
        body = self.items()
        self._expect(closer)
        return body

    def _if(self) -> If:
        branches = [(self._block("if", "then"), self.items())]
        while self._peek_word() == "elif":
            branches.append((self._block("elif", "then"), self.items()))
        if self._peek_word() == "else":
            return If(branches, self._block("else", "fi"))
        self._expect("fi")
        return If(branches, [])

    def _for(self) -> For:
        self._expect("for")
        self._blank()
        name = self._peek_word()
        self.at += len(name)
        self._blank(newlines=True)
        words: list[Word] | None = None
        if self._peek_word() == "in":
            self._expect("in")
            words = []
            while (word := self._word()) is not None:
                words.append(word)
            self._blank()
        self._take(";")
        self._blank(newlines=True)
        return For(name, words, self._block("do", "done"))

    def _simple(self) -> Node:
        command = Simple()
        while True:
            redirection = self._redirection()
            if redirection is not None:
                command.redirections.append(redirection)
                continue
            name = self._assignment() if not command.words else ""
            if name:
                command.assignments.append((name, self._glued_word()))
                continue
            word = self._word()
            if word is None:
                break
            command.words.append(word)
            if len(command.words) == 1 and self._take("()"):
                self._blank(newlines=True)
                return Function(_literal(word), self._command())
        if not (command.words or command.assignments or command.redirections):
            raise SyntaxFault(f"syntax error near {self.text[self.at : self.at + 10]!r}")
        return command

    def _assignment(self) -> str:
        self._blank()
        end = self.at
        while end < len(self.text) and (self.text[end].isalnum() or self.text[end] == "_"):
            end += 1
        if end == self.at or self.text[self.at].isdigit() or self.text[end : end + 1] != "=":
            return ""
        name, self.at = self.text[self.at : end], end + 1
        return name

    def _glued_word(self) -> Word:
        """The value right after ``NAME=``, which may be empty."""
        if self.at >= len(self.text) or self.text[self.at] in _BLANK + _OPERATORS:
            return ()
        return self._word() or ()

    # -- redirections ---------------------------------------------------------------------------

    def _redirection(self) -> Redirection | None:
        self._blank()
        start = self.at
        while self.at < len(self.text) and self.text[self.at].isdigit():
            self.at += 1
        digits = self.text[start : self.at]
        for operator in ("<<<", "<<-", "<<", ">>", ">&", "<&", ">|", "<", ">"):
            if self._take(operator):
                return self._target(int(digits) if digits else int(operator.startswith(">")), operator)
        self.at = start
        if self.text.startswith("&>", start):
            raise SyntaxFault("'&>' is not offered by the shell in memory; use '>FILE 2>&1'")
        return None

    def _target(self, descriptor: int, operator: str) -> Redirection:
        word = self._word()
        if word is None:
            raise SyntaxFault(f"nothing follows {operator!r}")
        redirection = Redirection(descriptor, operator, word)
        if operator in ("<<", "<<-"):
            plain = any(isinstance(part, Text) and part.quoted for part in word)
            self._documents.append((redirection, _literal(word), plain))
        return redirection

    def _documents_here(self) -> None:
        for redirection, end, plain in self._documents:
            lines = []
            while True:
                if self.at >= len(self.text):
                    raise Incomplete
                line, newline, _ = self.text[self.at :].partition("\n")
                self.at += len(line) + len(newline)
                line = line.lstrip("\t") if redirection.operator == "<<-" else line
                if line == end:
                    break
                lines.append(line + "\n")
            text = "".join(lines)
            redirection.word = (Text(text, True),) if plain else parse_word(text)
        self._documents.clear()

    # -- words ----------------------------------------------------------------------------------

    def _word(self) -> Word | None:
        self._blank()
        parts: list[Part] = []
        start = self.at
        while self.at < len(self.text):
            letter = self.text[self.at]
            if letter in _BLANK or letter in _OPERATORS:
                break
            self.at += 1
            parts += self._piece(letter)
        return tuple(parts) if self.at > start else None

    def _piece(self, letter: str) -> list[Part]:
        if letter == "'":
            end = self.text.find("'", self.at)
            if end < 0:
                raise Incomplete
            text, self.at = self.text[self.at : end], end + 1
            return [Text(text, True)]
        if letter == '"':
            return [Text("", True), *self.quoted('"')]
        if letter == "\\":
            return self._escaped()
        if letter in "$`":
            return [self._dollar(letter, quoted=False)]
        return [Text(letter, False)]

    def _escaped(self) -> list[Part]:
        if self.at >= len(self.text):
            raise Incomplete
        self.at += 1
        letter = self.text[self.at - 1]
        return [] if letter == "\n" else [Text(letter, True)]

    def quoted(self, closer: str) -> list[Part]:
        """Up to the closing double quote, or to the end of the text."""
        parts: list[Part] = []
        while self.at < len(self.text):
            letter = self.text[self.at]
            self.at += 1
            if letter == closer:
                return parts
            if letter == "\\" and self.text[self.at : self.at + 1] in ("$", "`", '"', "\\", "\n"):
                parts += self._escaped()
            elif letter in "$`":
                parts.append(self._dollar(letter, quoted=True))
            else:
                parts.append(Text(letter, True))
        if closer:
            raise Incomplete
        return parts

    def _dollar(self, letter: str, *, quoted: bool) -> Part:
        if letter == "`":
            return Substitution(self._until("`"), quoted)
        if self._take("(("):
            inner = self._balanced()
            self._expect(")")
            return Arithmetic(inner)
        if self._take("("):
            return Substitution(self._balanced(), quoted)
        if self._take("{"):
            return _braced(self._until("}"), quoted)
        end = self.at
        while end < len(self.text) and (self.text[end].isalnum() or self.text[end] == "_"):
            end += 1
        if end == self.at and self.text[end : end + 1] and self.text[end] in "?$!#@*-":
            end += 1
        elif end > self.at and self.text[self.at].isdigit():
            end = self.at + 1
        name, self.at = self.text[self.at : end], end
        return Variable(name, quoted) if name else Text("$", quoted)

    def _until(self, closer: str) -> str:
        end = self.text.find(closer, self.at)
        if end < 0:
            raise Incomplete
        text, self.at = self.text[self.at : end], end + 1
        return text

    def _balanced(self) -> str:
        """Up to the parenthesis that closes, stepping over quotes."""
        start, depth = self.at, 1
        while self.at < len(self.text):
            letter = self.text[self.at]
            self.at += 1
            if letter == "'":
                self._until("'")
            elif letter == '"':
                self.quoted('"')
            elif letter == "\\":
                self.at += 1
            depth += {"(": 1, ")": -1}.get(letter, 0)
            if depth == 0:
                return self.text[start : self.at - 1]
        raise Incomplete

    # -- small steps ----------------------------------------------------------------------------

    def _blank(self, *, newlines: bool = False) -> None:
        while self.at < len(self.text):
            if self.text[self.at] in _BLANK:
                self.at += 1
            elif self.text.startswith("\\\n", self.at):
                self.at += 2
            elif self.text[self.at] == "#":
                self.at += len(self.text[self.at :].partition("\n")[0])
            elif newlines and self.text[self.at] == "\n":
                self.at += 1
                self._documents_here()
            else:
                return

    def _peek(self, text: str) -> bool:
        return self.text.startswith(text, self.at)

    def _peek_word(self) -> str:
        end = self.at
        while end < len(self.text) and self.text[end] not in _BLANK + _OPERATORS + "'\"\\$`":
            end += 1
        return self.text[self.at : end]

    def _take(self, text: str) -> str:
        if not self._peek(text):
            return ""
        self.at += len(text)
        return text

    def _need(self) -> None:
        if self.at >= len(self.text):
            raise Incomplete

    def _expect(self, text: str) -> None:
        self._blank(newlines=True)
        self._need()
        if not self._take(text):
            raise SyntaxFault(f"syntax error: {text!r} expected near {self.text[self.at : self.at + 10]!r}")


def _braced(text: str, quoted: bool) -> Variable:
    if text.startswith("#") and len(text) > 1:
        return Variable(text[1:], quoted, "#")
    end = 0
    while end < len(text) and (text[end].isalnum() or text[end] == "_"):
        end += 1
    end = end or 1
    name, rest = text[:end], text[end:]
    for operator in (":-", ":=", ":+", ":?", "-", "=", "+", "?", "%%", "%", "##", "#"):
        if rest.startswith(operator):
            return Variable(name, quoted, operator, rest[len(operator) :])
    if rest:
        raise SyntaxFault(f"bad substitution '${{{text}}}'")
    return Variable(name, quoted)


def _literal(word: Word) -> str:
    return "".join(part.text for part in word if isinstance(part, Text))
