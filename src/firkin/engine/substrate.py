"""Calls into a driver: each with a deadline, each failure told as ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from firkin.law.errors import BackendFailure, DeadlineExceeded


@asynccontextmanager
async def substrate(
    operation: str, driver: str, *, within_s: float, sandbox_id: str | None = None
) -> AsyncIterator[None]:
    """`DeadlineExceeded` when the driver takes longer, `BackendFailure` for what the machine refuses it."""
    limit = asyncio.timeout(within_s)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if limit.expired():
            raise DeadlineExceeded(operation, within_s, sandbox_id=sandbox_id) from error
        raise BackendFailure(operation, driver, str(error) or "the machine timed out") from error
    except OSError as error:
        raise BackendFailure(operation, driver, str(error)) from error
