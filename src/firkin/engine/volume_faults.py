"""What a failed system call on a volume's files means to whoever asked."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from firkin.law.errors import AlreadyExists, FileFault, FilesystemFailure, IoFailure, NotFound, ResourceKind

_FAULTS = {
    errno.EISDIR: (FileFault.IS_A_DIRECTORY, "it is a directory"),
    errno.ENOTDIR: (FileFault.NOT_A_DIRECTORY, "it is no directory"),
    errno.ENOTEMPTY: (FileFault.NOT_EMPTY, "something was put into it meanwhile"),
    errno.ENOSPC: (FileFault.NO_SPACE, "the volume is full"),
    errno.EDQUOT: (FileFault.NO_SPACE, "the volume is full"),
    errno.EACCES: (FileFault.PERMISSION, "it may not be changed"),
    errno.EPERM: (FileFault.PERMISSION, "it may not be changed"),
    errno.ELOOP: (FileFault.TOO_MANY_LINKS, "too many symlinks lead there"),
    errno.EXDEV: (FileFault.CROSS_DEVICE, "a symlink leads out of the directory"),
    errno.ENAMETOOLONG: (FileFault.NAME_TOO_LONG, "a name is longer than 255 bytes, or the path than 4095"),
    errno.ENXIO: (FileFault.NOT_REGULAR, "it is no regular file"),
    errno.EROFS: (FileFault.READ_ONLY, "the volume became read-only; see the host's kernel log"),
    errno.EBUSY: (FileFault.OTHER, "it cannot be replaced"),
    errno.EAGAIN: (FileFault.OTHER, "a program in a sandbox keeps changing or holding it; try again"),
    errno.EFBIG: (FileFault.LIMIT, "it is more than can be answered at once"),
    errno.EOPNOTSUPP: (FileFault.OTHER, "a symlink has no mode of its own"),
}


@contextmanager
def explained(operation: str, path: str) -> Iterator[None]:
    """An `OSError` in the block leaves it as the law's error about `path`."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(operation, ResourceKind.FILE, path) from error
    except FileExistsError as error:
        raise AlreadyExists(operation, ResourceKind.FILE, path) from error
    except OSError as error:
        fault, text = _FAULTS.get(error.errno or 0, (None, ""))
        if fault is None:
            raise IoFailure(operation, path, error.strerror or str(error)) from error
        raise FilesystemFailure(operation, fault, f"cannot {operation} {path[:200]!r}: {text}", path=path) from error
