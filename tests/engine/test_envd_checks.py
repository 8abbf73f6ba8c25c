"""Images that say they bring their own envd: found, for the right machine, of the right version and content."""

from __future__ import annotations

import hashlib
import platform
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from firkin.law.errors import TemplateFault, TemplatePrepareFailure
from firkin.law.ids import TemplateId
from firkin.law.templates import (
    EnvdOrigin,
    EnvdPlane,
    EnvdSource,
    GuestArch,
    Provisioning,
    TemplateSpec,
    TemplateState,
)
from tests.engine.conftest import Engine

OURS = GuestArch(platform.machine())
THEIRS = GuestArch.AARCH64 if OURS is GuestArch.X86_64 else GuestArch.X86_64
MACHINES = {GuestArch.X86_64: 62, GuestArch.AARCH64: 183}


def program(arch: GuestArch = OURS) -> bytes:
    return b"\x7fELF" + bytes(14) + struct.pack("<H", MACHINES[arch]) + bytes(100)


def source(content: bytes) -> EnvdSource:
    digest = hashlib.sha256(content).hexdigest()
    return EnvdSource(origin=EnvdOrigin.PINNED_ARTIFACT, reference="https://example.test/envd", sha256=digest)


async def prepare(engine: Engine, folder: Path, content: bytes | None, **wishes: object) -> None:
    folder.mkdir()
    if content is not None:
        (folder / "usr/bin").mkdir(parents=True)
        (folder / "usr/bin/envd").write_bytes(content)
        (folder / "usr/bin/envd").chmod(0o755)
    plane = EnvdPlane(provisioning=Provisioning.ALREADY_PRESENT, **wishes)  # type: ignore[arg-type]
    spec = replace(TemplateSpec.local(str(folder), id=TemplateId("theirs")), data_plane=plane)
    await engine.backend.templates.prepare(spec)


async def test_an_envd_that_is_what_is_asked_for_is_accepted(engine: Engine, tmp_path: Path) -> None:
    await prepare(engine, tmp_path / "image", program(), arch=OURS, source=source(program()))
    assert (await engine.backend.templates.get(TemplateId("theirs"))).state is TemplateState.READY


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("content", "wishes", "fault"),
    [
        (None, {}, TemplateFault.ENVD_MISSING),
        (program(THEIRS), {}, TemplateFault.ENVD_WRONG_ARCH),
        (b"#!/bin/sh\necho 0.6.13\n", {}, TemplateFault.ENVD_WRONG_ARCH),
        (program(), {"arch": THEIRS}, TemplateFault.ENVD_WRONG_ARCH),
        (program(), {"source": source(b"another")}, TemplateFault.ENVD_INTEGRITY_MISMATCH),
        (program(), {"version": "0.6.13"}, TemplateFault.ENVD_INIT_FAILED),
    ],
    ids=["missing", "other machine", "script", "other wish", "other content", "does not run"],
)
async def test_an_envd_that_is_not_fails_the_preparation(
    engine: Engine, tmp_path: Path, content: bytes | None, wishes: dict[str, object], fault: TemplateFault
) -> None:
    with pytest.raises(TemplatePrepareFailure) as failed:
        await prepare(engine, tmp_path / "image", content, **wishes)
    assert failed.value.fault is fault
    assert await engine.leftovers() == []
