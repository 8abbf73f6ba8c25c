"""The agent with all it runs on: whole, lean, and made once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from firkin.host.agent_bundle import PLACE, agent_bundle
from firkin.law.errors import BackendFailure
from firkin.wire.frames import HELLO, FrameReader

_HEAVY = {"typing", "asyncio", "subprocess", "inspect", "dataclasses", "pathlib", "logging", "socket"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


def _argv(bundle_argv: tuple[str, ...], folder: Path) -> list[str]:
    """As it starts where the folder is seen at its place."""
    return [word.replace(PLACE, str(folder)) for word in bundle_argv]


@pytest.mark.thorough
def test_a_bundle_is_made_once_and_named_by_its_content(folder: Path) -> None:
    first = agent_bundle(folder)
    made = first.folder.stat().st_mtime_ns
    assert agent_bundle(folder) == first
    assert first.folder.stat().st_mtime_ns == made
    assert [path.name for path in folder.iterdir()] == [f"agent-{first.digest}"]


@pytest.mark.thorough
def test_it_runs_with_nothing_of_the_host_s_but_the_kernel(folder: Path) -> None:
    bundle = agent_bundle(folder)
    seen = "import json, sys; import firkin.guest.listening; " + (
        "print(json.dumps([sorted(sys.modules), "
        "[m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)], "
        "[line.split()[5] for line in open('/proc/self/maps') if '.so' in line]]))"
    )
    argv = _argv(bundle.argv, bundle.folder)
    output = subprocess.run([*argv[:-1], seen], env={}, capture_output=True, check=True, timeout=20).stdout
    modules, files, libraries = json.loads(output)
    assert [path for path in (*files, *libraries) if not path.startswith(str(bundle.folder))] == []
    assert _HEAVY & set(modules) == set()


def test_everybody_inside_can_read_it_and_nobody_but_root_change_it(folder: Path) -> None:
    for where, _, names in os.walk(agent_bundle(folder).folder):
        for path in (Path(where), *(Path(where, name) for name in names)):
            assert path.stat().st_mode & 0o444 == 0o444
            assert not path.stat().st_mode & 0o022


@pytest.mark.thorough
def test_an_agent_that_is_told_who_it_is_greets(folder: Path, tmp_path: Path) -> None:
    """In a root of its own elsewhere; here a name that is empty, so that it changes nothing of this machine's."""
    bundle = agent_bundle(folder)
    told, order = os.pipe()
    report, said = os.pipe()
    path = str(tmp_path / "agent")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        code = (
            "import os; import firkin.guest.listening as l; l.identity.settle = lambda *a, **k: None; "
            f"os.dup2({told}, l.ORDER); l.main()"
        )
        agent = subprocess.Popen(
            [*_argv(bundle.argv, bundle.folder)[:-1], code], env={}, pass_fds=[told, said, listener.fileno()]
        )
        try:
            plan = {"listener": listener.fileno(), "report": said, "enter": [], "leave": [], "nofile": 0}
            os.write(
                order,
                json.dumps({**plan, "hostname": "", "machine_id": "", "restored": False, "hardened": False}).encode(),
            )
            for fd in (order, told, said):
                os.close(fd)
            assert os.read(report, 10) == b"+"
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(10)
                connection.connect(path)
                frames = FrameReader().feed(connection.recv(65536))
                assert [frame[0] for frame in frames] == [HELLO]
            assert Path(f"/proc/{agent.pid}/cmdline").read_bytes().rstrip(b"\0") == b"firkin-agent"
        finally:
            agent.kill()
            agent.wait()
            os.close(report)


def test_an_interpreter_that_cannot_be_bundled_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python3"
    script.write_text("#!/bin/sh\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(BackendFailure, match="bundle the agent"):
        agent_bundle(tmp_path / "bundles")


_OWN = Path(f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}")


@pytest.mark.thorough
@pytest.mark.skipif(os.path.realpath(sys.executable) != str(_OWN), reason=f"this interpreter is not {_OWN}")
def test_from_a_tree_it_has_the_same_files_as_from_the_machine_itself(folder: Path, tmp_path: Path) -> None:
    own = agent_bundle(folder).folder
    from_tree = agent_bundle(tmp_path, foreign=Path("/")).folder
    names = [{str(path.relative_to(top)) for path in top.rglob("*")} for top in (own, from_tree)]
    assert names[0] == names[1]
    binaries = [path for path in from_tree.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert all(path.read_bytes() == (own / path.relative_to(from_tree)).read_bytes() for path in binaries)


def test_a_tree_without_an_interpreter_of_this_version_is_told(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    with pytest.raises(BackendFailure, match=r"usr/bin/python3"):
        agent_bundle(tmp_path / "bundles", foreign=tmp_path / "tree")


def test_a_tree_that_lacks_a_library_is_told_with_its_name(tmp_path: Path) -> None:
    program = tmp_path / "tree/usr/bin" / _OWN.name
    program.parent.mkdir(parents=True)
    program.write_bytes(Path(os.path.realpath(sys.executable)).read_bytes())
    with pytest.raises(BackendFailure, match="the library ld-linux"):
        agent_bundle(tmp_path / "bundles", foreign=tmp_path / "tree")
