"""Layers on layers: shared by whatever has them in common, and no way out of them either."""

from __future__ import annotations

import asyncio
import gzip
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from firkin.host.layer_store import LayerStore
from firkin.host.roots import HostRootPreparer, RootLimits
from firkin.law.errors import FirkinError, IoFailure, TemplateFault, TemplatePrepareFailure
from firkin.law.templates import LocalSource, TemplateSpec, parse_source

from .conftest import LastRoot, Prepare, run_tool
from .images_made import BASE, Entry, LayoutMaker, device, file, folder, hardlink, symlink, tar_bytes

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0, reason="owners and overlays need root"),
]


@pytest.fixture
def layout(tmp_path: Path) -> LayoutMaker:
    return LayoutMaker(tmp_path / "layout")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder outside every root, with a file whose content must never change."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "canary").write_text("alive")
    return folder


def _kept(store: LayerStore) -> list[str]:
    return sorted(name for name in os.listdir(store.directory) if not name.startswith("."))


class TestSharing:
    async def test_images_with_one_base_share_its_layers(
        self, layout: LayoutMaker, store: LayerStore, prepare: Prepare
    ) -> None:
        layout.add(BASE, [file("one")], tag="one")
        layout.add(BASE, [file("two")], tag="two")
        one, two = await prepare(f"oci:{layout.path}:one"), await prepare(f"oci:{layout.path}:two")
        assert one.root.base == two.root.base
        assert set(one.root.layers).isdisjoint(two.root.layers)
        assert len(_kept(store)) == 5

    async def test_one_source_under_two_names_is_prepared_once(
        self, layout: LayoutMaker, progress: list[str], prepare: Prepare
    ) -> None:
        layout.add(BASE)
        first = await prepare(f"oci:{layout.path}")
        progress.clear()
        assert (await prepare(f"oci:{layout.path}:latest")).root == first.root
        assert progress == []

    async def test_images_that_differ_in_their_wishes_share_all_but_what_fits_them(
        self, layout: LayoutMaker, prepare: Prepare
    ) -> None:
        layout.add(BASE, tag="app", config={"User": "app"})
        layout.add(BASE, tag="plain")
        app, plain = await prepare(f"oci:{layout.path}:app"), await prepare(f"oci:{layout.path}:plain")
        assert app.root.base == plain.root.base
        assert (app.config.user, plain.config.user) == ("app", "user")

    async def test_a_layer_is_the_same_however_it_is_compressed(
        self, layout: LayoutMaker, tmp_path: Path, prepare: Prepare
    ) -> None:
        layout.add([*BASE, file("hello")])
        archive = tmp_path / "docker.tar"
        run_tool(["skopeo", "copy", "-q", f"oci:{layout.path}:latest", f"docker-archive:{archive}:thing:1"])
        first = await prepare(f"oci:{layout.path}")
        assert (await prepare(f"docker-archive:{archive}")).root == first.root

    async def test_a_layer_depends_on_what_is_below_it(self, layout: LayoutMaker, prepare: Prepare) -> None:
        same = [file("same")]
        layout.add(BASE, same, tag="one")
        layout.add([*BASE, file("more")], same, tag="two")
        one, two = await prepare(f"oci:{layout.path}:one"), await prepare(f"oci:{layout.path}:two")
        assert one.root.layers[0] != two.root.layers[0]

    @pytest.mark.parametrize("kind", ["local", "oci-archive"])
    async def test_an_archive_that_has_not_changed_is_not_read_again(
        self, layout: LayoutMaker, tmp_path: Path, progress: list[str], prepare: Prepare, kind: str
    ) -> None:
        layout.add(BASE)
        path = tmp_path / "made.tar"
        with tarfile.open(path, "w") as archive:
            archive.add(layout.path, arcname=".")
        os.utime(path, (1, 1))
        first = await prepare(f"{kind}:{path}")
        progress.clear()
        again = await prepare(f"{kind}:{path}")
        assert again == first
        assert progress == [f"reading {path}"]
        path.write_bytes(tar_bytes([*BASE, file("new")]))
        if kind == "local":
            assert (await prepare(f"{kind}:{path}")).digest != first.digest

    async def test_a_folder_is_copied_again_when_anything_in_it_changed(
        self, tmp_path: Path, prepare: Prepare, last: LastRoot, progress: list[str]
    ) -> None:
        source = tmp_path / "source"
        (source / "opt").mkdir(parents=True)
        (source / "opt/one").write_text("1")
        first = await prepare(f"local:{source}")
        stable = await _until_stable(prepare, f"local:{source}")
        progress.clear()
        assert (await prepare(f"local:{source}")).root == stable.root
        assert progress == []
        (source / "opt/one").write_text("2")
        changed = await prepare(f"local:{source}")
        assert changed.root != first.root
        assert (last.path / "opt/one").read_text() == "2"


