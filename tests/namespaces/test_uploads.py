"""A file that is written from outside is there whole, or is as it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from firkin import Runtime, Sandbox
from firkin.law.errors import FileFault, FilesystemFailure
from firkin.law.files import FileEventKind, SandboxPath, WriteOptions
from firkin.law.resources import MIB, SandboxResources
from firkin.law.sandboxes import SandboxSpec

pytestmark = pytest.mark.asyncio(loop_scope="module")
SMALL = SandboxResources(disk_bytes=64 * MIB)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox(runtime: Runtime) -> AsyncIterator[Sandbox]:
    async with await runtime.sandboxes.create(SandboxSpec.from_template("base", resources=SMALL)) as made:
        yield made


async def endless(megabytes: int) -> AsyncIterator[bytes]:
    for _ in range(megabytes):
        yield bytes(1 << 20)


async def broken() -> AsyncIterator[bytes]:
    yield b"half"
    raise ConnectionResetError("the client went away")


async def test_an_upload_that_does_not_fit_changes_nothing(sandbox: Sandbox) -> None:
    await sandbox.fs.write("/home/user/kept", b"keep", user="user")
    with pytest.raises(FilesystemFailure):
        await sandbox.fs.write("/home/user/kept", endless(200), user="user")
    assert await sandbox.fs.read("/home/user/kept") == b"keep"
    assert b"firkin" not in (await sandbox.exec("ls -A /home/user")).stdout
    assert (await sandbox.exec("dd if=/dev/zero of=/home/user/room bs=1M count=30 && rm /home/user/room")).ok


async def test_an_upload_that_breaks_off_changes_nothing(sandbox: Sandbox) -> None:
    await sandbox.fs.write("/home/user/kept", b"keep", user="user")
    for path in ("/home/user/kept", "/home/user/never"):
        with pytest.raises(ConnectionResetError):
            await sandbox.fs.write(path, broken(), user="user")
    assert await sandbox.fs.read("/home/user/kept") == b"keep"
    assert not (await sandbox.exec("ls /home/user/never")).ok


async def test_an_overwritten_file_keeps_its_mode_and_a_link_stays_a_link(sandbox: Sandbox) -> None:
    await sandbox.exec("echo a > run.sh; chmod 750 run.sh; ln -s run.sh link; echo b > one; ln one two")
    await sandbox.fs.write("/home/user/link", b"new", user="user")
    await sandbox.fs.write("/home/user/one", b"both", user="user")
    shown = await sandbox.exec("stat -c '%a %U %F' run.sh link; cat run.sh; echo; cat two")
    assert shown.stdout == b"750 user regular file\n777 user symbolic link\nnew\nboth"


async def test_watchers_learn_of_uploads_as_of_ordinary_writes(sandbox: Sandbox) -> None:
    await sandbox.exec("mkdir -p /home/user/seen; echo a > /home/user/seen/old")
    events = await sandbox.fs.watch("/home/user/seen")
    await sandbox.fs.write("/home/user/seen/old", b"b", user="user")
    await sandbox.fs.write("/home/user/seen/new", b"c", user="user")
    async with asyncio.timeout(5):
        found = [(event.kind, event.name) for event in await events.drain()]
    await events.aclose()
    assert {name for _, name in found} == {"old", "new"}
    assert (FileEventKind.WRITE, "old") in found
    assert (FileEventKind.CREATE, "old") not in found
    assert (FileEventKind.CREATE, "new") in found
    assert (FileEventKind.WRITE, "new") in found


async def test_all_the_metadata_that_a_file_may_have_is_kept(runtime: Runtime, sandbox: Sandbox) -> None:
    files, path = runtime.backend.filesystems, SandboxPath("/home/user/described")
    assert files is not None
    many = {f"k{number:03}": "v" * 10 for number in range(100)}
    for metadata in ({"a": "v" * 4095}, dict.fromkeys("abcd", "v" * 1023), many):
        written = await files.write(sandbox.id, path, b"x", WriteOptions(user="user", metadata=metadata))
        assert written.metadata == metadata
        assert (await sandbox.fs.stat(path)).metadata == metadata
    assert (await sandbox.exec("cp -a described copied && mv copied moved")).ok
    assert (await sandbox.fs.stat("/home/user/moved")).metadata == many


async def test_metadata_of_too_many_parts_is_told_as_that_and_not_as_a_full_disk(
    runtime: Runtime, sandbox: Sandbox
) -> None:
    files, path = runtime.backend.filesystems, SandboxPath("/home/user/kept")
    assert files is not None
    await files.write(sandbox.id, path, b"keep", WriteOptions(user="user"))
    with pytest.raises(FilesystemFailure, match="metadata") as caught:
        await files.write(sandbox.id, path, b"x", WriteOptions(metadata={str(n): "" for n in range(1300)}))
    assert caught.value.fault is FileFault.LIMIT
    assert await sandbox.fs.read(path) == b"keep"
