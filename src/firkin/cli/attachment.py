"""A process inside, attached to this terminal: output, input, signals, window size, exit code.

`firkin run` and `firkin sandbox exec` differ only in what they reach the
process through; that is the `AttachedProcess` protocol.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import threading
import tty
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from firkin.cli.failures import one_sentence, unwritable
from firkin.law.errors import FirkinError
from firkin.law.processes import PtySize
from firkin.lifetimes import Children, children

_CHUNK = 32 * 1024
_INPUT_WITHIN_S = 3600.0
_SIGNAL_WITHIN_S = 5.0
_LAST_WORDS_S = 1.0
_KILLED = 128 + signal.SIGKILL


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes for this program's standard output (1) or error (2)."""

    descriptor: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ExitCode:
    """How it ended, as a shell would say it: 0…255, 128+n for signal n."""

    code: int


class AttachedProcess(Protocol):
    def events(self) -> AsyncIterator[Output | ExitCode]: ...

    async def send_input(self, data: bytes) -> None: ...

    async def close_stdin(self) -> None: ...

    async def signal(self, number: int) -> None:
        """Silent when the process has ended."""
        ...

    async def resize(self, size: PtySize) -> None: ...


def terminal_size() -> PtySize:
    """This terminal's size, or 24 by 80 where there is none."""
    try:
        columns, rows = os.get_terminal_size(sys.__stdin__.fileno() if sys.__stdin__ else 0)
    except (OSError, ValueError):
        return PtySize()
    return PtySize(rows=rows or 24, cols=columns or 80)


class Show(Protocol):
    """Where output goes: called in a thread with the descriptor and the bytes. May raise `OSError`."""

    def __call__(self, descriptor: int, data: bytes, /) -> None: ...


async def attach(process: AttachedProcess, *, tty_wanted: bool, show: Show | None = None) -> int:
    """Pass everything through until the process ends; its exit code. `show`: another place for its output."""
    try:
        async with asyncio.timeout(None) as patience, children() as tasks:
            with _raw_terminal(tty_wanted), _signals(process, tasks, tty_wanted, patience):
                _feed_stdin(process, tasks)
                return await _show_output(process, show or write_all)
    except TimeoutError:
        if not patience.expired():
            raise
        return _KILLED


async def _show_output(process: AttachedProcess, show: Show) -> int:
    async for event in process.events():
        if isinstance(event, ExitCode):
            return event.code
        try:
            await asyncio.to_thread(show, event.descriptor, event.data)
        except OSError as error:
            with suppress(FirkinError, TimeoutError):
                await asyncio.wait_for(process.signal(signal.SIGKILL), _SIGNAL_WITHIN_S)
            if isinstance(error, BrokenPipeError):
                return 128 + signal.SIGPIPE
            raise unwritable(error) from error
    return 1


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _feed_stdin(process: AttachedProcess, tasks: Children) -> None:
    """Read standard input in a thread: of a file, a pipe or a terminal only a plain read works for all.

    The thread is a daemon because a blocked read of a terminal cannot be cancelled.
    """
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes] = asyncio.Queue(maxsize=4)

    def read() -> None:
        data = b"\0"
        while data:
            try:
                data = os.read(0, _CHUNK)
            except OSError:
                data = b""
            putting = chunks.put(data)
            try:
                asyncio.run_coroutine_threadsafe(putting, loop).result()
            except (RuntimeError, asyncio.CancelledError):  # the command is over, and the loop with it
                putting.close()  # else Python tells the terminal that nobody awaited it
                return

    threading.Thread(target=read, name="stdin", daemon=True).start()
    tasks.start(_send_chunks(process, chunks), name="stdin")


async def _send_chunks(process: AttachedProcess, chunks: asyncio.Queue[bytes]) -> None:
    with suppress(FirkinError):  # it ended, or closed its input: what is left has no reader
        while data := await chunks.get():
            await asyncio.wait_for(process.send_input(data), _INPUT_WITHIN_S)
        await asyncio.wait_for(process.close_stdin(), _SIGNAL_WITHIN_S)


@contextmanager
def _raw_terminal(wanted: bool) -> Iterator[None]:
    if not (wanted and os.isatty(0)):
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@contextmanager
def _signals(process: AttachedProcess, tasks: Children, tty_wanted: bool, patience: asyncio.Timeout) -> Iterator[None]:
    """Ctrl-C and kill go to the process inside; the second Ctrl-C kills it.

    What it has started may live on and hold its output, so then `patience` with
    that ends soon.
    """
    loop = asyncio.get_running_loop()
    counts = dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), 0)

    def pass_on(number: signal.Signals) -> None:
        counts[number] += 1
        first = counts[number] == 1
        tasks.start(_patiently(lambda: process.signal(number)) if first else kill(), name="signal")

    async def kill() -> None:
        await _patiently(lambda: process.signal(signal.SIGKILL))
        if patience.when() is None:
            patience.reschedule(loop.time() + _LAST_WORDS_S)

    for number in counts:
        loop.add_signal_handler(number, pass_on, number)
    if tty_wanted:
        loop.add_signal_handler(
            signal.SIGWINCH,
            lambda: tasks.start(_patiently(lambda: process.resize(terminal_size())), name="resize"),
        )
    try:
        yield
    finally:
        for number in (*counts, signal.SIGWINCH):
            loop.remove_signal_handler(number)


async def _patiently(act: Callable[[], Awaitable[None]]) -> None:
    try:
        await asyncio.wait_for(act(), _SIGNAL_WITHIN_S)
    except (FirkinError, TimeoutError) as error:
        print(f"firkin: {one_sentence(error)}", file=sys.stderr)
