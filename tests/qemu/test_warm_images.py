"""The parts of an image of a process, each alone: machine code, threads that are held, memory, and which are kept."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from firkin.drivers.qemu import memory
from firkin.drivers.qemu.machines import Shape
from firkin.drivers.qemu.memory import PAGE, own_ranges
from firkin.drivers.qemu.stores import MEMORY, STATE, Fit, Store
from firkin.drivers.qemu.warm import private_memory, revival, warm_images
from firkin.drivers.qemu.warm.held_threads import HeldThread, Registers, can_hold, held
from firkin.drivers.qemu.warm.private_memory import Content, Piece, is_sealed, own_parts, pieces, volatile_starts
from firkin.drivers.qemu.warm.process_images import Picture, ProcessImage
from firkin.drivers.qemu.warm.revival import Revival
from firkin.drivers.qemu.warm.warm_images import WarmImages
from firkin.host.file_marks import FileMark
from firkin.law.resources import GIB

here = pytest.mark.skipif(not can_hold(), reason="images of processes are for x86-64")
as_root = pytest.mark.host


def test_the_machine_code_is_what_its_source_says(tmp_path: Path) -> None:
    if os.uname().machine != "x86_64" or not all(map(shutil.which, ("as", "objcopy"))):
        pytest.skip("no assembler for x86-64 is installed (Debian: binutils)")
    source = Path(revival.__file__).with_suffix(".s")
    made, code = tmp_path / "code.o", tmp_path / "code.bin"
    subprocess.run(["as", "-o", made, source], check=True, timeout=20)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", made, code], check=True, timeout=20)
    assert code.read_bytes() == revival._CODE.ljust(revival._CODE_BYTES, b"\0")


# -- a program that becomes -----------------------------------------------------------------------


def _run(made: Revival) -> int:
    program = os.memfd_create("revival")
    try:
        made.write(program)
        pid = os.fork()
        if pid == 0:
            os.execve(program, ["revival"], {})
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(program)


def _exit_code(status: int, **registers: int) -> HeldThread:
    """A thread that was interrupted in exit_group(2), whose arguments are in its registers."""
    zeros = dict.fromkeys(Registers._fields, 0)
    before = {"rax": -516 & (1 << 64) - 1, "orig_rax": 231, "rdi": status}
    return HeldThread(
        own_id=1,
        registers=Registers(**{**zeros, **before, **registers}),
        vectors=_vectors(features=0b11, in_use=0b11, size=576),
        blocked=0,
        restartable=(0, 0, 0),
    )


def _vectors(*, features: int, in_use: int, size: int) -> bytes:
    said = bytearray(size)
    struct.pack_into("=H", said, 0, 0x37F)
    struct.pack_into("=I", said, 24, 0x1F80)
    struct.pack_into("=Q", said, 464, features)
    struct.pack_into("=Q", said, 512, in_use)
    return bytes(said)


@here
def test_a_process_goes_on_with_the_call_that_another_was_interrupted_in() -> None:
    made = Revival()
    code = made.data(b"\x0f\x05\xf4")  # syscall, and an instruction that ends a process which comes so far
    made.become(_exit_code(42, rip=code + 2))
    assert _run(made) == 42


@here
def test_what_cannot_be_done_ends_the_process() -> None:
    made = Revival()
    made.duplicate(77, 78)  # there is none
    made.become(_exit_code(0))
    assert _run(made) == revival.FAILED


@here
def test_a_descriptor_elsewhere_than_expected_ends_the_process(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    made = Revival()
    made.open(os.fsencode(tmp_path / "file"), 2)
    made.become(_exit_code(0))
    assert _run(made) == revival.FAILED


@here
def test_vectors_are_as_long_as_what_is_in_use() -> None:
    def size(features: int, in_use: int, length: int) -> tuple[int, int, int]:
        vectors = revival._vectors(_vectors(features=features, in_use=in_use, size=length))
        magic, extended, kept, told = struct.unpack_from("=IIQI", vectors, 464)
        assert (magic, extended, len(vectors)) == (0x46505853, told + 4, told + 4)
        assert vectors[-4:] == 0x46505845.to_bytes(4, "little")
        assert struct.unpack_from("=Q", vectors, 512)[0] & ~kept == 0
        return told, kept, struct.unpack_from("=Q", vectors, 512)[0]

    assert size(0b111, 0b011, 832) == (832, 0b111, 0b011)
    assert size(0x2E7, 0x203, 2696) == (832, 0b111, 0b011), "protection keys are every process's own"
    assert size(0x2E7, 0x2A3, 2696) == (2696, 0xE7, 0xA3), "AVX-512 has its whole length"
    assert size(0x602E7, 0x2E3, 11008) == (2696, 0xE7, 0xE3), "tiles that nobody uses are left out"
    assert size(0b11, 0b11, 576) == (576, 0b11, 0b11), "a processor without AVX"


# -- threads --------------------------------------------------------------------------------------


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    script = (
        "import threading, sys\nfor _ in 'ab': threading.Thread(target=sys.stdin.readline).start()\nprint(flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


@here
@as_root
def test_threads_are_read_and_let_go(other: subprocess.Popen[bytes]) -> None:
    with held(other.pid) as process:
        assert len(process.threads) == 3
        assert process.threads[0].own_id == other.pid
        assert all("T" in state or "t" in state for state in _states(other.pid))
        assert {thread.registers.cs for thread in process.threads} == {0x33}
    assert not any("t" in state for state in _states(other.pid))
    assert other.stdin is not None
    other.stdin.close()
    assert other.wait(10) == 0


def _states(pid: int) -> list[str]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks]


@here
@as_root
def test_a_process_that_is_gone_is_said_to_be(other: subprocess.Popen[bytes]) -> None:
    other.kill()
    other.wait()
    with pytest.raises(OSError, match=r"."), held(other.pid):
        raise AssertionError("it is gone")


@here
@as_root
def test_what_somebody_else_holds_is_left_alone(other: subprocess.Popen[bytes]) -> None:
    told: list[int] = []

    def second() -> None:
        try:
            with held(other.pid):
                told.append(0)
        except OSError as error:
            told.append(error.errno or -1)

    with held(other.pid):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert told == [errno.EPERM]
        assert all("t" in state for state in _states(other.pid))


@here
@as_root
def test_no_image_is_taken_of_a_process_that_is_no_machine(other: subprocess.Popen[bytes], tmp_path: Path) -> None:
    for name in ("root", "disk"):
        (tmp_path / name).touch()
    picture = Picture(other.pid, tmp_path / "root", tmp_path / "disk")
    before = set(os.listdir("/proc/self/fd"))
    try:
        with pytest.raises(OSError, match=r"."):
            picture.prepare()
        with pytest.raises(OSError, match=r"."):
            picture.take(0)
        with pytest.raises(OSError, match=r"."):
            picture.image()
    finally:
        picture.drop()
    assert set(os.listdir("/proc/self/fd")) == before
    assert other.poll() is None


# -- memory ---------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


@pytest.fixture
def region() -> Iterator[int]:
    """The address of 3,000 pages, some way into which a few were written to."""
    size = 3000 * PAGE
    address: int = _libc.mmap(None, size, 3, 0x22, -1, 0)
    for number in (0, 1, 700, 701, 2999):
        ctypes.memset(address + number * PAGE, 7, 1)
    yield address
    _libc.munmap(address, size)


@here
@as_root
@pytest.mark.parametrize("kernel", ["of today", "before 6.7"])
def test_a_process_s_own_pages_are_found(region: int, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernel == "before 6.7":
        monkeypatch.setattr(memory, "_PAGEMAP_SCAN", 0xC0606611)  # a number that no kernel knows
    found = list(own_ranges(os.getpid(), [(region, region + 3000 * PAGE)]))
    numbers = {(start - region) // PAGE + more for start, end in found for more in range((end - start) // PAGE)}
    assert numbers == {0, 1, 700, 701, 2999}


@here
@as_root
def test_what_lies_close_together_is_one_part(region: int) -> None:
    piece = Piece(region, region + 3000 * PAGE, 3, False, 0, (0, 0), "")
    ((_, parts),) = own_parts(os.getpid(), [piece])
    assert [((start - region) // PAGE, (end - region) // PAGE) for start, end in parts] == [
        (0, 2),
        (700, 702),
        (2999, 3000),
    ]
    halves = [piece._replace(end=region + 701 * PAGE), piece._replace(start=region + 701 * PAGE)]
    first, second = [parts for _, parts in own_parts(os.getpid(), halves)]
    assert first[-1] == (region + 700 * PAGE, region + 701 * PAGE)
    assert second[0] == (region + 701 * PAGE, region + 702 * PAGE)


@here
def test_all_mappings_are_read() -> None:
    found = pieces(os.getpid())
    assert [piece.start for piece in found] == sorted(piece.start for piece in found)
    assert any(piece.name == "[vdso]" and piece.is_the_kernels for piece in found)
    assert not any(piece.name == "[vsyscall]" for piece in found)
    assert any(piece.file != (0, 0) and piece.protection & 4 for piece in found)


@here
@as_root
def test_what_the_kernel_wipes_in_forks_is_known(region: int) -> None:
    assert region not in volatile_starts(os.getpid())
    assert _libc.madvise(region, 3000 * PAGE, 18) == 0  # MADV_WIPEONFORK
    assert region in volatile_starts(os.getpid())


@here
@as_root
def test_more_mappings_or_ranges_than_are_expected_are_refused(region: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_memory, "_MOST_RANGES", 2)
    piece = Piece(region, region + 3000 * PAGE, 3, False, 0, (0, 0), "")
    with pytest.raises(OSError, match="more memory"):
        list(own_parts(os.getpid(), [piece]))
    monkeypatch.setattr(private_memory, "_MOST_PIECES", 3)
    with pytest.raises(OSError, match="more mappings"):
        pieces(os.getpid())


@here
@as_root
def test_a_content_grows_is_sealed_and_holds_what_was_copied(region: int) -> None:
    content = Content(0)
    try:
        content.copy(
            os.getpid(), [(region, region + PAGE), (region, region + 3000 * PAGE)]
        )  # more than it had room for
        assert content.seal() == 3001 * PAGE
        assert is_sealed(content.file)
        assert os.pread(content.file, 1, 701 * PAGE) == b"\x07"
        with pytest.raises(PermissionError):
            os.pwrite(content.file, b"1", 0)
    finally:
        os.close(content.file)


def test_more_memory_than_is_expected_is_refused() -> None:
    with pytest.raises(OSError, match="more memory"):
        Content(1 << 40)


# -- which are kept -------------------------------------------------------------------------------


@pytest.fixture
def memory_left(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    left = [8 * GIB]
    monkeypatch.setattr(warm_images, "meminfo", lambda name: left[0])
    return left


def _image() -> ProcessImage:
    return ProcessImage(contents=(os.memfd_create("c"),), program=os.memfd_create("p"), own_bytes=0, files={})


def _store(folder: Path, name: str) -> Store:
    folder = folder / name
    folder.mkdir(exist_ok=True)
    (folder / MEMORY).write_text(name)
    shape = Shape(memory_bytes=1 << 28, vcpus=1, accelerator="tcg")
    fit = Fit(qemu="q", kit="k", root="r", processor="p", shape=shape)
    return Store(folder=folder, fit=fit, disk_bytes=1, digests={MEMORY: name, STATE: name})


@pytest.fixture
def images(memory_left: list[int]) -> Iterator[WarmImages]:
    kept = WarmImages(2)
    before = set(os.listdir("/proc/self/fd"))
    yield kept
    kept.drop_idle(all_of_them=True)
    assert set(os.listdir("/proc/self/fd")) == before


@here
def test_those_that_were_used_stay_longest(images: WarmImages, tmp_path: Path) -> None:
    base, one, two = (_store(tmp_path, name) for name in ("base", "one", "two"))
    images.add(base.folder, base.digests, _image())
    lent = images.lend(base)
    assert lent is not None
    for store in (one, two):
        images.add(store.folder, store.digests, _image())
    assert [images.has(store) for store in (base, one, two)] == [True, False, True]
    os.fstat(lent.image.program)  # still the borrower's
    images.drop(base)
    os.fstat(lent.image.program)
    lent.image.close()
    assert images.lend(base) is None


@here
def test_a_stand_in_goes_with_its_image(images: WarmImages, tmp_path: Path) -> None:
    asked, instead = _store(tmp_path, "asked"), _store(tmp_path, "instead")
    images.add(instead.folder, instead.digests, _image())
    images.stand_in(asked, instead)
    lent = images.lend(asked)
    assert lent is not None
    assert lent.store == instead
    lent.image.close()
    images.drop(asked)
    assert not instead.folder.exists()
    assert asked.folder.exists()


@here
def test_a_stand_in_without_an_image_is_removed(images: WarmImages, tmp_path: Path) -> None:
    asked, instead = _store(tmp_path, "asked"), _store(tmp_path, "instead")
    images.stand_in(asked, instead)
    assert not instead.folder.exists()
    assert images.lend(asked) is None


@here
def test_a_host_short_of_memory_keeps_none(images: WarmImages, tmp_path: Path, memory_left: list[int]) -> None:
    store = _store(tmp_path, "one")
    images.add(store.folder, store.digests, _image())
    images.drop_idle()
    assert images.has(store)
    memory_left[0] = GIB // 2
    assert not images.wants("tcg")
    images.drop_idle()
    assert not images.has(store)


@here
def test_none_is_taken_where_they_are_not_wanted(images: WarmImages, monkeypatch: pytest.MonkeyPatch) -> None:
    assert images.wants("tcg")
    assert not images.wants("kvm")
    assert not WarmImages(0).wants("tcg")
    for _ in range(3):
        images.failed()
    assert not images.wants("tcg"), "a host on which none ever begins from one"
    monkeypatch.setattr(warm_images, "_NONE_FOR_S", 0.0)
    for worked in (False, False, True, False, False):
        (images.worked if worked else images.failed)()
    assert not images.wants("tcg"), "for a while"
    images._none_until = 0.0
    assert images.wants("tcg")


@here
def test_an_image_of_replaced_files_is_not_lent(images: WarmImages, tmp_path: Path) -> None:
    library = tmp_path / "library.so"
    library.write_text("old")
    mark = FileMark.of(library.stat())
    store = _store(tmp_path, "one")
    made = _image()
    files = {str(library): mark}
    made = ProcessImage(contents=made.contents, program=made.program, own_bytes=0, files=files)
    images.add(store.folder, store.digests, made)
    lent = images.lend(store)
    assert lent is not None
    lent.image.close()
    other = tmp_path / "new"
    other.write_text("new")
    other.rename(library)
    assert images.lend(store) is None
    assert not images.has(store)
