"""Volumes of real sandboxes, through the official SDK: mounted, shared, kept, full, and hostile."""

from __future__ import annotations

import io
import socket
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b.exceptions import SandboxException, VolumeException

from e2b import AsyncSandbox, AsyncVolume, Sandbox, Volume
from tests.e2b.conftest import ALICE, BOB, RunningServer, in_a_thread
from tests.e2b.lives import made
from tests.e2b.volume_lives import VolumeLives, api_options, content, made_volume, unique
from tests.namespaces.conftest import backend_at

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")

MIB = 1024 * 1024
_HTTP = httpx.Client(timeout=30, verify=False)  # one for all: to make a client takes longer than most requests


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    state_dir = tmp_path_factory.mktemp("state")
    with in_a_thread(lambda: backend_at(state_dir)) as running:
        yield running


@pytest.fixture
def sdk(server: RunningServer) -> dict[str, Any]:
    return server.sdk()


class TestVolumes(VolumeLives):
    """Everything that holds without a sandbox."""


@pytest.fixture(autouse=True)
def content_here(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("E2B_VOLUME_API_URL", server.url)


@pytest.fixture
def volume(server: RunningServer) -> Iterator[Volume]:
    with made_volume(server) as volume:
        yield volume


def run(sandbox: Sandbox, text: str, **more: Any) -> str:
    return str(sandbox.commands.run(text, **more).stdout)


def api(server: RunningServer, method: str, path: str, body: object = None, key: str = ALICE) -> httpx.Response:
    return httpx.request(method, server.url + path, json=body, headers={"X-API-Key": key}, timeout=30)


# -- mounted ------------------------------------------------------------------------------------


def test_files_go_both_ways_while_it_is_mounted(sdk: dict[str, Any], volume: Volume) -> None:
    volume.write_file("/before", "from outside")
    with made(sdk, volume_mounts={"/data": volume}) as sandbox:
        assert run(sandbox, "cat /data/before; id -u; stat -c %u:%g:%a /data") == "from outside1000\n1000:1000:755\n"
        run(sandbox, "echo from inside > /data/inside; ln -s inside /data/link; chmod 640 /data/inside")
        assert volume.read_file("/inside") == "from inside\n"
        entry = volume.get_info("/inside")
        assert (entry.uid, entry.gid, entry.mode) == (1000, 1000, 0o640)
        assert volume.get_info("/link").target == "inside"
        assert volume.read_file("/link") == "from inside\n"
        volume.write_file("/later", "at once", uid=0, gid=0, mode=0o600)
        assert run(sandbox, "cat /data/later; stat -c %u:%a /data/later", user="root") == "at once0:600\n"
    assert volume.read_file("/inside") == "from inside\n", "a volume outlives its sandboxes"


def test_two_sandboxes_share_it_at_once(sdk: dict[str, Any], volume: Volume) -> None:
    with made(sdk, volume_mounts={"/a": volume}) as one, made(sdk, volume_mounts={"/mnt/deep/b": volume.name}) as two:
        run(one, "echo 1 > /a/x")
        assert run(two, "cat /mnt/deep/b/x; echo 2 >> /mnt/deep/b/x") == "1\n"
        assert run(one, "cat /a/x") == "1\n2\n"
        held = run(one, "exec 9>/a/lock; flock -n 9 && sleep 0.01 && echo locked")
        assert held == "locked\n"


def test_what_is_mounted_is_shown(sdk: dict[str, Any], server: RunningServer, volume: Volume) -> None:
    with made(sdk, volume_mounts={"/data": volume}) as sandbox:
        wanted = [{"name": volume.name, "path": "/data"}]
        assert api(server, "GET", f"/sandboxes/{sandbox.sandbox_id}").json()["volumeMounts"] == wanted
        listed = {one["sandboxID"]: one for one in api(server, "GET", "/v2/sandboxes").json()}
        assert listed[sandbox.sandbox_id]["volumeMounts"] == wanted


@pytest.mark.parametrize("route", ["/sandboxes", "/v2/sandboxes"])
def test_a_read_only_mount_cannot_be_written_not_even_by_root(
    server: RunningServer, volume: Volume, route: str
) -> None:
    volume.write_file("/x", "fixed")
    mounts = [{"name": volume.name, "path": "/data", "readOnly": True}]
    answer = api(server, "POST", route, {"templateID": "base", "timeout": 60, "volumeMounts": mounts})
    assert answer.status_code == 201, answer.text
    sandbox = Sandbox.connect(answer.json()["sandboxID"], **server.sdk())
    try:
        assert run(sandbox, "cat /data/x") == "fixed"
        said = run(sandbox, "touch /data/y 2>&1; mount -o remount,rw /data 2>&1; umount /data 2>&1; true", user="root")
        assert "Read-only file system" in said
        assert run(sandbox, "cat /data/x; touch /data/y 2>/dev/null || echo still", user="root") == "fixedstill\n"
        assert api(server, "GET", f"/sandboxes/{sandbox.sandbox_id}").json()["volumeMounts"] == mounts
    finally:
        sandbox.kill()


def test_missing_mount_points_belong_to_whom_their_parents_do(sdk: dict[str, Any], volume: Volume) -> None:
    with made(sdk, volume_mounts={"/home/user/a/b": volume}) as sandbox:
        assert run(sandbox, "stat -c %u:%g:%a /home/user/a") == "1000:1000:755\n"
    with made(sdk, volume_mounts={"/srv/c/d": volume}) as sandbox:
        assert run(sandbox, "stat -c %u:%g:%a /srv/c") == "0:0:755\n"


def test_devices_and_setuid_programs_on_a_volume_do_nothing(sdk: dict[str, Any], volume: Volume) -> None:
    with made(sdk, volume_mounts={"/data": volume}) as sandbox:
        run(sandbox, "cp /usr/bin/id /data/id && chmod 4755 /data/id", user="root")
        assert run(sandbox, "/data/id -u") == "1000\n"
        said = run(sandbox, "mknod /data/disk b 7 0 2>&1 || cat /data/disk 2>&1; true", user="root")
        assert "not permitted" in said.lower() or "denied" in said.lower()


def test_nothing_of_it_shows_on_the_host(sdk: dict[str, Any], volume: Volume) -> None:
    with made(sdk, volume_mounts={"/data": volume}):
        volume.write_file("/x", "x")
        assert "ext4" not in [
            line.split(" - ")[1].split()[0]
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if "/dev/loop" in line
        ]
        assert len(loops_of(volume)) == 1


def loops_of(volume: Volume) -> list[str]:
    """The loop devices that are bound to its image."""
    backing = Path("/sys/block").glob("loop*/loop/backing_file")
    return [path.parts[3] for path in backing if volume.volume_id in _text(path)]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def until_unbound(volume: Volume, within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while loops_of(volume):
        assert time.monotonic() < deadline, "its loop device stayed bound"
        time.sleep(0.02)


def test_one_loop_device_serves_all_and_goes_with_the_last(sdk: dict[str, Any], volume: Volume) -> None:
    with made(sdk, volume_mounts={"/a": volume}), made(sdk, volume_mounts={"/a": volume}):
        volume.write_file("/x", "x")
        assert len(loops_of(volume)) == 1
    until_unbound(volume)


# -- lives ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [True, False], ids=["with memory", "files alone"])
def test_it_is_there_again_after_a_pause(
    sdk: dict[str, Any], server: RunningServer, volume: Volume, memory: bool
) -> None:
    with made(sdk, volume_mounts={"/data": volume}) as sandbox:
        run(sandbox, "echo 1 > /data/x")
        assert api(server, "POST", f"/sandboxes/{sandbox.sandbox_id}/pause", {"memory": memory}).status_code == 204
        assert not_deleted(server, volume)
        volume.write_file("/y", "meanwhile")
        sandbox.connect(timeout=60)
        assert run(sandbox, "cat /data/x /data/y; echo 2 >> /data/x") == "1\nmeanwhile"
    assert volume.read_file("/x") == "1\n2\n"


def not_deleted(server: RunningServer, volume: Volume) -> bool:
    with pytest.raises(VolumeException, match="mounted in sandbox"):
        Volume.destroy(volume.volume_id, **api_options(server))
    return True


def test_it_cannot_be_deleted_while_it_is_mounted(sdk: dict[str, Any], server: RunningServer) -> None:
    volume = Volume.create(unique("busy"), **api_options(server))
    with made(sdk, volume_mounts={"/data": volume}):
        assert not_deleted(server, volume)
        assert volume.write_file("/x", "x").size == 1
    assert Volume.destroy(volume.volume_id, **api_options(server))
    until_unbound(volume)


def test_a_fork_has_what_the_original_has(sdk: dict[str, Any], server: RunningServer, volume: Volume) -> None:
    with made(sdk, volume_mounts={"/data": volume}) as sandbox:
        answer = api(server, "POST", f"/sandboxes/{sandbox.sandbox_id}/fork", {"timeout": 60})
        fork = Sandbox.connect(answer.json()[0]["sandbox"]["sandboxID"], **sdk)
        try:
            run(sandbox, "echo shared > /data/x")
            assert run(fork, "cat /data/x") == "shared\n"
        finally:
            fork.kill()


def test_a_snapshot_does_not_hold_what_is_on_a_volume(sdk: dict[str, Any], volume: Volume) -> None:
    with made(sdk, volume_mounts={"/data": volume}) as sandbox:
        run(sandbox, "echo private > /data/x")
        snapshot = sandbox.create_snapshot()
    try:
        with made(sdk, snapshot.snapshot_id) as later:
            assert run(later, "ls -A /data") == ""
        with made(sdk, snapshot.snapshot_id, volume_mounts={"/data": volume}) as later:
            assert run(later, "cat /data/x") == "private\n"
    finally:
        Sandbox.delete_snapshot(snapshot.snapshot_id, **api_options_of(sdk))


def api_options_of(sdk: dict[str, Any]) -> dict[str, Any]:
    return {name: sdk[name] for name in ("api_key", "api_url")}


async def test_the_asynchronous_client_mounts_it(sdk: dict[str, Any], server: RunningServer) -> None:
    volume = await AsyncVolume.create(unique("async"), **api_options(server))
    sandbox = await AsyncSandbox.create("base", timeout=60, volume_mounts={"/data": volume}, **sdk)
    try:
        await sandbox.commands.run("echo inside > /data/x")
        assert await volume.read_file("/x") == "inside\n"
    finally:
        await sandbox.kill()
        assert await AsyncVolume.destroy(volume.volume_id, **api_options(server))


# -- bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/", "hide the whole sandbox"),
        ("data", "absolute"),
        ("", "absolute"),
        ("/a/../b", "clean"),
        ("/a/", "clean"),
        ("//a", "clean"),
        ("/a/./b", "clean"),
        ("/proc", "the sandbox's own"),
        ("/sys/fs", "the sandbox's own"),
        ("/dev/shm", "the sandbox's own"),
        ("/.firkin/x", "the sandbox's own"),
        ("/a\0b", "absolute"),
        ("/" + "x" * 300, "too long"),
        ("/usr/lib/nowhere", "Read-only"),
        ("/etc/passwd", "Not a directory"),
        ("/bin/below", "Not a directory"),
        ("/" + "x/" * 600 + "y", "1024 bytes"),
    ],
)
def test_an_impossible_path_is_refused(server: RunningServer, volume: Volume, path: str, why: str) -> None:
    mounts = [{"name": volume.name, "path": path}]
    answer = api(server, "POST", "/v2/sandboxes", {"templateID": "base", "volumeMounts": mounts})
    assert answer.status_code == 400, answer.text
    assert why in answer.json()["message"]
    assert answer.headers["should-retry"] == "false"
    assert api(server, "GET", "/v2/sandboxes").json() == []


