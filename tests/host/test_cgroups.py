"""Boxes of both versions, where this machine has their trees mounted."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from firkin.host.cgroups import Layout, Limits, Trees, detect

pytestmark = pytest.mark.host
LIMITS = Limits(memory_bytes=64 << 20, pids=32, vcpus=1)


def layouts() -> list[Layout]:
    """What `detect` found, and a version 2 tree beside it, without controllers, where there is one."""
    found = detect()
    beside = "/sys/fs/cgroup/unified"
    return [found, *([Layout(2, {"": beside}, frozenset())] if os.path.exists(f"{beside}/cgroup.procs") else [])]


@pytest.fixture(params=layouts(), ids=lambda layout: f"version {layout.version}")
def trees(request: pytest.FixtureRequest) -> Iterator[Trees]:
    made = Trees(request.param, f"test{os.getpid()}")
    made.open()
    yield made
    made.close()
    made.remove_if_empty()


def test_a_process_joins_leaves_and_is_counted(trees: Trees) -> None:
    told, tell = os.pipe()
    go, wait = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            trees.make("box", LIMITS)
            trees.join_box("box")
            trees.join_agent("box")
            enter, leave = trees.doors("box")
            for doors, name in ((leave, b"a"), (enter, b"u"), (leave, b"l")):
                for door in doors:
                    os.write(door, b"0")
                os.write(tell, name)
                os.read(go, 1)
        finally:
            os._exit(0)
    for expected, leaf in ((b"a", "/agent"), (b"u", "/user"), (b"l", "/agent")):
        assert os.read(told, 1) == expected
        assert trees.members("box") == {pid}
        assert leaf in _groups(pid)
        os.write(wait, b".")
    os.waitpid(pid, 0)
    for fd in (told, tell, go, wait):
        os.close(fd)
    assert trees.boxes() == {"box"}
    assert trees.remove("box")
    assert trees.boxes() == set()


def test_freezing_and_thawing_shows(trees: Trees) -> None:
    trees.make("cold", LIMITS)
    trees.freeze("cold", True)
    assert trees.is_frozen("cold")
    trees.freeze("cold", False)
    assert not trees.is_frozen("cold")
    assert trees.usage("cold")["oom_kills"] == 0
    assert trees.remove("cold")


def test_removing_what_is_not_there_is_no_error(trees: Trees) -> None:
    assert trees.remove("never")
    assert trees.members("never") == set()


def test_what_is_killed_does_not_wait_for_its_share_of_the_cpu(trees: Trees) -> None:
    if "cpu" not in trees.layout.controllers:
        pytest.skip("this tree has no cpu controller, so nothing in it is throttled")
    trees.make("box", Limits(memory_bytes=256 << 20, pids=128, vcpus=1))
    path, least = ("cpu.max", "1000 100000") if trees.layout.version == 2 else ("cpu.cfs_quota_us", "1000")
    folder = trees.layout.roots["" if trees.layout.version == 2 else "cpu"]
    busy = [_spinning_in(trees) for _ in range(16)]
    with open(f"{folder}/firkin/{trees.label}/box/{path}", "w") as file:
        file.write(least)
    for pid in busy:
        os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    trees.lift_cpu_quota("box")
    for pid in busy:
        os.waitpid(pid, 0)
    assert time.monotonic() - began < 1  # with the quota, each waits for its turn to end
    assert trees.remove("box")


def _spinning_in(trees: Trees) -> int:
    joined, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            trees.join_box("box")
            os.write(tell, b".")
            while True:
                pass
        finally:
            os._exit(1)
    assert os.read(joined, 1) == b"."
    os.close(joined)
    os.close(tell)
    return pid


def _groups(pid: int) -> str:
    with open(f"/proc/{pid}/cgroup") as file:
        return file.read()
