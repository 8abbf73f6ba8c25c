"""Programs inside a sandbox: what to run, what came out, how it ended.

A program that exits with 1 is the value `Exited(1)`. An argv reaches the
program exactly as given; only `Shell` text is read by a shell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, Self

from firkin.law.errors import InvalidReason, InvalidSpec
from firkin.law.ids import ProcessId, ProcessTag

MAX_ARGUMENTS = 65536
MAX_VARIABLE_BYTES = 131_072
MAX_ENVIRONMENT_BYTES = 1 << 20
MAX_COMMAND_S = 320_000_000.0
"""About ten years: what a program's own deadline may be."""


@dataclass(frozen=True, slots=True)
class Shell:
    """Text for ``/bin/sh -c``."""

    text: str


@dataclass(frozen=True, slots=True)
class Argv:
    """A program, found on PATH unless it contains a slash, and its arguments."""

    program: str
    args: tuple[str, ...] = ()


CommandMode = Shell | Argv


@dataclass(frozen=True, slots=True)
class PtySize:
    """Zero is a size that a terminal may have: unknown."""

    rows: int = 24
    cols: int = 80

    def __post_init__(self) -> None:
        if not (0 <= self.rows < 65536 and 0 <= self.cols < 65536):
            raise InvalidSpec(
                "check terminal size",
                InvalidReason.INVALID_COMMAND,
                f"a terminal of {self.rows} rows and {self.cols} columns is not possible; both must be 0…65535",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One process to start.

    `user` None means the template's default user, `cwd` None that user's default
    directory. `stdin` bytes are written and then closed; `keep_stdin` leaves it
    open for `send_input`; with neither, standard input is /dev/null. `timeout_s`
    kills the process. Raises `InvalidSpec` for values no process can have.
    """

    mode: CommandMode
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    stdin: bytes | None = None
    keep_stdin: bool = False
    pty: PtySize | None = None
    tag: ProcessTag | None = None
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        words = [self.mode.text] if isinstance(self.mode, Shell) else [self.mode.program, *self.mode.args]
        if isinstance(self.mode, Argv) and not self.mode.program:
            raise _invalid("the program name is empty")
        if len(words) > MAX_ARGUMENTS:
            raise _invalid(f"{len(words)} arguments; at most {MAX_ARGUMENTS} are allowed")
        if any("\0" in word for word in words):
            raise _invalid("a command must not contain a NUL character")
        if self.cwd is not None and "\0" in self.cwd:
            raise _invalid("the working directory must not contain a NUL character")
        if self.timeout_s is not None and not 0 < self.timeout_s <= MAX_COMMAND_S:
            raise InvalidSpec(
                "check command",
                InvalidReason.INVALID_TIMEOUT,
                f"the timeout is {self.timeout_s:g} s; it must be above 0 and at most {MAX_COMMAND_S:.0f}, "
                "or None for no limit",
            )
        check_user("check command", self.user)
        check_environment(self.env)

    @classmethod
    def shell(cls, text: str) -> Self:
        return cls(mode=Shell(text))

    @classmethod
    def argv(cls, program: str, *args: str) -> Self:
        return cls(mode=Argv(program, args))


def _invalid(detail: str) -> InvalidSpec:
    return InvalidSpec("check command", InvalidReason.INVALID_COMMAND, detail)


def check_user(operation: str, user: str | None) -> None:
    """Raise `InvalidSpec` for an empty name, which is nobody's; None is the default of whoever asks."""
    if user == "":
        raise InvalidSpec(
            operation, InvalidReason.INVALID_USER, "the user's name is empty; name an account, or leave it out (None)"
        )


def check_environment(env: Mapping[str, str]) -> None:
    """Raise `InvalidSpec` for a name or a value that no process can have, or one too long.

    A name is not empty and has no ``=`` and no NUL in it. Anything else passes, as it
    does in the kernel: a space or a leading digit is of no use to a shell, but
    programs may read such a variable. Bytes that are no UTF-8 pass as `os.environ` has them.

    The limits are the kernel's for a program's start (execve(2): MAX_ARG_STRLEN
    for one string, and what is left of the smallest usual argument space).
    """
    total = 0
    for name, value in env.items():
        size = _size_of(name) + _size_of(value) + 2
        total += size
        if size > MAX_VARIABLE_BYTES or total > MAX_ENVIRONMENT_BYTES:
            raise InvalidSpec(
                "check environment",
                InvalidReason.INVALID_ENVIRONMENT,
                f"the variable {name[:64]!r} is too long: one may take {MAX_VARIABLE_BYTES} bytes with its name, "
                f"all together {MAX_ENVIRONMENT_BYTES}",
            )
        if not name or "=" in name or "\0" in name:
            raise InvalidSpec(
                "check environment",
                InvalidReason.INVALID_ENVIRONMENT,
                f"{name[:64]!r} is not a variable name: it must be non-empty, without '=' and NUL",
            )
        if "\0" in value:
            raise InvalidSpec(
                "check environment", InvalidReason.INVALID_ENVIRONMENT, f"the value of {name!r} contains NUL"
            )


def _size_of(word: str) -> int:
    try:
        return len(word.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        detail = f"{word[:64]!r} is neither Unicode text nor bytes as os.environ has them"
        raise InvalidSpec("check environment", InvalidReason.INVALID_ENVIRONMENT, detail) from None


@dataclass(frozen=True, slots=True)
class Exited:
    code: int


@dataclass(frozen=True, slots=True)
class Signaled:
    """Ended by the signal of that number."""

    signal: int


CommandStatus = Exited | Signaled


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandOutput:
    """What a finished command left. `truncated`: older output was dropped to bound memory."""

    status: CommandStatus
    stdout: bytes = b""
    stderr: bytes = b""
    truncated: bool = False

    @property
    def ok(self) -> bool:
        return self.status == Exited(0)


class Signal(StrEnum):
    TERM = "TERM"
    KILL = "KILL"
    INTERRUPT = "INT"


SIGNAL_NUMBERS: Mapping[Signal, int] = {Signal.TERM: 15, Signal.KILL: 9, Signal.INTERRUPT: 2}


def signal_number(signal: Signal | int) -> int:
    """1…64; `InvalidSpec` for a number, or a word, that is no signal."""
    number = SIGNAL_NUMBERS.get(signal, 0) if isinstance(signal, str) else signal
    if not 1 <= number <= 64:
        raise _invalid(f"{signal!s:.64} is not a signal; use 1…64, {', '.join(Signal)}")
    return number


class ProcessStatus(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    EXITED = "exited"
    SIGNALED = "signaled"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessInfo:
    """One process that the agent started. `end` is set once it has ended."""

    id: ProcessId
    tag: ProcessTag | None = None
    status: ProcessStatus = ProcessStatus.RUNNING
    end: CommandStatus | None = None
    argv: tuple[str, ...] = ()
    cwd: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    pty: bool = False


@dataclass(frozen=True, slots=True)
class ById:
    id: ProcessId


@dataclass(frozen=True, slots=True)
class ByTag:
    tag: ProcessTag


ProcessSelector = ById | ByTag


def describe_selector(selector: ProcessSelector) -> str:
    return selector.id if isinstance(selector, ById) else selector.tag


@dataclass(frozen=True, slots=True)
class Started:
    info: ProcessInfo


@dataclass(frozen=True, slots=True)
class Stdout:
    data: bytes


@dataclass(frozen=True, slots=True)
class Stderr:
    data: bytes


@dataclass(frozen=True, slots=True)
class PtyOutput:
    data: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event of every stream, after all output.

    `timed_out`: its own deadline killed it. `out_of_memory`: the kernel killed it, because the sandbox had reached
    the limit of its memory.
    """

    status: CommandStatus
    timed_out: bool = False
    out_of_memory: bool = False


ProcessEvent = Started | Stdout | Stderr | PtyOutput | Ended


class ProcessStream(Protocol):
    """Events of one process: `Started`, output, `Ended`.

    Not reading stops the program's output (back-pressure), bounded by the
    transport's window. Closing detaches; the process lives on. One reader at a
    time; one that is cancelled loses no event.
    """

    @property
    def info(self) -> ProcessInfo: ...

    @property
    def cut_off(self) -> bool:
        """Whether the way to the process broke, as by a pause: nothing more comes here, but it may run on."""
        ...

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> ProcessEvent: ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestUser:
    """An account inside a sandbox, as its own /etc/passwd says."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str = "/bin/sh"
