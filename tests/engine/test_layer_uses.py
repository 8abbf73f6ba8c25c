"""Layers stay as long as anything lies on them."""

from __future__ import annotations

import asyncio
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from firkin.drivers.memory import MemoryDriver, MemoryRootPreparer
from firkin.engine.backend import LocalBackend
from firkin.host.layer_store import LayerStore, layer_key
from firkin.law.driver import PreparedRoot, RootFilesystem
from firkin.law.ids import TemplateId
from firkin.law.policies import HygienePolicy, Policies
from firkin.law.sandboxes import DeleteOptions, SandboxSpec
from firkin.law.templates import TemplateSpec, TemplateState
from tests.engine.conftest import POLICIES, eventually

ONE, TWO = TemplateId("one"), TemplateId("two")


class Layering(MemoryRootPreparer):
    """Each template is a layer of its own on one that they share. It waits for `go` before it is done."""

    def __init__(self, layers: LayerStore) -> None:
        self._layers = layers
        self.made = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()

    async def prepare(self, spec: TemplateSpec, into: Path, report: Callable[[str], None]) -> PreparedRoot:
        plain = await super().prepare(spec, into, report)
        paths = [await self._layer(part) for part in ("shared", f"{spec.id}{dict(spec.env)}")]
        self.made.set()
        await self.go.wait()
        return replace(plain, root=RootFilesystem(base=paths[0], layers=(paths[1],)))

    async def _layer(self, part: str) -> str:
        async with self._layers.making(layer_key(part)) as making:
            if making.found is not None:
                return making.found
            tarfile.open(making.files / "files.tar", "w").close()  # how layers of the memory driver look
            return await making.keep()


class House:
    """A state folder, and backends on it."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.layers = LayerStore(state / "layers")
        self.preparer = Layering(self.layers)

    def backend(self) -> LocalBackend:
        self.layers = LayerStore(self.state / "layers")
        self.preparer = Layering(self.layers)
        return LocalBackend(driver=MemoryDriver(), preparer=self.preparer, state_dir=self.state, layers=self.layers)

    def kept(self) -> int:
        return len([name for name in os.listdir(self.state / "layers") if not name.startswith(".")])


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path / "state")


async def test_pruning_keeps_what_templates_and_sandboxes_lie_on(house: House) -> None:
    backend = house.backend()
    await backend.start(POLICIES)
    try:
        await backend.templates.prepare(TemplateSpec.host(id=ONE))
        await backend.templates.prepare(TemplateSpec.host(id=TWO))
        assert (await backend.templates.prune(), house.kept()) == (0, 3)
        await backend.templates.delete(TWO)
        assert (await backend.templates.prune(), house.kept()) == (1, 2)
        info = await backend.sandboxes.create(SandboxSpec.from_template(ONE))
        await backend.templates.prepare(replace(TemplateSpec.host(id=ONE), env={"A": "b"}))
        assert (await backend.templates.prune(), house.kept()) == (0, 3)
        await backend.sandboxes.delete(info.id, DeleteOptions(force=True))
        assert (await backend.templates.prune(), house.kept()) == (1, 2)
    finally:
        await backend.aclose(kill_all=True)


async def test_pruning_leaves_a_preparation_under_way_alone(house: House) -> None:
    backend = house.backend()
    await backend.start(POLICIES)
    try:
        house.preparer.go.clear()
        work = asyncio.create_task(backend.templates.prepare(TemplateSpec.host(id=ONE)))
        await house.preparer.made.wait()
        assert await backend.templates.prune() == 0
        house.preparer.go.set()
        assert (await work).state is TemplateState.READY
    finally:
        await backend.aclose(kill_all=True)


async def test_what_nothing_needs_goes_by_itself_after_a_while(house: House) -> None:
    backend = house.backend()
    await backend.start(replace(POLICIES, hygiene=HygienePolicy(unused_layers_kept_s=0.05)))
    try:
        await backend.templates.prepare(TemplateSpec.host(id=ONE))
        await backend.templates.delete(ONE)
        await eventually(lambda: house.kept() == 0)
    finally:
        await backend.aclose(kill_all=True)


async def test_a_template_whose_layers_are_gone_has_failed_and_may_be_prepared_again(house: House) -> None:
    await _once(house, POLICIES)
    for name in os.listdir(house.state / "layers"):
        shutil.rmtree(house.state / "layers" / name)
    backend = house.backend()
    await backend.start(POLICIES)
    try:
        info = await backend.templates.get(ONE)
        assert info.state is TemplateState.FAILED
        assert "files are gone from" in info.failure
        assert (await backend.templates.prepare(TemplateSpec.host(id=ONE))).state is TemplateState.READY
    finally:
        await backend.aclose(kill_all=True)


async def test_what_was_prepared_becomes_durable_in_the_background(house: House) -> None:
    await _once(house, POLICIES)
    assert all((layer / "settled").exists() for layer in (house.state / "layers").iterdir())


async def _once(house: House, policies: Policies) -> None:
    backend = house.backend()
    await backend.start(policies)
    await backend.templates.prepare(TemplateSpec.host(id=ONE))
    await backend.aclose(kill_all=True)
