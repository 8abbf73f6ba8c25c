"""What the official SDK promises about volumes: run over every driver that keeps them."""

from __future__ import annotations

import io
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from e2b.exceptions import NotFoundException, VolumeException

from e2b import AsyncVolume, Volume
from tests.e2b.conftest import ALICE, BOB, RunningServer

Json = dict[str, Any]


def unique(name: str) -> str:
    return f"{name}-{secrets.token_hex(4)}"


def api_options(server: RunningServer, key: str = ALICE) -> Json:
    return {"api_key": key, "api_url": server.url}


@contextmanager
def made_volume(server: RunningServer, name: str = "data") -> Iterator[Volume]:
    volume = Volume.create(unique(name), **api_options(server))
    try:
        yield volume
    finally:
        Volume.destroy(volume.volume_id, **api_options(server))


class VolumeLives:
    """Supply the fixture `server`."""

    @pytest.fixture(autouse=True)
    def content_here(self, server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("E2B_VOLUME_API_URL", server.url)

    @pytest.fixture
    def volume(self, server: RunningServer) -> Iterator[Volume]:
        with made_volume(server) as volume:
            yield volume

    def test_a_volume_is_created_listed_connected_and_destroyed(self, server: RunningServer) -> None:
        options = api_options(server)
        name = unique("life")
        volume = Volume.create(name, **options)
        assert volume.name == name
        assert volume.token
        assert (volume.volume_id, name) in [(one.volume_id, one.name) for one in Volume.list(**options)]
        again = Volume.connect(volume.volume_id, **options)
        assert (again.name, again.token) == (name, volume.token)
        assert Volume.get_info(volume.volume_id, **options).name == name
        assert Volume.destroy(volume.volume_id, **options)
        assert not Volume.destroy(volume.volume_id, **options)
        with pytest.raises(NotFoundException):
            Volume.connect(volume.volume_id, **options)

    def test_another_tenant_neither_sees_nor_harms_it(self, server: RunningServer, volume: Volume) -> None:
        theirs = api_options(server, BOB)
        assert volume.volume_id not in [one.volume_id for one in Volume.list(**theirs)]
        with pytest.raises(NotFoundException):
            Volume.connect(volume.volume_id, **theirs)
        assert not Volume.destroy(volume.volume_id, **theirs)
        own = Volume.create(volume.name, **theirs)  # names are each tenant's own
        assert Volume.destroy(own.volume_id, **theirs)
        assert Volume.connect(volume.volume_id, **api_options(server)).name == volume.name

    @pytest.mark.parametrize("name", ["", "a/b", "a b", "ä", "x" * 200, ".."])
    def test_an_impossible_name_is_refused(self, server: RunningServer, name: str) -> None:
        with pytest.raises(VolumeException, match="400"):
            Volume.create(name, **api_options(server))

    def test_a_taken_name_is_refused(self, server: RunningServer, volume: Volume) -> None:
        with pytest.raises(VolumeException, match="already exists"):
            Volume.create(volume.name, **api_options(server))

    @pytest.mark.parametrize("data", ["hä\n", b"\x00\xff" * 100_000, ""], ids=["text", "bytes", "nothing"])
    def test_what_is_written_is_read(self, volume: Volume, data: str | bytes) -> None:
        entry = volume.write_file("/file", data)
        expected = data.encode() if isinstance(data, str) else data
        assert (entry.name, str(entry.type), entry.path, entry.size) == ("file", "file", "/file", len(expected))
        assert volume.read_file("/file", format="bytes") == expected
        assert b"".join(volume.read_file("/file", format="stream")) == expected

    def test_a_stream_is_written(self, volume: Volume) -> None:
        content = secrets.token_bytes(3_000_000)
        assert volume.write_file("large", io.BytesIO(content)).size == len(content)
        assert volume.read_file("large", format="bytes") == content

    def test_a_written_file_keeps_its_mode_and_owner_when_it_is_replaced(self, volume: Volume) -> None:
        first = volume.write_file("/kept", "1", uid=7, gid=8, mode=0o751)
        assert (first.uid, first.gid, first.mode) == (7, 8, 0o751)
        second = volume.write_file("/kept", "22")
        assert (second.uid, second.gid, second.mode, second.size) == (7, 8, 0o751, 2)

    def test_missing_directories_are_made_only_when_forced(self, volume: Volume) -> None:
        with pytest.raises(NotFoundException):
            volume.write_file("/a/b/file", "x")
        with pytest.raises(NotFoundException):
            volume.make_dir("/a/b/c")
        assert not volume.exists("/a")
        assert volume.write_file("/a/b/file", "x", force=True).path == "/a/b/file"
        assert volume.make_dir("/a/b/c/d", force=True).path == "/a/b/c/d"
        assert volume.read_file("/a/b/file") == "x"

    def test_a_directory_is_made_and_listed(self, volume: Volume) -> None:
        made = volume.make_dir("/dir", uid=3, gid=4, mode=0o700)
        assert (str(made.type), made.uid, made.gid, made.mode) == ("directory", 3, 4, 0o700)
        with pytest.raises(VolumeException, match="409"):
            volume.make_dir("/dir")
        volume.make_dir("/dir", force=True)
        volume.write_file("/dir/b", "")
        volume.write_file("/dir/sub/c", "", force=True)
        assert [entry.path for entry in volume.list("/dir")] == ["/dir/b", "/dir/sub"]
        assert [entry.path for entry in volume.list("/dir", depth=2)] == ["/dir/b", "/dir/sub", "/dir/sub/c"]
        with pytest.raises(NotFoundException):
            volume.list("/nothing")
        with pytest.raises(VolumeException, match="400"):
            volume.list("/dir/b")
        with pytest.raises(VolumeException, match="depth"):
            volume.list("/", depth=0)

    def test_metadata_is_changed_in_part(self, volume: Volume) -> None:
        volume.write_file("/f", "x", uid=1, gid=2, mode=0o600)
        entry = volume.update_metadata("/f", mode=0o644)
        assert (entry.uid, entry.gid, entry.mode) == (1, 2, 0o644)
        entry = volume.update_metadata("/f", uid=9, gid=10)
        assert (entry.uid, entry.gid, entry.mode) == (9, 10, 0o644)
        assert volume.get_info("/f").uid == 9
        with pytest.raises(VolumeException, match="uid is 70000"):
            volume.update_metadata("/f", uid=70_000)
        with pytest.raises(NotFoundException):
            volume.update_metadata("/none", uid=1)

    def test_a_file_and_a_whole_directory_are_removed(self, volume: Volume) -> None:
        volume.write_file("/d/e/f", "x", force=True)
        volume.remove("/d/e/f")
        assert not volume.exists("/d/e/f")
        volume.write_file("/d/e/g", "x")
        volume.remove("/d")
        assert not volume.exists("/d")
        with pytest.raises(NotFoundException):
            volume.remove("/d")

    def test_a_directory_is_no_file(self, volume: Volume) -> None:
        volume.make_dir("/d")
        with pytest.raises(VolumeException, match="directory"):
            volume.read_file("/d")
        with pytest.raises(VolumeException, match="directory"):
            volume.write_file("/d", "x")
        with pytest.raises(NotFoundException):
            volume.read_file("/none")

    def test_paths_stay_inside(self, volume: Volume) -> None:
        assert volume.write_file("/../../../../etc/../up", "x").path == "/up"
        assert volume.read_file("up") == "x"
        root = volume.get_info("/")
        assert (str(root.type), root.path, root.name) == ("directory", "/", "/")
        with pytest.raises(NotFoundException):
            volume.read_file("/../../../etc/hostname")

    async def test_the_asynchronous_client_does_the_same(self, server: RunningServer) -> None:
        options = api_options(server)
        volume = await AsyncVolume.create(unique("async"), **options)
        try:
            assert (await volume.write_file("/x/y", b"data", force=True)).size == 4
            assert await volume.read_file("/x/y") == "data"
            assert [entry.path for entry in await volume.list("/", depth=2)] == ["/x", "/x/y"]
            assert (await volume.make_dir("/z")).path == "/z"
            assert (await volume.update_metadata("/z", mode=0o711)).mode == 0o711
            stream = await volume.read_file("/x/y", format="stream")
            assert b"".join([piece async for piece in stream]) == b"data"
            await volume.remove("/x")
            assert not await volume.exists("/x")
            assert volume.volume_id in [one.volume_id for one in await AsyncVolume.list(**options)]
            assert (await AsyncVolume.connect(volume.volume_id, **options)).token == volume.token
        finally:
            assert await AsyncVolume.destroy(volume.volume_id, **options)


def content(
    server: RunningServer, volume: Volume, method: str, place: str, *, token: str | None = "own", **more: Any
) -> httpx.Response:
    """A request of the content API as any client would send it."""
    given = volume.token if token == "own" else token
    headers = {"Authorization": f"Bearer {given}"} if given else {}
    return httpx.request(
        method, f"{server.url}/volumecontent/{volume.volume_id}/{place}", headers=headers, timeout=20, **more
    )
