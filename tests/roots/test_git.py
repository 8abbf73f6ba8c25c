"""Repositories on top of another template, and what they may not bring along."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from firkin.host.git_clones import Repository, read_complaint
from firkin.host.layer_store import LayerStore
from firkin.host.roots import HostRootPreparer, RootLimits
from firkin.law.driver import PreparedRoot
from firkin.law.errors import InvalidSpec, TemplateFault, TemplatePrepareFailure
from firkin.law.templates import GitSource, TemplateSpec, describe_source, parse_source

from .conftest import LastRoot, Prepare
from .images_made import BASE, tar_bytes

on_a_host = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0, reason="owners and overlays need root"),
    pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed"),
]


class Upstream:
    """A repository of the test's own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.git("init", "-q", "-b", "main", ".")

    def git(self, *words: str) -> str:
        settings = ["-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", *settings, *words], cwd=self.path, capture_output=True, text=True, check=True, timeout=20
        )
        return done.stdout.strip()

    def commit(self, **files: str) -> str:
        for name, content in files.items():
            (self.path / name).write_text(content)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "x")
        return self.git("rev-parse", "HEAD")


class Cloner:
    def __init__(self, store: LayerStore, into: Path, base: PreparedRoot, last: LastRoot) -> None:
        self.store, self.into, self.base, self.last = store, into, base, last
        self.told: list[str] = []

    async def __call__(self, url: object, ref: str = "HEAD", limits: RootLimits | None = None) -> PreparedRoot:
        preparer = HostRootPreparer(layers=self.store, limits=limits or RootLimits())
        spec = TemplateSpec(source=GitSource(str(url), ref), timeout_s=30)
        self.last.made = await preparer.prepare_on(self.base, spec, self.into, self.told.append)
        return self.last.made


