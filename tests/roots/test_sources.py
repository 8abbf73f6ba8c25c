"""Folders, registries, recipes: where else a root comes from; and that a stopped preparation leaves nothing."""

from __future__ import annotations

import asyncio
import gzip
import os
import shutil
import socket
import tarfile
from pathlib import Path

import pytest

from firkin.host.recipes import deb822_sources, one_line_sources
from firkin.host.registries import read_complaint
from firkin.host.roots import HostRootPreparer
from firkin.law.errors import DeadlineExceeded, InvalidSpec, TemplateFault, TemplatePrepareFailure
from firkin.law.templates import LocalSource, OciSource, RecipeSource, TemplateSpec

from .conftest import LastRoot, Prepare, run_tool
from .registries_run import free_port

needs_root = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0, reason="owners and device nodes need root"),
]


class TestFolders:
    pytestmark = needs_root

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        folder = tmp_path / "source"
        (folder / "opt").mkdir(parents=True)
        (folder / "opt/one").write_text("1")
        os.link(folder / "opt/one", folder / "opt/two")
        os.chown(folder / "opt/one", 33, 44)
        os.setxattr(folder / "opt/one", "user.colour", b"red")
        (folder / "opt/link").symlink_to("/etc/passwd")
        return folder

    async def test_a_folder_is_copied_whole_and_left_alone(
        self, source: Path, last: LastRoot, prepare: Prepare
    ) -> None:
        before = sorted(str(path) for path in source.rglob("*"))
        made = await prepare(f"local:{source}")
        copy = last.path / "opt"
        found = os.stat(copy / "one")
        assert (found.st_uid, found.st_gid, found.st_nlink) == (33, 44, 2)
        assert os.getxattr(copy / "one", "user.colour") == b"red"
        assert os.readlink(copy / "link") == "/etc/passwd"
        assert made.config.user == "user"
        assert sorted(str(path) for path in source.rglob("*")) == before

    async def test_a_folders_device_nodes_and_overlay_marks_stay_behind(
        self, source: Path, last: LastRoot, prepare: Prepare
    ) -> None:
        os.mknod(source / "opt/null", 0o666 | 0o020000, os.makedev(1, 3))
        os.setxattr(source / "opt", "trusted.overlay.opaque", b"y")
        await prepare(f"local:{source}")
        assert not (last.path / "opt/null").exists()
        assert os.listxattr(last.path / "opt") == []

    async def test_a_folder_that_holds_the_state_is_refused(self, into: Path, prepare: Prepare) -> None:
        with pytest.raises(TemplatePrepareFailure, match="copy it elsewhere"):
            await prepare(f"local:{into.parent}")


@pytest.mark.host
@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
async def test_a_registry_that_does_not_answer_is_unavailable(prepare: Prepare) -> None:
    with pytest.raises(TemplatePrepareFailure, match="connection refused") as caught:
        await prepare(f"127.0.0.1:{free_port()}/thing:1")
    assert caught.value.fault is TemplateFault.REGISTRY_UNAVAILABLE


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ('msg="reading manifest 9 in r/x: manifest unknown"', TemplateFault.SOURCE_MISSING),
        ("requested access to the resource is denied", TemplateFault.SOURCE_MISSING),
        ("dial tcp: lookup r on 10.0.0.1:53: no such host", TemplateFault.REGISTRY_UNAVAILABLE),
        ("received unexpected HTTP status: 503 Service Unavailable", TemplateFault.REGISTRY_UNAVAILABLE),
        ("no image found in manifest list for architecture amd64", TemplateFault.UNSUPPORTED_IMAGE_CONFIG),
        ("something never seen before", TemplateFault.REGISTRY_UNAVAILABLE),
    ],
)
def test_the_fetchers_words_become_faults(said: str, fault: TemplateFault) -> None:
    assert read_complaint("docker://r/x:9", said, registry=True).fault is fault


@pytest.mark.parametrize("reference", ["-v", "a b", "x;y", "ü", "$(id)"])
async def test_a_senseless_reference_is_refused(prepare: Prepare, reference: str) -> None:
    with pytest.raises(InvalidSpec, match="no image reference"):
        await prepare(reference)


async def test_an_unknown_recipe_names_the_known_ones(prepare: Prepare) -> None:
    with pytest.raises(InvalidSpec, match="there are: debian"):
        await prepare("recipe:plan9")


