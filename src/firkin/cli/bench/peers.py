"""Other ways to run a command in isolation, measured in the same run: docker, podman, bubblewrap, runc and crun.

A peer that is not installed, or that cannot run here, is reported with the
reason. Nothing is fetched: each runs a root made of this machine's programs.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from firkin.cli.bench.bundle import make_root, write_bundle
from firkin.cli.bench.samples import Lifecycle, Series
from firkin.cli.tool_checks import find_program

_PATIENCE_S = 60.0
_ECHO = ["/bin/echo", "hi"]
_SLEEP = ["/bin/sleep", "600"]
_MOST = 30


class PeerUnable(Exception):
    """The peer cannot run here; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the peers gave: series, and why the others gave none."""

    series: list[Series]
    absent: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Peer:
    name: str
    isolation: str
    scenario: Callable[[str, Path, Path, int], Iterator[tuple[str, list[float]]]]


def measure_peers(n: int) -> Measured:
    """Run each peer at most 30 times: they are slow, and p50 needs no more."""
    series: list[Series] = []
    absent: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="firkin-peers-") as folder:
        root = Path(folder) / "root"
        try:
            make_root(root)
        except (OSError, subprocess.SubprocessError) as error:
            return Measured(series=[], absent={peer.name: f"no root could be made: {error}" for peer in _PEERS})
        for peer in _PEERS:
            try:
                series += _measure(peer, Path(folder), root, min(n, _MOST))
            except (PeerUnable, OSError, subprocess.SubprocessError) as error:
                absent[peer.name] = str(error)
    return Measured(series=series, absent=absent)


def _measure(peer: _Peer, folder: Path, root: Path, n: int) -> list[Series]:
    program = find_program(peer.name)
    if program is None:
        raise PeerUnable("not installed")
    work = folder / peer.name
    work.mkdir()
    return [
        Series(
            metric=f"peer.{peer.name}.{what}_ms",
            values=tuple(values),
            unit="ms",
            lifecycle=Lifecycle.HOT if what.startswith("exec") else Lifecycle.COLD_PREPARED,
            isolation=peer.isolation,
            workload=f"{peer.name} {what.replace('_', ' ')} of /bin/echo, from start to the first byte of output",
        )
        for what, values in peer.scenario(program, work, root, n)
    ]


def _first_byte_ms(argv: list[str]) -> float:
    """Start `argv`; milliseconds to its first output. `PeerUnable` with its last words when it gave none."""
    began = time.perf_counter()
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None  # it was asked for
        first = os.read(process.stdout.fileno(), 64)
        taken = (time.perf_counter() - began) * 1000
        _, errors = process.communicate(timeout=_PATIENCE_S)
    if not first:
        raise PeerUnable(_last_words(errors))
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
        raise PeerUnable(_last_words(text))
    return text.decode(errors="replace")


def _last_words(raw: bytes) -> str:
    lines = raw.decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it ended without a word"


def _samples(argv: Callable[[int], list[str]], n: int) -> list[float]:
    _first_byte_ms(argv(0))
    return [_first_byte_ms(argv(number)) for number in range(1, n + 1)]


def _engine(program: str, work: Path, root: Path, n: int) -> Iterator[tuple[str, list[float]]]:
    """docker and podman: an image imported from the root, no network."""
    _run([program, "info"])
    image = f"firkin-bench-{os.getpid()}"
    archive = work / "root.tar"
    _run(["tar", "-C", str(root), "-cf", str(archive), "."])
    _run([program, "import", str(archive), image])
    try:
        yield "run", _samples(lambda _: [program, "run", "--rm", "--network", "none", image, *_ECHO], n)
        _run([program, "run", "-d", "--name", image, "--network", "none", image, *_SLEEP])
        try:
            yield "exec", _samples(lambda _: [program, "exec", image, *_ECHO], n)
        finally:
            _tidy([program, "rm", "-f", image])
    finally:
        _tidy([program, "rmi", "-f", image])


def _bubblewrap(program: str, work: Path, root: Path, n: int) -> Iterator[tuple[str, list[float]]]:
    argv = [program, "--unshare-all", "--die-with-parent", "--ro-bind", str(root), "/", "--proc", "/proc"]
    yield "run", _samples(lambda _: [*argv, "--dev", "/dev", *_ECHO], n)


def _runtime(program: str, work: Path, root: Path, n: int) -> Iterator[tuple[str, list[float]]]:
    """runc and crun: a bundle over the root, their state in a folder of its own."""
    base = [program, "--root", str(work / "state")]
    prefix = f"firkin-bench-{os.getpid()}"
    write_bundle(work / "echo", root, _ECHO)
    write_bundle(work / "sleep", root, _SLEEP)
    yield "run", _samples(lambda number: [*base, "run", "--bundle", str(work / "echo"), f"{prefix}-{number}"], n)
    _run([*base, "run", "--detach", "--bundle", str(work / "sleep"), prefix])
    try:
        yield "exec", _samples(lambda _: [*base, "exec", prefix, *_ECHO], n)
    finally:
        _tidy([*base, "delete", "--force", prefix])


def _tidy(argv: list[str]) -> None:
    with contextlib.suppress(PeerUnable, OSError, subprocess.SubprocessError):
        _run(argv)


_CONTAINER = "container: namespaces, default seccomp and capabilities, root is the host's root"
_PEERS = (
    _Peer(name="docker", isolation=_CONTAINER, scenario=_engine),
    _Peer(name="podman", isolation=_CONTAINER, scenario=_engine),
    _Peer(name="bwrap", isolation="namespaces only: no seccomp, no limits, no network", scenario=_bubblewrap),
    _Peer(name="runc", isolation="namespaces and few capabilities: no seccomp, no network", scenario=_runtime),
    _Peer(name="crun", isolation="namespaces and few capabilities: no seccomp, no network", scenario=_runtime),
)
