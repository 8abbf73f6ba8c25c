"""Why a request was turned down: one of the wire's codes and a sentence."""

from __future__ import annotations

import errno
import os

_CODES = {
    errno.ENOENT: "not_found",
    errno.EEXIST: "exists",
    errno.EISDIR: "is_directory",
    errno.ENOTDIR: "not_directory",
    errno.ENOTEMPTY: "not_empty",
    errno.ENOSPC: "no_space",
    errno.EDQUOT: "no_space",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.EBUSY: "permission",
    errno.ETXTBSY: "permission",
    errno.ELOOP: "loop",
    errno.EXDEV: "cross_device",
    errno.ENAMETOOLONG: "name_too_long",
    errno.EROFS: "read_only",
    errno.EMFILE: "limit",
    errno.ENFILE: "limit",
    errno.ENOMEM: "limit",
    errno.EAGAIN: "limit",
    errno.EMLINK: "limit",
    errno.EFBIG: "limit",
    errno.E2BIG: "limit",
    errno.ENXIO: "not_regular",
    errno.EINVAL: "invalid",
    errno.EOPNOTSUPP: "unsupported",
    errno.ECONNREFUSED: "refused",
    errno.ESRCH: "no_process",
}


class Refused(Exception):
    """Ends a stream with ERROR. `code` is one of `firkin.wire.operations.CODES`."""

    def __init__(self, code: str, message: str, path: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.path = path


def refusal(error: BaseException, path: str | None = None) -> Refused:
    """The refusal that tells of `error`, whatever it was."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        text = os.strerror(error.errno)
        return Refused(_CODES.get(error.errno, "internal"), f"{path}: {text}" if path else text, path)
    if isinstance(error, MemoryError):
        return Refused("limit", "the agent is out of memory", path)
    if isinstance(error, ValueError):  # NUL in a path, a name that no encoding can carry
        return Refused("invalid", str(error), path)
    return Refused("internal", type(error).__name__, path)
