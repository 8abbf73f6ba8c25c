"""Commands that change the shell itself."""

from __future__ import annotations

import posixpath
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from firkin.drivers.memory import shell as shells
from firkin.drivers.memory.tree import DIRECTORY, Fault

if TYPE_CHECKING:
    from firkin.drivers.memory.shell import Shell, Streams

SIGNALS = {
    "HUP": 1,
    "INT": 2,
    "QUIT": 3,
    "KILL": 9,
    "USR1": 10,
    "USR2": 12,
    "PIPE": 13,
    "ALRM": 14,
    "TERM": 15,
    "CONT": 18,
}

Builtin = Callable[["Shell", list[str], "Streams"], Awaitable[int]]


def signal_named(text: str) -> int | None:
    """The number of ``TERM``, ``SIGTERM`` or ``15``; None for what is no signal."""
    name = text.upper().removeprefix("SIG")
    return int(name) if name.isdigit() else SIGNALS.get(name)


async def _nothing(shell: Shell, argv: list[str], streams: Streams) -> int:
    return 0


async def _cd(shell: Shell, argv: list[str], streams: Streams) -> int:
    target = argv[1] if len(argv) > 1 else shell.variables.lookup("HOME") or "/"
    if target == "-":
        target = shell.variables.lookup("OLDPWD") or shell.cwd
    try:
        real, node = shell.call.machine.tree.locate(posixpath.join(shell.cwd, target))
    except Fault:
        return await shell.complain(streams, f"cd: {target}: No such file or directory", 1)
    if node.kind != DIRECTORY:
        return await shell.complain(streams, f"cd: {target}: Not a directory", 1)
    shell.variables.values.update(OLDPWD=shell.cwd, PWD=real)
    shell.cwd = real
    return 0


async def _export(shell: Shell, argv: list[str], streams: Streams) -> int:
    for word in argv[1:]:
        name, equals, value = word.partition("=")
        if not name.isidentifier():
            return await shell.complain(streams, f"export: {word!r}: not a valid identifier", 1)
        shell.variables.exported.add(name)
        if equals:
            shell.variables.values[name] = value
    return 0


async def _local(shell: Shell, argv: list[str], streams: Streams) -> int:
    for word in argv[1:]:
        name, _, value = word.partition("=")
        shell.variables.values[name] = value
    return 0


async def _unset(shell: Shell, argv: list[str], streams: Streams) -> int:
    for name in argv[1:]:
        shell.variables.values.pop(name, None)
        shell.variables.exported.discard(name)
        shell.functions.pop(name, None)
    return 0


def _status(shell: Shell, argv: list[str]) -> int:
    return int(argv[1]) & 0xFF if len(argv) > 1 and argv[1].lstrip("-").isdigit() else shell.variables.status


async def _exit(shell: Shell, argv: list[str], streams: Streams) -> int:
    raise shells.Leave(_status(shell, argv))


async def _jump(shell: Shell, argv: list[str], streams: Streams) -> int:
    raise shells.Jump(argv[0], _status(shell, argv))


async def _eval(shell: Shell, argv: list[str], streams: Streams) -> int:
    return await shell.run_text(" ".join(argv[1:]), streams)


async def _source(shell: Shell, argv: list[str], streams: Streams) -> int:
    try:
        data = shell.call.read_file(posixpath.join(shell.cwd, argv[1]))
    except (Fault, IndexError):
        return await shell.complain(streams, f"{' '.join(argv[:2])}: No such file or directory", 1)
    return await shell.run_text(data.decode("utf-8", "surrogateescape"), streams)


async def _set(shell: Shell, argv: list[str], streams: Streams) -> int:
    for index, word in enumerate(argv[1:], 1):
        if word == "--":
            shell.variables.arguments = argv[index + 1 :]
            break
        if word in ("-e", "+e"):
            shell.exit_on_error = word == "-e"
        elif word.lstrip("+-") not in ("m", "o", "pipefail", "b", "+m"):
            return await shell.complain(streams, f"set: {word}: not offered by the shell in memory", 2)
    return 0


async def _shift(shell: Shell, argv: list[str], streams: Streams) -> int:
    count = int(argv[1]) if len(argv) > 1 else 1
    del shell.variables.arguments[:count]
    return 0


async def _read(shell: Shell, argv: list[str], streams: Streams) -> int:
    names = [word for word in argv[1:] if not word.startswith("-")] or ["REPLY"]
    line = (await shells.read_line(streams.stdin)).decode("utf-8", "surrogateescape")
    text = line.removesuffix("\n")
    values = (
        text.split(None, len(names) - 1)
        if len(names) > 1
        else [text if "IFS" in shell.variables.values else text.strip()]
    )
    values += [""] * (len(names) - len(values))
    shell.variables.values.update(zip(names, values, strict=True))
    return 0 if line.endswith("\n") else 1


async def _wait(shell: Shell, argv: list[str], streams: Streams) -> int:
    jobs = shell.call.process.jobs
    wanted = {int(word) for word in argv[1:] if word.isdigit()}
    chosen = [shell.call.machine.everything.get(pid) for pid in wanted] if wanted else list(jobs)
    status = 0
    for job in chosen:
        if job is None:
            status = 127
            continue
        await job.ended.wait()
        end: Mapping[str, int] = job.end or {}
        status = end["exit"] if "exit" in end else 128 + end.get("signal", 0)
    return status if wanted else 0


async def _trap(shell: Shell, argv: list[str], streams: Streams) -> int:
    if len(argv) < 3:
        return 0
    for name in argv[2:]:
        number = signal_named(name)
        if number is None or number == 0:
            return await shell.complain(streams, f"trap: {name}: not offered by the shell in memory", 1)
        shell.trap(number, None if argv[1] == "-" else argv[1])
    return 0


async def _exec(shell: Shell, argv: list[str], streams: Streams) -> int:
    if len(argv) == 1:
        return await shell.complain(streams, "exec: redirecting the shell itself is not offered in memory", 1)
    shell.call.process.argv = argv[1:]
    raise shells.Leave(await shell.launch(argv[1:], shell.variables.environment(), streams))


async def _command(shell: Shell, argv: list[str], streams: Streams) -> int:
    words = [word for word in argv[1:] if word != "--"]
    if words[:1] in (["-v"], ["-V"]):
        name = words[-1]
        found = (
            name
            if name in BUILTINS or name in shell.functions
            else shell.call.find(name, shell.variables.lookup("PATH") or "", shell.cwd)
        )
        if not found:
            return 1
        await streams.stdout.write(f"{found}\n".encode("utf-8", "surrogateescape"))
        return 0
    if not words:
        return 0
    if words[0] in BUILTINS:
        return await BUILTINS[words[0]](shell, words, streams)
    return await shell.launch(words, shell.variables.environment(), streams)


async def _pwd(shell: Shell, argv: list[str], streams: Streams) -> int:
    await streams.stdout.write(f"{shell.cwd}\n".encode("utf-8", "surrogateescape"))
    return 0


BUILTINS: Mapping[str, Builtin] = {
    ":": _nothing,
    "cd": _cd,
    "export": _export,
    "local": _local,
    "unset": _unset,
    "exit": _exit,
    "break": _jump,
    "continue": _jump,
    "return": _jump,
    "eval": _eval,
    ".": _source,
    "source": _source,
    "set": _set,
    "shift": _shift,
    "read": _read,
    "wait": _wait,
    "trap": _trap,
    "exec": _exec,
    "command": _command,
    "pwd": _pwd,
}
