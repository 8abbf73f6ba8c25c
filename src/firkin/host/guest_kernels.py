"""Kernels for microVMs: the cloud kernel of Debian or Ubuntu, fetched once and unpacked, or the operator's.

The package carries a compressed kernel and its drivers as modules. A
machine without hardware help decompresses slowly, so the kernel proper is taken
out once; and of three thousand modules a microVM needs a dozen.
"""

from __future__ import annotations

import asyncio
import hashlib
import lzma
import os
import re
import shutil
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path

from firkin.host.program_paths import find_program
from firkin.host.programs import Report, program_environment, run_program
from firkin.host.syncing import sync_filesystem
from firkin.law.errors import BackendFailure

# In this order, each after what it depends on.
WANTED_MODULES = (
    *("virtio_mmio", "virtio_console", "virtio_blk", "virtio_net", "virtio-rng"),
    *("erofs", "overlay"),
)
IMAGE, MODULES, RELEASE = "kernel", "modules", "release"
_UBUNTU = "linux-image-virtual"
_PACKAGES = {"x86_64": ("linux-image-cloud-amd64", _UBUNTU), "aarch64": ("linux-image-cloud-arm64", _UBUNTU)}
_DEPENDENCY = re.compile(r"^\s*Depends: (linux-image-[0-9]\S*)$", re.MULTILINE)
_MODULES_APART = re.compile(r"^\s*Depends: (linux-modules-[0-9]\S*)$", re.MULTILINE)  # as Ubuntu packs them
_FETCH = "fetch a guest kernel"
_HEAD = 1024
# vmlinux (ELF) and bzImage ("HdrS"); arm64's Image: Documentation/arch/x86/boot.rst, arm64/booting.rst.
_MARKS = {"x86_64": ((0, b"\x7fELF"), (0x202, b"HdrS")), "aarch64": ((56, b"ARM\x64"),)}
_DECOMPRESSORS = (
    (b"\x02\x21\x4c\x18", ("lz4", "-dc")),
    (b"\x28\xb5\x2f\xfd", ("zstd", "-dc")),
    (b"\x1f\x8b\x08", ("gzip", "-dc")),
)
_XZ = b"\xfd7zXZ\x00"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestKernel:
    """`image` is what a machine boots; `modules` are to be loaded in this order; `digest` is of all of them."""

    image: Path
    modules: tuple[Path, ...]
    release: str
    digest: str


def is_kernel(image: Path, machine: str = os.uname().machine) -> bool:
    """Whether a file begins as a kernel for `machine` does. What follows is for a boot to find out. Blocks, shortly."""
    try:
        with image.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return any(head[at : at + len(mark)] == mark for at, mark in _MARKS.get(machine, ((0, b""),)))


def known_kernel(folder: Path) -> GuestKernel | None:
    """The kernel in `folder`, or None when there is none yet. `BackendFailure` for one that lacks a part."""
    if not (folder / IMAGE).exists():
        return None
    try:
        modules = tuple(sorted((folder / MODULES).iterdir()))
        release = (folder / RELEASE).read_text().strip()
        content = hashlib.sha256()
        for path in (folder / IMAGE, *modules):
            with path.open("rb") as file:
                content.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise BackendFailure("read the guest kernel", str(folder), error.strerror or str(error)) from error
    return GuestKernel(image=folder / IMAGE, modules=modules, release=release, digest=content.hexdigest()[:16])


def can_fetch() -> str | None:
    """What this machine lacks to fetch a kernel by itself; None when nothing."""
    missing = [name for name in ("apt-get", "apt-cache", "dpkg-deb") if shutil.which(name) is None]
    if missing:
        return f"{missing[0]} is missing, so Debian's kernel cannot be fetched; give one: qemu.kernel=FOLDER"
    return None


async def fetch_kernel(folder: Path, report: Report, machine: str = os.uname().machine) -> GuestKernel:
    """Debian's or Ubuntu's kernel for `machine` in `folder`, from this machine's sources. `BackendFailure`."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".kernel-") as scratch:
        aside = Path(scratch) / "made"
        aside.mkdir()
        unpacked = Path(scratch) / "unpacked"
        for package in await _downloaded(Path(scratch), report, machine):
            await _run(["dpkg-deb", "--extract", str(package), str(unpacked)], Path(scratch))
        await _take_apart(unpacked, aside, Path(scratch))
        opened = os.open(aside, os.O_RDONLY | os.O_DIRECTORY)
        try:
            sync_filesystem(opened)
        finally:
            os.close(opened)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    made = known_kernel(folder)
    assert made is not None
    return made


async def _downloaded(scratch: Path, report: Report, machine: str) -> list[Path]:
    known = _PACKAGES.get(machine)
    if known is None:
        raise BackendFailure(_FETCH, machine, f"nobody packs a kernel for it; there are {', '.join(_PACKAGES)}")
    for wanted in known:
        if found := _DEPENDENCY.search(await _dependencies(wanted, scratch)):
            break
    else:
        detail = "no such package is known here; run apt-get update, or give a kernel: qemu.kernel=FOLDER"
        raise BackendFailure(_FETCH, " or ".join(known), detail)
    names = [found[1], *_MODULES_APART.findall(await _dependencies(found[1], scratch))]
    report(f"fetching {' and '.join(names)}")
    await _run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *names], scratch, inside=scratch)
    return sorted(scratch.glob("*.deb"))


async def _dependencies(package: str, scratch: Path) -> str:
    """In apt's words; none of one that it does not know."""
    tool = find_program("apt-cache", package="apt")
    done = await run_program([tool, "depends", package], env=program_environment(scratch))
    return done.stdout.decode(errors="replace") if done.exit_code == 0 else ""


