"""Clients that are not among the project's own dependencies, installed once and kept in ``.tools``.

The name of a folder there carries a digest of what was asked for, so that a change of the lists installs anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TOOLS = ROOT / ".tools"
JAVASCRIPT_LISTS = ("package.json", "package-lock.json", ".npmrc")
PYTHON_LIST = "e2b-2.45.txt"
NODE_FLOOR = 20
TRUST = Path("/etc/ssl/certs/ca-certificates.crt")

_WITHIN_S = 240
_TRIES = 3


def why_no_javascript() -> str | None:
    """The reason why this machine cannot run the JavaScript clients; None when it can."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return f"node {NODE_FLOOR} or later and npm are needed"
    said = subprocess.run(["node", "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    found = re.match(r"v(\d+)\.", said)
    if found is None or int(found[1]) < NODE_FLOOR:
        return f"node {NODE_FLOOR} or later is needed; this is {said.strip()}"
    return None


def javascript_clients() -> Path:
    """The folder whose ``node_modules`` holds the SDK and the command line."""
    return _installed("clients", JAVASCRIPT_LISTS, _install_javascript)


def python_sdk_of_2_45() -> Path:
    """A folder to put first on PYTHONPATH: the SDK of 2.45 and what it depends on."""
    return _installed("e2b-2.45", (PYTHON_LIST,), _install_python)


def _installed(name: str, lists: tuple[str, ...], install: Callable[[Path], None]) -> Path:
    asked = hashlib.sha256(sys.version.encode())
    for each in lists:
        asked.update((HERE / each).read_bytes())
    folder = TOOLS / f"{name}-{asked.hexdigest()[:16]}"
    TOOLS.mkdir(exist_ok=True)
    with _alone(TOOLS / f"{name}.lock"):
        if not folder.exists():
            partial = TOOLS / f"{folder.name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            install(partial)
            partial.rename(folder)
    return folder


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Two test runs may start at once; the second waits for what the first installs."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _install_javascript(folder: Path) -> None:
    for name in JAVASCRIPT_LISTS:
        shutil.copy(HERE / name, folder / name)
    _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"], folder)


def _install_python(folder: Path) -> None:
    wanted = ["--no-deps", "--target", str(folder), "-r", str(HERE / PYTHON_LIST)]
    uv = shutil.which("uv", path=f"{TOOLS / 'bin'}:{os.environ.get('PATH', '')}")
    if uv is not None:
        _run([uv, "--quiet", "pip", "install", "--python", sys.executable, *wanted], folder)
    else:
        _run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted], folder)


def _run(argv: list[str], folder: Path) -> None:
    """Networks hiccup: three tries. Raises with what the last one said."""
    env = dict(os.environ)
    if TRUST.exists():
        env.setdefault("SSL_CERT_FILE", str(TRUST))
    for attempt in range(1, _TRIES + 1):
        done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=_WITHIN_S, check=False)
        if done.returncode == 0:
            return
        if attempt == _TRIES:
            raise RuntimeError(f"{' '.join(argv)} failed: {done.stderr.strip() or done.stdout.strip()}")
