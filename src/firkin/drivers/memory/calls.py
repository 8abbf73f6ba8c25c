"""One run of one program: its arguments, streams, directory, and what it may ask of its computer."""

from __future__ import annotations

import posixpath
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from firkin.drivers.memory.pipes import Fixed, Nothing, Sink, Source
from firkin.drivers.memory.processes import Process
from firkin.drivers.memory.shell import Streams
from firkin.drivers.memory.tree import DIRECTORY, FILE, OTHER, Fault, Node

if TYPE_CHECKING:
    from firkin.drivers.memory.machine import Machine

_MESSAGES = {
    "not_found": "No such file or directory",
    "is_directory": "Is a directory",
    "not_directory": "Not a directory",
    "permission": "Permission denied",
    "no_space": "No space left on device",
    "exists": "File exists",
    "loop": "Too many levels of symbolic links",
}


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


@dataclass(slots=True)
class FileSink:
    """A file opened for writing, at its end."""

    machine: Machine
    real: str
    node: Node

    async def write(self, data: bytes) -> None:
        self.machine.tree.extend(self.real, self.node, data)


@dataclass(slots=True)
class Call:
    machine: Machine
    process: Process
    argv: list[str]
    env: dict[str, str]
    cwd: str
    streams: Streams

    @property
    def stdin(self) -> Source:
        return self.streams.stdin

    @property
    def stdout(self) -> Sink:
        return self.streams.stdout

    @property
    def stderr(self) -> Sink:
        return self.streams.stderr

    async def say(self, text: str) -> None:
        await self.stdout.write(encoded(text))

    async def fail(self, text: str, status: int = 1) -> int:
        await self.stderr.write(encoded(f"{posixpath.basename(self.argv[0])}: {text}\n"))
        return status

    def path(self, name: str) -> str:
        return posixpath.join(self.cwd, name)

    # -- files, as the process's own account ----------------------------------------------------

    def permit(self, node: Node, bit: int) -> None:
        """`Fault` (``permission``) unless the account may read (4), write (2) or enter (1) `node`."""
        account = self.process.account
        shift = 6 if node.uid == account.uid else 3 if node.gid == account.gid else 0
        if account.uid != 0 and not node.mode >> shift & bit:
            raise Fault("permission", "Permission denied")

    def read_file(self, path: str) -> bytes:
        _, node = self._located(path)
        if node.kind == DIRECTORY:
            raise Fault("is_directory", f"{path}: Is a directory")
        self._permitted(node, 4, path)
        return bytes(node.data)

    def open_source(self, path: str) -> Source:
        return Fixed(self.read_file(path))

    def open_sink(self, path: str, *, append: bool) -> Sink:
        """The file at `path`, made when missing and emptied unless `append`."""
        try:
            real, node = self.machine.tree.seek(path)
            if node is None:
                self._permitted(self.machine.tree.parent(real)[1], 2, path)
                account = self.process.account
                node = self.machine.tree.make_file(real, 0o644, account.uid, account.gid)
        except Fault as fault:
            raise Fault(fault.code, f"{path}: {_MESSAGES.get(fault.code, fault.message)}") from None
        if node.kind == OTHER:
            return Nothing()
        if node.kind != FILE:
            raise Fault("is_directory", f"{path}: Is a directory")
        self._permitted(node, 2, path)
        if not append:
            self.machine.tree.resize(node, 0)
            self.machine.tree.changed("write", real)
        return FileSink(self.machine, real, node)

    def _located(self, path: str) -> tuple[str, Node]:
        try:
            return self.machine.tree.locate(path)
        except Fault as fault:
            raise Fault(fault.code, f"{path}: {_MESSAGES.get(fault.code, fault.message)}") from None

    def _permitted(self, node: Node, bit: int, path: str) -> None:
        try:
            self.permit(node, bit)
        except Fault as fault:
            raise Fault(fault.code, f"{path}: Permission denied") from None

    # -- programs -------------------------------------------------------------------------------

    def find(self, name: str, search: str, cwd: str) -> str | None:
        return self.machine.find(name, search, cwd)

    async def execute(self, argv: list[str], *, env: dict[str, str], cwd: str, streams: Streams) -> int:
        """Run another program in this process's place; 127 when there is none of that name."""
        call = Call(self.machine, self.process, argv, env, cwd, streams)
        path = self.machine.find(argv[0], env.get("PATH", ""), cwd)
        if path is None:
            await streams.stderr.write(encoded(f"sh: {argv[0]}: not found\n"))
            return 127
        try:
            return await self.machine.program(path)(call)
        except Fault as fault:
            return await call.fail(fault.message)

    def fork(self, work: Callable[[], Awaitable[int]]) -> Process:
        """A background process that shares this one's output."""
        return self.machine.fork(self.process, work)
