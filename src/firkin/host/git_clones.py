"""Repositories brought by the host's git, at one commit, with nothing of the host in them.

No configuration of the machine or of a user is read, no hook, no submodule and no
helper is run, nobody is asked for a password, and only the listed ways of
transport are allowed. Whoever lists templates sees their sources, so an address
with a password in it is refused. This module alone reads git's words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from firkin.host.directories import remove_tree
from firkin.host.program_paths import find_program
from firkin.host.programs import Finished, Report, program_environment, run_program
from firkin.law.errors import InvalidReason, InvalidSpec, RetryClass, TemplateFault, TemplatePrepareFailure
from firkin.law.templates import GitSource

_URL = re.compile(
    r"(?:https?|ssh|git|file)://[^\s\\-][^\s\\]*|/[^\s\\]*|[A-Za-z0-9._-]+@[A-Za-z0-9._-]+:[^\s\\-][^\s\\]*"
)
_PASSWORD = re.compile(r"[a-z]+://[^/@]*:[^/@]*@")
_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+/-]{0,255}")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,99}?)(\.git)?/*")
_SETTINGS = {
    "GIT_ALLOW_PROTOCOL": "https:http:ssh:git:file",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "/bin/false",
    "SSH_ASKPASS": "/bin/false",
    "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oConnectTimeout=20",
    "LC_ALL": "C",
}
_GUARDS = ("core.hooksPath=/dev/null", "core.protectHFS=true", "core.protectNTFS=true", "core.fsmonitor=false")
_LARGEST_FILE = 16 << 30
_ABSENT = (
    *("not found", "does not exist", "does not appear to be a git repository", "could not read username"),
    *("authentication failed", "permission denied", "returned error: 40", "access denied", "dubious ownership"),
    *("couldn't find remote ref", "not our ref", "no such remote ref", "unadvertised object", "not a tree"),
    "unable to read tree",  # git 2.47
)


class Repository:
    """The repository of `source`. `scratch` is a folder of ours, empty of anything with git's names."""

    def __init__(self, source: GitSource, scratch: Path, report: Report) -> None:
        self._source = source
        self._scratch = scratch
        self._report = report
        _check(source)

    @property
    def name(self) -> str:
        """The last part of the address, as `git clone` would name the folder."""
        match = _NAME.fullmatch(re.split(r"[/:]", self._source.url.rstrip("/"))[-1])
        return match[1] if match else "repository"

    async def commit(self) -> str:
        """What the ref means now. A whole commit id means itself."""
        ref = self._source.ref
        if _COMMIT.fullmatch(ref):
            return ref
        self._report(f"asking {self._source.url} for {ref}")
        wanted = [ref] if ref == "HEAD" else [f"refs/tags/{ref}^{{}}", f"refs/tags/{ref}", f"refs/heads/{ref}", ref]
        done = await self._git(["ls-remote", "--", self._source.url, *wanted], self._scratch)
        rows = (line.partition("\t") for line in done.stdout.decode(errors="replace").splitlines())
        known = {name: commit for commit, _, name in rows}
        found = next((known[name] for name in wanted if name in known), None)
        if found is None or not _COMMIT.fullmatch(found):
            detail = f"{self._source.url} has no {ref!r}"
            raise TemplatePrepareFailure(TemplateFault.SOURCE_MISSING, detail)
        return found

    async def archive(self, commit: str, archive: Path, *, owner: int) -> None:
        """Make `archive` a tar of a clone at `commit`, with everything in it belonging to `owner`."""
        clone = self._scratch / "clone"
        clone.mkdir()
        try:
            await self._clone(clone, commit)
            tool = find_program("tar", package="tar")
            names = [f"--owner=:{owner}", f"--group=:{owner}", "--numeric-owner", "--hard-dereference"]
            done = await self._run([tool, "-C", str(clone), *names, "-cf", str(archive), "."], self._scratch)
        finally:
            await remove_tree(clone)
        if done.exit_code != 0:
            raise TemplatePrepareFailure(TemplateFault.SOURCE_CORRUPT, f"cannot pack the clone: {done.last_line}")

    async def _clone(self, clone: Path, commit: str) -> None:
        self._report(f"cloning {self._source.url} at {commit[:12]}")
        await self._git(["init", "--quiet", "--template=", "."], clone)
        await self._git(["remote", "add", "origin", self._source.url], clone)
        await self._fetch(clone, commit)
        await self._git(["checkout", "--quiet", "--no-recurse-submodules", *self._branch(), commit], clone)

    def _branch(self) -> list[str]:
        ref = self._source.ref
        return ["--detach"] if ref == "HEAD" or _COMMIT.fullmatch(ref) else ["-B", ref]

    async def _fetch(self, clone: Path, commit: str) -> None:
        """The commit alone where the server gives one by its id, else everything."""
        fetch = ["fetch", "--quiet", "--no-recurse-submodules", "--no-write-fetch-head"]
        shallow = await self._run([*self._command(), *fetch, "--depth=1", "--no-tags", "origin", commit], clone)
        if shallow.exit_code != 0:
            await self._git([*fetch, "origin"], clone)

    async def _git(self, words: Sequence[str], folder: Path) -> Finished:
        done = await self._run([*self._command(), *words], folder)
        if done.exit_code != 0:
            raise read_complaint(self._source, done.complaints)
        return done

    def _command(self) -> list[str]:
        limit = [find_program("prlimit", package="util-linux"), f"--fsize={_LARGEST_FILE}", "--"]
        return [*limit, find_program("git", package="git"), *(word for guard in _GUARDS for word in ("-c", guard))]

    async def _run(self, argv: Sequence[str], folder: Path) -> Finished:
        env = {**program_environment(self._scratch), **_SETTINGS, "PWD": str(folder)}
        placed = [find_program("env", package="coreutils"), f"--chdir={folder}", *argv]
        return await run_program(placed, env=env, report=self._report)


def _check(source: GitSource) -> None:
    if not _URL.fullmatch(source.url):
        detail = f"{source.url[:256]!r} is no address of a repository; write https://…, ssh://…, git@HOST:PATH or /PATH"
        raise InvalidSpec("prepare template", InvalidReason.MISSING_TEMPLATE, detail)
    if _PASSWORD.match(source.url):
        detail = "the address of the repository holds a password, which everybody who lists templates would see"
        raise InvalidSpec("prepare template", InvalidReason.MISSING_TEMPLATE, detail)
    if not _REF.fullmatch(source.ref) or ".." in source.ref or source.ref.endswith((".lock", "/", ".")):
        detail = f"{source.ref[:256]!r} is no name of a branch, a tag or a commit"
        raise InvalidSpec("prepare template", InvalidReason.MISSING_TEMPLATE, detail)


def read_complaint(source: GitSource, lines: Sequence[str]) -> TemplatePrepareFailure:
    """What git's last lines mean. The first ``fatal:`` is the cause; an unknown one is the server's failure."""
    cause = next((line for line in lines if line.startswith(("fatal:", "ERROR:"))), lines[-1] if lines else "no reason")
    detail = f"cannot clone {source.url} at {source.ref}: {cause}"
    if any(word in line.lower() for word in _ABSENT for line in lines):
        return TemplatePrepareFailure(TemplateFault.SOURCE_MISSING, detail)
    return TemplatePrepareFailure(TemplateFault.REGISTRY_UNAVAILABLE, detail, retry=RetryClass.RETRYABLE)