def test_mounts_that_cannot_be_together_are_refused(server: RunningServer, volume: Volume) -> None:
    with made_volume(server, "other") as other:
        for mounts, why in (
            ([(volume.name, "/a"), (other.name, "/a")], "two volumes"),
            ([(volume.name, "/a"), (volume.name, "/b")], "mounted twice"),
            ([(volume.name, "/a"), (other.name, "/a/b")], "lie in each other"),
            ([(other.name, "/a/b"), (volume.name, "/a")], "lie in each other"),
            ([(f"v{number}", f"/m{number}") for number in range(17)], "at most 16"),
            ([("nobody", "/a")], "there is no volume 'nobody'"),
            ([("../x", "/a")], "volume name"),
        ):
            body = {"templateID": "base", "volumeMounts": [{"name": name, "path": path} for name, path in mounts]}
            answer = api(server, "POST", "/sandboxes", body)
            assert answer.status_code == 400, answer.text
            assert why in answer.json()["message"]
    body = {"templateID": "base", "volumeMounts": [{"name": volume.name, "path": "/a", "size": 1}]}
    assert "size" in api(server, "POST", "/sandboxes", body).json()["message"]


def test_another_tenants_volume_cannot_be_mounted(server: RunningServer, volume: Volume) -> None:
    with pytest.raises(SandboxException, match="there is no volume"):
        Sandbox.create("base", volume_mounts={"/data": volume.name}, **server.sdk(BOB))


