"""Watchers that are asked, and directories that are followed, when there is much to tell."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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
