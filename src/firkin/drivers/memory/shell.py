"""The shell of an instance in memory: runs what `syntax` parsed."""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from firkin.drivers.memory import shell_commands
from firkin.drivers.memory.expansion import Expansion, Variables
from firkin.drivers.memory.pipes import BrokenPipe, Collected, Fixed, Nothing, Pipe, Sink, Source
from firkin.drivers.memory.syntax import (
    For,
    Function,
    Group,
    If,
    Incomplete,
    Item,
    Loop,
    Node,
    Pipeline,
    Redirected,
    Redirection,
    Simple,
    SyntaxFault,
    parse,
)
from firkin.drivers.memory.tree import Fault
from firkin.lifetimes import children

if TYPE_CHECKING:
    from firkin.drivers.memory.calls import Call


@dataclass(frozen=True, slots=True)
class Streams:
    """Standard input, output and error of one command."""

    stdin: Source
    stdout: Sink
    stderr: Sink


class Leave(Exception):
    """``exit``: the shell ends with that status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Jump(Exception):
    """``break``, ``continue`` or ``return``."""

    def __init__(self, kind: str, status: int = 0) -> None:
        super().__init__(kind)
        self.kind = kind
        self.status = status


class Shell:
    """One shell: its variables, directory and functions. `call` is the program call it lives in."""

    def __init__(self, call: Call, variables: Variables, cwd: str) -> None:
        self.call = call
        self.variables = variables
        self.cwd = cwd
        self.functions: dict[str, Node] = {}
        self.traps: dict[int, str] = {}
        self.interactive = False
        self._pending: list[int] = []
        self._foreground: asyncio.Task[int] | None = None
        self.exit_on_error = False

    @property
    def streams(self) -> Streams:
        return Streams(self.call.stdin, self.call.stdout, self.call.stderr)

    async def run_text(self, text: str, streams: Streams) -> int:
        """Run a whole script; a syntax error is status 2."""
        try:
            items = parse(text)
        except Incomplete:
            return await self.complain(streams, "syntax error: unexpected end of file", 2)
        except SyntaxFault as fault:
            return await self.complain(streams, str(fault), 2)
        return await self.run_items(items, streams)

    async def complain(self, streams: Streams, message: str, status: int) -> int:
        await streams.stderr.write(f"{self.variables.name}: {message}\n".encode("utf-8", "surrogateescape"))
        self.variables.status = status
        return status

    # -- lists ----------------------------------------------------------------------------------

    async def run_items(self, items: list[Item], streams: Streams) -> int:
        for item in items:
            if item.background:
                self._background(item, streams)
                self.variables.status = 0
            else:
                self.variables.status = await self._chain(item, streams)
                if self.exit_on_error and self.variables.status and len(item.chain) == 1:
                    raise Leave(self.variables.status)
            await self._traps(streams)
        return self.variables.status

    async def _chain(self, item: Item, streams: Streams) -> int:
        status = 0
        for operator, pipeline in item.chain:
            if (operator == "&&" and status) or (operator == "||" and not status):
                continue
            status = await self._pipeline(pipeline, streams)
            self.variables.status = status
        return status

    def _background(self, item: Item, streams: Streams) -> None:
        twin = self.twin()
        foreground = Item(item.chain)
        quiet = replace(streams, stdin=Nothing())
        job = self.call.fork(lambda: twin.to_the_end(lambda: twin.run_items([foreground], quiet)))
        self.variables.last_job = job.pid

    def twin(self) -> Shell:
        """A subshell: the same memory, changed apart from now on."""
        twin = Shell(self.call, self.variables.copy(), self.cwd)
        twin.functions = dict(self.functions)
        twin.exit_on_error = self.exit_on_error
        return twin

    async def to_the_end(self, work: Callable[[], Awaitable[int]]) -> int:
        """The status of `work`, whichever way it leaves."""
        try:
            return await work()
        except Leave as leave:
            return leave.status
        except Jump as jump:
            return jump.status

    async def _pipeline(self, pipeline: Pipeline, streams: Streams) -> int:
        if len(pipeline.parts) == 1:
            status = await self._node(pipeline.parts[0], streams)
        else:
            status = await self._piped(pipeline.parts, streams)
        return int(not status) if pipeline.negated else status

    async def _piped(self, parts: list[Node], streams: Streams) -> int:
        async with children() as running:
            stdin: Source = streams.stdin
            tasks = []
            for index, part in enumerate(parts):
                last = index == len(parts) - 1
                pipe = None if last else Pipe()
                own = Streams(stdin, pipe or streams.stdout, streams.stderr)
                work = self.call.machine.gate.hold(partial(self._stage, part, own, pipe))
                tasks.append(running.start(work, name="pipeline stage"))
                stdin = pipe or stdin
            return [await task for task in tasks][-1]

    async def _stage(self, part: Node, streams: Streams, output: Pipe | None) -> int:
        twin = self.twin()
        try:
            return await twin.to_the_end(lambda: twin._node(part, streams))
        except BrokenPipe:
            return 141
        finally:
            if output is not None:
                output.end()
            if isinstance(streams.stdin, Pipe) and streams.stdin is not self.call.stdin:
                streams.stdin.abandon()

    # -- commands -------------------------------------------------------------------------------

    async def _node(self, node: Node, streams: Streams) -> int:
        match node:
            case Simple():
                return await self._simple(node, streams)
            case Group(body, subshell):
                shell = self.twin() if subshell else self
                work = shell.run_items(body, streams)
                return await self.to_the_end(lambda: work) if subshell else await work
            case If(branches, otherwise):
                return await self._if(branches, otherwise, streams)
            case Loop() | For():
                return await self._loop(node, streams)
            case Function(name, body):
                self.functions[name] = body
                return 0
            case Redirected(inner, redirections):
                redirected = await self._redirected(redirections, streams)
                return 1 if redirected is None else await self._node(inner, redirected)

    async def _if(self, branches: list[tuple[list[Item], list[Item]]], otherwise: list[Item], streams: Streams) -> int:
        for condition, body in branches:
            if await self._condition(condition, streams) == 0:
                return await self.run_items(body, streams)
        self.variables.status = 0
        return await self.run_items(otherwise, streams)

    async def _condition(self, items: list[Item], streams: Streams) -> int:
        strict, self.exit_on_error = self.exit_on_error, False
        try:
            return await self.run_items(items, streams)
        finally:
            self.exit_on_error = strict

    async def _loop(self, node: Loop | For, streams: Streams) -> int:
        status = 0
        words = []
        if isinstance(node, For):
            words = (
                self.variables.arguments if node.words is None else await self.expansion(streams).arguments(node.words)
            )
        values = iter(words)
        while True:
            if isinstance(node, For):
                value = next(values, None)
                if value is None:
                    return status
                self.variables.values[node.name] = value
            elif bool(await self._condition(node.condition, streams)) != node.until:
                return status
            try:
                status = await self.run_items(node.body, streams)
            except Jump as jump:
                if jump.kind == "break":
                    return 0
                if jump.kind != "continue":
                    raise
            await asyncio.sleep(0)  # a loop of built-ins must not starve the host

    async def _simple(self, command: Simple, streams: Streams) -> int:
        redirected = await self._redirected(command.redirections, streams)
        if redirected is None:
            return 1
        try:
            expansion = self.expansion(redirected)
            values = [(name, await expansion.text(word)) for name, word in command.assignments]
            argv = await expansion.arguments(command.words)
        except SyntaxFault as fault:
            return await self.complain(streams, str(fault), 1)
        if not argv:
            self.variables.values.update(values)
            if argv == ["exec"]:
                return 0
            return self.variables.status if command.assignments else 0
        return await self._dispatch(argv, dict(values), redirected)

    async def _dispatch(self, argv: list[str], values: dict[str, str], streams: Streams) -> int:
        body = self.functions.get(argv[0])
        if body is not None:
            return await self._function(body, argv[1:], streams)
        builtin = shell_commands.BUILTINS.get(argv[0])
        if builtin is not None:
            self.variables.values.update(values)
            return await builtin(self, argv, streams)
        return await self.launch(argv, {**self.variables.environment(), **values}, streams)

    async def _function(self, body: Node, arguments: list[str], streams: Streams) -> int:
        before, self.variables.arguments = self.variables.arguments, arguments
        try:
            return await self._node(body, streams)
        except Jump as jump:
            if jump.kind != "return":
                raise
            return jump.status
        finally:
            self.variables.arguments = before

    async def launch(self, argv: list[str], env: dict[str, str], streams: Streams) -> int:
        """Run a program in the foreground. A trapped signal interrupts it."""
        async with children() as running:
            work = partial(self.call.execute, argv, env=env, cwd=self.cwd, streams=streams)
            task = running.start(self.call.machine.gate.hold(work), name=argv[0])
            outer, self._foreground = self._foreground, task
            try:
                await asyncio.wait({task})
            finally:
                self._foreground = outer
            if task.cancelled():
                return 128 + (self._pending[-1] if self._pending else 15)
            return task.result()

    def expansion(self, streams: Streams) -> Expansion:
        async def substituted(text: str) -> str:
            output = Collected()
            twin = self.twin()
            own = replace(streams, stdout=output)
            self.variables.status = await twin.to_the_end(lambda: twin.run_text(text, own))
            return output.data.decode("utf-8", "surrogateescape").replace("\0", "")

        return Expansion(self.variables, self.call.machine.tree, self.cwd, substituted)

    # -- redirections ---------------------------------------------------------------------------

    async def _redirected(self, redirections: list[Redirection], streams: Streams) -> Streams | None:
        for redirection in redirections:
            target = await self.expansion(streams).text(redirection.word)
            try:
                streams = self._with(streams, redirection, target)
            except Fault as fault:
                await self.complain(streams, fault.message, 1)
                return None
        return streams

    def _with(self, streams: Streams, redirection: Redirection, target: str) -> Streams:
        operator, descriptor = redirection.operator, redirection.descriptor
        if descriptor not in (0, 1, 2):
            raise Fault("unsupported", f"descriptor {descriptor} is not offered by the shell in memory")
        if operator in (">&", "<&"):
            return _duplicated(streams, descriptor, target)
        if operator in ("<<", "<<-", "<<<"):
            text = target + ("\n" if operator == "<<<" else "")
            return replace(streams, stdin=Fixed(text.encode("utf-8", "surrogateescape")))
        path = posixpath.join(self.cwd, target)
        if operator == "<":
            return replace(streams, stdin=self.call.open_source(path))
        return _writing(streams, descriptor, self.call.open_sink(path, append=operator == ">>"))

    # -- signals --------------------------------------------------------------------------------

    def trap(self, number: int, action: str | None) -> None:
        """What `number` does: run `action`, nothing when it is empty, end the shell when it is None."""
        if action is None:
            self.traps.pop(number, None)
            self.call.process.handlers.pop(number, None)
            return
        self.traps[number] = action
        self.call.process.handlers[number] = lambda: self.interrupt(number)

    def interrupt(self, number: int) -> None:
        if self.traps.get(number) == "":
            return
        self._pending.append(number)
        if self._foreground is not None:
            self._foreground.cancel()

    async def _traps(self, streams: Streams) -> None:
        while self._pending:
            action = self.traps.get(self._pending.pop(0), "")
            status = self.variables.status
            await self.run_text(action, streams)
            self.variables.status = status


def _writing(streams: Streams, descriptor: int, sink: Sink) -> Streams:
    return replace(streams, stderr=sink) if descriptor == 2 else replace(streams, stdout=sink)


def _duplicated(streams: Streams, descriptor: int, target: str) -> Streams:
    if target not in ("0", "1", "2", "-"):
        raise Fault("unsupported", f"descriptor {target!r} is not open")
    if descriptor == 0:
        return replace(streams, stdin=Nothing()) if target == "-" else streams
    return _writing(streams, descriptor, {"1": streams.stdout, "2": streams.stderr}.get(target, Nothing()))


async def read_line(source: Source) -> bytes:
    """One line, byte by byte, so that what follows is left to the next program."""
    line = bytearray()
    while not line.endswith(b"\n"):
        letter = await source.read(1)
        if not letter:
            break
        line += letter
    return bytes(line)


async def interpret(shell: Shell, *, prompt: bool) -> int:
    """Read commands from standard input until it ends."""
    streams = shell.streams
    text = ""
    while True:
        if prompt:
            await streams.stderr.write(b"> " if text else b"$ ")
        line = (await read_line(streams.stdin)).decode("utf-8", "surrogateescape")
        text += line
        if line:
            with suppress(SyntaxFault):
                try:
                    parse(text)
                except Incomplete:
                    continue
        if text:
            await shell.run_text(text, streams)
        text = ""
        if not line:
            return shell.variables.status