def test_a_template_cannot_lead_a_mount_elsewhere(sdk: dict[str, Any], server: RunningServer, volume: Volume) -> None:
    """A snapshot is what somebody inside prepared: links on the way are refused, whatever they name."""
    with made(sdk) as sandbox:
        run(sandbox, "ln -s /etc /out; ln -s ../../../.. /up; mkdir -p /real; ln -s /real /real/again", user="root")
        snapshot = sandbox.create_snapshot()
    try:
        for path in ("/out", "/out/x", "/up/etc/x", "/real/again/x"):
            body = {"templateID": snapshot.snapshot_id, "volumeMounts": [{"name": volume.name, "path": path}]}
            answer = api(server, "POST", "/v2/sandboxes", body)
            assert (answer.status_code, "Not a directory" in answer.text) == (400, True), answer.text
    finally:
        Sandbox.delete_snapshot(snapshot.snapshot_id, **api_options_of(sdk))


# -- a full volume ------------------------------------------------------------------------------------


@pytest.fixture
def small(server: RunningServer) -> Iterator[Volume]:
    """A volume of 32 MiB."""
    body = api(server, "POST", "/volumes", {"name": unique("small"), "sizeMB": 32}).json()
    volume = Volume.connect(body["volumeID"], **api_options(server))
    yield volume
    Volume.destroy(volume.volume_id, **api_options(server))


