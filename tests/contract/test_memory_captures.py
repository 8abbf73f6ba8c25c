"""What the memory driver captures comes back exactly; what a stranger made is refused."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from firkin.drivers.memory import MemoryDriver, captures
from firkin.drivers.memory.tree import DIRECTORY, FILE, SYMLINK, Fault, Node, Tree
from firkin.law.driver import BootPlan, RootFilesystem
from firkin.law.errors import BackendFailure, IoFailure
from firkin.law.ids import SandboxId
from firkin.law.resources import MIB, SandboxResources
from firkin.testing.driver_suite import said

DISK = 16 * MIB


def plan(sandbox_id: str) -> BootPlan:
    resources = SandboxResources(disk_bytes=DISK)
    return BootPlan(sandbox_id=SandboxId(sandbox_id), root=RootFilesystem(base="/nonexistent"), resources=resources)


def described(tree: Tree) -> dict[str, tuple[object, ...]]:
    return {
        file.path: (
            file.node.kind,
            file.node.mode,
            file.node.uid,
            file.node.gid,
            file.node.mtime_ns,
            bytes(file.node.data),
            file.node.target,
            file.node.program,
            file.node.metadata,
        )
        for file in captures.copied(tree)
    }


def there_and_back(tree: Tree, into: Path) -> Tree:
    captures.write(captures.copied(tree), into)
    back = Tree(tree.limit)
    captures.read(back, into, ["true"])
    return back


def test_everything_about_a_file_comes_back(tmp_path: Path) -> None:
    tree = Tree(DISK)
    tree.root.mode, tree.root.uid = 0o700, 7
    odd = "\udcff new\nline " + "ü" * 100
    tree.make_directory(f"/{odd}/{'n' * 255}", mode=0o1777, uid=3_000_000_000, gid=5)
    node = tree.make_file(f"/{odd}/file", 0o4711, 1000, 1001)
    node.mtime_ns, node.metadata = 1_234_567_890_123_456_789, {"k": "v\udc80", "": "ü"}
    tree.extend(f"/{odd}/file", node, bytes(range(256)) * 3)
    tree.make_file("/program", 0o755).program = "true"
    for number, target in enumerate(("/", "usr/bin/", "../" * 60, "\udcfe")):
        link = Node(SYMLINK, 0o777)
        link.target = target
        tree.add(f"/link{number}", link)
    back = there_and_back(tree, tmp_path)
    assert described(back) == described(tree)
    assert back.used == tree.used


@pytest.mark.thorough
def test_the_depth_of_directories_is_the_guests_own_affair(tmp_path: Path) -> None:
    tree = Tree(DISK)
    node = tree.root
    for _ in range(3000):
        node.children["d"] = node = Node(DIRECTORY, 0o755)
    back = there_and_back(tree, tmp_path)
    assert len(captures.copied(back)) == 3001


def test_proc_is_no_part_of_a_capture() -> None:
    tree = Tree(DISK)
    tree.make_file("/proc-like")
    tree.make_directory("/proc/sys")
    assert sorted(described(tree)) == ["", "proc", "proc-like"]


async def test_a_full_disk_is_captured_and_comes_back_full(tmp_path: Path) -> None:
    driver = MemoryDriver()
    source = await driver.boot(plan("source"))
    await said(source, "echo > /tmp/full")
    tree = source.machine.tree
    _, node = tree.locate("/tmp/full")
    tree.resize(node, len(node.data) + DISK - tree.used)
    await source.capture(tmp_path, room_bytes=1 << 40)
    twin = await driver.boot(replace(plan("twin"), captured=str(tmp_path), hostname="a-longer-name-than-before"))
    assert await said(twin, "cat /etc/hostname; echo more >> /tmp/full || echo full") == (
        "a-longer-name-than-before\nfull\n"
    )
    await driver.sweep(keep=())


async def test_an_instance_without_etc_boots_again(tmp_path: Path) -> None:
    driver = MemoryDriver()
    source = await driver.boot(plan("source"))
    await said(source, "mv /etc /tmp/etc; ln -s /etc /etc")
    await source.capture(tmp_path, room_bytes=1 << 40)
    twin = await driver.boot(replace(plan("twin"), captured=str(tmp_path), machine_id="1" * 32))
    assert twin.machine.hostname == "sandbox"
    await driver.sweep(keep=())


async def test_a_failed_boot_that_continues_keeps_the_files() -> None:
    driver = MemoryDriver()
    instance = await driver.boot(plan("continued"))
    await said(instance, "echo kept > /tmp/kept")
    await instance.destroy()
    driver.faults.fail_next_boot(BackendFailure("boot instance", "memory", "as the test wished"))
    with pytest.raises(BackendFailure):
        await driver.boot(replace(plan("continued"), continues=True))
    assert (list(await driver.live()), list(await driver.held())) == ([], ["continued"])
    again = await driver.boot(replace(plan("continued"), continues=True))
    assert await said(again, "cat /tmp/kept") == "kept\n"
    await driver.sweep(keep=())


async def test_a_capture_into_what_is_no_empty_directory_fails(tmp_path: Path) -> None:
    driver = MemoryDriver()
    instance = await driver.boot(plan("source"))
    await instance.capture(tmp_path, room_bytes=1 << 40)
    for into in (tmp_path, tmp_path / "missing"):
        with pytest.raises(IoFailure):
            await instance.capture(into, room_bytes=1 << 40)
    assert await said(instance, "echo well") == "well\n"
    await driver.sweep(keep=())


def entry(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type = kind
    for field, value in fields.items():
        setattr(header, field, value)
    return header


def archived(*headers: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for header in headers:
            archive.addfile(header, io.BytesIO(bytes(header.size)))
    return out.getvalue()


def _pax(**fields: str) -> dict[str, str]:
    return {f"firkin.{name}": value for name, value in fields.items()}


HOSTILE: dict[str, Callable[[], bytes]] = {
    "nothing": bytes,
    "noise": lambda: b"\xff" * 4096,
    "a way up": lambda: archived(entry("../up")),
    "an absolute name": lambda: archived(entry("/etc")),
    "a hidden way up": lambda: archived(entry("a", tarfile.DIRTYPE), entry("a/..", tarfile.DIRTYPE)),
    "no parent": lambda: archived(entry("a/b")),
    "a file for a parent": lambda: archived(entry("a"), entry("a/b")),
    "a link for a parent": lambda: archived(entry("a", tarfile.SYMTYPE, linkname="/"), entry("a/b")),
    "the same name twice": lambda: archived(entry("a"), entry("a")),
    "a device": lambda: archived(entry("a", tarfile.CHRTYPE)),
    "a hard link": lambda: archived(entry("a", tarfile.LNKTYPE, linkname="/etc/shadow")),
    "an unknown program": lambda: archived(entry("a", pax_headers=_pax(program="rm -rf"))),
    "a file as the root": lambda: archived(entry(".")),
    "metadata that is none": lambda: archived(entry("a", pax_headers=_pax(metadata="[1]"))),
    "metadata without end": lambda: archived(entry("a", pax_headers=_pax(metadata="[" * 100_000))),
    "a time that is none": lambda: archived(entry("a", pax_headers=_pax(mtime_ns="soon"))),
    "a time beyond all": lambda: archived(entry("a", pax_headers=_pax(mtime_ns="9" * 40))),
    "an owner below zero": lambda: archived(entry("a", pax_headers={"uid": "-1"})),
    "a file that is cut short": lambda: archived(entry("a", size=4096))[:1000],
    "more than the disk holds": lambda: archived(entry("a", size=DISK), entry("b", size=2 * MIB)),
    "more than it holds": lambda: archived(
        entry("a", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 60)})
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_stranger_made_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / captures.NAME).write_bytes(HOSTILE[name]())
    tree = Tree(DISK)
    with pytest.raises(Fault):
        captures.read(tree, tmp_path, ["true"])


def test_a_capture_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Fault):
        captures.read(Tree(DISK), tmp_path, [])


def test_metadata_is_text_for_text(tmp_path: Path) -> None:
    header = entry("a", pax_headers=_pax(metadata=json.dumps({"k": "v"})))
    (tmp_path / captures.NAME).write_bytes(archived(header))
    tree = Tree(DISK)
    captures.read(tree, tmp_path, [])
    node = tree.root.children["a"]
    assert (node.kind, node.metadata) == (FILE, {"k": "v"})
