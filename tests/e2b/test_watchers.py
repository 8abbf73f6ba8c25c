"""Watchers that are asked, and directories that are followed, when there is much to tell."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from firkin.e2b.connect_codec import RpcError
from firkin.e2b.envd_watch import Watching

from .conftest import RunningServer
from .raw import RawClient, raw_client

FS = "filesystem.Filesystem"
MANY = 650  # several pages


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[RawClient]:
    with raw_client(server) as made:
        yield made


@pytest.mark.thorough
@pytest.mark.parametrize("entry", [False, True])
def test_one_answer_has_all_that_happened_however_much_it_is(client: RawClient, entry: bool) -> None:
    folder = f"/tmp/much{entry}"
    client.unary(f"{FS}/MakeDir", {"path": folder})
    watcher = client.unary(f"{FS}/CreateWatcher", {"path": folder, "includeEntry": entry}).json()
    client.run(f"i=0; while [ $i -lt {MANY} ]; do i=$((i+1)); echo x > {folder}/$i; done")
    events = client.unary(f"{FS}/GetWatcherEvents", watcher).json()["events"]
    created = [event for event in events if event["type"] == "EVENT_TYPE_CREATE"]
    assert [event["name"] for event in created] == [str(number + 1) for number in range(MANY)]
    assert all(("entry" in event) == entry for event in created)
    assert client.unary(f"{FS}/GetWatcherEvents", watcher).json() == {"events": []}
    assert client.unary(f"{FS}/RemoveWatcher", watcher).json() == {}
    assert client.unary(f"{FS}/GetWatcherEvents", watcher).status_code == 404


class SlowWatches:
    """A call that asks for a watcher, and the sandbox's files: no watch begins before all that will ask have asked."""

    sandbox_id = "i1"
    info = user = None

    def __init__(self, callers: int) -> None:
        self.files = self
        self.to_come = callers
        self.may_begin = asyncio.Event()
        self.made = 0

    async def unary_request(self, kind: type[Any]) -> Any:
        self.to_come -= 1
        if not self.to_come:
            self.may_begin.set()
        return kind(path="/tmp")

    async def guest_user(self) -> None:
        return None

    async def watch(self, *given: object) -> object:
        await self.may_begin.wait()
        return SimpleNamespace()

    async def answer(self, body: object) -> None:
        self.made += 1


def test_watchers_that_are_asked_for_at_once_count_before_they_are_there() -> None:
    async def scenario() -> tuple[int, list[BaseException]]:
        directory: Any = SimpleNamespace(when_over=lambda forget: None)
        call: Any = SlowWatches(5)
        watching = Watching(directory, limit=2)
        ends = await asyncio.gather(*(watching.create(call) for _ in range(5)), return_exceptions=True)
        with pytest.raises(RpcError, match="2 watchers at once"):
            await watching.create(call)
        return call.made, [end for end in ends if end is not None]

    made, refused = asyncio.run(scenario())
    assert made == 2
    assert all("2 watchers at once" in str(error) for error in refused)
    assert len(refused) == 3
