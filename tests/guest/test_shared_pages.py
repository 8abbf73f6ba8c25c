"""Pages that are dropped change nothing that a process can read, and are its own no longer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from firkin.guest import shared_pages
from tests.guest.conftest import SOURCES

_BEGIN = """
import ctypes, fcntl, gc, hashlib, os, random, re, signal, sys
sys.path.insert(0, {sources!r})
from firkin.guest.rehearsal import rehearse
from firkin.guest.shared_pages import share

PROC = os.open("/proc", os.O_PATH)

def own_kb():
    with open("/proc/self/smaps_rollup") as file:
        return int(re.search(r"Private_Dirty: +(\\d+)", file.read())[1])

def shared():
    rehearse()
    pages = share(PROC)
    assert pages is not None
    return pages

def in_fork(call):
    pid = os.fork()
    if not pid:
        try:
            call()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""

only_here = pytest.mark.skipif(
    os.uname().machine not in shared_pages._CODE, reason="there is no machine code for this processor"
)


def _run(script: str) -> str:
    said = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _BEGIN.format(sources=SOURCES) + script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    return said.stdout


def test_the_machine_code_is_what_its_source_says(tmp_path: Path) -> None:
    if os.uname().machine != "x86_64" or not all(map(shutil.which, ("as", "objcopy", "nm"))):
        pytest.skip("no assembler for x86-64 is installed (Debian: binutils)")
    source = Path(shared_pages.__file__).with_suffix(".s")
    made, code = tmp_path / "code.o", tmp_path / "code.bin"
    subprocess.run(["as", "-o", made, source], check=True, timeout=20)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", made, code], check=True, timeout=20)
    assert code.read_bytes() == shared_pages._CODE["x86_64"]
    names = subprocess.run(["nm", made], check=True, timeout=20, capture_output=True, text=True).stdout
    places = {name: int(at, 16) for at, name in re.findall(r"^(\w+) t (move|give_back)$", names, re.MULTILINE)}
    assert places == {"move": shared_pages._MOVE, "give_back": shared_pages._GIVE_BACK}


@only_here
def test_a_fork_that_took_back_what_it_wrote_has_the_pages_to_itself_no_longer() -> None:
    said = _run("""
block = (ctypes.c_char * (1 << 20))()
pages = shared()

def work():
    pages.begin(PROC)
    pages.share_again()
    before = own_kb()
    for at in range(0, len(block), 4096):
        block[at] = b"x"
    written = own_kb()
    for at in range(0, len(block), 8192):
        block[at] = b"\\0"
    given = pages.share_again()
    print(written - before, given, written - own_kb(), bytes(block) == (b"\\0" * 4096 + b"x" + b"\\0" * 4095) * 128)

in_fork(work)
""")
    wrote_kb, given, freed_kb, same = said.split()
    assert int(wrote_kb) >= 1000
    assert int(given) >= 128
    assert int(freed_kb) >= 500
    assert same == "True"


@only_here
def test_an_interpreter_that_shares_again_and_again_goes_on_as_before() -> None:
    said = _run("""
pages = shared()

def digest(seed, often):
    chance = random.Random(seed)
    kept, known = [], {}
    for turn in range(often):
        kept.append(bytes(chance.randrange(3000)))
        known[str(turn)] = [chance.random() for _ in range(5)]
        if chance.random() < 0.4:
            kept.pop(chance.randrange(len(kept)))
        yield turn
    yield hashlib.sha256(repr((kept, known)).encode()).hexdigest()

def plain():
    *_, last = digest(7, 400)
    return last

def work():
    pages.begin(PROC)
    expected = plain()
    for said in digest(7, 400):
        pages.share_again()
        if said in (50, 150, 250, 350):
            gc.collect()
            rehearse()
    print(said == expected)

in_fork(work)
""")
    assert said == "True\n"


@only_here
def test_what_lies_where_the_file_does_no_longer_is_left_as_it_is() -> None:
    said = _run("""
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
size = 1 << 20
def anonymous(at=None, flags=0x22):
    return libc.mmap(ctypes.c_void_p(at), ctypes.c_long(size), 3, flags, -1, ctypes.c_long(0))
place = anonymous()
ctypes.memset(place, 7, size)
pages = shared()

def work():
    pages.begin(PROC)
    assert anonymous(place, 0x32) == place
    assert ctypes.string_at(place, size) == bytes(size)
    ctypes.memset(place, 7, size)
    pages.share_again()
    print(ctypes.string_at(place, size) == b"\\7" * size)
    libc.munmap(ctypes.c_void_p(place), ctypes.c_long(size))
    print(pages.share_again() >= 0)

in_fork(work)
""")
    assert said == "True\nTrue\n"


