"""The registry of templates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from firkin.drivers.memory import MemoryDriver, MemoryRootPreparer
from firkin.engine.backend import LocalBackend
from firkin.engine.stored_forms import TemplateRecord, dump_template, load_template
from firkin.engine.template_requests import default_template_id
from firkin.law.capabilities import CapabilityName
from firkin.law.driver import PreparedRoot, RootFilesystem
from firkin.law.errors import (
    DeadlineExceeded,
    InvalidReason,
    InvalidSpec,
    IoFailure,
    NotFound,
    TemplateFault,
    TemplatePrepareFailure,
    UnsupportedCapability,
    WrongState,
)
from firkin.law.ids import TemplateId
from firkin.law.processes import Command, Shell
from firkin.law.sandboxes import DeleteOptions, SandboxSpec
from firkin.law.templates import (
    EnvdOrigin,
    EnvdPlane,
    EnvdSource,
    GitSource,
    GuestArch,
    HostSource,
    LocalSource,
    NoPlane,
    OciSource,
    RecipeSource,
    TemplateInfo,
    TemplateSource,
    TemplateSpec,
    TemplateState,
)
from firkin.testing.virtual_clock import START
from tests.engine.conftest import POLICIES, eventually

ID = TemplateId("t")
_PINNED = EnvdPlane(
    source=EnvdSource(origin=EnvdOrigin.PINNED_LAYER, reference="x", sha256="0" * 64), arch=GuestArch.AARCH64
)


class Kitchen(MemoryRootPreparer):
    """A preparer that counts, waits and fails as a test wishes."""

    def __init__(self) -> None:
        self.times = 0
        self.failure: Exception | None = None
        self.going = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()

    async def prepare(self, spec: TemplateSpec, into: Path, report: Callable[[str], None]) -> PreparedRoot:
        self.times += 1
        (into / "half").write_text("made")
        report("working")
        self.going.set()
        await self.go.wait()
        if self.failure is not None:
            raise self.failure
        return await super().prepare(spec, into, report)


@pytest.fixture
def kitchen() -> Kitchen:
    return Kitchen()


@pytest.fixture
async def backend(tmp_path: Path, kitchen: Kitchen) -> AsyncIterator[LocalBackend]:
    made = LocalBackend(driver=MemoryDriver(), preparer=kitchen, state_dir=tmp_path / "state")
    await made.start(POLICIES)
    yield made
    await made.aclose(kill_all=True)


def _directories(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "state" / "templates").glob("*/*"))


async def test_same_request_is_answered_from_what_is_ready(backend: LocalBackend, kitchen: Kitchen) -> None:
    spec = TemplateSpec.host(id=ID)
    first = await backend.templates.prepare(spec)
    assert await backend.templates.prepare(replace(spec, timeout_s=5)) == first
    assert kitchen.times == 1
    assert await backend.templates.list() == [first]


async def test_requests_in_flight_share_one_preparation(backend: LocalBackend, kitchen: Kitchen) -> None:
    kitchen.go.clear()
    asking = [asyncio.create_task(backend.templates.prepare(TemplateSpec.host(id=ID))) for _ in range(5)]
    await kitchen.going.wait()
    asking[0].cancel()
    with pytest.raises(WrongState, match="prepared differently"):
        await backend.templates.prepare(TemplateSpec.local("/srv", id=ID))
    with pytest.raises(WrongState, match="being prepared"):
        await backend.templates.delete(ID)
    kitchen.go.set()
    infos = await asyncio.gather(*asking[1:])
    assert len({info.prepared_at for info in infos}) == 1
    assert kitchen.times == 1


async def test_preparation_that_nobody_waits_for_is_given_up(
    backend: LocalBackend, kitchen: Kitchen, tmp_path: Path
) -> None:
    kitchen.go.clear()
    asking = asyncio.create_task(backend.templates.prepare(TemplateSpec.host(id=ID)))
    await kitchen.going.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    kitchen.go.set()
    assert (await backend.templates.prepare(TemplateSpec.host(id=ID))).state is TemplateState.READY
    assert kitchen.times == 2
    assert len(_directories(tmp_path)) == 1


@pytest.mark.parametrize(
    ("failure", "seen"),
    [
        (TemplatePrepareFailure(TemplateFault.REGISTRY_UNAVAILABLE, "no route"), TemplatePrepareFailure),
        (TemplatePrepareFailure(TemplateFault.TOOL_MISSING, "no such tool"), TemplatePrepareFailure),
        (OSError("disk full"), IoFailure),
        (ValueError("bug"), ValueError),
    ],
)
async def test_failure_is_kept_with_its_reason_and_leaves_no_files(
    backend: LocalBackend, kitchen: Kitchen, tmp_path: Path, failure: Exception, seen: type[Exception]
) -> None:
    kitchen.failure = failure
    with pytest.raises(seen):
        await backend.templates.prepare(TemplateSpec.host(id=ID))
    info = await backend.templates.get(ID)
    assert info.state is TemplateState.FAILED
    assert str(failure) in info.failure
    assert _directories(tmp_path) == []
    kitchen.failure = None
    assert (await backend.templates.prepare(TemplateSpec.host(id=ID))).state is TemplateState.READY


async def test_failed_template_says_so_to_who_wants_a_sandbox(backend: LocalBackend, kitchen: Kitchen) -> None:
    kitchen.failure = TemplatePrepareFailure(TemplateFault.REGISTRY_UNAVAILABLE, "no route")
    with pytest.raises(TemplatePrepareFailure):
        await backend.templates.prepare(TemplateSpec.host(id=ID))
    with pytest.raises(WrongState, match="template 't' has failed: no route"):
        await backend.sandboxes.create(SandboxSpec.from_template(ID))


@pytest.mark.parametrize(
    "failure",
    [
        TemplatePrepareFailure(TemplateFault.SOURCE_MISSING, "no such image"),
        TemplatePrepareFailure(TemplateFault.SOURCE_CORRUPT, "no such blob"),
        InvalidSpec("prepare template", InvalidReason.MISSING_TEMPLATE, "no such recipe"),
    ],
)
async def test_source_that_cannot_be_used_leaves_no_record(
    backend: LocalBackend, kitchen: Kitchen, tmp_path: Path, failure: Exception
) -> None:
    kitchen.failure = failure
    with pytest.raises(type(failure)):
        await backend.templates.prepare(TemplateSpec.host(id=ID))
    assert await backend.templates.list() == []
    assert list((tmp_path / "state" / "templates").iterdir()) == []


@pytest.mark.parametrize("source", [OciSource("a b"), LocalSource("/no/such"), OciSource("oci:/no/such:tag")])
async def test_source_that_cannot_be_is_refused_before_anything_is_done(
    backend: LocalBackend, kitchen: Kitchen, source: TemplateSource
) -> None:
    with pytest.raises((InvalidSpec, TemplatePrepareFailure)):
        await backend.templates.prepare(TemplateSpec(source=source))
    assert kitchen.times == 0
    assert await backend.templates.list() == []


async def test_preparation_has_a_deadline(backend: LocalBackend, kitchen: Kitchen) -> None:
    kitchen.go.clear()
    with pytest.raises(DeadlineExceeded, match=r"within 0\.05 s"):
        await backend.templates.prepare(replace(TemplateSpec.host(id=ID), timeout_s=0.05))
    assert "within 0.05 s" in (await backend.templates.get(ID)).failure


async def test_failed_change_leaves_the_ready_one(backend: LocalBackend, kitchen: Kitchen, tmp_path: Path) -> None:
    before = await backend.templates.prepare(TemplateSpec.host(id=ID))
    kitchen.failure = TemplatePrepareFailure(TemplateFault.SOURCE_MISSING, "gone")
    with pytest.raises(TemplatePrepareFailure):
        await backend.templates.prepare(replace(TemplateSpec.host(id=ID), env={"A": "b"}))
    assert await backend.templates.get(ID) == before
    assert len(_directories(tmp_path)) == 1


async def test_old_files_stay_until_the_last_sandbox_of_them_is_gone(backend: LocalBackend, tmp_path: Path) -> None:
    await backend.templates.prepare(TemplateSpec.host(id=ID))
    info = await backend.sandboxes.create(SandboxSpec.from_template(ID))
    changed = await backend.templates.prepare(replace(TemplateSpec.host(id=ID), env={"A": "new"}))
    assert changed.config.env["A"] == "new"
    assert len(_directories(tmp_path)) == 2
    assert (await backend.processes.run(info.id, Command.shell('echo "<$A>"'))).stdout == b"<>\n"
    await backend.sandboxes.delete(info.id, DeleteOptions(force=True))
    await eventually(lambda: len(_directories(tmp_path)) == 1)


async def test_delete_removes_files_and_is_refused_while_used(backend: LocalBackend, tmp_path: Path) -> None:
    await backend.templates.prepare(TemplateSpec.host(id=ID))
    info = await backend.sandboxes.create(SandboxSpec.from_template(ID))
    with pytest.raises(WrongState, match="in use by 1"):
        await backend.templates.delete(ID)
    await backend.sandboxes.delete(info.id, DeleteOptions(force=True))
    await backend.templates.delete(ID)
    assert _directories(tmp_path) == []
    for ask in (backend.templates.get, backend.templates.delete):
        with pytest.raises(NotFound):
            await ask(ID)


def test_ids_made_from_sources_never_collide() -> None:
    sources = [OciSource("a/b"), OciSource("a:b"), OciSource("a-b"), LocalSource("a/b"), OciSource("x" * 500)]
    assert len({default_template_id(source) for source in sources}) == len(sources)


@pytest.mark.parametrize(
    ("spec", "capability"),
    [
        (
            replace(TemplateSpec.host(), data_plane=EnvdPlane(port=1234)),
            CapabilityName.TEMPLATE_DATA_PLANE_ENVD_INJECT,
        ),
        (
            replace(TemplateSpec.host(), data_plane=EnvdPlane(arch=GuestArch.X86_64)),
            CapabilityName.TEMPLATE_DATA_PLANE_ENVD_INJECT,
        ),
    ],
)
async def test_what_is_not_built_is_refused_before_anything_is_done(
    backend: LocalBackend, kitchen: Kitchen, spec: TemplateSpec, capability: CapabilityName
) -> None:
    with pytest.raises(UnsupportedCapability) as refused:
        await backend.templates.prepare(spec)
    assert refused.value.capability is capability
    assert kitchen.times == 0
    assert await backend.templates.list() == []


@pytest.mark.parametrize(
    "spec",
    [
        TemplateSpec(source=HostSource(), id=ID, env={"N": "caf\udce9"}),
        TemplateSpec(source=HostSource(), id=ID, start=Shell("echo caf\udce9")),
        TemplateSpec(source=LocalSource("/srv/caf\udce9")),
    ],
)
async def test_text_that_cannot_be_kept_is_refused_and_leaves_no_record(
    backend: LocalBackend, spec: TemplateSpec
) -> None:
    with pytest.raises(InvalidSpec, match="not Unicode"):
        await backend.templates.prepare(spec)
    assert list(await backend.templates.list()) == []


@pytest.mark.parametrize("timeout_s", [0, -1, 1e9, float("nan")])
async def test_impossible_timeout_is_refused(backend: LocalBackend, timeout_s: float) -> None:
    with pytest.raises(InvalidSpec, match="timeout"):
        await backend.templates.prepare(replace(TemplateSpec.host(), timeout_s=timeout_s))


@pytest.mark.parametrize(
    "source", [OciSource("oci:/x:tag"), GitSource("u", "r"), LocalSource("/p"), HostSource(), RecipeSource("debian")]
)
@pytest.mark.parametrize("plane", [EnvdPlane(), NoPlane(), _PINNED])
def test_record_comes_back_as_it_was_stored(source: TemplateSource, plane: EnvdPlane | NoPlane) -> None:
    info = TemplateInfo(id=ID, state=TemplateState.READY, source=source, data_plane=plane, created_at=START)
    record = TemplateRecord(info=info, key="k", directory="/d", root=RootFilesystem(base="/b", shared={"/usr": "/usr"}))
    assert load_template(dump_template(record)) == record
