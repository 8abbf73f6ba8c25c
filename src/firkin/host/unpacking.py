"""The process that touches strangers' bytes: unpack, check, fit.

It runs as ``python -I -m firkin.host.unpacking`` with one job as JSON on stdin,
tells progress on stderr, and answers with one JSON object on stdout: the
result, or the fault. A process of its own, because then hostile input meets a
memory limit, the server's event loop stays free, and to cancel is to kill.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import sys
from dataclasses import asdict, dataclass
from typing import Any

from firkin.host.archives import Allowance, Extraction, corrupt
from firkin.host.confined import ConfinedTree
from firkin.host.fittings import PROFILE, fit, sweep
from firkin.host.images import Layout
from firkin.law.errors import TemplateFault, TemplatePrepareFailure
from firkin.law.templates import ImageConfig

_MEMORY_LIMIT = 2 << 30
_IMPOSSIBLE = (ValueError, OverflowError, RecursionError, MemoryError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """`kind`: ``tar`` and ``layout`` and ``layout-archive`` unpack `source` into the empty folder `root`;
    ``fit`` takes what is there already. `scratch` is an empty folder for what comes between."""

    kind: str
    root: str
    source: str = ""
    tag: str = ""
    scratch: str = ""
    max_bytes: int
    max_entries: int
    plain_profile: bool = False

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    config: ImageConfig
    size_bytes: int
    digest: str


def decode_answer(answer: bytes) -> Unpacked:
    """The result in an answer; a fault in it is raised."""
    value = json.loads(answer)
    if "fault" in value:
        raise TemplatePrepareFailure(TemplateFault(value["fault"]), value["detail"])
    return Unpacked(
        config=ImageConfig(env=value["env"], user=value["user"], workdir=value["workdir"]),
        size_bytes=value["size_bytes"],
        digest=value["digest"],
    )


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT, _MEMORY_LIMIT))
    os.umask(0o022)
    job = Job(**json.load(sys.stdin))
    try:
        answer = _perform(job)
    except TemplatePrepareFailure as failure:
        answer = {"fault": failure.fault.value, "detail": str(failure)}
    except _IMPOSSIBLE as failure:
        answer = {"fault": TemplateFault.SOURCE_CORRUPT.value, "detail": f"impossible content: {failure!r}"[:500]}
    except OSError as failure:
        # names what the kernel said; the parent makes it an IoFailure
        sys.exit(f"{failure.strerror or failure}: {failure.filename or job.source}")
    json.dump(answer, sys.stdout)


def _perform(job: Job) -> dict[str, Any]:
    allowance = Allowance(bytes_left=job.max_bytes, entries_left=job.max_entries)
    with ConfinedTree.at(job.root, strict=job.kind == "tar") as tree:
        wishes = _fill(job, tree, allowance)
    with ConfinedTree.at(job.root) as tree:
        if job.plain_profile:
            tree.write("etc/profile", PROFILE)
        config = fit(tree, user=wishes.user, workdir=wishes.workdir, env=wishes.env)
        size, removed = sweep(tree)
    if dropped := removed + wishes.dropped:
        _tell(f"dropped {dropped} device nodes")
    return {**asdict(config), "size_bytes": size, "digest": wishes.digest}


@dataclass(slots=True, kw_only=True)
class _Filled:
    digest: str = ""
    env: dict[str, str]
    user: str = ""
    workdir: str = ""
    dropped: int = 0


def _fill(job: Job, tree: ConfinedTree, allowance: Allowance) -> _Filled:
    match job.kind:
        case "tar":
            return _fill_from_tar(job.source, tree, allowance)
        case "layout":
            return _fill_from_layout(job.source, job.tag, tree, allowance)
        case "layout-archive":
            with ConfinedTree.at(job.scratch, strict=True) as scratch:
                _fill_from_tar(job.source, scratch, allowance)
            filled = _fill_from_layout(job.scratch, job.tag, tree, allowance)
            shutil.rmtree(job.scratch)
            return filled
        case "fit":
            return _Filled(env={})
    raise ValueError(f"no such job: {job.kind!r}")


def _fill_from_tar(source: str, tree: ConfinedTree, allowance: Allowance) -> _Filled:
    _tell(f"unpacking {source}")
    with open(source, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        work = Extraction(tree, allowance)
        work.run(file, called=source)
    if not work.count:
        raise corrupt(f"{source} holds no files")
    return _Filled(digest=f"sha256:{digest}", env={}, dropped=work.dropped)


def _fill_from_layout(source: str, tag: str, tree: ConfinedTree, allowance: Allowance) -> _Filled:
    with Layout(source) as layout:
        image = layout.image(tag)
        _tell(f"unpacking {len(image.layers)} layers of {image.digest}")
        dropped = layout.apply(image, tree, allowance)
    return _Filled(digest=image.digest, env=dict(image.env), user=image.user, workdir=image.workdir, dropped=dropped)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
