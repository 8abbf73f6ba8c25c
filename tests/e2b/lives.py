"""What a sandbox's owner sees of pauses, snapshots and forks, through the official SDK: for whatever server and driver.

A test module takes these in by its own fixtures: ``sdk``, the options that point
the SDK at a server, and ``sandbox``, a sandbox of that server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from e2b.exceptions import NotFoundException, SandboxException, SandboxNotFoundException
from e2b.sandbox.sandbox_api import SandboxQuery

from e2b import Sandbox

Options = dict[str, Any]
BOOT_ID = "/proc/sys/kernel/random/boot_id"


@contextmanager
def made(sdk: Options, template: str = "base", **fields: Any) -> Iterator[Sandbox]:
    sandbox = Sandbox.create(template, **{"timeout": 120, **fields}, **sdk)
    try:
        yield sandbox
    finally:
        sandbox.kill()


def until(what: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def boot_id(sandbox: Sandbox) -> str:
    return str(sandbox.files.read(BOOT_ID)).strip()


class TestPauses:
    def test_a_pause_keeps_programs_and_files(self, sandbox: Sandbox) -> None:
        before = boot_id(sandbox)
        sandbox.files.write("/tmp/kept", "kept")
        sleeper = sandbox.commands.run("sleep 1000", background=True)
        assert sandbox.pause()
        assert not sandbox.is_running()
        assert not sandbox.pause(), "a second pause says that there was nothing to do"
        info = sandbox.get_info()
        assert info.state.value == "paused"
        assert sandbox.connect(timeout=60) is not None
        assert sandbox.is_running()
        assert sandbox.files.read("/tmp/kept") == "kept"
        assert boot_id(sandbox) == before
        assert sleeper.pid in [process.pid for process in sandbox.commands.list()]

    def test_a_pause_without_memory_keeps_files_alone(self, sdk: Options) -> None:
        with made(sdk, envs={"WHO": "me"}) as sandbox:
            before = boot_id(sandbox)
            sandbox.files.write("/home/user/kept", "kept")
            sandbox.commands.run("sleep 1000", background=True)
            assert sandbox.pause(keep_memory=False)
            assert not sandbox.is_running()
            again = sandbox.connect(timeout=60)
            assert again.sandbox_id == sandbox.sandbox_id
            assert sandbox.files.read("/home/user/kept") == "kept"
            assert boot_id(sandbox) != before
            assert sandbox.commands.list() == []
            assert sandbox.commands.run("echo $WHO").stdout == "me\n"

    def test_a_watcher_goes_on_after_a_pause_and_tells_what_came_before_it(self, sandbox: Sandbox) -> None:
        sandbox.files.make_dir("/tmp/watched")
        watcher = sandbox.files.watch_dir("/tmp/watched")
        sandbox.files.write("/tmp/watched/before", "x")
        sandbox.pause()
        sandbox.connect(timeout=60)
        sandbox.files.write("/tmp/watched/after", "x")
        created = [event.name for event in watcher.get_new_events() if event.type.value == "create"]
        assert created == ["before", "after"]
        watcher.stop()

    def test_a_watcher_goes_on_when_traffic_wakes_its_sandbox(self, sdk: Options) -> None:
        with made(sdk, lifecycle={"on_timeout": "pause", "auto_resume": True}) as sandbox:
            watcher = sandbox.files.watch_dir("/tmp")
            sandbox.files.write("/tmp/before", "x")
            sandbox.set_timeout(0)
            until(lambda: sandbox.get_info().state.value == "paused")
            assert "before" in [event.name for event in watcher.get_new_events()]
            sandbox.files.write("/tmp/after", "x")
            assert "after" in [event.name for event in watcher.get_new_events()]

    def test_a_watcher_ends_with_the_memory(self, sdk: Options) -> None:
        for at_pause in (True, False):
            with made(sdk) as sandbox:
                watcher = sandbox.files.watch_dir("/tmp")
                sandbox.pause(keep_memory=not at_pause)
                httpx.post(
                    f"{sdk['api_url']}/v2/sandboxes/{sandbox.sandbox_id}/connect",
                    json={"timeout": 60, "memory": False},
                    headers={"X-API-Key": sdk["api_key"]},
                    timeout=60,
                )
                for _ in range(2):
                    with pytest.raises(NotFoundException, match="watcher with id"):
                        watcher.get_new_events()

    def test_memory_can_be_left_behind_at_the_resumption(self, sdk: Options) -> None:
        with made(sdk) as sandbox:
            sandbox.files.write("/home/user/kept", "kept")
            before = boot_id(sandbox)
            assert sandbox.pause()
            answer = httpx.post(
                f"{sdk['api_url']}/v2/sandboxes/{sandbox.sandbox_id}/connect",
                json={"timeout": 60, "memory": False},
                headers={"X-API-Key": sdk["api_key"]},
                timeout=60,
            )
            assert answer.status_code == 201
            assert boot_id(sandbox) != before
            assert sandbox.files.read("/home/user/kept") == "kept"

    def test_pauses_and_resumptions_a_hundred_times(self, sdk: Options) -> None:
        with made(sdk) as sandbox:
            counter = sandbox.commands.run(
                "i=0; while sleep 0.01; do i=$((i+1)); echo $i > /tmp/count; done", background=True
            )
            sandbox.files.write("/home/user/sum", "x" * 10_000)
            for _ in range(100):
                assert sandbox.pause()
                sandbox.connect(timeout=60)
            assert sandbox.files.read("/home/user/sum") == "x" * 10_000
            first = sandbox.files.read("/tmp/count")
            until(lambda: sandbox.files.read("/tmp/count") not in (first, ""))
            assert counter.pid in [process.pid for process in sandbox.commands.list()]

    def test_lists_show_paused_ones_where_they_are_asked_for(self, sdk: Options) -> None:
        with made(sdk, metadata={"set": "paused"}) as sandbox:
            sandbox.pause()
            wanted = SandboxQuery(metadata={"set": "paused"})
            found = Sandbox.list(wanted, **sdk).next_items()
            assert [(info.sandbox_id, info.state.value) for info in found] == [(sandbox.sandbox_id, "paused")]

    def test_a_paused_sandbox_can_be_killed(self, sdk: Options) -> None:
        with made(sdk) as sandbox:
            sandbox.pause()
            assert sandbox.kill()
            assert not sandbox.kill()
            with pytest.raises(SandboxNotFoundException):
                sandbox.connect()

    def test_the_deadline_pauses_where_that_was_asked_for(self, sdk: Options) -> None:
        with made(sdk, lifecycle={"on_timeout": "pause"}) as sandbox:
            sandbox.files.write("/tmp/kept", "kept")
            sandbox.set_timeout(0)
            until(lambda: sandbox.get_info().state.value == "paused")
            assert not sandbox.is_running()
            sandbox.connect(timeout=60)
            assert sandbox.files.read("/tmp/kept") == "kept"

    def test_traffic_wakes_what_wakes_on_traffic(self, sdk: Options) -> None:
        with made(sdk, lifecycle={"on_timeout": "pause", "auto_resume": True}) as sandbox:
            sandbox.files.write("/tmp/kept", "kept")
            sandbox.pause()
            assert sandbox.get_info().state.value == "paused"
            assert sandbox.files.read("/tmp/kept") == "kept"
            assert sandbox.get_info().state.value == "running"

    def test_a_timeout_of_a_paused_sandbox_is_refused(self, sdk: Options) -> None:
        with made(sdk) as sandbox:
            sandbox.pause()
            with pytest.raises(SandboxException, match="not running"):
                sandbox.set_timeout(60)


class TestSnapshots:
    def test_a_snapshot_makes_sandboxes_and_outlives_its_source(self, sdk: Options) -> None:
        with made(sdk) as source:
            source.files.write("/home/user/note", "then")
            snapshot = source.create_snapshot()
            source.files.write("/home/user/note", "later")
        try:
            with made(sdk, snapshot.snapshot_id, envs={"OWN": "1"}) as one, made(sdk, snapshot.snapshot_id) as two:
                assert one.files.read("/home/user/note") == two.files.read("/home/user/note") == "then"
                one.files.write("/home/user/note", "one's own")
                assert two.files.read("/home/user/note") == "then"
                assert one.commands.run("echo $OWN").stdout == "1\n"
        finally:
            assert Sandbox.delete_snapshot(snapshot.snapshot_id, **sdk)
        assert not Sandbox.delete_snapshot(snapshot.snapshot_id, **sdk)
        with pytest.raises((NotFoundException, SandboxException), match="not found"):
            Sandbox.create(snapshot.snapshot_id, **sdk)

    def test_names_lists_and_tags(self, sandbox: Sandbox, sdk: Options) -> None:
        sandbox.files.write("/home/user/note", "one")
        first = sandbox.create_snapshot(name="works:v1")
        second = sandbox.create_snapshot(name="works:v2")
        try:
            assert first.snapshot_id.endswith("works:v1")
            assert first.names == [first.snapshot_id]
            found = Sandbox.list_snapshots(sandbox_id=sandbox.sandbox_id, **sdk).next_items()
            assert [info.snapshot_id for info in found] == [second.snapshot_id, first.snapshot_id]
            named = Sandbox.list_snapshots(name="works", **sdk).next_items()
            assert {info.snapshot_id for info in named} == {first.snapshot_id, second.snapshot_id}
            assert Sandbox.list_snapshots(name="nothing", **sdk).next_items() == []
            sandbox.files.write("/home/user/note", "two")
            again = sandbox.create_snapshot(name="works:v1")
            assert again.snapshot_id == first.snapshot_id
            with made(sdk, "works:v1") as later:
                assert later.files.read("/home/user/note") == "two"
        finally:
            assert Sandbox.delete_snapshot(first.snapshot_id, **sdk)
            assert Sandbox.delete_snapshot(second.snapshot_id, **sdk)

    def test_pages_of_snapshots(self, sandbox: Sandbox, sdk: Options) -> None:
        made_ids = [sandbox.create_snapshot().snapshot_id for _ in range(3)]
        try:
            pages = Sandbox.list_snapshots(sandbox_id=sandbox.sandbox_id, limit=2, **sdk)
            seen = [info.snapshot_id for info in pages.next_items()]
            assert pages.has_next
            seen += [info.snapshot_id for info in pages.next_items()]
            assert not pages.has_next
            assert seen == made_ids[::-1]
        finally:
            for snapshot_id in made_ids:
                Sandbox.delete_snapshot(snapshot_id, **sdk)

    def test_a_name_of_a_template_is_refused(self, sandbox: Sandbox) -> None:
        with pytest.raises(SandboxException, match="choose another name"):
            sandbox.create_snapshot(name="base")

    def test_a_paused_sandbox_is_not_captured(self, sdk: Options) -> None:
        with made(sdk) as sandbox:
            sandbox.pause()
            with pytest.raises(SandboxException, match="paused"):
                sandbox.create_snapshot()


class TestForks:
    def test_forks_are_copies_with_an_identity_of_their_own(self, sdk: Options) -> None:
        with made(sdk, metadata={"who": "fork"}, envs={"A": "1"}) as sandbox:
            sandbox.files.write("/home/user/state", "before")
            forks = sandbox.fork(count=3, timeout=60)
            try:
                assert all(isinstance(fork, Sandbox) for fork in forks), forks
                everybody = [sandbox, *forks]
                assert len({box.sandbox_id for box in everybody}) == 4
                assert len({box.commands.run("hostname").stdout for box in everybody}) == 4
                assert len({box.files.read("/etc/machine-id") for box in everybody}) == 4
                assert len({boot_id(box) for box in everybody}) == 4
                for fork in forks:
                    assert fork.files.read("/home/user/state") == "before"
                    assert fork.commands.run("echo $A").stdout == "1\n"
                    assert fork.get_info().metadata == {"who": "fork"}
                forks[0].files.write("/home/user/state", "after")
                assert sandbox.files.read("/home/user/state") == "before"
            finally:
                for fork in forks:
                    if isinstance(fork, Sandbox):
                        fork.kill()

    def test_a_paused_sandbox_is_not_forked(self, sdk: Options) -> None:
        with made(sdk) as sandbox:
            sandbox.pause()
            with pytest.raises(SandboxException, match="paused"):
                sandbox.fork()

    def test_a_fork_of_nothing(self, sdk: Options) -> None:
        with made(sdk) as sandbox:
            sandbox.kill()
            with pytest.raises(SandboxNotFoundException):
                sandbox.fork()