def test_only_the_releases_own_sources_are_taken() -> None:
    one_line = (
        "deb [arch=amd64] http://m/debian bookworm main # mine\n# deb http://m x y\ndeb http://other/ stable main\n"
    )
    assert list(one_line_sources(one_line, "bookworm")) == ["deb [arch=amd64] http://m/debian bookworm main"]
    deb822 = "Types: deb\nURIs: http://m/d\nSuites: bookworm sid\nComponents: main\nSigned-By: /k.gpg\n"
    deb822 += "\nTypes: deb\nURIs: http://o\nSuites: x\n"
    assert list(deb822_sources(deb822, "bookworm")) == ["deb [signed-by=/k.gpg] http://m/d bookworm main"]


def _processes_that_mention(path: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if str(path).encode() in told:
            found.append(int(entry.name))
    return found


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A small archive that unpacks to fifty gigabytes of nothing: that lasts until it is stopped."""
    path = tmp_path / "endless.tar.gz"
    header = tarfile.TarInfo("zeros")
    header.size = 50 << 30
    piece = gzip.compress(bytes(64 << 20))
    path.write_bytes(gzip.compress(header.tobuf()) + piece * 800)
    return path


@pytest.mark.host
async def test_a_cancelled_preparation_leaves_no_process(endless: Path, into: Path) -> None:
    begun = asyncio.Event()
    spec = TemplateSpec(source=LocalSource(str(endless)))
    work = asyncio.create_task(HostRootPreparer().prepare(spec, into, lambda line: "unpacking" in line and begun.set()))
    await asyncio.wait_for(begun.wait(), 10)
    assert len(_processes_that_mention(into)) == 1
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert _processes_that_mention(into) == []


@pytest.mark.host
async def test_a_cancelled_reading_ends_its_thread(tmp_path: Path, into: Path) -> None:
    path = tmp_path / "sparse.tar"
    path.touch()
    os.truncate(path, 60 << 30)
    begun = asyncio.Event()
    spec = TemplateSpec(source=LocalSource(str(path)))
    work = asyncio.create_task(HostRootPreparer().prepare(spec, into, lambda line: begun.set()))
    await asyncio.wait_for(begun.wait(), 10)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    async with asyncio.timeout(5):
        await asyncio.get_running_loop().shutdown_default_executor()


@pytest.mark.host
async def test_a_preparation_past_its_deadline_is_stopped(endless: Path, into: Path) -> None:
    spec = TemplateSpec(source=LocalSource(str(endless)), timeout_s=0.5)
    with pytest.raises(DeadlineExceeded, match=r"within 0\.5 s"):
        await HostRootPreparer().prepare(spec, into, print)
    assert _processes_that_mention(into) == []


@pytest.mark.host
async def test_a_registry_that_never_answers_is_given_up_at_the_deadline(into: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        reference = f"127.0.0.1:{silent.getsockname()[1]}/thing:1"
        spec = TemplateSpec(source=OciSource(reference), timeout_s=0.5)
        with pytest.raises(DeadlineExceeded):
            await HostRootPreparer().prepare(spec, into, print)
    assert _processes_that_mention(into) == []


@pytest.mark.host
async def test_a_pipe_is_no_source(tmp_path: Path, prepare: Prepare) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TemplatePrepareFailure, match="neither a folder nor a file"):
        await prepare(f"local:{tmp_path}/pipe")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("mmdebstrap") is None, reason="mmdebstrap is not installed")
class TestRecipes:
    pytestmark = needs_root

    async def test_debian_is_built_with_what_it_promises(self, last: LastRoot, prepare: Prepare) -> None:
        made = await prepare("recipe:debian")
        root = last.path
        for program in ("bash", "python3", "sudo", "git", "curl", "ps"):
            assert (root / "usr/bin" / program).exists(), program
        assert (root / "etc/ssl/certs/ca-certificates.crt").stat().st_size > 100_000
        assert "NOPASSWD" in (root / "etc/sudoers").read_text()
        assert made.digest.startswith("recipe:debian:")
        # setuid programs work on mounts of the caller's namespace only
        layers = ":".join(reversed((made.root.base, *made.root.layers)))
        script = f"mount -t overlay none -o lowerdir={layers} /mnt && chroot /mnt su user -c 'sudo -n true'"
        run_tool(["unshare", "--mount", "sh", "-c", script])

    async def test_a_cancelled_build_leaves_no_process_and_no_mount(self, into: Path) -> None:
        begun = asyncio.Event()

        def heard(line: str) -> None:
            if "extracting" in line:
                begun.set()

        spec = TemplateSpec(source=RecipeSource("debian"), timeout_s=120)
        work = asyncio.create_task(HostRootPreparer().prepare(spec, into, heard))
        await asyncio.wait_for(begun.wait(), 100)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert _processes_that_mention(into) == []
        assert str(into) not in Path("/proc/self/mountinfo").read_text()
