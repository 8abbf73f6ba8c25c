"""Obligations of a driver: what an instance changed becomes a layer, on which others begin."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from firkin.law.capabilities import CapabilityName
from firkin.law.driver import Driver, Instance
from firkin.law.errors import BackendFailure
from firkin.law.ids import SandboxId
from firkin.testing.driver_suite import DriverSuite, needs, said

_MAKE = """
mkdir -p /srv/box/inner; chmod 700 /srv/box
echo content > /srv/box/file; chmod 4750 /srv/box/file
ln -s box/file /srv/link
touch /srv/theirs; chown user /srv/theirs
mkdir -p /srv/doomed/below /srv/replaced; echo old > /srv/replaced/old; echo gone > /srv/gone
"""
_CHANGE = """
echo more >> /srv/box/file
rm /srv/gone; rm -r /srv/doomed /srv/replaced; mkdir /srv/replaced; echo new > /srv/replaced/new
"""


class LayerSuite(DriverSuite):
    async def _on(self, driver: Driver, name: str, layers: tuple[Path, ...]) -> Instance:
        plan = self.boot_plan(SandboxId(name))
        root = replace(plan.root, layers=(*plan.root.layers, *map(str, layers)))
        return await driver.boot(replace(plan, root=root))

    async def _layer(self, driver: Driver, text: str, below: tuple[Path, ...], into: Path) -> Path:
        """What shell text changes in an instance above the layers `below`."""
        instance = await self._on(driver, into.name, below)
        await said(instance, text)
        await instance.destroy()
        into.mkdir(parents=True)
        await driver.commit(SandboxId(into.name), into)
        await driver.discard(SandboxId(into.name))
        return into


class LayerObligations(LayerSuite):
    async def test_an_instance_begins_where_another_ended(self, driver: Driver, tmp_path: Path) -> None:
        await needs(driver, CapabilityName.TEMPLATE_READY)
        layer = await self._layer(driver, _MAKE, (), tmp_path / "first")
        instance = await self._on(driver, "on", (layer,))
        assert await said(instance, "stat -c '%a %U' /srv/box") == "700 root\n"
        assert await said(instance, "stat -c '%a %U' /srv/box/file") == "4750 root\n"
        assert await said(instance, "stat -c '%a %U' /srv/theirs") == "644 user\n"
        assert await said(instance, "cat /srv/link") == "content\n"

    async def test_layers_lie_upon_each_other_and_take_away_too(self, driver: Driver, tmp_path: Path) -> None:
        await needs(driver, CapabilityName.TEMPLATE_READY)
        first = await self._layer(driver, _MAKE, (), tmp_path / "first")
        second = await self._layer(driver, _CHANGE, (first,), tmp_path / "second")
        above, below = await self._on(driver, "above", (first, second)), await self._on(driver, "below", (first,))
        assert await said(above, "cat /srv/box/file") == "content\nmore\n"
        assert await said(above, "ls /srv; ls /srv/replaced") == "box\nlink\nreplaced\ntheirs\nnew\n"
        assert await said(below, "ls /srv; ls /srv/replaced") == "box\ndoomed\ngone\nlink\nreplaced\ntheirs\nold\n"

    async def test_what_is_written_above_stays_out_of_the_layer(self, driver: Driver, tmp_path: Path) -> None:
        await needs(driver, CapabilityName.TEMPLATE_READY)
        layer = await self._layer(driver, _MAKE, (), tmp_path / "first")
        first, second = await self._on(driver, "one", (layer,)), await self._on(driver, "two", (layer,))
        await said(first, "echo mine > /srv/box/file; rm /srv/gone")
        assert await said(second, "cat /srv/box/file /srv/gone") == "content\ngone\n"

    async def test_a_living_instance_is_not_committed(self, driver: Driver, tmp_path: Path) -> None:
        await needs(driver, CapabilityName.TEMPLATE_READY)
        await self._on(driver, "alive", ())
        with pytest.raises(BackendFailure):
            await driver.commit(SandboxId("alive"), tmp_path)

    async def test_many_layers_and_many_at_once(self, driver: Driver, tmp_path: Path) -> None:
        await needs(driver, CapabilityName.TEMPLATE_READY)
        layers: tuple[Path, ...] = ()
        for number in range(12):
            layers = (
                *layers,
                await self._layer(driver, f"mkdir -p /srv; echo {number} >> /srv/n", layers, tmp_path / f"l{number}"),
            )
        instances = await asyncio.gather(*(self._on(driver, f"many{number}", layers) for number in range(4)))
        for instance in instances:
            assert await said(instance, "cat /srv/n") == "".join(f"{number}\n" for number in range(12))