async def _until_stable(prepare: Prepare, source: str):
    """A folder that was changed a moment ago is taken for one that may be changing still."""
    async with asyncio.timeout(10):
        made = await prepare(source)
        while (again := await prepare(source)).root != made.root:
            made = again
    return made


class TestOverlaidLayers:
    async def test_whiteouts_and_what_comes_back_after_them(
        self, layout: LayoutMaker, prepare: Prepare, last: LastRoot
    ) -> None:
        lower = [folder("d"), file("d/old"), file("f", "1"), folder("gone"), file("gone/x"), symlink("link", "d")]
        upper = [file(".wh.d"), file(".wh.f"), file(".wh.gone"), file(".wh.link")]
        top = [folder("d"), file("d/new"), file("f", "2"), file("gone", "now a file"), folder("link")]
        layout.add([*BASE, *lower], upper, top)
        await prepare(f"oci:{layout.path}")
        root = last.path
        assert os.listdir(root / "d") == ["new"]
        assert (root / "f").read_text() == "2"
        assert (root / "gone").read_text() == "now a file"
        assert not (root / "link").is_symlink()

    async def test_an_opaque_root_hides_all_lower_layers(
        self, layout: LayoutMaker, prepare: Prepare, last: LastRoot
    ) -> None:
        layout.add([*BASE, file("old"), folder("srv"), file("srv/x")], [file("new"), file(".wh..wh..opq")])
        await prepare(f"oci:{layout.path}")
        names = set(os.listdir(last.path))
        assert "new" in names
        assert names.isdisjoint({"old", "srv", "bin"})

    async def test_an_opaque_mark_keeps_what_its_own_layer_has(
        self, layout: LayoutMaker, prepare: Prepare, last: LastRoot
    ) -> None:
        upper = [folder("d"), file("d/a"), file("d/.wh..wh..opq"), file("d/b")]
        layout.add([*BASE, folder("d"), file("d/old")], upper)
        await prepare(f"oci:{layout.path}")
        assert sorted(os.listdir(last.path / "d")) == ["a", "b"]

    async def test_links_reach_into_lower_layers(self, layout: LayoutMaker, prepare: Prepare, last: LastRoot) -> None:
        lower = [folder("usr"), folder("usr/lib"), symlink("lib", "usr/lib"), file("usr/lib/a", "A", uid=7)]
        layout.add([*BASE, *lower], [hardlink("usr/b", "usr/lib/a"), file("lib/c", "C")])
        await prepare(f"oci:{layout.path}")
        root = last.path
        assert (root / "usr/b").read_text() == "A"
        assert os.stat(root / "usr/b").st_uid == 7
        assert (root / "usr/lib/c").read_text() == "C"
        assert (root / "lib").is_symlink()

    async def test_modes_owners_and_attributes_of_upper_layers_hold(
        self, layout: LayoutMaker, prepare: Prepare, last: LastRoot
    ) -> None:
        marked = Entry(name="bin/sh", data=b"#!2", mode=0o4711, uid=9, pax={"SCHILY.xattr.user.colour": "red"})
        layout.add(BASE, [folder("bin", 0o700), marked])
        await prepare(f"oci:{layout.path}")
        found = os.stat(last.path / "bin/sh")
        assert (found.st_mode & 0o7777, found.st_uid, found.st_mtime) == (0o4711, 9, 1_000_000_000)
        assert os.getxattr(last.path / "bin/sh", "user.colour") == b"red"
        assert os.stat(last.path / "bin").st_mode & 0o7777 == 0o700

    async def test_upper_layers_bring_no_devices_and_no_marks_of_their_own(
        self, layout: LayoutMaker, prepare: Prepare, last: LastRoot, progress: list[str]
    ) -> None:
        steering = {"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.overlay.redirect": "/etc"}
        bait = Entry(name="bin", kind=tarfile.DIRTYPE, mode=0o755, pax=steering)
        made_of = [bait, device("bin/sh"), device("null")]
        layout.add(BASE, made_of)
        made = await prepare(f"oci:{layout.path}")
        assert "dropped 2 device nodes" in progress
        assert (last.path / "bin/sh").read_text() == "#!"
        assert not (last.path / "null").exists()
        assert os.listxattr(last.path / "bin") == []
        assert "trusted.overlay.opaque" not in os.listxattr(f"{made.root.layers[0]}/bin")

    @pytest.mark.parametrize(
        "upper",
        [
            [file("out/canary", "dead")],
            [folder("out/new")],
            [hardlink("grab", "out/canary")],
            [symlink("again", "out"), file("again/canary", "dead")],
        ],
        ids=["write", "folder", "hard link", "link to link"],
    )
    @pytest.mark.parametrize("target", ["OUTSIDE", "../../../outside"])
    async def test_a_link_of_a_lower_layer_leads_no_upper_one_out(
        self, layout: LayoutMaker, prepare: Prepare, outside: Path, upper: list[Entry], target: str
    ) -> None:
        layout.add([*BASE, symlink("out", target.replace("OUTSIDE", str(outside)))], upper)
        with pytest.raises(TemplatePrepareFailure) as caught:
            await prepare(f"oci:{layout.path}")
        assert caught.value.fault is TemplateFault.SOURCE_CORRUPT
        assert (outside / "canary").read_text() == "alive"
        assert os.listdir(outside) == ["canary"]

    async def test_the_image_is_refused_when_a_layer_unpacks_to_something_else(
        self, layout: LayoutMaker, store: LayerStore, prepare: Prepare
    ) -> None:
        layout.add(BASE, [file("x")], unpacked=["sha256:" + "0" * 64])
        with pytest.raises(TemplatePrepareFailure, match="does not unpack to what its image says"):
            await prepare(f"oci:{layout.path}")
        assert len(_kept(store)) == 1

    @pytest.mark.parametrize("limits", [RootLimits(max_bytes=3 << 20), RootLimits(max_entries=8)])
    async def test_the_limits_are_for_all_layers_together(
        self, layout: LayoutMaker, store: LayerStore, into: Path, limits: RootLimits
    ) -> None:
        layers = [[file(name, "0" * (2 << 20)), file(f"{name}2")] for name in ("a", "b")]
        layout.add(BASE, *layers)
        preparer = HostRootPreparer(layers=store, limits=limits)
        with pytest.raises(TemplatePrepareFailure, match="than are allowed"):
            await preparer.prepare(TemplateSpec(source=parse_source(f"oci:{layout.path}")), into, print)

    async def test_an_image_of_very_many_layers_becomes_one(
        self, layout: LayoutMaker, prepare: Prepare, last: LastRoot
    ) -> None:
        layout.add(BASE, *([file(f"f{number}"), file(f".wh.f{number - 1}")] for number in range(64)))
        made = await prepare(f"oci:{layout.path}")
        assert made.root.layers == ()
        assert [path.name for path in last.path.glob("f*")] == ["f63"]


