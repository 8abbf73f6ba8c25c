"""Lists of directories, whose length is the sandbox's to say: long ones come in turn and never in one go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from firkin.e2b import envd_listing
from firkin.e2b.calls import RpcCall
from firkin.e2b.connect_codec import Code, RpcError
from firkin.e2b.directory import SandboxDirectory
from firkin.e2b.envd_filesystem import entry_json
from firkin.e2b.envd_listing import LONG_AT_ONCE, Listing
from firkin.e2b.exchange import Exchange
from firkin.e2b.settings import ServerSettings
from firkin.law.errors import FileFault, FilesystemFailure
from firkin.law.files import FileEntry, FileType, ListOptions, SandboxPath
from firkin.law.ids import SandboxId
from firkin.law.processes import GuestUser

from .test_wording import sandbox

USER = GuestUser(name="user", uid=1000, gid=1000, home="/home/user", shell="/bin/sh")


def entries(count: int) -> list[FileEntry]:
    return [
        FileEntry(path=SandboxPath(f"/x/{number}"), file_type=FileType.FILE, size_bytes=number)
        for number in range(count)
    ]


@dataclass
class Folder:
    """A sandbox's files: one directory of `count` files. Long lists wait for `released`."""

    count: int
    released: asyncio.Event = field(default_factory=asyncio.Event)
    listing: int = 0
    most_listing: int = 0

    async def list(self, _sandbox_id: SandboxId, path: SandboxPath, options: ListOptions) -> Sequence[FileEntry]:
        if options.at_most is not None:
            if self.count > options.at_most:
                raise FilesystemFailure("list directory", FileFault.LIMIT, "too many", path=path)
            return entries(self.count)
        self.listing += 1
        self.most_listing = max(self.most_listing, self.listing)
        await self.released.wait()
        self.listing -= 1
        return entries(self.count)


@dataclass
class Client:
    """What was answered. It takes nothing while it is not `willing`."""

    willing: asyncio.Event = field(default_factory=asyncio.Event)
    body: bytes = b""

    async def send(self, message: Any) -> None:
        await self.willing.wait()
        self.body += message.get("body", b"")

    async def receive(self) -> Any:
        return {"type": "http.request", "body": b'{"path":"/x"}', "more_body": False}


def call_of(client: Client, files: Folder, owner: str = "alice") -> RpcCall:
    async def user(_info: object, _name: object) -> GuestUser:
        return USER

    directory = SimpleNamespace(backend=SimpleNamespace(filesystems=files), user=user)
    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    return RpcCall(
        Exchange(scope, client.receive, client.send),
        sandbox("sbox", 0, owner=owner),
        cast(SandboxDirectory, directory),
        ServerSettings(secret=b"a secret of the tests", domain="sbx.test"),
        user=None,
        deadline_s=None,
        keepalive_s=90,
        gzip=False,
    )


def willing() -> Client:
    client = Client()
    client.willing.set()
    return client


@pytest.mark.parametrize("count", [0, 1, 200, 201, 999, 1001, 2500])
async def test_a_list_reads_the_same_however_long_it_is(count: int) -> None:
    client, folder = willing(), Folder(count)
    folder.released.set()
    await Listing().list_dir(call_of(client, folder))
    assert json.loads(client.body) == {"entries": [entry_json(entry) for entry in entries(count)]}


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_others_have_their_turns_while_a_long_list_becomes_an_answer() -> None:
    client, folder = willing(), Folder(3000)
    folder.released.set()
    answering = asyncio.create_task(Listing().list_dir(call_of(client, folder)))
    had = 0
    while not answering.done():
        await asyncio.sleep(0)
        had += 1
    assert had >= 15


async def test_a_tenant_has_a_few_long_lists_at_once_and_the_others_follow() -> None:
    listing, folder, other = Listing(), Folder(1001), Folder(1001)
    clients = [willing() for _ in range(LONG_AT_ONCE + 4)]
    answering = [asyncio.create_task(listing.list_dir(call_of(client, folder))) for client in clients]
    await turns(50)
    assert folder.listing == LONG_AT_ONCE
    bob = asyncio.create_task(listing.list_dir(call_of(willing(), other, owner="bob")))
    await turns(50)
    assert other.listing == 1
    short = willing()
    await listing.list_dir(call_of(short, Folder(3)))
    assert len(json.loads(short.body)["entries"]) == 3
    folder.released.set()
    other.released.set()
    await asyncio.gather(bob, *answering)
    assert folder.most_listing == LONG_AT_ONCE
    assert {len(client.body) for client in clients} == {len(clients[0].body)}


async def test_answers_that_nobody_reads_keep_their_tenants_turns_until_they_are_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(envd_listing, "_TURN_WITHIN_S", 0.01)
    listing, folder = Listing(), Folder(1001)
    folder.released.set()
    deaf = [asyncio.create_task(listing.list_dir(call_of(Client(), folder))) for _ in range(LONG_AT_ONCE)]
    await turns(500)
    with pytest.raises(RpcError) as caught:
        await listing.list_dir(call_of(willing(), folder))
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    for one in deaf:
        one.cancel()
    await asyncio.gather(*deaf, return_exceptions=True)
    await listing.list_dir(call_of(willing(), folder))
