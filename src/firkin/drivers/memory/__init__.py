"""Sandboxes without a kernel: for tests, documentation and demonstrations.

An instance is an in-process computer with files, accounts, processes and a
small shell. It speaks the agent's side of the wire, so everything above a
driver runs unchanged on it. It isolates nothing: no program of the host is ever
started and no file of the host is ever written, so there is nothing to isolate.
"""

from __future__ import annotations

from firkin.drivers.memory.driver import MemoryDriver
from firkin.drivers.memory.roots import MemoryRootPreparer

__all__ = ["MemoryDriver", "MemoryRootPreparer"]
