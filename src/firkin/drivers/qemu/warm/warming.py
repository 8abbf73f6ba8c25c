"""Images for templates' stores that have none: after a restart of the server, or when nobody had use for it.

A machine is woken from the store that is nobody's, runs a shell so that what sandboxes run first is translated, and is
written down once more with its process. So what goes on from the image goes on a little later than the store's instant.
A snapshot of somebody's has none but that of its own instant.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections import OrderedDict
from pathlib import Path

from firkin.drivers.ground.helper_process import HelperDied
from firkin.drivers.qemu.ahead import End, Wake, has_room, rehearse
from firkin.drivers.qemu.instance import QemuInstance
from firkin.drivers.qemu.stores import MEMORY, Store, read_store
from firkin.drivers.qemu.warm.warm_images import WarmImages
from firkin.law.driver import BootPlan
from firkin.law.errors import FirkinError
from firkin.law.ids import SandboxId, fresh_sandbox_id
from firkin.lifetimes import Children, finish

_WORTH_IT = 2  # times that a sandbox was made of it
_MOST_KNOWN = 64
_QUIET_S = 0.25
_END_WITHIN_S = 30.0
_log = logging.getLogger("firkin.qemu")


class Warming:
    """Of one driver. `wake` makes a machine that is nobody's, `end` removes it; `folder` is for what they wrote."""

    def __init__(self, images: WarmImages, folder: Path, wake: Wake, end: End, tasks: Children) -> None:
        self._images = images
        self._folder = folder
        self._wake = wake
        self._end = end
        self._tasks = tasks
        self._asked: OrderedDict[str, int] = OrderedDict()
        self._one_at_a_time = asyncio.Lock()

    def forget_begun(self) -> None:
        """Remove what an earlier server had; its images went with it. Blocks."""
        shutil.rmtree(self._folder, ignore_errors=True)

    async def picture(self, machine: QemuInstance, store: Store) -> None:
        """Have an image of `machine`, woken from `store` and standing still, if there is none and one is wanted."""
        if self._images.has(store) or not self._images.wants(machine.fit.shape.accelerator):
            return
        folder = self._folder / machine.sandbox_id
        folder.mkdir(parents=True, mode=0o700)
        try:
            await machine.capture(folder, room_bytes=shutil.disk_usage(folder).free // 2)
            self._images.stand_in(store, await asyncio.to_thread(read_store, folder))
        except (FirkinError, OSError) as error:
            _log.info("no image could be made of a machine's process error=%s", error)
            shutil.rmtree(folder, ignore_errors=True)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def went_on(self, plan: BootPlan, store: Store, accelerator: str) -> None:
        """A sandbox went on from a template's `store`. When that has become a habit, the next ones find an image."""
        name = store.digests.get(MEMORY, "")
        times = self._asked[name] = self._asked.pop(name, 0) + 1
        while len(self._asked) > _MOST_KNOWN:
            self._asked.popitem(last=False)
        if times >= _WORTH_IT and self._images.wants(accelerator) and not self._images.has(store):
            del self._asked[name]  # an image that is gone again can be worth it once more
            self._tasks.start(self._warm(plan, store), name=f"warm {store.folder}")

    async def _warm(self, plan: BootPlan, store: Store) -> None:
        name = fresh_sandbox_id()
        async with self._one_at_a_time:
            await asyncio.sleep(_QUIET_S)
            if self._images.has(store) or not has_room(plan):
                return
            try:
                await self._warmed(_nobodys(plan, name), store)
            except (FirkinError, HelperDied, OSError, TimeoutError) as error:
                _log.info("no machine could be woken for an image of a template error=%s", error)

    async def _warmed(self, plan: BootPlan, store: Store) -> None:
        machine, _ = await self._wake(plan)
        try:
            await rehearse(machine, plan.leaves())
            await machine.freeze()
            await self.picture(machine, store)
        finally:
            await finish(self._end(machine), within_s=_END_WITHIN_S)


def _nobodys(plan: BootPlan, name: SandboxId) -> BootPlan:
    return BootPlan(
        sandbox_id=name,
        root=plan.root,
        resources=plan.resources,
        hostname=str(name),
        machine_id=os.urandom(16).hex(),
        leaves=plan.leaves,
    )