def test_the_kernel_keeps_a_volume_to_its_size(sdk: dict[str, Any], small: Volume) -> None:
    with made(sdk, volume_mounts={"/data": small}) as sandbox:
        said = run(sandbox, "dd if=/dev/zero of=/data/full bs=1M count=64 2>&1; sync; true")
        assert "No space left on device" in said
        assert run(sandbox, "touch /tmp/elsewhere && echo fine") == "fine\n"
        refused = content_of(small, "PUT", "file", params={"path": "/more"}, content=b"x" * MIB)
        assert (refused.status_code, refused.json()["code"]) == (507, "no_space")
        assert not small.exists("/more")
        run(sandbox, "rm /data/full")
        assert small.write_file("/more", b"x" * MIB).size == MIB


def content_of(volume: Volume, method: str, place: str, **more: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {volume.token}"}
    url = f"{volume._get_volume_config().api_url}/volumecontent/{volume.volume_id}/{place}"
    return _HTTP.request(method, url, headers=headers, **more)


def test_a_deleted_file_gives_its_room_back_to_the_host(server: RunningServer, volume: Volume) -> None:
    assert server.backend is not None
    image = next(server.backend._state_dir.rglob(f"{volume.volume_id}.img"))
    before = image.stat().st_blocks
    volume.write_file("/big", b"\xa5" * (64 * MIB))
    assert image.stat().st_blocks > before + 100_000
    volume.remove("/big")
    deadline = time.monotonic() + 30
    while image.stat().st_blocks > before + 20_000:
        assert time.monotonic() < deadline, "its blocks stayed with the image"
        time.sleep(0.05)


# -- hostile content ------------------------------------------------------------------------------------


def test_links_lead_nowhere_outside(sdk: dict[str, Any], volume: Volume) -> None:
    with made(sdk, volume_mounts={"/data": volume}) as sandbox:
        run(
            sandbox,
            "cd /data; ln -s /etc/shadow shadow; ln -s ../../../../etc up; ln -s /proc/self/root machine; ln -s . me",
        )
        for path in ("/shadow", "/up/shadow", "/up/hostname", "/machine/etc/hostname", "/machine/tmp"):
            assert content_of(volume, "GET", "file", params={"path": path}).status_code == 404
            assert content_of(volume, "DELETE", "path", params={"path": path + "/x"}).status_code == 404
        for path in ("/up/x", "/machine/tmp/x"):
            answer = content_of(volume, "PUT", "file", params={"path": path}, content=b"x")
            assert answer.status_code == 404, answer.text
        assert content_of(volume, "GET", "dir", params={"path": "/up"}).status_code == 404
        assert volume.get_info("/shadow").target == "/etc/shadow"
        volume.update_metadata("/shadow", uid=5, gid=5)  # of the link, not of what it names
        assert volume.get_info("/shadow").uid == 5
        volume.write_file("/shadow", "mine")
        assert str(volume.get_info("/shadow").type) == "file"
        assert len(volume.list("/", depth=256)) == 4, "a link to a directory is not walked into"


def test_what_is_no_file_never_holds_a_request_up(sdk: dict[str, Any], volume: Volume) -> None:
    with made(sdk, volume_mounts={"/data": volume}) as sandbox:
        run(
            sandbox,
            "cd /data; mkfifo fifo; ln -s fifo link; python3 -c \"import socket; socket.socket(1).bind('sock')\"",
        )
        began = time.monotonic()
        for path in ("/fifo", "/link", "/sock"):
            answer = content_of(volume, "GET", "file", params={"path": path})
            assert (answer.status_code, answer.json()["code"]) == (400, "not_regular")
        assert [str(entry.type) for entry in volume.list("/")] == ["unknown", "symlink", "unknown"]
        volume.update_metadata("/fifo", mode=0o600)
        volume.write_file("/fifo", "now a file")
        volume.remove("/sock")
        assert time.monotonic() - began < 5


def test_a_lease_inside_does_not_hold_a_reader_up(sdk: dict[str, Any], volume: Volume) -> None:
    """open(2) of a file with a lease waits 45 s for its holder, unless it is told not to wait."""
    take = (
        "import fcntl,time; f=open('/data/x','w'); fcntl.fcntl(f, 1024, 1); print('taken', flush=True); time.sleep(60)"
    )
    with made(sdk, volume_mounts={"/data": volume}) as sandbox:
        holder = sandbox.commands.run(f'python3 -c "{take}"', background=True)
        assert next(iter(holder))[0] == "taken\n"
        began = time.monotonic()
        answer = content_of(volume, "GET", "file", params={"path": "/x"})
        assert answer.status_code == 409, answer.text
        volume.write_file("/x", "replaced")
        assert time.monotonic() - began < 5
        holder.kill()


def test_flipping_links_never_lead_out(sdk: dict[str, Any], volume: Volume) -> None:
    """While a program inside swaps a directory for a link to the host's, nothing of the host is read or changed."""
    flip = (
        "mkdir -p /data/a /data/b/hostname.d; echo inside > /data/a/hostname; "
        "(while :; do ln -sfn /etc /data/l; mv -T /data/a /data/d; mv -T /data/d /data/a;"
        " ln -sfn ../../../../../etc /data/l; ln -sfn /data/a /data/d; rm -f /data/d; done) 2>/dev/null"
    )
    outside = Path("/etc/hostname").read_text() if Path("/etc/hostname").exists() else socket.gethostname()
    with made(sdk, volume_mounts={"/data": volume}) as sandbox:
        flipping = sandbox.commands.run(flip, background=True, timeout=60)
        until_exists(volume, "/a", "/l")
        seen: set[tuple[int, bytes]] = set()
        for _ in range(60):
            for path in ("/d/hostname", "/l/hostname", "/a/hostname"):
                answer = content_of(volume, "GET", "file", params={"path": path})
                seen.add((answer.status_code, answer.content if answer.status_code == 200 else b""))
                content_of(volume, "PUT", "file", params={"path": path + ".firkin-test"}, content=b"x")
            content_of(volume, "GET", "dir", params={"path": "/", "depth": 5})
        flipping.kill()
    assert (200, b"inside\n") in seen
    assert {body for _, body in seen} <= {b"inside\n", b""}
    assert outside.encode() not in {body for _, body in seen}
    assert not list(Path("/etc").glob("*.firkin-test"))


def until_exists(volume: Volume, *paths: str) -> None:
    deadline = time.monotonic() + 10
    while not any(volume.exists(path) for path in paths):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_very_deep_tree_is_removed(sdk: dict[str, Any], volume: Volume) -> None:
    deep = "import os; os.chdir('/data'); n = 'd' * 50; [(os.mkdir(n), os.chdir(n)) for _ in range(3000)]"
    with made(sdk, volume_mounts={"/data": volume}) as sandbox:
        run(sandbox, f'python3 -c "{deep}"', timeout=60)
        assert len(volume.list("/", depth=50)) == 50
        with pytest.raises(VolumeException, match="4095"):
            volume.list("/", depth=256)
        volume.remove("/" + "d" * 50)
        assert volume.list("/") == []


# -- what breaks off ------------------------------------------------------------------------------------


def test_an_upload_that_breaks_off_leaves_nothing(server: RunningServer, volume: Volume) -> None:
    volume.write_file("/whole", "before")
    for path in ("/whole", "/new"):
        head = (
            f"PUT /volumecontent/{volume.volume_id}/file?path={path} HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {volume.token}\r\nContent-Length: 10000000\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", server.port)) as peer:
            peer.sendall(head.encode() + b"x" * 3_000_000)
    assert volume.read_file("/whole") == "before"
    assert [entry.path for entry in volume.list("/")] == ["/whole"]


