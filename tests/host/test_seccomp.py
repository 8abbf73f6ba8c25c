from __future__ import annotations

import os
from pathlib import Path

from firkin.host import seccomp


def test_the_filter_is_compiled_once_and_then_read(tmp_path: Path) -> None:
    first = seccomp.cached_filter(tmp_path)
    files = list(tmp_path.iterdir())
    stamp = files[0].stat().st_mtime_ns
    assert seccomp.cached_filter(tmp_path) == first
    assert list(tmp_path.iterdir()) == files == [first]
    assert first.stat().st_mtime_ns == stamp
    assert first.stat().st_size % 8 == 0


def test_no_dangerous_call_is_on_the_list() -> None:
    dangerous = """mount umount umount2 unshare setns pivot_root keyctl add_key request_key bpf io_uring_setup
        io_uring_enter io_uring_register fsopen fsmount fsconfig fspick move_mount open_tree mount_setattr userfaultfd
        perf_event_open name_to_handle_at open_by_handle_at kexec_load kexec_file_load init_module finit_module
        delete_module clone clone3 clock_settime settimeofday syslog reboot sethostname setdomainname acct quotactl
        swapon swapoff iopl ioperm process_vm_readv process_vm_writev pidfd_getfd personality""".split()  # noqa: SIM905
    assert not set(dangerous) & set(seccomp.ALLOWED)
    assert os.sep not in "".join(seccomp.ALLOWED)
