"""A sandbox on an image of several layers, and what is left of them when nothing needs them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from firkin import Runtime
from firkin.law.errors import NotFound
from firkin.law.ids import TemplateId
from firkin.law.processes import Command, Shell
from firkin.law.sandboxes import SandboxSpec
from firkin.law.templates import GitSource, OciSource, TemplateInfo, TemplateSpec
from tests.namespaces.conftest import backend_at
from tests.roots.images_made import Entry, LayoutMaker, file, folder, hardlink, symlink

_PROGRAMS = ("/bin/sh", "/bin/cat", "/bin/ls", "/usr/bin/touch", "/bin/rm")


def _programs() -> list[Entry]:
    """A few of the host's programs, with the libraries that they need."""
    listed = subprocess.run(["ldd", *_PROGRAMS], capture_output=True, text=True, check=True, timeout=20).stdout
    libraries = set(re.findall(r"(/\S+) \(0x", listed))
    paths = {*libraries, *_PROGRAMS}
    folders = {str(parent).strip("/") for path in paths for parent in Path(path).parents} - {""}
    return [
        *(folder(name) for name in sorted(folders)),
        *(Entry(name=path.strip("/"), data=Path(path).read_bytes(), mode=0o755) for path in sorted(paths)),
    ]


@pytest.fixture
def layout(tmp_path: Path) -> LayoutMaker:
    made = LayoutMaker(tmp_path / "layout")
    lower = [*_programs(), folder("srv"), file("srv/old", "1"), file("srv/kept", "kept"), symlink("data", "srv")]
    upper = [file("srv/.wh.old"), hardlink("srv/twin", "srv/kept"), file("data/new", "new")]
    made.add(lower, upper, [folder("top"), file("top/x", "x")], tag="one")
    made.add(lower, [file("two")], tag="two")
    return made


async def _prepared(runtime: Runtime, layout: LayoutMaker, tag: str) -> TemplateInfo:
    spec = TemplateSpec(id=TemplateId(tag), source=OciSource(f"oci:{layout.path}:{tag}"))
    return await runtime.templates.prepare(spec)


@pytest.mark.parametrize("attached", ["false", "true"])
async def test_a_sandbox_sees_all_layers_as_one(tmp_path: Path, layout: LayoutMaker, attached: str) -> None:
    backend = backend_at(tmp_path / "state", attached_layers=attached)
    async with Runtime.open(backend, kill_all=True) as runtime:
        await _prepared(runtime, layout, "one")
        async with await runtime.sandboxes.create(SandboxSpec.from_template("one")) as sandbox:
            text = "cd /srv && ls && cat kept twin new /top/x && echo && touch mine && rm kept && ls"
            seen = await sandbox.exec(Command(mode=Shell(text), user="root"))
            assert seen.stdout.decode().split() == [
                *("kept", "new", "twin", "keptkeptnewx"),
                *("mine", "new", "twin"),
            ]
        async with await runtime.sandboxes.create(SandboxSpec.from_template("one")) as sandbox:
            assert (await sandbox.exec("cat /srv/kept")).stdout == b"kept"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with one commit."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "readme").write_text("hello")
    who = ["-c", "user.name=t", "-c", "user.email=t@example.invalid"]
    for words in (["init", "-q", "-b", "main", "."], ["add", "readme"], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", *who, *words], cwd=folder, check=True, timeout=20)
    return folder


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
async def test_a_repository_lies_in_the_home_of_the_host_template(tmp_path: Path, project: Path) -> None:
    async with Runtime.open(backend_at(tmp_path / "state"), kill_all=True) as runtime:
        await runtime.templates.prepare(TemplateSpec.host(id=TemplateId("base")))
        spec = TemplateSpec(id=TemplateId("cloned"), source=GitSource(f"file://{project}", "main"))
        assert (await runtime.templates.prepare(spec)).digest.startswith("git:")
        async with await runtime.sandboxes.create(SandboxSpec.from_template("cloned")) as sandbox:
            text = "cd ~/project && cat readme && git log --format=%s && git branch --show-current && touch mine"
            seen = await sandbox.exec(text)
            assert (seen.stdout.decode().split(), seen.stderr) == (["hellofirst", "main"], b"")


def _layers(state: Path) -> set[str]:
    return {name for name in os.listdir(state / "layers") if not name.startswith(".")}


async def test_pruning_removes_what_nothing_needs_and_nothing_else(tmp_path: Path, layout: LayoutMaker) -> None:
    state = tmp_path / "state"
    async with Runtime.open(backend_at(state), kill_all=True) as runtime:
        await _prepared(runtime, layout, "one")
        await _prepared(runtime, layout, "two")
        assert len(_layers(state)) == 6
        assert await runtime.templates.prune() == 0
        await runtime.templates.delete("two")
        assert await runtime.templates.prune() == 2
        sandbox = await runtime.sandboxes.create(SandboxSpec.from_template("one"))
        snapshot = await sandbox.snapshot()
        await sandbox.delete(force=True)
        await runtime.templates.delete("one")
        assert await runtime.templates.prune() == 0
        await runtime.snapshots.delete(snapshot.id)
        assert await runtime.templates.prune() == 4
        with pytest.raises(NotFound):
            await runtime.templates.get("one")
        made = await _prepared(runtime, layout, "one")
        assert made.state.value == "ready"
