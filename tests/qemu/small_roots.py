"""A root file system of 40 MB made of this machine's own programs: enough for the contract suites, quickly imaged."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from firkin.host.host_root import build_host_root
from firkin.law.driver import RootFilesystem

_PROGRAMS = (
    "sh dash bash cat chmod chown cp cut date dd df du echo env expr false find grep head hostname id ip kill "
    "ln ls mkdir mkfifo mktemp mount mv nproc od printenv printf ps pwd readlink rm rmdir sed seq setsid "
    "sha256sum sleep sort stat stty su sudo sync tail tee test timeout touch tr true truncate tty umount uname "
    "unshare wc whoami xargs yes python3 [ getfattr setfattr"
)
_LEFT_OUT = ("test", "dist-packages", "idlelib", "lib2to3", "ensurepip", "__pycache__", "pydoc_data", "turtledemo")


async def small_root(into: Path) -> RootFilesystem:
    """Fill the empty folder `into`."""
    await build_host_root(into)
    for name in _PROGRAMS.split():
        found = shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin")
        if found is not None:
            _copy(Path(os.path.realpath(found)), into, name=Path(found))
    for version in Path("/usr/lib").glob("python3.[0-9]*"):
        shutil.copytree(
            version, into / version.relative_to("/"), symlinks=True, ignore=shutil.ignore_patterns(*_LEFT_OUT)
        )
        for module in (version / "lib-dynload").glob("*.so"):
            _libraries(module, into)
    for folder in ("/usr/lib/x86_64-linux-gnu/security", "/usr/lib/aarch64-linux-gnu/security", "/usr/libexec/sudo"):
        for module in Path(folder).glob("*.so*"):
            _copy(Path(os.path.realpath(module)), into, name=module)
    for plugin in Path("/usr/lib/sudo").glob("*"):
        _copy(plugin, into)
    for extra in Path("/usr/lib").glob("*-linux-gnu/libnss_files*"):
        _copy(Path(os.path.realpath(extra)), into)
    return RootFilesystem(base=str(into))


def _copy(source: Path, into: Path, *, name: Path | None = None) -> None:
    target = into / str(_plain(name or source)).lstrip("/")
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)
    shutil.chown(target, 0, 0)
    target.chmod(source.stat().st_mode & 0o7777)
    _libraries(source, into)


def _plain(path: Path) -> Path:
    """/bin/x is /usr/bin/x where /bin is a link."""
    return Path(os.path.realpath(path.parent)) / path.name


def _libraries(binary: Path, into: Path) -> None:
    told = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=False).stdout
    for line in told.splitlines():
        for word in line.split():
            if word.startswith("/"):
                library = _plain(Path(word))
                target = into / str(library).lstrip("/")
                if not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(os.path.realpath(library), target)