# -- archives -------------------------------------------------------------------------------------------


def test_a_folder_goes_in_and_out_as_it_is(sdk: dict[str, Any], server: RunningServer, volume: Volume) -> None:
    route = f"/firkin/v1/volumes/{volume.volume_id}/archive"
    with made(sdk, volume_mounts={"/data": volume}) as sandbox:
        run(
            sandbox,
            "cd /data; mkdir -p src/sub; echo 1 > src/one; chmod 751 src/one; ln -s one src/link;"
            " ln src/one src/sub/hard; chown 12:34 src/sub; mkfifo src/fifo;"
            " touch -d 2001-02-03T04:05:06Z src/one; chmod 4755 src/sub/hard",
            user="root",
        )
        packed = httpx.get(server.url + route, params={"path": "/src"}, headers={"X-API-Key": ALICE})
        with tarfile.open(fileobj=io.BytesIO(packed.content)) as archive:
            assert sorted(archive.getnames()) == [".", "link", "one", "sub", "sub/hard"]
        answer = httpx.put(
            server.url + route, params={"path": "/copy"}, headers={"X-API-Key": ALICE}, content=packed.content
        )
        assert answer.json() == {"entries": 5}
        show = "cd /data/{} && find . -not -name fifo -printf '%p %y %m %U:%G %l %T@ %n\\n' | sort"
        assert run(sandbox, show.format("copy")) == run(sandbox, show.format("src"))
    bob = httpx.get(server.url + route, headers={"X-API-Key": BOB})
    assert bob.status_code == 404


