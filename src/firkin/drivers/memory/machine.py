"""The computer inside an instance: its files, its processes, its listening ports."""

from __future__ import annotations

import asyncio
import posixpath
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING

from firkin.drivers.memory import captures
from firkin.drivers.memory.accounts import account
from firkin.drivers.memory.calls import Call
from firkin.drivers.memory.gate import Gate
from firkin.drivers.memory.pipes import BrokenPipe, MemoryChannel, Pipe, connection
from firkin.drivers.memory.processes import STDERR, STDOUT, TERMINAL, Output, OutputSink, Process
from firkin.drivers.memory.programs import PROGRAMS, Program, interpreter
from firkin.drivers.memory.roots import identify, load
from firkin.drivers.memory.shell import Streams
from firkin.drivers.memory.terminal import Terminal
from firkin.drivers.memory.tree import DIRECTORY, FILE, Fault, Tree
from firkin.law.driver import BootPlan
from firkin.lifetimes import Children
from firkin.wire.operations import EXIT_KEPT_S

if TYPE_CHECKING:
    from firkin.drivers.memory.watch_operations import Watch

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_EXITS_KEPT = 65_536


class Machine:
    """Made from a boot plan by `furnish`, on the files in `left` when it continues; `halt` ends everything in it."""

    def __init__(self, plan: BootPlan, left: Tree | None = None) -> None:
        self.plan = plan
        self.hostname = plan.hostname
        self.boot_id = str(uuid.uuid4())
        self.tree = left or Tree(plan.resources.disk_bytes)
        self.tree.limit = plan.resources.disk_bytes
        self.gate = Gate()
        self.everything: dict[int, Process] = {}
        self.started: dict[int, Process] = {}
        self.terminals: dict[int, Terminal] = {}
        self.listeners: dict[int, Callable[[MemoryChannel], None]] = {}
        self.watches: dict[int, Watch] = {}
        self.halted = False
        self._children = Children()
        self._next_pid = 2

    def furnish(self) -> None:
        """Read its first files and give it its identity. Blocks; `Fault` when the files cannot be had."""
        plan = self.plan
        if plan.captured:
            captures.read(self.tree, Path(plan.captured), PROGRAMS)
        elif plan.root.layers and not plan.continues:
            captures.read(self.tree, Path(plan.root.layers[-1]), PROGRAMS)  # a layer here holds what is below it, too
        elif not plan.continues:
            load(self.tree, plan.root, sorted(PROGRAMS))
        identify(self.tree, hostname=plan.hostname, machine_id=plan.machine_id, boot_id=self.boot_id)

    def now(self) -> float:
        return self.gate.now()

    # -- programs -------------------------------------------------------------------------------

    def find(self, name: str, search: str, cwd: str) -> str | None:
        """The real path of the program `name`, looked up as execvpe does."""
        folders = [""] if "/" in name else search.split(":")
        for folder in folders:
            try:
                real, node = self.tree.locate(posixpath.join(cwd, folder, name))
            except Fault:
                continue
            if node.kind == FILE and node.mode & 0o111:
                return real
        return None

    def program(self, real: str) -> Program:
        """What runs when the file at `real` is executed; `Fault` (``cannot_start``) when nothing can."""
        _, node = self.tree.locate(real)
        if node.program:
            return PROGRAMS[node.program]
        first = bytes(node.data[:256]).partition(b"\n")[0].decode("utf-8", "surrogateescape")
        if first.startswith("#!"):
            return interpreter(first[2:].split(), real)
        raise Fault("cannot_start", f"{real}: Exec format error")

    # -- processes ------------------------------------------------------------------------------

    def start(
        self,
        argv: list[str],
        *,
        env: dict[str, str],
        cwd: str,
        user: str,
        stdin: bool,
        size: tuple[int, int] | None,
        tag: str | None,
    ) -> Process:
        """A process that the agent starts. `Fault` when it cannot be."""
        who = account(self.tree, user)
        self._admit()
        process = Process(self._pid(), argv, cwd=self._directory(cwd, who.home), env=env, account=who)
        full = {"PATH": SEARCH_PATH, "HOME": who.home, "USER": who.name, "LOGNAME": who.name, "SHELL": who.shell, **env}
        real = self.find(argv[0], full["PATH"], process.cwd)
        if real is None:
            raise Fault("cannot_start", f"there is no program {argv[0]!r}")
        program = self.program(real)
        process.tag, process.size = tag, size
        process.stdin = Pipe() if stdin or size else None
        process.output = output = Output()
        kinds = (TERMINAL, TERMINAL) if size else (STDOUT, STDERR)
        streams = Streams(process.source, OutputSink(output, kinds[0]), OutputSink(output, kinds[1]))
        call = Call(self, process, argv, {**full, "PWD": process.cwd}, process.cwd, streams)
        if size and process.stdin:
            self.terminals[process.pid] = Terminal(process, output, process.stdin)
        self.started[process.pid] = process
        self._run(process, lambda: program(call))
        return process

    def _admit(self) -> None:
        self._forget_old()
        if self.halted:
            raise Fault("gone", "the sandbox has ended")
        alive = [process for process in self.everything.values() if process.end is None]
        if len(alive) + 1 >= self.plan.resources.pids:
            raise Fault("limit", f"{len(alive)} processes run; the sandbox's limit is {self.plan.resources.pids}")

    def _directory(self, cwd: str, home: str) -> str:
        if not cwd:
            found = self.tree.seek(home)[1]
            return home if found is not None and found.kind == DIRECTORY else "/"
        try:
            _, node = self.tree.locate(cwd)
        except Fault:
            raise Fault("cwd_missing", f"cwd {cwd!r} does not exist") from None
        if node.kind != DIRECTORY:
            raise Fault("cwd_missing", f"cwd {cwd!r} is not a directory")
        return cwd

    def fork(self, parent: Process, work: Callable[[], Awaitable[int]]) -> Process:
        """A background job of `parent`, holding its output open."""
        self._admit()
        job = Process(self._pid(), parent.argv, cwd=parent.cwd, env=parent.env, account=parent.account)
        parent.share_output(job)
        task = self._run(job, work)
        task.add_done_callback(lambda _: parent.job_ended(job))
        return job

    def _run(self, process: Process, work: Callable[[], Awaitable[int]]) -> asyncio.Task[int]:
        self.everything[process.pid] = process
        task = self.background(lambda: _contained(work), f"process {process.pid}")
        process.started(task, self.now)
        return task

    def background(self, work: Callable[[], Coroutine[object, object, int]], name: str) -> asyncio.Task[int]:
        """Work that ends with the instance and stands still while it is frozen."""
        return self._children.start(self.gate.hold(work), name=name)

    def _pid(self) -> int:
        self._next_pid += 1
        return self._next_pid - 1

    def _forget_old(self) -> None:
        ended = [process for process in self.everything.values() if process.end is not None]
        late = self.now() - EXIT_KEPT_S
        for index, process in enumerate(reversed(ended)):
            if process.ended_at < late or index >= MAX_EXITS_KEPT:
                for table in (self.everything, self.started, self.terminals):
                    table.pop(process.pid, None)

    def find_process(self, selector: int | str) -> Process:
        """By pid or tag, the newest first; `Fault` (``no_process``) otherwise."""
        self._forget_old()
        for process in reversed(self.started.values()):
            if selector in (process.pid, process.tag):
                return process
        raise Fault("no_process", f"there is no process {selector!r}")

    def living(self) -> list[Process]:
        return [process for process in self.everything.values() if process.end is None]

    # -- ports ----------------------------------------------------------------------------------

    def connect(self, port: int) -> MemoryChannel:
        """A new connection to whatever listens on `port`; `Fault` (``refused``) when nothing does."""
        accept = self.listeners.get(port)
        if accept is None:
            raise Fault("refused", f"nothing listens on port {port}")
        ours, theirs = connection()
        accept(theirs)
        return ours

    # -- the end --------------------------------------------------------------------------------

    async def shutdown(self, grace_s: float) -> None:
        """SIGTERM to every process, and SIGKILL to those that are left after `grace_s` seconds."""
        for process in self.living():
            process.signal(15)
        waiting = asyncio.gather(*(process.ended.wait() for process in self.living()))
        try:
            async with asyncio.timeout(grace_s):
                await waiting
        except TimeoutError:
            await self._kill_all()

    async def _kill_all(self) -> None:
        while alive := self.living():
            for process in alive:
                process.kill()
            await asyncio.gather(*(process.ended.wait() for process in alive))

    async def halt(self) -> None:
        self.halted = True
        self.gate.open()
        await self._kill_all()
        await self._children.aclose()


async def _contained(work: Callable[[], Awaitable[int]]) -> int:
    """What a program does wrong is its own end, never the instance's."""
    try:
        return await work()
    except BrokenPipe:
        return 128 + 13
    except Fault:
        return 1
