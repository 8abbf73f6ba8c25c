"""Removing whole trees that strangers filled."""

from __future__ import annotations

import asyncio
from pathlib import Path

from firkin.law.errors import IoFailure

REMOVE_WITHIN_S = 600.0


async def remove_tree(path: Path) -> None:
    """Remove `path` and all below it. Missing is fine; `IoFailure` when something is left.

    By rm(1): it follows no link, leaves other file systems alone and, unlike
    Python's own, walks trees of any depth.
    """
    remover = await asyncio.create_subprocess_exec(
        "rm",
        "-rf",
        "--one-file-system",
        "--",
        str(path),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(REMOVE_WITHIN_S):
            _, complaint = await remover.communicate()
    except BaseException:
        if remover.returncode is None:
            remover.kill()
            await remover.wait()
        raise
    if remover.returncode != 0:
        raise IoFailure("remove", str(path), complaint.decode("utf-8", "replace").strip()[-500:])