def test_a_hostile_archive_is_refused(server: RunningServer, volume: Volume) -> None:
    route = f"{server.url}/firkin/v1/volumes/{volume.volume_id}/archive"
    volume.make_dir("/in")
    volume.write_file("/outside", "untouched")
    for members, why in (
        ([("../outside", b"x")], "does not lie inside"),
        ([("/outside", b"x")], "does not lie inside"),
        ([("l", "../"), ("l/outside", b"x")], "symlink leads out"),
        ([("l", "/"), ("l/outside", b"x")], "symlink leads out"),
    ):
        answer = httpx.put(route, params={"path": "/in"}, headers={"X-API-Key": ALICE}, content=_tar(members))
        assert answer.status_code == 400, answer.text
        assert why in answer.text or "cannot be made" in answer.text
        assert volume.read_file("/outside") == "untouched"
    cut = httpx.put(
        route, headers={"X-API-Key": ALICE}, params={"path": "/in"}, content=_tar([("f", b"x" * 9999)])[:4000]
    )
    assert (cut.status_code, "too early" in cut.text) == (400, True)
    assert not volume.exists("/in/f")
    junk = httpx.put(route, headers={"X-API-Key": ALICE}, params={"path": "/in"}, content=b"no tar at all" * 100)
    assert (junk.status_code, "no tar header" in junk.text) == (400, True)


def _tar(members: list[tuple[str, bytes | str]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, what in members:
            info = tarfile.TarInfo(name)
            if isinstance(what, str):
                info.type, info.linkname = tarfile.SYMTYPE, what
                archive.addfile(info)
            else:
                info.size = len(what)
                archive.addfile(info, io.BytesIO(what))
    return out.getvalue()


# -- tokens ---------------------------------------------------------------------------------------------


def test_only_the_volumes_own_token_opens_it(server: RunningServer, volume: Volume) -> None:
    with made_volume(server, "other") as other:
        for token in (None, "", "nonsense", other.token, ALICE, "ä"[:0] + "x" * 64):
            answer = content(server, volume, "GET", "dir", token=token, params={"path": "/"})
            assert answer.status_code == 401
            assert answer.json()["code"] == "unauthorized"
    unknown = httpx.get(f"{server.url}/volumecontent/vnone/dir", params={"path": "/"}, timeout=20)
    assert unknown.status_code == 401
    deleted = Volume.create(unique("gone"), **api_options(server))
    assert Volume.destroy(deleted.volume_id, **api_options(server))
    answer = content(server, deleted, "GET", "dir", params={"path": "/"})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