class TestPlaces:
    async def test_where_nothing_can_be_overlaid_all_becomes_one_layer(
        self, layout: LayoutMaker, tmp_path: Path, into: Path
    ) -> None:
        layout.add([*BASE, file("old"), file("kept")], [file(".wh.old"), file("new")], config={"User": "app"})
        for name in ("lower", "upper", "work", "merged"):
            (tmp_path / name).mkdir()
        options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
        run_tool(["mount", "-t", "overlay", "none", "-o", options, str(tmp_path / "merged")])
        try:
            store = LayerStore(tmp_path / "merged/layers")
            await store.load()
            told: list[str] = []
            spec = TemplateSpec(source=parse_source(f"oci:{layout.path}"))
            made = await HostRootPreparer(layers=store).prepare(spec, into, told.append)
            assert made.root.layers == ()
            assert made.config.user == "app"
            names = set(os.listdir(made.root.base))
            assert {"kept", "new", "home"} <= names
            assert "old" not in names
            assert any("all become one" in line for line in told)
            assert await HostRootPreparer(layers=store).prepare(spec, into, print) == made
        finally:
            run_tool(["umount", str(tmp_path / "merged")])

    def test_older_kernels_get_the_same_view_by_paths(self, tmp_path: Path) -> None:
        for name in ("low,er", "upper", "files", "work"):
            (tmp_path / name).mkdir()
        (tmp_path / "low,er/a").write_text("a")
        (tmp_path / "upper/b").write_text("b")
        script = (
            "import os, sys; from firkin.host.overlays import merged_view\n"
            "low, up, files, work = sys.argv[1:]\n"
            "with merged_view([low, up], files, work, attached=True) as view:\n"
            "    print(sorted(os.listdir(view))); os.unlink('a', dir_fd=view)\n"
            "    os.close(os.open('c', os.O_CREAT | os.O_WRONLY, dir_fd=view))\n"
        )
        folders = [str(tmp_path / name) for name in ("low,er", "upper", "files", "work")]
        done = subprocess.run([sys.executable, "-c", script, *folders], capture_output=True, text=True, timeout=20)
        assert (done.stdout, done.stderr) == ("['a', 'b']\n", "")
        assert sorted(os.listdir(tmp_path / "files")) == ["a", "c"]
        assert sorted(os.listdir(tmp_path)) == ["files", "low,er", "upper", "work"]
        assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def _unpacking_of(into: Path) -> int:
    for entry in Path("/proc").iterdir():
        try:
            told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if b"firkin.host.unpacking" in told and str(into).encode() in told:
            return int(entry.name)
    raise AssertionError("nothing is unpacking")


