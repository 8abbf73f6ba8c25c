"""A machine that was written down: memory, device state and disk of one instant, and what is needed to go on.

A store is a directory. Its manifest is written last, so a directory without one
is none. What it says is compared with what is here before anything is loaded:
device state is meaningless to another QEMU, kernel or shape of machine, and
half a memory is worse than none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from firkin.drivers.qemu.machines import Shape
from firkin.law.errors import SnapshotIntegrityFailure

MEMORY, STATE, DISK, MANIFEST = "memory", "state", "disk.img", "machine.json"
FORMAT = 1
_MOST_MANIFEST = 64 * 1024
_PIECE = 4 << 20
_BLOCK = 64 << 10
_ZEROS = bytes(_BLOCK)
_MOST_DRIFT = 0.002  # a second in eight minutes; measurements of one counter differ by a twentieth of that at most
_READ = "restore a machine"
_NEEDED = {"qemu": "QEMU", "kit": "guest kernel and agent", "root": "template content", "processor": "processor"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What must be the same where a stored machine goes on.

    `counter_khz` is the rate of the counter that its clock is made of, as measured; 0 for one of another kind.
    """

    qemu: str
    kit: str
    root: str
    processor: str
    shape: Shape
    counter_khz: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    folder: Path
    fit: Fit
    disk_bytes: int
    digests: dict[str, str]

    @property
    def memory(self) -> Path:
        return self.folder / MEMORY

    @property
    def memory_bytes(self) -> int:
        return self.fit.shape.memory_mib << 20

    def require_fit(self, here: Fit) -> None:
        """`SnapshotIntegrityFailure` that names the first part that is another here."""
        for name, said in _NEEDED.items():
            was, now = getattr(self.fit, name), getattr(here, name)
            if was != now:
                detail = f"it needs the {said} {was or 'of its host'}, and here is {now or 'another'}"
                raise SnapshotIntegrityFailure(_READ, None, f"{detail}; prepare the template here and begin anew")
        if self.fit.shape != here.shape:
            detail = f"it is of a machine with {_told(self.fit.shape)}, and one with {_told(here.shape)} is asked for"
            raise SnapshotIntegrityFailure(_READ, None, detail)
        if abs(self.fit.counter_khz - here.counter_khz) > here.counter_khz * _MOST_DRIFT:
            detail = (
                f"its clock counts with a processor's {self.fit.counter_khz} kHz, and would be wrong with the"
                f" {here.counter_khz} kHz here; prepare the template here and begin anew"
            )
            raise SnapshotIntegrityFailure(_READ, None, detail)

    def require_whole(self, name: str) -> None:
        """Read a file and compare it with its digest. Blocks. `SnapshotIntegrityFailure`, `OSError`."""
        require_digest(self.folder / name, self.digests.get(name))


def _told(shape: Shape) -> str:
    return f"{shape.memory_mib} MiB, {shape.vcpus} processors and {shape.accelerator}"


def is_store(folder: Path) -> bool:
    return (folder / MANIFEST).exists()


def read_store(folder: Path) -> Store:
    """Raises `SnapshotIntegrityFailure` for what is none, or not whole as far as sizes tell. Blocks, shortly."""
    try:
        with (folder / MANIFEST).open("rb") as file:
            said: dict[str, Any] = json.loads(file.read(_MOST_MANIFEST))
        if said["format"] != FORMAT:
            detail = f"it is of the format {said['format']!r}; {FORMAT} is known here"
            raise SnapshotIntegrityFailure(_READ, None, detail)
        shape = Shape(**said["shape"])
        fit = Fit(
            **{name: str(said[name]) for name in _NEEDED}, shape=shape, counter_khz=int(said.get("counter_khz", 0))
        )
        sizes = {name: int(size) for name, size in said["sizes"].items()}
        digests = {name: str(digest) for name, digest in said["digests"].items()}
        disk_bytes = int(said["disk_bytes"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SnapshotIntegrityFailure(_READ, None, f"its {MANIFEST} cannot be read: {error}") from error
    for name in (MEMORY, STATE, DISK):
        try:
            found = os.stat(folder / name, follow_symlinks=False).st_size
        except OSError as error:
            detail = f"its file {name!r} cannot be read: {error.strerror}"
            raise SnapshotIntegrityFailure(_READ, None, detail) from error
        if found != sizes.get(name):
            detail = f"its file {name!r} has {found} bytes; {sizes.get(name)} were written"
            raise SnapshotIntegrityFailure(_READ, None, detail)
    return Store(folder=folder, fit=fit, disk_bytes=disk_bytes, digests=digests)


def finish_store(folder: Path, fit: Fit, disk_bytes: int) -> dict[str, str]:
    """Everything else is there: write the manifest. Returns its digests. Blocks as long as reading the memory takes."""
    shape = asdict(fit.shape)
    digests = {name: digest_of(folder / name) for name in (MEMORY, STATE)}
    said = {
        "format": FORMAT,
        **{name: getattr(fit, name) for name in _NEEDED},
        "shape": shape,
        "counter_khz": fit.counter_khz,
        "disk_bytes": disk_bytes,
        "sizes": {name: os.stat(folder / name).st_size for name in (MEMORY, STATE, DISK)},
        "digests": digests,
    }
    aside = folder / f".{MANIFEST}"
    with aside.open("w") as file:
        json.dump(said, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(folder / MANIFEST)
    return digests


def require_digest(path: Path, digest: str | None) -> None:
    """`SnapshotIntegrityFailure` for a file that has another. Blocks."""
    if digest_of(path) != digest:
        raise SnapshotIntegrityFailure(_READ, None, f"its file {path.name!r} is damaged: it is not what was written")


def digest_of(path: Path) -> str:
    """Of the content, whatever of its zeros are holes: a copy may have other ones."""
    content = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        content.update(str(size).encode())
        buffer = memoryview(bytearray(_PIECE))
        done = 0
        for start, end in data_of(file.fileno(), size):
            position = max(done, start - start % _BLOCK)
            done = end + -end % _BLOCK
            while position < min(done, size):
                got = os.preadv(file.fileno(), [buffer[: min(_PIECE, done - position)]], position)
                if got <= 0:
                    break
                _add_blocks(content, buffer[:got], position)
                position += got
    return content.hexdigest()


def _add_blocks(content: hashlib._Hash, piece: memoryview, position: int) -> None:
    for offset in range(0, len(piece), _BLOCK):
        block = piece[offset : offset + _BLOCK]
        if block != _ZEROS[: len(block)]:
            content.update(f"\n{position + offset} ".encode())
            content.update(block)


def data_of(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a sparse file has data."""
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:
            return
        position = min(size, os.lseek(fd, start, os.SEEK_HOLE))
        yield start, position
