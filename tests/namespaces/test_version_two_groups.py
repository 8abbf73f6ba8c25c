"""The whole driver on a version 2 control group tree, where the machine has one beside version 1.

Such a tree has no memory or pids controller to offer, so this shows boxes, leaves, joining, freezing and removal,
but no limits; those are the same files with other names, written by the code that `tests/host` checks.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from firkin import Runtime
from firkin.drivers.ground.ground import Ground
from firkin.drivers.namespaces.driver import NamespacesDriver
from firkin.engine.backend import LocalBackend
from firkin.host.cgroups import Layout
from firkin.host.roots import HostRootPreparer
from firkin.law.ids import TemplateId
from firkin.law.sandboxes import SandboxSpec
from firkin.law.templates import TemplateSpec

TREE = "/sys/fs/cgroup/unified"


@pytest.mark.asyncio
@pytest.mark.skipif(not os.path.exists(f"{TREE}/cgroup.procs"), reason="no version 2 tree beside version 1 here")
async def test_a_sandbox_lives_and_ends_on_a_version_two_tree(tmp_path: Path) -> None:
    ground = Ground(tmp_path, ready_slots=1, layout=Layout(2, {"": TREE}, frozenset()))
    driver = NamespacesDriver(tmp_path, ground=ground)
    backend = LocalBackend(driver=driver, preparer=HostRootPreparer(), state_dir=tmp_path)
    async with Runtime.open(backend) as runtime:
        await runtime.templates.prepare(TemplateSpec.host(id=TemplateId("base")))
        async with await runtime.sandboxes.create(SandboxSpec.from_template("base")) as sandbox:
            assert b"0::/../user" in (await sandbox.exec("cat /proc/self/cgroup")).stdout
            assert (await sandbox.exec("sudo -n id -u")).stdout == b"0\n"
            assert await driver.live() == [sandbox.id]
        assert await driver.live() == []
