"""Programs that every instance in memory has, by name."""

from __future__ import annotations

import asyncio
import posixpath
import re
from collections.abc import Awaitable, Callable, Mapping

from firkin.drivers.memory.calls import Call, encoded
from firkin.drivers.memory.expansion import Variables
from firkin.drivers.memory.file_programs import FILE_PROGRAMS
from firkin.drivers.memory.network_programs import NETWORK_PROGRAMS
from firkin.drivers.memory.pipes import Source
from firkin.drivers.memory.processes import INTERRUPT
from firkin.drivers.memory.shell import Shell, interpret, read_line
from firkin.drivers.memory.shell_commands import signal_named
from firkin.drivers.memory.tree import DIRECTORY, FILE, SYMLINK, Fault, Node

Program = Callable[[Call], Awaitable[int]]


async def _shell(call: Call) -> int:
    flags, rest, text = _shell_words(call.argv[1:])
    name = posixpath.basename(call.argv[0])
    values = {**call.env, "PWD": call.cwd}
    variables = Variables(values, set(values), rest, name, 0, call.process.pid)
    shell = Shell(call, variables, call.cwd)
    shell.exit_on_error = "e" in flags
    if text is not None:
        variables.name, variables.arguments = (rest[0], rest[1:]) if rest else (name, [])
        return await shell.to_the_end(lambda: shell.run_text(text, shell.streams))
    if rest and "s" not in flags:
        variables.name, variables.arguments = rest[0], rest[1:]
        script = call.read_file(call.path(rest[0])).decode("utf-8", "surrogateescape")
        return await shell.to_the_end(lambda: shell.run_text(script, shell.streams))
    prompt = "i" in flags or call.process.size is not None
    if prompt:
        call.process.handlers[INTERRUPT] = lambda: shell.interrupt(INTERRUPT)
    return await shell.to_the_end(lambda: interpret(shell, prompt=prompt))


def _shell_words(words: list[str]) -> tuple[str, list[str], str | None]:
    """The letters of all flags, what follows them, and the text of ``-c``."""
    flags = ""
    while words and words[0].startswith("-") and len(words[0]) > 1:
        word, words = words[0], words[1:]
        if word == "--":
            break
        flags += "" if word.startswith("--") else word[1:]
    if "c" not in flags:
        return flags, words, None
    return flags, words[1:], words[0] if words else ""


def interpreter(words: list[str], script: str) -> Program:
    """What runs a file that begins with ``#!``."""
    name = posixpath.basename(words[0]) if words else ""
    if name == "env" and len(words) > 1:
        name = words[1]
    if name not in PROGRAMS:
        raise Fault("cannot_start", f"{script}: there is no interpreter {name!r}")

    async def run(call: Call) -> int:
        return await PROGRAMS[name](
            Call(call.machine, call.process, [name, script, *call.argv[1:]], call.env, call.cwd, call.streams)
        )

    return run


async def _true(call: Call) -> int:
    return 0


async def _false(call: Call) -> int:
    return 1


async def _echo(call: Call) -> int:
    words, newline, escapes = call.argv[1:], "\n", False
    while words and re.fullmatch(r"-[neE]+", words[0]):
        newline = "" if "n" in words[0] else newline
        escapes = escapes or "e" in words[0]
        words = words[1:]
    text = " ".join(words)
    await call.stdout.write(_unescaped(text) + newline.encode() if escapes else encoded(text + newline))
    return 0


_ESCAPES = {
    "n": b"\n",
    "t": b"\t",
    "r": b"\r",
    "a": b"\a",
    "b": b"\b",
    "f": b"\f",
    "v": b"\v",
    "\\": b"\\",
    "e": b"\x1b",
}
_FORMAT_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{1,2}|[0-7]{1,3}|[ntrabfv\\e])")
_VALUE_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{1,2}|0[0-7]{0,3}|[ntrabfv\\e])")


def _unescaped(text: str, escape: re.Pattern[bytes] = _VALUE_ESCAPE) -> bytes:
    def value(match: re.Match[bytes]) -> bytes:
        code = match.group(1).decode()
        if code[0] == "x":
            return bytes([int(code[1:], 16)])
        return bytes([int(code, 8) & 0xFF]) if code[0].isdigit() else _ESCAPES[code]

    return escape.sub(value, encoded(text))


_DIRECTIVE = re.compile(r"%(%|[-0-9.]*[sdibcxuq])")


async def _printf(call: Call) -> int:
    if len(call.argv) < 2:
        return await call.fail("missing operand")
    words = call.argv[1:]
    words = words[1:] if words[0] == "--" else words
    form, values = words[0], words[1:]
    while True:
        before = len(values)
        await call.stdout.write(_formatted(form, values))
        if not values or len(values) == before:
            return 0