class TestClones:
    pytestmark = on_a_host

    @pytest.fixture
    def upstream(self, tmp_path: Path) -> Upstream:
        return Upstream(tmp_path / "project.git")

    @pytest.fixture
    async def clone(self, tmp_path: Path, store: LayerStore, into: Path, prepare: Prepare, last: LastRoot) -> Cloner:
        (tmp_path / "base.tar").write_bytes(tar_bytes(BASE))
        return Cloner(store, into, await prepare(f"local:{tmp_path}/base.tar"), last)

    async def test_a_repository_lies_in_the_users_home_and_belongs_to_him(
        self, upstream: Upstream, clone: Cloner
    ) -> None:
        commit = upstream.commit(readme="hello")
        made = await clone(f"file://{upstream.path}")
        folder = clone.last.path / "home/user/project"
        assert (folder / "readme").read_text() == "hello"
        assert {os.lstat(path).st_uid for path in folder.rglob("*")} == {1000}
        assert made.digest == f"git:{commit}+{clone.base.digest}"
        assert made.root.layers[:-1] == clone.base.root.layers
        assert (
            os.stat(clone.last.path / "home/user").st_uid == os.stat(clone.last.view(clone.base) / "home/user").st_uid
        )
        assert (clone.last.path / "etc/passwd").exists()
        assert os.listdir(clone.into) == []

    @pytest.mark.parametrize("kind", ["branch", "tag", "annotated", "commit"])
    async def test_every_kind_of_ref_is_found(self, upstream: Upstream, clone: Cloner, kind: str) -> None:
        wanted = upstream.commit(f="1")
        upstream.git("branch", "branch")
        upstream.git("tag", "tag")
        upstream.git("tag", "-a", "annotated", "-m", "x")
        upstream.commit(f="2")
        made = await clone(upstream.path, wanted if kind == "commit" else kind)
        assert made.digest.startswith(f"git:{wanted}")
        assert (clone.last.path / "home/user/project/f").read_text() == "1"

    async def test_a_commit_is_cloned_once_and_a_moved_branch_again(self, upstream: Upstream, clone: Cloner) -> None:
        upstream.commit(f="1")
        first = await clone(upstream.path, "main")
        clone.told.clear()
        assert await clone(upstream.path, "main") == first
        assert not any("cloning" in line for line in clone.told)
        upstream.commit(f="2")
        assert await clone(upstream.path, "main") != first

    async def test_what_is_not_there_is_missing(self, upstream: Upstream, clone: Cloner, tmp_path: Path) -> None:
        upstream.commit(f="1")
        for url, ref in ((upstream.path, "nope"), (upstream.path, "0" * 40), (tmp_path / "nowhere", "HEAD")):
            with pytest.raises(TemplatePrepareFailure) as caught:
                await clone(url, ref)
            assert caught.value.fault is TemplateFault.SOURCE_MISSING
        assert os.listdir(clone.into) == []

    async def test_a_server_that_is_not_there_is_unavailable(self, clone: Cloner) -> None:
        with pytest.raises(TemplatePrepareFailure) as caught:
            await clone("http://127.0.0.1:9/x.git")
        assert caught.value.fault is TemplateFault.REGISTRY_UNAVAILABLE

    async def test_links_hooks_filters_and_submodules_reach_nothing_of_the_host(
        self, upstream: Upstream, clone: Cloner, tmp_path: Path
    ) -> None:
        canary = tmp_path / "canary"
        hook = upstream.path / ".git/hooks/post-checkout"
        hook.write_text(f"#!/bin/sh\ntouch {canary}\n")
        hook.chmod(0o755)
        (upstream.path / "out").symlink_to("/etc")
        (upstream.path / "up").symlink_to("../../../..")
        modules = '[submodule "x"]\n\tpath = x\n\turl = ext::sh -c touch% /tmp/never\n\tupdate = !touch /tmp/never\n'
        upstream.commit(**{".gitmodules": modules, ".gitattributes": "* filter=evil\n", "f": "1"})
        await clone(upstream.path)
        folder = clone.last.path / "home/user/project"
        assert os.readlink(folder / "out") == "/etc"
        assert not canary.exists()
        assert not (folder / ".git/hooks").exists()

    async def test_a_repository_larger_than_allowed_is_refused(self, upstream: Upstream, clone: Cloner) -> None:
        upstream.commit(big="0" * (4 << 20))
        with pytest.raises(TemplatePrepareFailure, match="more bytes than are allowed"):
            await clone(upstream.path, limits=RootLimits(max_bytes=1 << 20))

    async def test_a_base_that_is_in_no_store_is_refused(
        self, upstream: Upstream, clone: Cloner, tmp_path: Path
    ) -> None:
        upstream.commit(f="1")
        clone.store = LayerStore(tmp_path / "other")
        await clone.store.load()
        with pytest.raises(TemplatePrepareFailure, match="prepare it again"):
            await clone(upstream.path)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("git:https://h.example/x", GitSource("https://h.example/x")),
        ("git:https://h.example/x@v1", GitSource("https://h.example/x", "v1")),
        ("git:https://me@h.example/x", GitSource("https://me@h.example/x")),
        ("git:https://me@h.example/x@v1/a", GitSource("https://me@h.example/x", "v1/a")),
        ("git:git@h.example:o/x.git", GitSource("git@h.example:o/x.git")),
        ("git:git@h.example:o/x.git@main", GitSource("git@h.example:o/x.git", "main")),
    ],
)
def test_addresses_with_an_at_sign_keep_it(text: str, source: GitSource) -> None:
    assert parse_source(text) == source
    assert parse_source(describe_source(source)) == source


@pytest.mark.parametrize(
    ("url", "ref"),
    [
        ("ext::sh -c id", "HEAD"),
        ("-x", "HEAD"),
        ("ssh://-oProxyCommand=id/x", "HEAD"),
        ("relative/path", "HEAD"),
        ("https://me:secret@h.example/x", "HEAD"),
        ("https://h.example/x", "-x"),
        ("https://h.example/x", "a..b"),
        ("https://h.example/x", "a b"),
        ("https://h.example/x", "*"),
    ],
)
def test_a_senseless_or_dangerous_address_is_refused(tmp_path: Path, url: str, ref: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        Repository(GitSource(url, ref), tmp_path, print)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("fatal: repository 'https://h/x/' not found", TemplateFault.SOURCE_MISSING),
        ("fatal: could not read Username for 'https://github.com'", TemplateFault.SOURCE_MISSING),
        ("fatal: unable to access 'https://h/': The requested URL returned error: 404", TemplateFault.SOURCE_MISSING),
        ("fatal: unable to access 'https://h/': Could not resolve host: h", TemplateFault.REGISTRY_UNAVAILABLE),
        (f"fatal: unable to read tree ({'0' * 40})", TemplateFault.SOURCE_MISSING),
        ("something never seen before", TemplateFault.REGISTRY_UNAVAILABLE),
    ],
)
def test_gits_words_become_faults(said: str, fault: TemplateFault) -> None:
    assert read_complaint(GitSource("https://h/x"), [said]).fault is fault
