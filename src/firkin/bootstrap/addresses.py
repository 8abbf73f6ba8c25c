"""Whether an address can be listened on, asked before a server opens or makes anything."""

from __future__ import annotations

import errno
import socket

from firkin.law.errors import FirkinError, InvalidReason, InvalidSpec, IoFailure

# The machine may mend these; any other failure is of the address as it was written.
_NOT_NOW = (errno.EADDRINUSE, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOBUFS)


def require_address(host: str, port: int) -> None:
    """Bind it and let go again. `InvalidSpec` for a host that is none of ours, `IoFailure` for a taken port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen(1)  # beside a listener with SO_REUSEADDR only this fails
    except OSError as error:
        raise _failure(host, port, error) from None


def _failure(host: str, port: int, error: OSError) -> FirkinError:
    why = error.strerror or str(error)
    if not isinstance(error, socket.gaierror) and error.errno in _NOT_NOW:
        return IoFailure("listen on", f"{host}:{port}", why)
    detail = f"cannot listen on {host}:{port}: {why}; --host takes an address of this machine"
    return InvalidSpec("listen", InvalidReason.INVALID_SETTINGS, detail)
