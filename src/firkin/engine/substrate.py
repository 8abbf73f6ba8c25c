"""Calls into a driver: each with a deadline, each failure told as ours."""

from __future__ import annotations

import asyncio
import errno
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from firkin.law.errors import BackendFailure, CapacityRejected, DeadlineExceeded

_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


@asynccontextmanager
async def substrate(
    operation: str, driver: str, *, within_s: float, sandbox_id: str | None = None
) -> AsyncIterator[None]:
    """`DeadlineExceeded` when the driver takes longer, `BackendFailure` for what the machine refuses it.

    Where that is one more open file, it is `CapacityRejected`: there will be some again.
    """
    limit = asyncio.timeout(within_s)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if limit.expired():
            raise DeadlineExceeded(operation, within_s, sandbox_id=sandbox_id) from error
        raise BackendFailure(operation, driver, str(error) or "the machine timed out") from error
    except OSError as error:
        if error.errno in _NO_DESCRIPTORS:
            raise _no_descriptors(operation) from error
        raise BackendFailure(operation, driver, str(error)) from error
    except BackendFailure as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _NO_DESCRIPTORS:
            raise _no_descriptors(operation) from error
        raise


def _no_descriptors(operation: str) -> CapacityRejected:
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CapacityRejected(operation, "open files of the server", requested=1, available=0, limit=most)
