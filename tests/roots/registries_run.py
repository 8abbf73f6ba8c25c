"""Registries of the tests' own, on loopback."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .conftest import run_tool
from .images_made import LayoutMaker

# "firkin" with the password "open sesame", as htpasswd -B writes it
_PASSWORDS = "firkin:$2b$05$TMw7vSIrRFJzOGlOmgCHv.f8KOSSlrz9dm0fqIXpDtPHwiCWCxBf2\n"


class RunningRegistry:
    """`address` is its ``host:port``."""

    def __init__(self, address: str, storage: Path, server: subprocess.Popen[bytes]) -> None:
        self.address = address
        self._storage = storage
        self._server = server

    def push(self, layout: LayoutMaker, name: str, *, tag: str = "latest", login: str = "") -> str:
        """Copy an image there; its whole name."""
        options = ["--dest-tls-verify=false", *(["--dest-creds", login] if login else [])]
        target = f"{self.address}/{name}"
        run_tool(
            ["skopeo", "--insecure-policy", "copy", "-q", *options, f"oci:{layout.path}:{tag}", f"docker://{target}"]
        )
        return target

    def lose(self, digest: str) -> None:
        """It cannot hand out this blob any more."""
        name = digest.removeprefix("sha256:")
        shutil.rmtree(self._storage / f"docker/registry/v2/blobs/sha256/{name[:2]}/{name}")

    def stop(self) -> None:
        self._server.kill()
        self._server.wait()


@contextmanager
def running_registry(folder: Path, *, locked: bool = False) -> Iterator[RunningRegistry]:
    folder.mkdir()
    port = free_port()
    settings = folder / "registry.yml"
    (folder / "passwords").write_text(_PASSWORDS)
    lock = f"auth: {{htpasswd: {{realm: test, path: {folder}/passwords}}}}\n" if locked else ""
    settings.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/storage}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n{lock}"
    )
    server = subprocess.Popen(["docker-registry", "serve", str(settings)], stderr=subprocess.DEVNULL)
    running = RunningRegistry(f"127.0.0.1:{port}", folder / "storage", server)
    try:
        _wait_for(port)
        yield running
    finally:
        running.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    give_up_at = time.monotonic() + 10
    while time.monotonic() < give_up_at:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    pytest.fail("the registry did not come up")