def _formatted(form: str, values: list[str]) -> bytes:
    """`form` once, taking what it needs from the front of `values`."""
    found, last = b"", 0
    for match in _DIRECTIVE.finditer(form):
        found += _unescaped(form[last : match.start()], _FORMAT_ESCAPE)
        last = match.end()
        directive = match.group(1)
        found += b"%" if directive == "%" else _directed(directive, values.pop(0) if values else "")
    return found + _unescaped(form[last:], _FORMAT_ESCAPE)


def _directed(directive: str, value: str) -> bytes:
    width, kind = directive[:-1], directive[-1]
    if kind == "b":
        return _unescaped(value)
    if kind == "c":
        return encoded(value[:1])
    if kind == "q":
        return encoded("'" + value.replace("'", "'\\''") + "'")
    if kind == "s":
        return encoded(f"%{width}s" % value)
    number = int(value, 0) if re.fullmatch(r"[-+]?(0x)?[0-9a-fA-F]+", value) else 0
    return f"%{width}{'d' if kind in 'iu' else kind}".encode() % number


async def _sleep(call: Call) -> int:
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    total = 0.0
    for word in call.argv[1:]:
        if word == "infinity":
            total = 1e8
            continue
        match = re.fullmatch(r"(\d*\.?\d+)([smhd]?)", word)
        if match is None:
            return await call.fail(f"invalid time interval {word!r}")
        total += float(match.group(1)) * units[match.group(2) or "s"]
    await asyncio.sleep(total)
    return 0


async def _pwd(call: Call) -> int:
    await call.say(call.cwd + "\n")
    return 0


async def _env(call: Call) -> int:
    env, words = dict(call.env), call.argv[1:]
    if words[:1] in (["-i"], ["-"]):
        env, words = {}, words[1:]
    while words and "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        env[name] = value
    if words:
        return await call.execute(words, env=env, cwd=call.cwd, streams=call.streams)
    await call.say("".join(f"{name}={value}\n" for name, value in env.items()))
    return 0


async def _printenv(call: Call) -> int:
    values = [call.env.get(name) for name in call.argv[1:]] or [f"{name}={value}" for name, value in call.env.items()]
    await call.say("".join(f"{value}\n" for value in values if value is not None))
    return int(None in values)


async def _id(call: Call) -> int:
    who = call.process.account
    answers = {"-u": str(who.uid), "-g": str(who.gid), "-un": who.name, "-nu": who.name}
    if len(call.argv) == 1:
        await call.say(f"uid={who.uid}({who.name}) gid={who.gid}({who.name}) groups={who.gid}({who.name})\n")
        return 0
    flags = "-" + "".join(word[1:] for word in call.argv[1:])
    if flags not in answers:
        return await call.fail(f"{flags}: not offered in memory")
    await call.say(answers[flags] + "\n")
    return 0


async def _whoami(call: Call) -> int:
    await call.say(call.process.account.name + "\n")
    return 0


async def _hostname(call: Call) -> int:
    await call.say(call.machine.hostname + "\n")
    return 0


