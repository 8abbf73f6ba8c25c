from tests.qemu.homes import qemu_home

__all__ = ["qemu_home"]
