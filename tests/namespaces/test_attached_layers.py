"""The way of kernels before 6.13, forced: the same sandbox, and still nothing in the host's mount table."""

from __future__ import annotations

from pathlib import Path

import pytest

from firkin import Runtime
from firkin.law.sandboxes import SandboxSpec

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def driver_options() -> dict[str, str]:
    return {"attached_layers": "true"}


async def test_a_sandbox_over_attached_layers_is_writable_and_leaves_no_helper_mount(runtime: Runtime) -> None:
    async with await runtime.sandboxes.create(SandboxSpec.from_template("base")) as sandbox:
        written = await sandbox.exec("echo kept > /home/user/note && cat /home/user/note && sudo -n touch /etc/new")
        assert written.stdout == b"kept\n"
        table = (await sandbox.exec("cat /proc/self/mountinfo")).stdout
        assert b"lowerdir=0," in table
        assert b" /lower " not in table
        assert b" /disk " not in table


async def test_the_host_s_mount_table_shows_nothing_of_a_sandbox(runtime: Runtime) -> None:
    async with await runtime.sandboxes.create(SandboxSpec.from_template("base")):
        mine = Path("/proc/self/mountinfo").read_text()
        assert "overlay" not in mine
        assert "/dev/loop" not in mine
