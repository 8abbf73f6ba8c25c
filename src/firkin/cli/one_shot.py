"""A command in a sandbox that lives as long as it: what `firkin run` does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

from firkin.bootstrap.composition import BASE, close_abandoned, ensure_template, open_backend
from firkin.bootstrap.temporary_states import temporary_state
from firkin.cli.attachment import ExitCode, Output, Show, attach, terminal_size
from firkin.cli.discovery import find_server, running_server
from firkin.cli.failures import BAD_INPUT, CommandFailure
from firkin.cli.template import absolute_source
from firkin.law.backend import SandboxBackend
from firkin.law.errors import NotFound
from firkin.law.ids import SandboxId, TemplateId
from firkin.law.isolation import Isolation
from firkin.law.network import NetworkPolicy
from firkin.law.processes import (
    Argv,
    ById,
    Command,
    Ended,
    Exited,
    ProcessStream,
    PtyOutput,
    PtySize,
    Stderr,
    Stdout,
)
from firkin.law.resources import SandboxResources
from firkin.law.sandboxes import DeleteOptions, FromTemplate, Never, SandboxSpec
from firkin.law.templates import TemplateSpec, parse_source
from firkin.lifetimes import finish
from firkin.settings import Settings

_END_WITHIN_S = 30.0
_TIMED_OUT = 124


@dataclass(frozen=True, slots=True, kw_only=True)
class OneShot:
    """What to run and in what. `keep_state`: use the settings' state folder instead of a temporary one."""

    argv: tuple[str, ...]
    keep_state: bool = False
    template: str = "base"
    env: Mapping[str, str]
    cwd: str | None = None
    user: str | None = None
    memory: int | None = None
    cpus: int | None = None
    disk: int | None = None
    internet: bool = False
    hardened: bool = False
    isolation: str | None = None
    tty: bool = False
    timeout: float | None = None


async def run_one(request: OneShot, settings: Settings, show: Show | None = None) -> tuple[str, int]:
    """Run it to its end; the sandbox's id and the exit code. The sandbox is gone afterwards, however it ended.

    `show` gets the output instead of our own standard output and error.
    """
    command, resources = _command(request), _resources(request, settings)
    async with _backend(settings, request) as backend:
        spec = SandboxSpec(
            source=FromTemplate(await _template(request.template, backend)),
            resources=resources,
            deadline=Never(),
            network=NetworkPolicy(internet=request.internet),
            hardened=request.hardened,
            isolation=None if request.isolation is None else Isolation.parse(request.isolation),
        )
        info = await backend.sandboxes.create(spec)
        try:
            process = await _LocalProcess.start(backend, info.id, command)
            return str(info.id), await attach(process, tty_wanted=request.tty, show=show)
        finally:
            await finish(backend.sandboxes.delete(info.id, DeleteOptions(force=True)), within_s=_END_WITHIN_S)


@asynccontextmanager
async def _backend(settings: Settings, request: OneShot) -> AsyncIterator[SandboxBackend]:
    if request.keep_state or not _is_source(request.template):
        await _refuse_a_servers_template(request.template, settings)
        async with open_backend(settings) as backend:
            yield backend
        return
    async with (
        temporary_state(settings, close_abandoned) as temporary,
        open_backend(temporary, kill_all=True) as backend,
    ):
        yield backend


async def _refuse_a_servers_template(template: str, settings: Settings) -> None:
    """A running server holds its state folder, and the templates in it: say so, or that it has no such template."""
    record = running_server(settings.state_dir)
    if record is None or _is_source(template):
        return
    from firkin.cli.template_calls import Served, list_templates  # the HTTP client takes its time to load

    served = Served(find_server(None, None, settings.state_dir), settings.state_dir)
    known = [str(row["id"]) for row in await list_templates(served)]
    if template not in known:
        raise CommandFailure(
            f"template {template!r} was not found; the server at {record.url} has {', '.join(known) or 'none'}",
            exit_code=BAD_INPUT,
        )
    raise CommandFailure(
        f"template {template!r} is in the hands of the server at {record.url};"
        f" use: firkin sandbox create --template {template}",
        exit_code=BAD_INPUT,
    )


def _is_source(template: str) -> bool:
    """``base``, or text that only a source can be: then no earlier state is needed to know it."""
    return template in (BASE, "host") or any(mark in template for mark in ":/")


async def _template(text: str, backend: SandboxBackend) -> TemplateId:
    if text in (BASE, "host"):
        return (await ensure_template(backend)).id
    if not _is_source(text):
        return (await backend.templates.get(TemplateId(text))).id
    return (await backend.templates.prepare(TemplateSpec(source=parse_source(absolute_source(text))))).id


def _resources(request: OneShot, settings: Settings) -> SandboxResources:
    asked = {"vcpus": request.cpus, "memory_bytes": request.memory, "disk_bytes": request.disk}
    given = {name: value for name, value in asked.items() if value is not None}
    return replace(settings.policies().default_resources, **given)


def _command(request: OneShot) -> Command:
    return Command(
        mode=Argv(request.argv[0], request.argv[1:]),
        cwd=request.cwd,
        env=request.env,
        user=request.user,
        keep_stdin=not request.tty,
        pty=terminal_size() if request.tty else None,
        timeout_s=request.timeout,
    )


class _LocalProcess:
    """A process reached through a backend in this very program."""

    def __init__(self, backend: SandboxBackend, sandbox_id: SandboxId, stream: ProcessStream) -> None:
        assert backend.processes is not None  # `start` has used it
        self._processes = backend.processes
        self._sandbox_id = sandbox_id
        self._stream = stream
        self._selector = ById(stream.info.id)

    @classmethod
    async def start(cls, backend: SandboxBackend, sandbox_id: SandboxId, command: Command) -> _LocalProcess:
        if backend.processes is None:
            raise CommandFailure("this driver cannot run processes")
        return cls(backend, sandbox_id, await backend.processes.stream(sandbox_id, command))

    async def events(self) -> AsyncIterator[Output | ExitCode]:
        async for event in self._stream:
            match event:
                case Stdout(data) | PtyOutput(data):
                    yield Output(1, data)
                case Stderr(data):
                    yield Output(2, data)
                case Ended(status, timed_out):
                    signalled = _TIMED_OUT if timed_out else 128 + getattr(status, "signal", 0)
                    yield ExitCode(status.code & 0xFF if isinstance(status, Exited) else signalled)

    async def send_input(self, data: bytes) -> None:
        await self._processes.send_input(self._sandbox_id, self._selector, data)

    async def close_stdin(self) -> None:
        await self._processes.close_stdin(self._sandbox_id, self._selector)

    async def signal(self, number: int) -> None:
        with suppress(NotFound):  # it has ended
            await self._processes.signal(self._sandbox_id, self._selector, number)

    async def resize(self, size: PtySize) -> None:
        await self._processes.resize_pty(self._sandbox_id, self._selector, size)
