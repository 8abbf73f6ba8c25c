"""OCI layouts and tar archives made by hand, good and hostile."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    name: str
    data: bytes = b""
    kind: bytes = tarfile.REGTYPE
    link: str = ""
    mode: int = 0o644
    uid: int = 0
    pax: dict[str, str] = field(default_factory=dict)


def folder(name: str, mode: int = 0o755) -> Entry:
    return Entry(name=name, kind=tarfile.DIRTYPE, mode=mode)


def file(name: str, data: str = "", mode: int = 0o644, uid: int = 0) -> Entry:
    return Entry(name=name, data=data.encode(), mode=mode, uid=uid)


def symlink(name: str, target: str) -> Entry:
    return Entry(name=name, kind=tarfile.SYMTYPE, link=target)


def hardlink(name: str, target: str) -> Entry:
    return Entry(name=name, kind=tarfile.LNKTYPE, link=target)


def device(name: str) -> Entry:
    return Entry(name=name, kind=tarfile.CHRTYPE, mode=0o666)


def tar_bytes(entries: Sequence[Entry]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.type, info.linkname, info.mode, info.uid = entry.kind, entry.link, entry.mode, entry.uid
            info.size, info.pax_headers, info.mtime = len(entry.data), entry.pax, 1_000_000_000
            info.devmajor, info.devminor = 1, 3
            archive.addfile(info, io.BytesIO(entry.data))
    return out.getvalue()


class LayoutMaker:
    """An OCI layout folder with images in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._manifests: list[dict[str, Any]] = []
        (path / "blobs/sha256").mkdir(parents=True)

    def add(
        self,
        *layers: Sequence[Entry],
        tag: str = "latest",
        config: Any = None,
        architecture: str = _ARCHITECTURE,
        unpacked: Sequence[str] = (),
    ) -> str:
        """Add an image and return its manifest's digest. `unpacked` are lies about its last layers."""
        raw = [tar_bytes(layer) for layer in layers]
        described = {
            "architecture": architecture,
            "os": "linux",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": [*map(_digest, raw[: len(raw) - len(unpacked)]), *unpacked]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": self._put(json.dumps(described).encode(), "application/vnd.oci.image.config.v1+json"),
            "layers": [self._put(gzip.compress(one), "application/vnd.oci.image.layer.v1.tar+gzip") for one in raw],
        }
        entry = self._put(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
        entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
        self._manifests.append(entry)
        (self.path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        (self.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": self._manifests}))
        return str(entry["digest"])

    def blob(self, digest: str) -> Path:
        return self.path / "blobs" / digest.replace(":", "/")

    def _put(self, content: bytes, media_type: str) -> dict[str, Any]:
        digest = _digest(content)
        self.blob(digest).write_bytes(content)
        return {"mediaType": media_type, "digest": digest, "size": len(content)}


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


BASE = (
    folder("etc"),
    file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:500:500:app:/srv/app:/bin/sh\n"),
    file("etc/group", "root:x:0:\napp:x:500:\nstaff:x:50:\n"),
    folder("bin"),
    file("bin/sh", "#!", 0o755),
)