async def _take_apart(unpacked: Path, into: Path, scratch: Path) -> None:
    image = next((unpacked / "boot").glob("vmlinu*"))
    release = image.name.partition("-")[2]
    (into / IMAGE).write_bytes(await kernel_proper(image, scratch))
    (into / RELEASE).write_text(release + "\n")
    (into / MODULES).mkdir()
    for number, (name, module) in enumerate((await modules_in_order(unpacked, scratch)).items()):
        (into / MODULES / f"{number:02}-{name}.ko").write_bytes(module)


async def kernel_proper(image: Path, scratch: Path) -> bytes:
    """The kernel proper: an ELF file on x86, an Image on arm64. What it is packed in is taken off. `BackendFailure`."""
    content = image.read_bytes()
    payload = _payload(content)
    return await _plain(image.name, payload, scratch, otherwise=content if payload is content else None)


async def _plain(name: str, packed: bytes, scratch: Path, *, otherwise: bytes | None = None) -> bytes:
    """A kernel or a module without its compression; `otherwise` where there is none that is known."""
    if _is_kernel(packed):
        return packed
    if packed.startswith(_XZ):
        return await asyncio.to_thread(_without_xz, name, packed)
    for magic, program in _DECOMPRESSORS:
        if packed.startswith(magic):
            payload, plain = scratch / "payload", scratch / "plain"
            payload.write_bytes(packed)
            plain.unlink(missing_ok=True)
            await _decompressed([*program, str(payload)], plain, scratch)
            return plain.read_bytes()
    if otherwise is not None:
        return otherwise
    raise BackendFailure(_FETCH, name, f"it is compressed in a way that is not known ({packed[:4].hex()})")


def _without_xz(name: str, packed: bytes) -> bytes:
    """By Python, because Debian's smallest systems from 13 on lack the program."""
    reader = lzma.LZMADecompressor()
    try:
        plain = reader.decompress(packed)
    except lzma.LZMAError as error:
        raise BackendFailure(_FETCH, name, f"it cannot be decompressed: {error}") from error
    if not reader.eof:
        raise BackendFailure(_FETCH, name, "it ends before what was compressed does")
    if not _is_kernel(plain):
        raise BackendFailure(_FETCH, name, "what was compressed is neither a kernel nor a module")
    return plain


def _payload(content: bytes) -> bytes:
    """What is in a bzImage (Linux, x86/boot: payload_offset) or an EFI zboot image (linux/pe.h), else `content`."""
    if content[0x202:0x206] == b"HdrS":
        offset, length = struct.unpack_from("<II", content, 0x248)
        start = ((content[0x1F1] or 4) + 1) * 512 + offset
        return content[start : start + length]
    if content[:2] == b"MZ" and content[4:8] == b"zimg":
        offset, length = struct.unpack_from("<II", content, 8)
        return content[offset : offset + length]
    return content


def _is_kernel(content: bytes) -> bool:
    return content[:4] == b"\x7fELF" or content[0x38:0x3C] == b"ARM\x64"  # arm64/booting: the header's magic


async def _decompressed(argv: list[str], target: Path, scratch: Path) -> None:
    """The size of the payload stands behind it, so a decompressor may complain of a tail; what counts is the kernel."""
    tool = find_program(argv[0], package=argv[0])
    shell = find_program("sh", package="dash")
    done = await run_program(
        [shell, "-c", '"$@" >"$OUT"', "sh", tool, *argv[1:]],
        env={**program_environment(scratch), "OUT": str(target)},
    )
    if not target.exists() or not _is_kernel(target.read_bytes()):
        raise BackendFailure(_FETCH, argv[0], done.last_line)


async def modules_in_order(unpacked: Path, scratch: Path) -> dict[str, bytes]:
    """Those of `WANTED_MODULES` that are modules there (others are built in), after what each needs, decompressed."""
    places = {path.name.partition(".ko")[0].replace("-", "_"): path for path in unpacked.rglob("*.ko*")}
    order: dict[str, bytes] = {}
    for name in WANTED_MODULES:
        await _add(name.replace("-", "_"), places, scratch, order)
    return order


async def _add(name: str, places: dict[str, Path], scratch: Path, order: dict[str, bytes]) -> None:
    path = places.get(name)
    if path is None or name in order:
        return
    module = await _plain(path.name, path.read_bytes(), scratch)
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    for need in (found[1].decode() if found else "").split(","):
        await _add(need.replace("-", "_"), places, scratch, order)
    order[name] = module


async def _run(argv: list[str], scratch: Path, *, inside: Path | None = None) -> bytes:
    tool = find_program(argv[0], package="apt" if argv[0].startswith("apt") else "dpkg")
    command = [tool, *argv[1:]]
    if inside is not None:
        command = [find_program("env", package="coreutils"), "--chdir", str(inside), *command]
    done = await run_program(command, env=program_environment(scratch))
    if done.exit_code != 0:
        raise BackendFailure(_FETCH, argv[0], done.last_line)
    return done.stdout
