"""The agent with everything it runs on, in one folder, for roots that have no interpreter of their own.

This machine's interpreter, its libraries, and of all modules only those that
the agent imports, compiled. Shown read-only at `PLACE` inside, it is started
through its own dynamic loader, so nothing of the root's is used: not even a C
library has to be there.

A folder is named by a digest of what is in it, and is never changed once it is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from firkin.host.elf_files import loader_of
from firkin.host.foreign_binaries import exchange_binaries
from firkin.host.syncing import sync_filesystem
from firkin.law.errors import BackendFailure

PLACE = "/.firkin"
ENTRY = "firkin.guest.listening"
_SOURCES = Path(__file__).parents[2]
_WITHIN_S = 60.0
_INTERPRETER = "bin/python3"
_VERSION = "1"  # raise it when the same content is laid out in another way
_FLAGS = ("-I", "-S", "-B")

# Documentation and assertions are left out of what is compiled: each agent has these pages of its own.
_CENSUS = """
import sys, types
package = types.ModuleType("firkin")
package.__path__ = [{sources!r}]
sys.modules["firkin"] = package
import {entry}
specs = [module.__spec__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)]
import json
found = {{spec.name: sys.modules[spec.name].__file__ for spec in specs if not spec.name.startswith("_frozen")}}
print(json.dumps([found, "python%d.%d" % sys.version_info[:2]]))
"""
_COMPILE = """
import json, py_compile, sys
for source, target in json.load(sys.stdin):
    py_compile.compile(source, target, target, doraise=True, optimize=2,
                       invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
"""


@dataclass(frozen=True, slots=True)
class AgentBundle:
    """`folder` is to be seen, read-only, at `PLACE`; `argv` starts the agent there. More arguments may follow."""

    folder: Path
    argv: tuple[str, ...]

    @property
    def digest(self) -> str:
        return self.folder.name.rpartition("-")[2]


def agent_bundle(into: Path, entry: str = ENTRY, *, foreign: Path | None = None) -> AgentBundle:
    """The bundle in the folder `into` whose agent begins with `main()` of the module `entry`; made if it is not there.

    `foreign`: a tree with the same Python for another type of machine, whose binaries are taken.
    Blocks: 0.1 s to see what belongs in it, as much again to make it. Raises `BackendFailure`.
    """
    interpreter = Path(os.path.realpath(sys.executable))
    try:
        files = _census(interpreter, entry, foreign)
        loader = loader_of(files[_INTERPRETER])
        folder = into / f"agent-{_digest(files, entry)}"
        if not folder.exists():
            _make(folder, files, interpreter)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise BackendFailure("bundle the agent", "its interpreter", _told(error)) from error
    start = (f"{PLACE}/lib/{loader.name}", "--library-path", f"{PLACE}/lib", f"{PLACE}/{_INTERPRETER}", *_FLAGS)
    return AgentBundle(folder, (*start, "-c", f"from {entry} import main; main()"))


def _told(error: Exception) -> str:
    said = getattr(error, "stderr", None)
    return said.decode(errors="replace").strip().rpartition("\n")[2] if said else str(error)


def _census(interpreter: Path, entry: str, foreign: Path | None) -> Mapping[str, Path]:
    """Every file of the bundle, by its place in there, and where it comes from. A module's place ends with ``.pyc``."""
    code = _CENSUS.format(sources=str(_SOURCES / "firkin"), entry=entry)
    modules, version = json.loads(_run([str(interpreter), *_FLAGS, "-c", code]))
    loader = loader_of(interpreter)
    files = {_INTERPRETER: interpreter, f"lib/{loader.name}": loader}
    binaries = [interpreter]
    for name, source in sorted(modules.items()):
        path = Path(source)
        if path.suffix == ".so":
            files[f"lib/{version}/lib-dynload/{path.name}"] = path
            binaries.append(path)
        elif path.suffix == ".py":
            package = "/__init__" if path.name == "__init__.py" else ""
            files[f"lib/{version}/{name.replace('.', '/')}{package}.pyc"] = path
    if foreign is not None:
        return exchange_binaries(files, _INTERPRETER, version, foreign)
    for binary in binaries:
        files.update((f"lib/{library.name}", library) for library in _libraries(loader, binary))
    return files


def _libraries(loader: Path, binary: Path) -> Iterator[Path]:
    """What the loader would load with `binary`: the names by which they are asked for."""
    for line in _run([str(loader), "--list", str(binary)]).decode().splitlines():
        name, arrow, place = line.strip().partition(" => ")
        if arrow and place.startswith("/"):
            yield Path(place.rpartition(" (")[0]).parent / Path(name).name


def _run(argv: list[str], given: bytes = b"") -> bytes:
    return subprocess.run(argv, input=given, env={}, capture_output=True, timeout=_WITHIN_S, check=True).stdout


def _digest(files: Mapping[str, Path], entry: str) -> str:
    content = hashlib.sha256(f"{_VERSION} {entry}".encode())
    for place, source in sorted(files.items()):
        content.update(f"\n{place} ".encode())
        with source.open("rb") as file:
            content.update(hashlib.file_digest(file, "sha256").digest())
    return content.hexdigest()[:16]


def _make(folder: Path, files: Mapping[str, Path], interpreter: Path) -> None:
    """Beside its place first: whoever sees the folder sees all of it, after a crash too."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    aside = Path(tempfile.mkdtemp(prefix=".agent-", dir=folder.parent))
    try:
        modules = []
        for place, source in files.items():
            target = aside / place
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.suffix == ".pyc":
                modules.append((str(source), str(target)))
            else:
                shutil.copyfile(source, target)
                target.chmod(0o755)
        for package in aside.glob("lib/*/firkin"):
            (package / "__init__.py").touch()  # the package's own imports what an agent has no use for
        _run([str(interpreter), *_FLAGS, "-c", _COMPILE], json.dumps(modules).encode())
        _settle(aside)
        aside.rename(folder)
    except OSError:
        if not folder.exists():  # another process was faster
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _settle(folder: Path) -> None:
    """Readable to every account inside, and on the disk."""
    for where, _, names in os.walk(folder):
        os.chmod(where, 0o755)
        for name in names:
            path = os.path.join(where, name)
            os.chmod(path, os.stat(path).st_mode | 0o444)
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_filesystem(opened)
    finally:
        os.close(opened)