@only_here
def test_memory_that_forks_must_not_have_stays_what_it_is() -> None:
    said = _run("""
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
size = 1 << 16
def anonymous(advice):
    place = libc.mmap(None, ctypes.c_long(size), 3, 0x22, -1, ctypes.c_long(0))
    ctypes.memset(place, 7, size)
    assert libc.madvise(ctypes.c_void_p(place), ctypes.c_long(size), advice) == 0
    return place
wiped, absent = anonymous(18), anonymous(10)
pages = shared()

def work():
    pages.begin(PROC)
    print(ctypes.string_at(wiped, size) == bytes(size))
    with open("/proc/self/maps") as file:
        print(any(line.startswith(f"{absent:x}-") for line in file))

in_fork(work)
print(ctypes.string_at(wiped, size) == b"\\7" * size, ctypes.string_at(absent, size) == b"\\7" * size)
""")
    assert said == "True\nFalse\nTrue True\n"


@only_here
def test_no_two_forks_draw_the_same_random_numbers() -> None:
    said = _run("""
os.urandom(16)
pages = shared()
for _ in range(3):
    in_fork(lambda: print(os.urandom(16).hex()))
""")
    assert len(set(said.split())) == 3


@only_here
def test_nobody_can_change_the_file_that_forks_share() -> None:
    said = _run("""
pages = shared()
image = pages._image
for attempt in (
    lambda: os.pwrite(image, b"x", 0),
    lambda: os.ftruncate(image, 0),
    lambda: os.ftruncate(image, 1 << 30),
    lambda: fcntl.fcntl(image, fcntl.F_ADD_SEALS, 0),
):
    try:
        attempt()
        print("changed")
    except OSError as error:
        print(error.strerror)
""")
    assert said == "Operation not permitted\n" * 4


@only_here
def test_a_signal_of_a_child_is_never_lost() -> None:
    said = _run("""
pages = shared()

def work():
    pages.begin(PROC)
    reading, writing = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(writing)
    ended = []
    signal.signal(signal.SIGCHLD, lambda number, frame: ended.append(number))
    for turn in range(200):
        pid = os.fork()
        if not pid:
            os._exit(0)
        while not ended:
            pages.share_again()
        os.waitpid(pid, 0)
        assert os.read(reading, 100) == bytes([signal.SIGCHLD])
        ended.clear()

in_fork(work)
print("all")
""")
    assert said == "all\n"


_WAITS = """
import select, time
pages = shared()
reading, writing = os.pipe()
epoll = select.epoll()
epoll.register(reading, select.EPOLLIN)

def timed(patience):
    began = time.monotonic()
    most = pages.rest(epoll.fileno(), patience)
    return round(time.monotonic() - began, 2), most
"""


@only_here
def test_a_rest_lasts_until_there_is_something_to_do_and_says_how_long_that_was_at_most() -> None:
    said = _run(
        _WAITS
        + """
def work():
    pages.begin(PROC)
    for patience in (0.0, 0.125, 1.0, 2.5):
        took, most = timed(patience)
        assert most == min(patience, int(patience) or patience), (patience, most)
        assert most - 0.01 <= took < most + 0.5, (patience, took)
    pid = os.fork()
    if not pid:
        time.sleep(1.25)
        os.write(writing, b"x")
        os._exit(0)
    took, most = timed(50.0)
    assert 1.2 <= took <= most == 2, (took, most)
    assert epoll.poll(0) == [(reading, select.EPOLLIN)]
    for patience in (-1, 50.0):
        took, _ = timed(patience)
        assert took < 0.5
    os.waitpid(pid, 0)

in_fork(work)
"""
    )
    assert said == ""


@only_here
def test_a_signal_ends_a_rest_unless_it_is_held_back() -> None:
    said = _run(
        _WAITS
        + """
def work():
    pages.begin(PROC)
    heard = []
    signal.signal(signal.SIGALRM, lambda number, frame: heard.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    took, _ = timed(-1)
    assert heard and 0.1 < took < 2
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    took, _ = timed(0.5)
    assert 0.45 < took < 2 and len(heard) == 1
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    assert len(heard) == 2

in_fork(work)
"""
    )
    assert said == ""


def test_a_processor_without_its_code_keeps_its_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_pages, "_CODE", {})
    assert shared_pages.share(-1) is None


def test_a_kernel_without_a_map_of_pages_leaves_the_memory_where_it_was(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_PATH)
    try:
        assert shared_pages.share(folder) is None
    finally:
        os.close(folder)