async def test_a_killed_unpacking_leaves_nothing_and_is_done_again(
    layout: LayoutMaker, store: LayerStore, into: Path, prepare: Prepare, last: LastRoot, tmp_path: Path
) -> None:
    zeros = gzip.compress(bytes(64 << 20))
    header = tarfile.TarInfo("zeros")
    header.size = 32 << 30
    archive = tmp_path / "long.tar.gz"
    archive.write_bytes(gzip.compress(header.tobuf()) + zeros * 512)
    begun = asyncio.Event()
    preparer = HostRootPreparer(layers=store)
    spec = TemplateSpec(source=LocalSource(str(archive)))
    work = asyncio.create_task(preparer.prepare(spec, into, lambda line: line.startswith("unpacking") and begun.set()))
    await asyncio.wait_for(begun.wait(), 10)
    os.kill(_unpacking_of(into), signal.SIGKILL)
    with pytest.raises(IoFailure):
        await work
    assert _kept(store) == []
    assert not any(name.startswith(".aside") for name in os.listdir(store.directory))
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    archive.write_bytes(tar_bytes([*BASE, file("small", "now")]))
    await prepare(f"local:{archive}")
    assert (last.path / "small").read_text() == "now"


async def test_layers_that_were_finished_survive_a_failure_above_them(
    layout: LayoutMaker, store: LayerStore, prepare: Prepare, progress: list[str]
) -> None:
    layout.add(BASE, [file("../evil")], tag="bad")
    layout.add(BASE, [file("good")], tag="good")
    with pytest.raises(FirkinError):
        await prepare(f"oci:{layout.path}:bad")
    assert len(_kept(store)) == 1
    progress.clear()
    await prepare(f"oci:{layout.path}:good")
    assert len([line for line in progress if line.startswith("unpacking")]) == 1