async def _yes(call: Call) -> int:
    block = encoded(" ".join(call.argv[1:] or ["y"]) + "\n")
    block *= max(1, 8192 // len(block))
    while True:
        await call.stdout.write(block)
        await asyncio.sleep(0)


async def _kill(call: Call) -> int:
    number, words = 15, call.argv[1:]
    if words[:1] == ["-s"] and len(words) > 2:
        words = ["-" + words[1], *words[2:]]
    if words and words[0].startswith("-"):
        named = signal_named(words[0][1:])
        if named is None:
            return await call.fail(f"{words[0]}: invalid signal specification")
        number, words = named, words[1:]
    status = 0
    for word in words:
        process = call.machine.everything.get(int(word)) if word.isdigit() else None
        if process is None or process.end is not None:
            status = await call.fail(f"({word}) - No such process")
        elif number:
            process.signal(number)
    await asyncio.sleep(0)  # a signal to oneself arrives before the next command
    return status


async def _test(call: Call) -> int:
    words = call.argv[1:]
    if posixpath.basename(call.argv[0]) == "[":
        if words[-1:] != ["]"]:
            return await call.fail("missing ]", 2)
        words = words[:-1]
    negated = False
    while words[:1] == ["!"]:
        negated, words = not negated, words[1:]
    try:
        return int(_holds(call, words) == negated)
    except ValueError:
        return await call.fail("integer expression expected", 2)


def _holds(call: Call, words: list[str]) -> bool:
    for joiner in ("-o", "-a"):
        if joiner in words[1:]:
            cut = words.index(joiner, 1)
            left, right = _holds(call, words[:cut]), _holds(call, words[cut + 1 :])
            return left or right if joiner == "-o" else left and right
    if len(words) == 3:
        return _compared(*words)
    if len(words) == 2:
        return _is(call, words[0], words[1])
    return bool(words and words[0])


def _compared(left: str, operator: str, right: str) -> bool:
    if operator in ("=", "==", "!="):
        return (left == right) == (operator != "!=")
    order = (int(left) > int(right)) - (int(left) < int(right))
    return order in {"-eq": (0,), "-ne": (1, -1), "-lt": (-1,), "-le": (-1, 0), "-gt": (1,), "-ge": (0, 1)}[operator]


def _is(call: Call, operator: str, value: str) -> bool:
    if operator in ("-n", "-z"):
        return bool(value) == (operator == "-n")
    if operator == "-t":
        return call.process.size is not None
    node = _seen(call, value, follow=operator not in ("-L", "-h"))
    if node is None:
        return False
    kinds = {"-f": FILE, "-d": DIRECTORY, "-L": SYMLINK, "-h": SYMLINK}
    if operator in kinds:
        return node.kind == kinds[operator]
    return {"-e": True, "-s": node.size > 0, "-x": bool(node.mode & 0o111)}.get(operator, True)


def _seen(call: Call, name: str, *, follow: bool) -> Node | None:
    try:
        return call.machine.tree.seek(call.path(name), follow=follow)[1]
    except Fault:
        return None


async def _cat(call: Call) -> int:
    sources: list[Source] = [call.stdin]
    status = 0
    if call.argv[1:]:
        sources = []
        for name in call.argv[1:]:
            try:
                sources.append(call.stdin if name == "-" else call.open_source(call.path(name)))
            except Fault as fault:
                status = await call.fail(fault.message)
    for source in sources:
        while data := await source.read():
            await call.stdout.write(data)
    return status


async def _head(call: Call) -> int:
    words = call.argv[1:]
    match = re.fullmatch(r"-([cn]?)(\d+)", "".join(words[:2])) if words else None
    kind, count = (match.group(1) or "n", int(match.group(2))) if match else ("n", 10)
    rest = [word for word in words if not word.startswith("-") and not (match and word == match.group(2))]
    source = call.open_source(call.path(rest[0])) if rest else call.stdin
    while count > 0:
        data = await source.read(min(count, 65536)) if kind == "c" else await read_line(source)
        if not data:
            break
        count -= len(data) if kind == "c" else 1
        await call.stdout.write(data)
    return 0


async def _wc(call: Call) -> int:
    files = [word for word in call.argv[1:] if not word.startswith("-")]
    source = call.open_source(call.path(files[0])) if files else call.stdin
    count, lines, words = 0, 0, 0
    while data := await source.read():
        count, lines, words = count + len(data), lines + data.count(b"\n"), words + len(data.split())
    flags = "".join(word[1:] for word in call.argv[1:] if word.startswith("-")) or "lwc"
    figures = [str(value) for letter, value in (("l", lines), ("w", words), ("c", count)) if letter in flags]
    await call.say(" ".join(figures + files[:1]) + "\n")
    return 0


async def _stty(call: Call) -> int:
    if call.process.size is None:
        return await call.fail("'standard input': Inappropriate ioctl for device")
    if call.argv[1:] == ["size"]:
        await call.say("{} {}\n".format(*call.process.size))
    return 0


async def _seq(call: Call) -> int:
    numbers = [int(word) for word in call.argv[1:]] or [0]
    first, step, last = {1: (1, 1, numbers[-1]), 2: (numbers[0], 1, numbers[-1])}.get(len(numbers), tuple(numbers[:3]))
    for number in range(first, last + (1 if step > 0 else -1), step):
        await call.say(f"{number}\n")
    return 0


PROGRAMS: Mapping[str, Program] = {
    "sh": _shell,
    "bash": _shell,
    "true": _true,
    "false": _false,
    "echo": _echo,
    "printf": _printf,
    "sleep": _sleep,
    "pwd": _pwd,
    "env": _env,
    "printenv": _printenv,
    "id": _id,
    "whoami": _whoami,
    "hostname": _hostname,
    "yes": _yes,
    "kill": _kill,
    "test": _test,
    "[": _test,
    "cat": _cat,
    "head": _head,
    "wc": _wc,
    "stty": _stty,
    "seq": _seq,
    **FILE_PROGRAMS,
    **NETWORK_PROGRAMS,
}
