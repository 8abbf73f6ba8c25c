"""What a sandbox trusts: the authority of its egress gateway, where programs look for authorities.

The system's bundle gets a marked block at its end, which replaces an earlier one;
the certificate alone lies beside it for Node, and where Debian's tools make
bundles from. Variables say where,
since several languages bring bundles of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing, suppress

from firkin.engine.guest_files import GuestFiles
from firkin.host.system_authorities import system_authorities
from firkin.law.errors import FilesystemFailure, NotFound
from firkin.law.files import ReadOptions, SandboxPath, WriteOptions

BUNDLE = SandboxPath("/etc/ssl/certs/ca-certificates.crt")
CERTIFICATE = SandboxPath("/etc/ssl/certs/firkin-egress.pem")
LOCAL = SandboxPath("/usr/local/share/ca-certificates/firkin-egress.crt")
VARIABLES: Mapping[str, str] = {
    **dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"), str(BUNDLE)),
    "NODE_EXTRA_CA_CERTS": str(CERTIFICATE),
}
_BEGIN, _END = b"# Firkin egress: begin\n", b"# Firkin egress: end\n"
_MOST_BUNDLE = 8 << 20


async def make_trusted(files: GuestFiles, certificate: str) -> None:
    """Put the authority into the sandbox's trust stores, in place of an earlier one."""
    pem = certificate.encode()
    await files.write(CERTIFICATE, pem, WriteOptions())
    with suppress(FilesystemFailure):  # only for update-ca-certificates; /usr may be read-only
        await files.write(LOCAL, pem, WriteOptions())
    await files.write(BUNDLE, with_block(await _bundle(files), pem), WriteOptions())


def with_block(bundle: bytes, pem: bytes) -> bytes:
    """`bundle` with `pem` as its marked block, at its end."""
    before, begin, rest = bundle.partition(_BEGIN)
    kept = before + (rest.partition(_END)[2] if begin else b"")
    if kept and not kept.endswith(b"\n"):
        kept += b"\n"
    return kept + _BEGIN + pem + _END


async def _bundle(files: GuestFiles) -> bytes:
    """The sandbox's own, bounded; the host's where it has none, since the variables make it the only one."""
    try:
        _, pieces = await files.open_read(BUNDLE, ReadOptions())
    except NotFound:
        return system_authorities()
    read = bytearray()
    async with aclosing(pieces) as stream:  # type: ignore[type-var]  # every stream of files can be closed
        async for piece in stream:
            read += piece
            if len(read) > _MOST_BUNDLE:
                return system_authorities()
    return bytes(read) if read.strip() else system_authorities()
