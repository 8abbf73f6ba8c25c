"""What a gateway's process gives up before it hears the first sandbox. There is no way back.

Its network becomes one of its own, where the firewall treats it like a sandbox;
its root an empty file system in memory; its user one that owns nothing; and
its calls those of a program that computes and talks over sockets. It cannot start
programs, see others, or be traced, and it ends with the server.
"""

from __future__ import annotations

import os
import resource
import signal
import tempfile

from firkin.gateway.orders import Setup
from firkin.host import syscalls

# What a started asyncio program needs: sockets, memory, time, files in its own memory. No programs, no paths out.
CALLS = """
accept accept4 bind brk clock_getres clock_gettime clock_nanosleep close close_range connect dup dup3 epoll_create1
epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd2 exit exit_group fcntl fstat fstat64 fstatfs fsync ftruncate
futex getcwd getegid geteuid getgid getpeername getpid getppid getrandom getrusage getsockname getsockopt gettid
gettimeofday getuid ioctl listen lseek lstat madvise membarrier mmap mprotect mremap munmap nanosleep newfstatat open
openat pipe2 poll ppoll pread64 prlimit64 pwrite64 read readv recvfrom recvmsg restart_syscall rseq rt_sigaction
rt_sigprocmask rt_sigreturn rt_sigtimedwait sched_getaffinity sched_yield sendmsg sendto set_robust_list setsockopt
shutdown sigaltstack socket socketpair stat statx sysinfo tgkill time timerfd_create timerfd_settime uname unlink
unlinkat write writev
""".split()  # noqa: SIM905 — names read better as a block of text

_FILES = 8192
_MEMORY_BYTES = 1 << 30  # a connection that cannot have more ends, and no other
_ROOT_BYTES = "4m"


def confine(setup: Setup, parent: int) -> None:
    """Give up everything. `setup.user` becomes user and group."""
    last = syscalls.last_capability()
    syscalls.setns(setup.network, syscalls.CLONE_NEWNET)
    os.close(setup.network)
    _empty_root(setup.user)
    _limit()
    os.setgroups([])
    os.setresgid(setup.user, setup.user, setup.user)
    syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)  # the bounding set is emptied last, which takes CAP_SETPCAP
    os.setresuid(setup.user, setup.user, setup.user)
    syscalls.raise_permitted()
    syscalls.set_capabilities(0, last=last)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of user forgets it
    if os.getppid() != parent:
        os._exit(0)
    tempfile.tempdir = "/"
    os.umask(0o077)
    syscalls.SeccompProgram(bytes.fromhex(setup.filter)).load()


def _empty_root(user: int) -> None:
    """A root in memory, for certificates that OpenSSL takes from files only."""
    syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    syscalls.mount("gateway", "/proc", "tmpfs", flags, f"size={_ROOT_BYTES},mode=0700,uid={user},gid={user}")
    os.chdir("/proc")
    syscalls.pivot_into_cwd()


def _limit() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _FILES if most == resource.RLIM_INFINITY else min(_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))
