"""What a sandbox holds never makes its agent say what no frame can carry: that would cut off all who are connected."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from firkin.engine.guest_files import GuestFiles
from firkin.engine.guest_link import GuestLink
from firkin.guest.accounts import Accounts
from firkin.guest.connections import Connection, Stream
from firkin.guest.entries import Entries, encoded_at_most
from firkin.guest.faults import Refused
from firkin.guest.loop import Loop
from firkin.law.files import ListOptions, SandboxPath, WatchOptions
from firkin.wire import codec
from firkin.wire.frames import ERROR, MAX_PAYLOAD, FrameReader


@pytest.fixture
def box(tmp_path: Path) -> SandboxPath:
    folder = tmp_path / "box"
    folder.mkdir()
    return SandboxPath(str(folder))


def give(path: str, *values: bytes) -> None:
    """Metadata as a program inside sets it: any bytes."""
    Path(path).touch()
    try:
        for number, value in enumerate(values):
            os.setxattr(path, f"user.e2b.m{number}", value)
    except OSError:
        pytest.skip("this file system has no room for such attributes")


async def test_a_folder_of_long_metadata_is_listed_and_nobody_else_is_cut_off(
    files: GuestFiles, link: GuestLink, box: SandboxPath
) -> None:
    for number in range(120):
        give(box.below(f"{number:03}"), b"\xff" * 3000)
    other = link.stream("watch", {"path": box, "recursive": False, "entry": False, "network": False, "held": False})
    await other.event()
    found = await files.list(box, ListOptions())
    assert [entry.name for entry in found] == [f"{number:03}" for number in range(120)]
    assert {entry.metadata["m0"] for entry in found} == {os.fsdecode(b"\xff" * 3000)}
    await link.call("ping")
    await other.aclose()


async def test_changes_of_files_with_long_metadata_are_told_in_answers_that_fit(
    files: GuestFiles, box: SandboxPath
) -> None:
    for number in range(80):
        give(box.below(f"{number:03}"), b"\xff" * 3000)
    watch = await files.watch(box, WatchOptions(include_entry=True))
    for number in range(80):
        os.chmod(box.below(f"{number:03}"), 0o600)
    assert len(await watch.drain()) == 80
    await watch.aclose()


def test_an_entry_is_never_longer_than_it_was_taken_for(tmp_path: Path) -> None:
    for name in ("a" * 200, os.fsdecode(b"\xff" * 200), "\U0001f600" * 50, "\x01" * 200):
        path = str(tmp_path / name)
        give(path, b"\xff" * 1000, b"\xf0\x9f\x98\x80" * 200, b'"\\\x01')
        entry = Entries(Accounts()).of(path)
        assert len(codec.encode(entry)) <= encoded_at_most(entry)


def test_a_file_with_more_metadata_than_a_frame_should_carry_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As tmpfs and XFS have room for it; ext4, where tests usually run, has not."""
    (tmp_path / "a").touch()
    monkeypatch.setattr(os, "listxattr", lambda _where: [f"user.e2b.m{number}" for number in range(5000)])
    monkeypatch.setattr(os, "getxattr", lambda _where, _name: b"x" * 65536)
    with pytest.raises(Refused, match="bytes of metadata") as caught:
        Entries(Accounts()).of(str(tmp_path / "a"))
    assert caught.value.code == "limit"


def test_a_name_in_passwd_that_is_too_long_is_shown_as_its_number(tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text(f"{'a' * 100_000}:x:7:7::/:/bin/sh\nroot:x:0:0::/:/bin/sh\n")
    accounts = Accounts(str(tmp_path / "passwd"), str(tmp_path / "group"))
    accounts.refresh()
    assert (accounts.owner(7), accounts.owner(0)) == ("7", "root")


def test_an_event_that_no_frame_can_hold_ends_its_own_stream_only() -> None:
    ours, theirs = socket.socketpair()
    loop = Loop()
    loop.begin()
    connection = Connection(loop, ours, lambda _stream, _operation, _request: None)
    stream = connection.streams[7] = Stream(connection, 7)
    with theirs:
        with pytest.raises(Refused) as caught:
            stream.event({"text": "x" * MAX_PAYLOAD})
        stream.error(caught.value)
        loop.turn()
        [(kind, id, payload)] = FrameReader().feed(theirs.recv(65536))
        assert (kind, id, json.loads(payload)["code"]) == (ERROR, 7, "limit")
        assert not connection.closed
        connection.close()
    loop._epoll.close()
