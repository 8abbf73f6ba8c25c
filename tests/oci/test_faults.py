"""Runtimes that fail, hang or vanish, agents that never answer, launchers and servers that are killed."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from firkin.drivers.boxes import driver as box_driver
from firkin.drivers.boxes import launches
from firkin.drivers.boxes.launcher import LaunchFailed
from firkin.drivers.boxes.options import BoxOptions
from firkin.drivers.oci import driver as oci_driver
from firkin.drivers.oci.driver import OciDriver, OciTier
from firkin.law.driver import Driver, InstanceRef, RootFilesystem
from firkin.law.errors import BackendFailure, DeadlineExceeded
from firkin.law.ids import SandboxId
from firkin.testing.driver_suite import said
from tests.contract.boxes import require
from tests.namespaces.test_faults import (
    plan,
    root,
    state,
    test_a_cancelled_caller_leaves_nothing_behind,
    test_a_launch_that_fails_keeps_no_descriptor,
    test_a_launch_that_fails_says_in_which_step,
    test_a_sandbox_outlives_its_launcher,
    test_an_orphan_is_swept_by_its_label,
    test_creates_go_on_while_launchers_are_killed,
)

__all__ = [
    "root",
    "state",
    "test_a_cancelled_caller_leaves_nothing_behind",
    "test_a_launch_that_fails_keeps_no_descriptor",
    "test_a_launch_that_fails_says_in_which_step",
    "test_a_sandbox_outlives_its_launcher",
    "test_an_orphan_is_swept_by_its_label",
    "test_creates_go_on_while_launchers_are_killed",
]

pytestmark = [pytest.mark.host, pytest.mark.asyncio(loop_scope="module")]

_PROBED = 'case "$*" in *firkin-probe*|*--version*) exec /usr/sbin/runc "$@";; esac\n'
_FAILS = "echo no such luck >&2; exit 3\n"
_HANGS = "exec sleep 1000\n"
_IS_KILLED = '/usr/sbin/runc "$@"; kill -9 $$\n'
_NEVER_ANSWERS = """
for word; do
  if [ "$before" = --bundle ]; then
    sed -i 's/from firkin.guest.listening import main; main()/import time; time.sleep(1000)/' "$word/config.json"
  fi
  before=$word
done
exec /usr/sbin/runc "$@"
"""
_SERVER = """
import asyncio, json, sys
from pathlib import Path
from firkin.drivers.oci.driver import OciDriver
from firkin.law.driver import BootPlan, RootFilesystem
from firkin.law.ids import SandboxId
from firkin.law.resources import SandboxResources

async def main():
    driver = OciDriver.from_settings(Path(sys.argv[1]), {"ready_slots": "1"})
    root = json.loads(sys.argv[2])
    await driver.start()
    await driver.sweep([])
    for name in ("kept", "orphan"):
        plan = BootPlan(sandbox_id=SandboxId(name), root=RootFilesystem(**root), resources=SandboxResources())
        instance = await driver.boot(plan)
        print(json.dumps(dict(instance.ref.facts)), flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def driver(state: Path) -> AsyncIterator[OciDriver]:
    require(OciTier(""), state)
    made = OciDriver.from_settings(state, {"ready_slots": "3"})
    await made.start()
    await made.sweep([])
    yield made
    await made.sweep([])
    await made.aclose()


async def _with_runtime(folder: Path, text: str, *, within_s: float = 20.0) -> Driver:
    """A started driver over a runtime that is probed as runc and then does `text`."""
    require(OciTier(""), folder)
    program = folder / "program"
    program.mkdir()
    runtime = program / "runc"
    runtime.write_text(f"#!/bin/sh\n{_PROBED}{text}")
    runtime.chmod(0o755)
    tier = OciTier(str(runtime), runtime_within_s=within_s)
    made = box_driver.BoxDriver(folder / "state", tier, BoxOptions(ready_slots=1))
    (folder / "state").mkdir(exist_ok=True)
    await made.start()
    await made.sweep([])
    return made


async def _closed(driver: Driver) -> None:
    assert list(await driver.live()) == []
    assert list(await driver.sweep([])) == []
    await driver.aclose()


@pytest.mark.parametrize(
    ("text", "told"),
    [(_FAILS, "no such luck"), (_HANGS, "did not end in time"), (_IS_KILLED, "ended with -9")],
    ids=["fails", "hangs", "is killed midway"],
)
async def test_a_runtime_that_goes_wrong_leaves_nothing(
    tmp_path: Path, root: RootFilesystem, text: str, told: str
) -> None:
    driver = await _with_runtime(tmp_path, text, within_s=3.0)
    with pytest.raises(LaunchFailed, match=told):
        await driver.boot(plan("wrong", root))
    await _closed(driver)


async def test_an_agent_that_never_answers_is_given_up(
    tmp_path: Path, root: RootFilesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = await _with_runtime(tmp_path, _NEVER_ANSWERS)
    monkeypatch.setattr(launches, "BOOT_WITHIN_S", 2.0)
    async with asyncio.timeout(20):
        with pytest.raises(DeadlineExceeded):
            await driver.boot(plan("silent", root))
    await _closed(driver)


async def test_a_missing_runtime_is_told_with_what_mends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firkin.drivers.oci.choice.PATH", str(tmp_path))
    monkeypatch.setattr(oci_driver, "chosen", lambda wished: None)
    from firkin.drivers.oci import choice

    choice._attempts.cache_clear()
    try:
        assert OciTier("").preflight(tmp_path).reasons == ("runc is missing; install it: apt-get install runc",)
        driver = OciDriver.from_settings(tmp_path, {"ready_slots": "1"})
        with pytest.raises(BackendFailure, match="apt-get install runc"):
            await driver.start()
        await driver.aclose()
    finally:
        choice._attempts.cache_clear()


async def test_what_a_killed_server_left_is_adopted_or_swept(tmp_path: Path, root: RootFilesystem) -> None:
    require(OciTier(""), tmp_path)
    facts = json.dumps({"base": root.base, "layers": root.layers, "shared": dict(root.shared), "hidden": root.hidden})
    argv = [sys.executable, "-c", _SERVER, str(tmp_path / "state"), facts]
    server = subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True)  # noqa: ASYNC220 — to be killed
    assert server.stdout is not None
    try:
        lines = [await asyncio.to_thread(server.stdout.readline) for _ in range(2)]
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()
        server.stdout.close()
    kept, _ = (json.loads(line) for line in lines)
    driver = OciDriver.from_settings(tmp_path / "state", {"ready_slots": "1"})
    await driver.start()
    instance = await driver.adopt(SandboxId("kept"), InstanceRef("oci", kept))
    assert instance is not None
    assert await said(instance, "echo alive") == "alive\n"
    assert await driver.sweep([SandboxId("kept")]) == ["what was left of sandbox orphan"]
    assert list(await driver.live()) == ["kept"]
    await instance.destroy()
    await driver.discard(SandboxId("kept"))
    await _closed(driver)
