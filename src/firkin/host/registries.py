"""Images from elsewhere, by skopeo: what a registry says of one, and its blobs.

This module alone reads skopeo's words: why it failed stands only in its text. A
password is handed over in a file that only we can read; it is in no argument, no
log and no error.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from firkin.host.archives import corrupt
from firkin.host.image_manifests import (
    Image,
    digest_of,
    for_this_machine,
    parse,
    read_manifest,
    require_own_parts,
)
from firkin.host.image_names import ImageName
from firkin.host.program_paths import find_program
from firkin.host.programs import Finished, Report, program_environment, run_program
from firkin.law.errors import RetryClass, TemplateFault, TemplatePrepareFailure
from firkin.law.templates import RegistryLogin

_POLICY = "/etc/containers/policy.json"
_LOOPBACK = re.compile(r"(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?/")
_MESSAGE = re.compile(r'msg="(.*)"')
_ABSENT = (
    "manifest unknown",
    "name unknown",
    "not found",
    "requested access to the resource is denied",
    "unauthorized",
    "authentication required",
)
_OTHER_MACHINE = ("no image found in manifest list for architecture", "no image found in image index for architecture")
_UNREACHABLE = (
    *("connection refused", "no such host", "i/o timeout", "tls handshake", "connection reset", "no route to host"),
    *("network is unreachable", "server misbehaving", "context deadline exceeded", "status: 5", "code 5", "eof"),
    *("temporary failure in name resolution", "proxyconnect", "toomanyrequests", "certificate"),
)
TAG = "image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How registries are spoken to for one caller. Without `auth_file`, with credentials that skopeo finds itself.

    `alone`: with those of `auth_file` or none. That takes more than a file, since skopeo (1.9.3) looks into
    those of its user as well where a file has none. `only_tls`: never without, whatever this machine's own
    configuration of registries says.
    """

    auth_file: Path | None = None
    alone: bool = False
    only_tls: bool = False

    def options(self, name: str, *, source: str = "") -> list[str]:
        """For skopeo's command about `name`. `source` is how it calls where it copies from: ``src-``."""
        found = [f"--{source}no-creds"] if self.alone else []
        if self.auth_file is not None:
            found = ["--authfile", str(self.auth_file)]
        if self.only_tls:
            return [*found, f"--{source}tls-verify=true"]
        return [*found, f"--{source}tls-verify=false"] if _LOOPBACK.match(f"{name}/") else found


class Registry:
    """Registries as one caller may reach them. `scratch` is a folder for what skopeo needs meanwhile."""

    def __init__(self, scratch: Path, report: Report, access: Access) -> None:
        self._scratch = scratch
        self._report = report
        self._access = access

    async def image(self, name: ImageName) -> Image:
        """What `name` means now for this machine. Each answer is checked against its digest."""
        self._report(f"asking for {name}")
        content = await self._inspect(name.fetched)
        digest = digest_of(content, "sha256:")
        if name.digest and digest != name.digest:
            raise corrupt(f"the registry's {name} has the digest {digest}")
        manifest = parse(content, digest)
        if "manifests" in manifest:
            digest = for_this_machine(manifest)
            content = _checked(await self._inspect(name.at(digest)), digest)
            manifest = parse(content, digest)
        require_own_parts(content, digest)
        found = read_manifest(manifest, digest)
        config = await self._inspect(name.at(digest), "--config")
        return found.image(_checked(config, found.config))

    async def fetch(self, name: ImageName, image: Image, layout: Path, blobs: Path) -> None:
        """Copy the blobs of `image` into the folder `blobs`; those that are there already are taken for whole."""
        source = f"docker://{name.at(image.digest)}"
        self._report(f"fetching {name}")
        options = [*self._access.options(name.repository, source="src-"), "--dest-shared-blob-dir", str(blobs)]
        done = await self._skopeo(["copy", "--quiet", *options, source, f"oci:{layout}:{TAG}"])
        if done.exit_code != 0:
            raise read_complaint(source, done.last_line, registry=True)

    async def _inspect(self, reference: str, *what: str) -> bytes:
        source = f"docker://{reference}"
        done = await self._skopeo(["inspect", "--raw", *what, *self._access.options(reference), source])
        if done.exit_code != 0:
            raise read_complaint(source, done.last_line, registry=True)
        return done.stdout

    async def _skopeo(self, words: Sequence[str]) -> Finished:
        return await run_skopeo(words, self._scratch, self._report, homeless=self._access.alone)


def _checked(content: bytes, digest: str) -> bytes:
    if digest_of(content, digest) != digest:
        raise corrupt(f"the registry's {digest} does not have that digest")
    return content


@contextmanager
def login_file(login: RegistryLogin, name: ImageName, folder: Path) -> Iterator[Path]:
    """A file with the credentials for the registry of `name`, for the length of a block."""
    path = folder / "login.json"
    secret = base64.b64encode(f"{login.username}:{login.password}".encode()).decode()
    content = json.dumps({"auths": {name.repository.partition("/")[0]: {"auth": secret}}})
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(content)
        yield path
    finally:
        path.unlink(missing_ok=True)


async def convert_archive(path: str, layout: Path, report: Report) -> None:
    """Copy the image in the docker archive at `path` (``FILE[:TAG]``) into `layout`, under the tag `TAG`."""
    source = f"docker-archive:{path}"
    report(f"reading {source}")
    done = await run_skopeo(["copy", "--quiet", source, f"oci:{layout}:{TAG}"], layout.parent, report)
    if done.exit_code != 0:
        raise read_complaint(source, done.last_line, registry=False)


async def run_skopeo(words: Sequence[str], scratch: Path, report: Report, *, homeless: bool = False) -> Finished:
    skopeo = find_program("skopeo", package="skopeo")
    trust = [] if os.path.exists(_POLICY) else ["--insecure-policy"]
    home = {"HOME": str(scratch)} if homeless else {}
    return await run_program([skopeo, *trust, *words], env={**program_environment(scratch), **home}, report=report)


def read_complaint(source: str, line: str, *, registry: bool) -> TemplatePrepareFailure:
    """What skopeo's last line means. An unknown one is the registry's failure, or the archive's."""
    found = _MESSAGE.search(line)
    said = found[1].replace('\\"', '"') if found else line
    text = said.lower()
    detail = f"cannot fetch {source}: {said}"
    if any(word in text for word in _OTHER_MACHINE):
        return TemplatePrepareFailure(TemplateFault.UNSUPPORTED_IMAGE_CONFIG, detail)
    if not registry:
        missing = "no such file or directory" in text
        return TemplatePrepareFailure(TemplateFault.SOURCE_MISSING if missing else TemplateFault.SOURCE_CORRUPT, detail)
    if any(word in text for word in _UNREACHABLE):
        return TemplatePrepareFailure(TemplateFault.REGISTRY_UNAVAILABLE, detail, retry=RetryClass.RETRYABLE)
    if any(word in text for word in _ABSENT):
        return TemplatePrepareFailure(TemplateFault.SOURCE_MISSING, detail)
    return TemplatePrepareFailure(TemplateFault.REGISTRY_UNAVAILABLE, detail, retry=RetryClass.UNKNOWN)
