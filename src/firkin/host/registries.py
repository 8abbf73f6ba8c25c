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


class Registry:
    """Registries as one caller may reach them. `scratch` is a folder for what skopeo needs meanwhile.

    With `only_tls` none is spoken to without, whatever this machine's own configuration of registries says.
    """

    def __init__(self, scratch: Path, report: Report, auth_file: Path | None, *, only_tls: bool = False) -> None:
        self._scratch = scratch
        self._report = report
        self._options = [] if auth_file is None else ["--authfile", str(auth_file)]
        self._only_tls = only_tls

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
        options = [*self._options, "--dest-shared-blob-dir", str(blobs)]
        options += self._tls("--src-tls-verify", name.repository)
        done = await self._skopeo(["copy", "--quiet", *options, source, f"oci:{layout}:{TAG}"])
        if done.exit_code != 0:
            raise read_complaint(source, done.last_line, registry=True)

    async def _inspect(self, reference: str, *what: str) -> bytes:
        source = f"docker://{reference}"
        tls = self._tls("--tls-verify", reference)
        done = await self._skopeo(["inspect", "--raw", *what, *self._options, *tls, source])
        if done.exit_code != 0:
            raise read_complaint(source, done.last_line, registry=True)
        return done.stdout

    def _tls(self, option: str, reference: str) -> list[str]:
        if self._only_tls:
            return [f"{option}=true"]
        return [f"{option}=false"] if _LOOPBACK.match(f"{reference}/") else []

    async def _skopeo(self, words: Sequence[str]) -> Finished:
        return await run_skopeo(words, self._scratch, self._report)


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


async def run_skopeo(words: Sequence[str], scratch: Path, report: Report) -> Finished:
    skopeo = find_program("skopeo", package="skopeo")
    trust = [] if os.path.exists(_POLICY) else ["--insecure-policy"]
    return await run_program([skopeo, *trust, *words], env=program_environment(scratch), report=report)


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
