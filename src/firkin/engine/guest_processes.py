"""Programs in one sandbox, in the law's words."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Self

from firkin.engine.guest_faults import process_errors
from firkin.engine.guest_link import CALL_S, GuestLink, LinkStream
from firkin.engine.introductions import Greeting
from firkin.law.errors import DeadlineExceeded, FirkinError, InvalidSpec, ProcessFailure, ProcessFault
from firkin.law.ids import ProcessId, ProcessTag
from firkin.law.processes import (
    ById,
    Command,
    CommandOutput,
    CommandStatus,
    Ended,
    Exited,
    GuestUser,
    ProcessEvent,
    ProcessInfo,
    ProcessSelector,
    ProcessStream,
    PtyOutput,
    PtySize,
    Shell,
    Signal,
    Signaled,
    Started,
    Stderr,
    Stdout,
    check_user,
    describe_selector,
    signal_number,
)
from firkin.lifetimes import finish
from firkin.wire import codec
from firkin.wire.codec import Object
from firkin.wire.frames import DATA, DATA_ERR, EVENT, RESULT, WINDOW, WireError

MOST_COLLECTED = 16 << 20
"""Bytes of each output that `run` and `wait` keep."""

_PATIENCE_S = 10.0  # beyond the program's own deadline, which the agent enforces
_KILL_S = 5.0


class GuestProcessStream:
    """A `ProcessStream` over a link."""

    def __init__(self, link: GuestLink, stream: LinkStream, info: ProcessInfo) -> None:
        self._link = link
        self._stream = stream
        self._info = info
        self._begun = False
        self._ended = False
        self.truncated = False

    @property
    def info(self) -> ProcessInfo:
        return self._info

    @property
    def cut_off(self) -> bool:
        return self._stream.cut_off

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ProcessEvent:
        if not self._begun:
            self._begun = True
            return Started(self._info)
        while not self._ended:
            with process_errors("read a process's output", self._link.sandbox_id, self._info.id):
                kind, value = await self._stream.receive(None)
            if kind == DATA:
                return PtyOutput(value) if self._info.pty else Stdout(value)
            if kind == DATA_ERR:
                return Stderr(value)
            if kind == RESULT:
                self._ended = True
                return self._end(value)
            if kind == EVENT:
                raise self._link.distrust("an event in the middle of a process's output")
        raise StopAsyncIteration

    def _end(self, result: Object) -> Ended:
        try:
            self.truncated = codec.flag(result, "truncated")
            return Ended(_status(result), timed_out=codec.flag(result, "timed_out"))
        except WireError as error:
            raise self._link.distrust(str(error)) from None

    async def aclose(self) -> None:
        await self._stream.aclose()


def _status(result: Object) -> CommandStatus:
    if "signal" in result:
        return Signaled(codec.integer(result, "signal"))
    return Exited(codec.integer(result, "exit"))


class GuestProcesses:
    """The verbs of `ProcessControl` for one sandbox."""

    def __init__(
        self,
        link: GuestLink,
        *,
        default_user: str = "user",
        default_workdir: str = "/home/user",
        greeting: Greeting | None = None,
    ) -> None:
        """`greeting` is said before a program is started."""
        self._link = link
        self._greeting = greeting
        self._default_user = default_user
        self._default_workdir = default_workdir

    async def run(self, command: Command, *, rehearsal: bool = False) -> CommandOutput:
        """Raises `ProcessFailure` (`TIMED_OUT`) when the command's own deadline killed it.

        A cancelled caller takes the program with it. A `rehearsal` is nobody's: its agent goes on to wait for the
        first program.
        """
        stream = await self.stream(command, rehearsal=rehearsal)
        limit = None if command.timeout_s is None else command.timeout_s + _PATIENCE_S
        try:
            async with asyncio.timeout(limit):
                output, end = await _collected(stream)
        except TimeoutError:
            await self._kill(stream.info)
            raise DeadlineExceeded("run", limit or 0, sandbox_id=self._link.sandbox_id) from None
        except asyncio.CancelledError:
            await finish(self._kill(stream.info), within_s=_KILL_S)
            raise
        finally:
            await stream.aclose()
        if end.timed_out:
            raise ProcessFailure(
                "run",
                ProcessFault.TIMED_OUT,
                f"the command was killed after {command.timeout_s or 0:g} s",
                sandbox_id=self._link.sandbox_id,
                process_id=stream.info.id,
            )
        return output

    async def _kill(self, info: ProcessInfo) -> None:
        try:
            await self.signal(ById(info.id), Signal.KILL)
        except FirkinError:  # it has ended, or everything has
            return

    async def start(self, command: Command) -> ProcessInfo:
        stream, info = await self._begin(command, "start")
        if command.stdin is not None and len(command.stdin) > WINDOW:
            self._link.start(_feed(stream, command, then_close=True), name=f"stdin of {info.id}")
            return info
        try:
            await _send_stdin(stream, command)
        finally:
            await stream.aclose()
        return info

    async def stream(self, command: Command, *, rehearsal: bool = False) -> GuestProcessStream:
        stream, info = await self._begin(command, "stream", rehearsal=rehearsal)
        try:
            if command.stdin is not None and len(command.stdin) > WINDOW:
                self._link.start(_feed(stream, command, then_close=False), name=f"stdin of {info.id}")
            else:
                await _send_stdin(stream, command)
        except BaseException:
            await stream.aclose()
            raise
        return GuestProcessStream(self._link, stream, info)

    async def _begin(
        self, command: Command, operation: str, *, rehearsal: bool = False
    ) -> tuple[LinkStream, ProcessInfo]:
        if command.pty is not None and command.stdin is not None:
            raise ProcessFailure(
                operation,
                ProcessFault.PTY_STDIN,
                "a terminal's input cannot be closed; use send_input instead of stdin",
                sandbox_id=self._link.sandbox_id,
            )
        args = self._start_arguments(command)
        if rehearsal:
            args["rehearsal"] = True
        with process_errors(operation, self._link.sandbox_id, user=args["user"]):
            if self._greeting is not None:
                self._greeting.say()
            stream = self._link.stream("start", args)
            try:
                pid = self._pid(await stream.event(CALL_S))
            except BaseException:
                await stream.aclose()
                raise
        info = ProcessInfo(
            id=pid,
            tag=command.tag,
            argv=tuple(args["argv"]),
            cwd=args["cwd"],
            env=dict(command.env),
            pty=command.pty is not None,
        )
        return stream, info

    def _start_arguments(self, command: Command) -> Object:
        mode = command.mode
        user = self._default_user if command.user is None else command.user
        cwd = self._default_workdir if command.user in (None, self._default_user) else ""
        return {
            "argv": ["/bin/sh", "-c", mode.text] if isinstance(mode, Shell) else [mode.program, *mode.args],
            "cwd": cwd if command.cwd is None else command.cwd,
            "env": dict(command.env),
            "user": user,
            "stdin": command.keep_stdin,
            "input": command.stdin is not None,
            "pty": None if command.pty is None else [command.pty.rows, command.pty.cols],
            "tag": command.tag,
            "timeout_ms": 0 if command.timeout_s is None else math.ceil(command.timeout_s * 1000),
        }

    async def list(self) -> Sequence[ProcessInfo]:
        with process_errors("list processes", self._link.sandbox_id):
            answer = await self._link.call("processes")
        found = answer.get("processes")
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise self._link.distrust("the processes are not a list of objects")
        return [self._info(item) for item in found]

    async def connect(self, selector: ProcessSelector, *, replay: bool = False) -> ProcessStream:
        return await self._attach(selector, "connect", replay=replay)

    async def _attach(self, selector: ProcessSelector, operation: str, *, replay: bool) -> GuestProcessStream:
        with process_errors(operation, self._link.sandbox_id, describe_selector(selector)):
            stream = self._link.stream("attach", {**_selection(selector), "replay": replay})
            try:
                info = self._info(await stream.event(CALL_S))
            except BaseException:
                await stream.aclose()
                raise
        return GuestProcessStream(self._link, stream, info)

    async def signal(self, selector: ProcessSelector, signal: Signal | int) -> None:
        await self._command("signal", selector, {"signal": signal_number(signal)})

    async def send_input(self, selector: ProcessSelector, data: bytes) -> None:
        """Waits as long as the program does not read; its end ends the wait."""
        with process_errors("send input", self._link.sandbox_id, describe_selector(selector)):
            stream = self._link.stream("input", _selection(selector))
            try:
                if await stream.send(data):
                    await stream.end()
                await stream.result()
            finally:
                await stream.aclose()

    async def close_stdin(self, selector: ProcessSelector) -> None:
        await self._command("close_stdin", selector, {})

    async def resize_pty(self, selector: ProcessSelector, size: PtySize) -> None:
        await self._command("resize", selector, {"rows": size.rows, "cols": size.cols})

    async def _command(self, operation: str, selector: ProcessSelector, args: Object) -> None:
        with process_errors(operation, self._link.sandbox_id, describe_selector(selector)):
            await self._link.call(operation, {**_selection(selector), **args})

    async def wait(self, selector: ProcessSelector) -> CommandOutput:
        stream = await self._attach(selector, "wait", replay=True)
        try:
            output, _ = await _collected(stream)
        finally:
            await stream.aclose()
        return output

    async def lookup_user(self, name: str | None) -> GuestUser:
        check_user("look up user", name)
        wanted = self._default_user if name is None else name
        with process_errors("look up user", self._link.sandbox_id, user=wanted):
            answer = await self._link.call("user", {"name": wanted})
        try:
            return GuestUser(
                name=codec.text(answer, "name"),
                uid=codec.integer(answer, "uid"),
                gid=codec.integer(answer, "gid"),
                home=codec.text(answer, "home"),
                shell=codec.text(answer, "shell"),
            )
        except WireError as error:
            raise self._link.distrust(str(error)) from None

    def _pid(self, event: Object) -> ProcessId:
        try:
            return ProcessId(str(codec.integer(event, "pid")))
        except (WireError, InvalidSpec) as error:
            raise self._link.distrust(str(error)) from None

    def _info(self, facts: Object) -> ProcessInfo:
        try:
            tag = facts.get("tag")
            return ProcessInfo(
                id=ProcessId(str(codec.integer(facts, "pid"))),
                tag=None if tag is None else ProcessTag(codec.text(facts, "tag")),
                argv=tuple(codec.texts(facts, "argv")),
                cwd=codec.text(facts, "cwd"),
                env=codec.mapping(facts, "env"),
                pty=codec.flag(facts, "pty"),
            )
        except (WireError, InvalidSpec) as error:
            raise self._link.distrust(str(error)) from None


def _selection(selector: ProcessSelector) -> Object:
    return {"pid": int(selector.id)} if isinstance(selector, ById) else {"tag": selector.tag}


async def _send_stdin(stream: LinkStream, command: Command) -> None:
    if command.stdin is not None:
        await stream.send(command.stdin)
        if not command.keep_stdin:
            await stream.end()


async def _feed(stream: LinkStream, command: Command, *, then_close: bool) -> None:
    """The rest of a long standard input, beside whoever reads the output."""
    try:
        await _send_stdin(stream, command)
        if then_close:
            await stream.aclose()
    except FirkinError:  # the reader of the stream is told the same
        return


async def _collected(stream: GuestProcessStream) -> tuple[CommandOutput, Ended]:
    stdout, stderr = bytearray(), bytearray()
    truncated = False
    async for event in stream:
        match event:
            case Stdout(data) | PtyOutput(data):
                truncated |= _append(stdout, data)
            case Stderr(data):
                truncated |= _append(stderr, data)
            case Ended():
                truncated |= stream.truncated
                output = CommandOutput(
                    status=event.status, stdout=bytes(stdout), stderr=bytes(stderr), truncated=truncated
                )
                return output, event
            case Started():
                pass
    raise AssertionError("a stream of a process ends with its end")


def _append(collected: bytearray, data: bytes) -> bool:
    """True when not all of `data` had room."""
    room = MOST_COLLECTED - len(collected)
    collected += data[:room]
    return len(data) > room
