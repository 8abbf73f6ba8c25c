"""A template on another one, with a repository in its user's home as a layer on top."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from firkin.host.fittings import HOME
from firkin.host.git_clones import Repository
from firkin.host.image_sources import Bench
from firkin.host.layer_stacks import Content
from firkin.host.layer_store import layer_key
from firkin.host.unpacking import CannotStack, Step
from firkin.law.driver import PreparedRoot
from firkin.law.errors import TemplateFault, TemplatePrepareFailure
from firkin.law.templates import GitSource

_OWNER = 1000
_ARCHIVE = "clone.tar"


async def with_repository(bench: Bench, base: PreparedRoot, source: GitSource) -> PreparedRoot:
    """The files of `base` and the clone. The same commit on the same base is cloned once."""
    repository = Repository(source, bench.scratch, bench.report)
    commit = await repository.commit()
    archive = bench.scratch / _ARCHIVE

    async def clone(_: Path) -> None:
        await repository.archive(commit, archive, owner=_OWNER)

    unpack = Step(kind="tar", source=str(archive), into=f"{HOME}/{repository.name}", owner=_OWNER)
    content = Content(key=layer_key("git", source.url, source.ref, commit), fill=clone, steps=(unpack,))
    try:
        root = await bench.stacks.on(base.root, content)
    except CannotStack as failure:
        detail = f"a repository needs layers, and none can be laid on another where the state folder is ({failure})"
        raise TemplatePrepareFailure(TemplateFault.WRITABLE_LAYER_REQUIRED, detail) from failure
    finally:
        archive.unlink(missing_ok=True)
    size = base.size_bytes + bench.store.size_of(root.layers[-1])
    return replace(base, root=root, size_bytes=size, digest=f"git:{commit}+{base.digest}")
