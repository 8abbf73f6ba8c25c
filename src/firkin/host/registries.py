"""Images from elsewhere, brought by skopeo into an OCI layout folder.

This module alone reads skopeo's words: why it failed stands only in its text.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from firkin.host.programs import Report, find_program, program_environment, run_program
from firkin.law.errors import InvalidReason, InvalidSpec, RetryClass, TemplateFault, TemplatePrepareFailure

_POLICY = "/etc/containers/policy.json"
_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@\[\]-]*")
_LOOPBACK = re.compile(r"(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?/")
_MESSAGE = re.compile(r'msg="(.*)"')
_ABSENT = (
    "manifest unknown",
    "name unknown",
    "not found",
    "requested access to the resource is denied",
    "unauthorized",
)
_OTHER_MACHINE = ("no image found in manifest list for architecture", "no image found in image index for architecture")
_UNREACHABLE = (
    *("connection refused", "no such host", "i/o timeout", "tls handshake", "connection reset", "no route to host"),
    *("network is unreachable", "server misbehaving", "context deadline exceeded", "status: 5", "code 5", "eof"),
    *("temporary failure in name resolution", "proxyconnect", "toomanyrequests", "certificate"),
)
TAG = "image"


async def fetch_image(reference: str, layout: Path, report: Report) -> None:
    """Copy the registry's image `reference` for this machine into `layout`, under the tag `TAG`."""
    if not _REFERENCE.fullmatch(reference):
        raise InvalidSpec("prepare template", InvalidReason.MISSING_TEMPLATE, f"{reference!r} is no image reference")
    options = ["--src-tls-verify=false"] if _LOOPBACK.match(reference) else []
    await _copy(f"docker://{reference}", layout, report, options=options, registry=True)


async def convert_archive(path: str, layout: Path, report: Report) -> None:
    """Copy the image in the docker archive at `path` (``FILE[:TAG]``) into `layout`, under the tag `TAG`."""
    await _copy(f"docker-archive:{path}", layout, report, options=[], registry=False)


async def _copy(source: str, layout: Path, report: Report, *, options: list[str], registry: bool) -> None:
    skopeo = find_program("skopeo", package="skopeo")
    trust = [] if os.path.exists(_POLICY) else ["--insecure-policy"]
    report(f"fetching {source}")
    done = await run_program(
        [skopeo, *trust, "copy", "--quiet", *options, source, f"oci:{layout}:{TAG}"],
        env=program_environment(layout.parent),
        report=report,
    )
    if done.exit_code != 0:
        raise read_complaint(source, done.last_line, registry=registry)


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
