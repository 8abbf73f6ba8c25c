"""How each peer is run: docker, podman, bubblewrap, runc, crun, runsc. Each gives what can be timed, by name."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from firkin.cli.bench.bundle import write_bundle
from firkin.cli.tool_checks import find_program

Sampler = Callable[[int], float]
_PATIENCE_S = 60.0
_ECHO = ["/bin/echo", "hi"]
_SLEEP = ["/bin/sleep", "3600"]
_RUNSC = ("--network=none", "--ignore-cgroups")
_PLATFORMS = ("systrap", "ptrace")


class PeerUnable(Exception):
    """The peer cannot run here; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    name: str
    program: str
    isolation: str
    scenario: Callable[[str, Path, Path], AbstractContextManager[Mapping[str, Sampler]]]

    def enter(self, folder: Path, root: Path) -> AbstractContextManager[Mapping[str, Sampler]]:
        """What can be timed of it, in a work folder below `folder`. `PeerUnable` when it is not there."""
        program = find_program(self.program)
        if program is None:
            raise PeerUnable("not installed")
        work = folder / self.name
        work.mkdir()
        return self.scenario(program, work, root)


def _first_byte_ms(argv: list[str]) -> float:
    """Start `argv`; milliseconds to its first output. `PeerUnable` with its last words when it gave none."""
    began = time.perf_counter()
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None  # it was asked for
        first = os.read(process.stdout.fileno(), 64)
        taken = (time.perf_counter() - began) * 1000
        _, errors = process.communicate(timeout=_PATIENCE_S)
    if not first:
        raise PeerUnable(last_words(errors))
    return taken


def _run(argv: list[str]) -> str:
    # Output goes to a file, not a pipe: a detached container keeps the pipe and it would never end.
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, timeout=_PATIENCE_S, check=False
        )
        output.seek(0)
        text = output.read()
    if done.returncode != 0:
        raise PeerUnable(last_words(text))
    return text.decode(errors="replace")


def last_words(raw: bytes) -> str:
    lines = raw.decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it ended without a word"


@contextmanager
def _engine(program: str, work: Path, root: Path) -> Iterator[Mapping[str, Sampler]]:
    """docker and podman: an image imported from the root, no network."""
    _run([program, "info"])
    image = f"firkin-bench-{os.getpid()}"
    archive = work / "root.tar"
    _run(["tar", "-C", str(root), "-cf", str(archive), "."])
    _run([program, "import", str(archive), image])
    try:
        _run([program, "run", "-d", "--name", image, "--network", "none", image, *_SLEEP])
        run = [program, "run", "--rm", "--network", "none", image, *_ECHO]
        yield {
            "run": lambda number: _first_byte_ms(run),
            "exec": lambda number: _first_byte_ms([program, "exec", image, *_ECHO]),
        }
    finally:
        _tidy([program, "rm", "-f", image])
        _tidy([program, "rmi", "-f", image])


@contextmanager
def _bubblewrap(program: str, work: Path, root: Path) -> Iterator[Mapping[str, Sampler]]:
    argv = [program, "--unshare-all", "--die-with-parent", "--ro-bind", str(root), "/", "--proc", "/proc"]
    yield {"run": lambda number: _first_byte_ms([*argv, "--dev", "/dev", *_ECHO])}


@contextmanager
def _runtime(program: str, work: Path, root: Path) -> Iterator[Mapping[str, Sampler]]:
    """runc and crun: a bundle over the root, their state in a folder of its own."""
    with _bundles([program, "--root", str(work / "state")], work, root) as samplers:
        yield samplers


@contextmanager
def _gvisor(program: str, work: Path, root: Path) -> Iterator[Mapping[str, Sampler]]:
    """runsc, on the first of its platforms that runs here."""
    troubles = []
    write_bundle(work / "probe", root, _ECHO)
    for platform in _PLATFORMS:
        base = [program, f"--root={work / 'state'}", f"--platform={platform}", *_RUNSC]
        name = f"firkin-bench-{os.getpid()}-{platform}"
        try:
            _first_byte_ms([*base, "run", "--bundle", str(work / "probe"), name])
        except PeerUnable as error:
            troubles.append(f"{platform}: {error}")
            _tidy([*base, "delete", "--force", name])
            continue
        with _bundles(base, work, root) as samplers:
            yield samplers
        return
    raise PeerUnable("; ".join(troubles))


@contextmanager
def _bundles(base: list[str], work: Path, root: Path) -> Iterator[Mapping[str, Sampler]]:
    """`run` of one bundle, and `exec` in what runs another."""
    prefix = f"firkin-bench-{os.getpid()}"
    write_bundle(work / "echo", root, _ECHO)
    write_bundle(work / "sleep", root, _SLEEP)

    def run(number: int) -> float:
        name = f"{prefix}-{number}"
        try:
            return _first_byte_ms([*base, "run", "--bundle", str(work / "echo"), name])
        except PeerUnable:
            _tidy([*base, "delete", "--force", name])
            raise

    _run([*base, "run", "--detach", "--bundle", str(work / "sleep"), prefix])
    try:
        yield {"run": run, "exec": lambda number: _first_byte_ms([*base, "exec", prefix, *_ECHO])}
    finally:
        _tidy([*base, "delete", "--force", prefix])


def _tidy(argv: list[str]) -> None:
    with contextlib.suppress(PeerUnable, OSError, subprocess.SubprocessError):
        _run(argv)


_CONTAINER = "container: namespaces, default seccomp and capabilities, root is the host's root; no network"
_BARE = "namespaces and few capabilities: no seccomp, no network, no limits"
PEERS = (
    Peer(name="docker", program="docker", isolation=_CONTAINER, scenario=_engine),
    Peer(name="podman", program="podman", isolation=_CONTAINER, scenario=_engine),
    Peer(
        name="bwrap",
        program="bwrap",
        isolation="namespaces only: no seccomp, no limits, no network",
        scenario=_bubblewrap,
    ),
    Peer(name="runc", program="runc", isolation=_BARE, scenario=_runtime),
    Peer(name="crun", program="crun", isolation=_BARE, scenario=_runtime),
    Peer(name="runsc", program="runsc", isolation="a kernel of its own (gVisor); no network", scenario=_gvisor),
)
