"""Processes of QEMU that go on where another one stood, with all that it had translated."""
