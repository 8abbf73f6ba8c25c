"""Isolation by a kernel of its own that runs as a process: gVisor's runsc."""
