"""Systems built here by the distribution's own tools.

`debian`: a small Debian of the host's own release, from the package sources
that the host itself uses, so that it works with whatever mirror the machine has.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from firkin.host.program_paths import find_program
from firkin.host.programs import Report, program_environment, run_program
from firkin.law.errors import InvalidReason, InvalidSpec, RetryClass, TemplateFault, TemplatePrepareFailure

RECIPES = ("debian",)
_DEFAULT_SUITE = "bookworm"
_PACKAGES = ("bash", "python3", "sudo", "git", "curl", "procps", "ca-certificates")
_SETTINGS = ("Acquire::http", "Acquire::https", "Acquire::Retries", "Acquire::ForceIPv4")
_UNWANTED = ("doc", "man", "info", "lintian")


def recipe_digest(name: str) -> str:
    """What was asked for, with the week in it: a recipe is built anew once a week, from what its mirror has then."""
    if name not in RECIPES:
        detail = f"no recipe {name!r}; there are: {', '.join(RECIPES)}"
        raise InvalidSpec("prepare template", InvalidReason.MISSING_TEMPLATE, detail)
    now = datetime.now(UTC).isocalendar()
    return f"recipe:{name}:{_suite()}:{os.uname().machine}:{now.year}-W{now.week:02}"


async def build_recipe(root: Path, scratch: Path, report: Report) -> None:
    """Fill the empty folder `root`."""
    tool = find_program("mmdebstrap", package="mmdebstrap")
    suite = _suite()
    env = program_environment(scratch)
    sources = scratch / "sources"
    await _gather_sources(sources, suite)
    argv = [
        # its own mounts and processes: when it is killed, nothing of either is left
        *(find_program("unshare", package="util-linux"), "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *(tool, "--mode=root", "--variant=minbase", f"--include={','.join(_PACKAGES)}", "--skip=check/empty"),
        *(f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in _UNWANTED),
        *(f"--aptopt={line}" for line in await _apt_settings(env)),
        *(suite, str(root), *([str(sources)] if sources.stat().st_size else [])),
    ]
    report(f"building debian {suite}: {', '.join(_PACKAGES)}")
    done = await run_program(argv, env=env, report=report)
    sources.unlink()
    if done.exit_code != 0:
        raise read_complaint(done.complaints)


def _suite() -> str:
    release = platform.freedesktop_os_release()
    return release.get("VERSION_CODENAME", _DEFAULT_SUITE) if release.get("ID") == "debian" else _DEFAULT_SUITE


async def _apt_settings(env: dict[str, str]) -> list[str]:
    """How the host's apt reaches its mirrors: proxies and trust."""
    done = await run_program([find_program("apt-config", package="apt"), "dump"], env=env)
    lines = done.stdout.decode(errors="replace").splitlines()
    return [line.rstrip(";") for line in lines if line.startswith(_SETTINGS) and not line.endswith(' "";')]


async def _gather_sources(into: Path, suite: str) -> None:
    """The host's sources of `suite`, in apt's one-line form; those of others (drivers, editors) stay out."""
    listed = sorted(Path("/etc/apt/sources.list.d").glob("*"))
    found: list[str] = []
    for file in (Path("/etc/apt/sources.list"), *listed):
        if file.is_file() and file.suffix in (".list", ".sources"):
            read = one_line_sources if file.suffix == ".list" else deb822_sources
            found.extend(read(file.read_text(errors="replace"), suite))
    into.write_text("".join(f"{line}\n" for line in dict.fromkeys(found)))


def one_line_sources(text: str, suite: str) -> Iterator[str]:
    """The `deb` lines of `text` that serve `suite`, its updates or its security fixes."""
    for line in text.splitlines():
        words = line.split("#")[0].split()
        after_options = next((at for at, word in enumerate(words) if "://" in word or word.startswith("/")), None)
        if words[:1] == ["deb"] and after_options is not None and _serves(words[after_options + 1 :][:1], suite):
            yield " ".join(words)


def deb822_sources(text: str, suite: str) -> Iterator[str]:
    """The same of a `.sources` file, as one-line entries."""
    for paragraph in _paragraphs(text):
        fields = _fields(paragraph)
        suites = [one for one in fields.get("suites", "").split() if _serves([one], suite)]
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() == "no":
            continue
        key = fields.get("signed-by", "")
        options = f"[signed-by={key}] " if key.startswith("/") else ""
        for uri in fields.get("uris", "").split():
            yield from (f"deb {options}{uri} {one} {fields.get('components', '')}".strip() for one in suites)


def _serves(suites: list[str], suite: str) -> bool:
    return bool(suites) and suites[0] in (suite, f"{suite}-updates", f"{suite}-security")


def _paragraphs(text: str) -> Iterable[list[str]]:
    paragraph: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.strip():
            if not line.startswith("#"):
                paragraph.append(line)
        elif paragraph:
            yield paragraph
            paragraph = []


def _fields(paragraph: list[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in paragraph:
        if line[:1].isspace():
            fields[name] = f"{fields.get(name, '')}\n{line.strip()}"
        else:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields


def read_complaint(lines: tuple[str, ...]) -> TemplatePrepareFailure:
    """What mmdebstrap's last lines mean. The first line with ``E:`` is the cause; the later ones repeat it."""
    cause = next((line for line in lines if line.startswith("E:")), lines[-1] if lines else "no reason given")
    detail = f"the debian recipe failed: {cause}"
    return TemplatePrepareFailure(TemplateFault.REGISTRY_UNAVAILABLE, detail, retry=RetryClass.UNKNOWN)
