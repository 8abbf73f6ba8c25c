"""Archives for COPY steps: how much of one is decompressed, and for how long."""

from __future__ import annotations

import asyncio
import gzip
import io
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from firkin.engine import copied_archives
from firkin.engine.copied_archives import check_archive
from firkin.host.archives import read_entries
from firkin.law.build_steps import CopyStep
from firkin.law.errors import TemplateFault, TemplatePrepareFailure

MIB = 1 << 20


def step(path: Path, *, size: int = 0, behind: int = 0) -> CopyStep:
    """An archive of a file of zeros, with more zeros behind the end of the tar."""
    with gzip.open(path, "wb", compresslevel=1) as into:
        whole = io.BytesIO()
        with tarfile.open(fileobj=whole, mode="w") as tar:
            entry = tarfile.TarInfo("folder/app")
            entry.size = size
            tar.addfile(entry, io.BytesIO(bytes(size)))
            tar.addfile(tarfile.TarInfo("before"))  # not in order: what it should be called cannot be told
        into.write(whole.getvalue())
        for _ in range(behind // MIB):
            into.write(bytes(MIB))
    return CopyStep(archive=str(path), content="0" * 64, source="app", destination="/app")


@pytest.mark.parametrize("large", [{"size": 4 * MIB}, {"behind": 4 * MIB}], ids=["in a file", "behind the end"])
async def test_no_more_is_decompressed_than_the_disk_could_hold(tmp_path: Path, large: dict[str, int]) -> None:
    await check_archive(step(tmp_path / "fits", size=MIB), 2 * MIB)
    with pytest.raises(TemplatePrepareFailure, match="send less or ask for more disk") as caught:
        await check_archive(step(tmp_path / "large", **large), 2 * MIB)
    assert caught.value.fault is TemplateFault.SOURCE_CORRUPT


async def test_decompressing_ends_when_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    whole = copied_archives._digest

    def slow(step: CopyStep, meter: copied_archives._Meter) -> str:
        begun.set()
        go_on.wait(10)
        try:
            return whole(step, meter)
        except InterruptedError:
            ended.set()
            raise

    monkeypatch.setattr(copied_archives, "_digest", slow)
    wanted = step(tmp_path / "any", size=MIB)
    work = asyncio.ensure_future(check_archive(wanted, 2 * MIB))  # noqa: TID251 — cancelled and awaited below
    await asyncio.to_thread(begun.wait, 10)
    work.cancel()
    asyncio.get_running_loop().call_later(0.05, go_on.set)  # who gave up is held until the thread has ended
    with pytest.raises(asyncio.CancelledError):
        await work
    assert await asyncio.to_thread(ended.wait, 10)


async def test_an_archive_that_is_gone_is_told_without_its_place() -> None:
    missing = CopyStep(archive="/srv/state/gone", content="0" * 64, source="app", destination="/app")
    with pytest.raises(TemplatePrepareFailure) as caught:
        await check_archive(missing, MIB)
    assert str(caught.value) == "the uploaded archive cannot be read: No such file or directory"


def block(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


def record(key: str, value: str) -> bytes:
    rest = f" {key}={value}\n".encode()
    size = len(rest)
    while size != len(rest) + len(str(size)):
        size = len(rest) + len(str(size))
    return str(size).encode() + rest


def said(kind: bytes, *records: tuple[str, str]) -> bytes:
    """An extension header."""
    data = b"".join(record(*one) for one in records)
    return block("said", len(data), kind) + data + bytes(-len(data) % 512)


def holes(*records: tuple[str, str]) -> bytes:
    return said(tarfile.XHDTYPE, *records) + block("app", 512) + b"0\n".ljust(512, b"\0") + bytes(1024)


_VERSION_1 = (("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"))
_SMALL_BUT_HOSTILE = {
    "a member that is one hole": (holes(*_VERSION_1, ("GNU.sparse.realsize", str(1 << 60))), "sparse"),
    "a map that is none": (holes(("GNU.sparse.map", "a,b")), "sparse"),
    "a size of a hole in all that follow": (
        said(tarfile.XGLTYPE, ("GNU.sparse.realsize", str(1 << 60))) + holes(*_VERSION_1),
        "sparse",
    ),
    "a member that ends far behind the archive": (
        block("app", 1 << 60, b"Z") + bytes(10240),
        "middle of an entry|unexpected end",
    ),
    "a header of many records": (holes(*[("a", "")] * 1001), "more than 1000 records"),
    "many headers": (said(tarfile.XHDTYPE, ("a", "b")) * 2000, "more than 16 extension headers"),
    "a record without an end": (block("said", 9, tarfile.XHDTYPE) + b"9 path=ab".ljust(512, b"\0"), "is damaged"),
}


@pytest.mark.parametrize(("content", "told"), _SMALL_BUT_HOSTILE.values(), ids=_SMALL_BUT_HOSTILE)
async def test_a_small_archive_that_would_keep_its_reader_busy_is_refused(
    tmp_path: Path, content: bytes, told: str
) -> None:
    path = tmp_path / "hostile"
    path.write_bytes(gzip.compress(content))
    copied = CopyStep(archive=str(path), content="0" * 64, source="app", destination="/app")
    async with asyncio.timeout(5):
        with pytest.raises(TemplatePrepareFailure, match=told) as caught:
            await check_archive(copied, 10 << 30)
    assert caught.value.fault is TemplateFault.SOURCE_CORRUPT


async def test_an_archive_holds_so_many_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await check_archive(step(tmp_path / "any"), MIB)
    monkeypatch.setattr(copied_archives, "_MOST_ENTRIES", 1)
    with pytest.raises(TemplatePrepareFailure, match="are more than 1; send fewer at once"):
        await check_archive(step(tmp_path / "any"), MIB)


async def test_what_was_said_of_all_that_follow_is_not_gathered(tmp_path: Path) -> None:
    """Read by itself, as the thread's memory cannot be told from others'."""
    path = tmp_path / "gathering"
    path.write_bytes(b"".join(said(tarfile.XGLTYPE, (f"k{n}", "v" * 10_000)) + block("a") for n in range(200)))
    with open(path, "rb") as file:
        kept = [entry.pax_headers for entry, _ in read_entries(file, called="it")]
    assert (len(kept), kept[-1]) == (200, {})


async def test_archives_are_checked_while_every_shared_thread_is_taken(tmp_path: Path) -> None:
    gate, pool = threading.Event(), ThreadPoolExecutor(max_workers=1)
    asyncio.get_running_loop().set_default_executor(pool)
    busy = asyncio.get_running_loop().run_in_executor(None, gate.wait, 10)
    try:
        async with asyncio.timeout(5):
            await check_archive(step(tmp_path / "any"), MIB)
    finally:
        gate.set()
        await busy
