"""The system-call filter of a sandbox: an allow-list, compiled once by libseccomp and kept as a blob.

Everything not named answers EPERM. The list follows Docker's default profile
for its 14 default capabilities, and is stricter where a mapped root could
otherwise widen its world: no new namespaces of any kind, no mount family, no
keys, no bpf, no io_uring, no perf, no userfaultfd, no handles, no kexec, no
clock, no host name. `clone3` answers ENOSYS, because its flags cannot be seen
by a filter and libc then falls back to `clone`, whose flags can.

Only the machine's own 64-bit calls are known: 32-bit programs do not run, because
their calls reach the same kernel by numbers and multiplexers that a rule about
arguments cannot see through.

The agent's own process (PID 1 inside) may not be slowed from inside: changing
its limits, affinity, scheduling or priority answers EPERM.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

PROFILE_VERSION = 4  # raise it with every change of a rule: compiled filters are kept under it

_ALLOW = 0x7FFF0000
_EPERM = 0x00050000 | 1
_ENOSYS = 0x00050000 | 38
_CMP_EQ, _CMP_MASKED_EQ = 4, 7
_OCI_OPERATORS = {_CMP_EQ: "SCMP_CMP_EQ", _CMP_MASKED_EQ: "SCMP_CMP_MASKED_EQ"}
_Condition = tuple[int, int, int, int]  # which argument, how it is compared, with what (a mask and a value)
_Rule = tuple[int, str, tuple[_Condition, ...]]  # the action, the call, and what must hold of its arguments
_ATTR_BAD_ARCH, _ATTR_OPTIMIZE = 2, 8
_NAMESPACE_FLAGS = 0x7E020000
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
# AF_PACKET (17) and AF_XDP (44) hold memory that no limit counts; AF_ALG (38) and AF_VSOCK (40) are kernel surface
# and a road to a hypervisor. No sandbox needs them.
_DENIED_FAMILIES = frozenset({17, 38, 40, 44})
_LAST_FAMILY = 45

ALLOWED = """
accept accept4 access alarm arch_prctl bind brk cachestat capget capset chdir chmod chown chown32 chroot
clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 close
close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old
epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat
faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat
fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs
fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat
getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32
getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid
getresuid32 getrlimit get_robust_list getrusage getsid getsockname getsockopt get_thread_area gettid gettimeofday
getuid getuid32 getxattr inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy
io_getevents io_pgetevents io_pgetevents_time64 ioprio_get io_submit ipc kill landlock_add_rule
landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listxattr llistxattr
_llseek lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret
mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open
mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv
msgsnd msync munlock munlockall munmap nanosleep newfstatat _newselect open openat openat2 pause pidfd_open
pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2
process_mrelease pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv
recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr rename renameat renameat2
restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam
sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64
sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg
sendmsg sendto setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid
setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit set_robust_list setsid
setsockopt set_thread_area set_tid_address setuid setuid32 setxattr shmat shmctl shmdt shmget shutdown sigaltstack
signalfd signalfd4 sigprocmask sigreturn socketpair splice stat stat64 statfs statfs64 statx symlink symlinkat sync
sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime
timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat utime utimensat
utimensat_time64 utimes vfork wait4 waitid waitpid write writev
""".split()  # noqa: SIM905 — four hundred names read better as a block of text

# PID 1 is the agent. Calls that change another process, and which argument names it; 0 means the caller.
_ON_A_PROCESS = {
    "prlimit64": 0,
    "sched_setaffinity": 0,
    "sched_setattr": 0,
    "sched_setparam": 0,
    "sched_setscheduler": 0,
    "setpriority": 1,
    "ioprio_set": 1,
}
# The first argument of those that can also name a group or a user: one process only.
_ONE_PROCESS = {"setpriority": 0, "ioprio_set": 1}


# The kernel reads 32 bits of a process id and a filter compares 64: "not 1" has to be said of the low half alone,
# as "all zero, or any bit but the lowest set".
_LOW = 0xFFFFFFFF
_ANY_BUT_ONE = ((_LOW, 0), *((1 << bit, 1 << bit) for bit in range(1, 32)))


class _Argument(ctypes.Structure):
    _fields_ = (
        ("index", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


class SeccompUnavailable(Exception):
    """libseccomp is missing or refused the profile; the text says which."""


def cached_filter(folder: Path) -> Path:
    """The file of the compiled filter for this machine, in `folder`; compiled now (about 20 ms) if it is not there."""
    library = _library()
    library.seccomp_version.restype = ctypes.POINTER(ctypes.c_uint * 3)
    version = tuple(library.seccomp_version().contents)
    source = repr((PROFILE_VERSION, os.uname().machine, version, ALLOWED, _DENIED_FAMILIES, _ON_A_PROCESS))
    path = folder / f"seccomp-{hashlib.sha256(source.encode()).hexdigest()[:16]}.bpf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        aside = path.with_suffix(f".{os.getpid()}")
        aside.write_bytes(_compile(library))
        aside.rename(path)
    return path


def compiled(names: Sequence[str]) -> bytes:
    """A filter that lets `names` pass, whatever their arguments, and answers EPERM to everything else."""
    library = _library()
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_EPERM)))
    try:
        library.seccomp_attr_set(context, _ATTR_OPTIMIZE, ctypes.c_uint32(2))
        for name in names:
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number != -1:
                library.seccomp_rule_add_array(context, ctypes.c_uint32(_ALLOW), number, 0, None)
        return _export(library, context)
    finally:
        library.seccomp_release(context)


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError:
        raise SeccompUnavailable("libseccomp is missing; install it: apt-get install libseccomp2") from None
    library.seccomp_init.restype = ctypes.c_void_p
    return library


def _compile(library: ctypes.CDLL) -> bytes:
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_EPERM)))
    try:
        library.seccomp_attr_set(context, _ATTR_OPTIMIZE, ctypes.c_uint32(2))
        library.seccomp_attr_set(context, _ATTR_BAD_ARCH, ctypes.c_uint32(_EPERM))
        _add_rules(library, context)
        return _export(library, context)
    finally:
        library.seccomp_release(context)


def _add_rules(library: ctypes.CDLL, context: ctypes.c_void_p) -> None:
    def rule(action: int, name: str, *arguments: _Condition) -> None:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number == -1:  # newer than this libseccomp: stays at the default, EPERM
            return
        array = (_Argument * max(1, len(arguments)))(*[_Argument(*item) for item in arguments])
        code = library.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, len(arguments), array)
        if code not in (0, -17, -33):  # already there; not on one of the architectures
            raise SeccompUnavailable(f"libseccomp refused the rule for {name} (error {-code})")

    for action, name, conditions in _rules():
        rule(action, name, *conditions)


def _rules(*, ordered: bool = False) -> Iterator[_Rule]:
    """What is answered otherwise than by EPERM. Where rules are `ordered`, the first that fits counts, whatever the
    action; else every one allows or refuses more."""
    for name in ALLOWED:
        yield _ALLOW, name, ()
    yield _ALLOW, "clone", ((0, _CMP_MASKED_EQ, _NAMESPACE_FLAGS, 0),)
    yield _ENOSYS, "clone3", ()
    for value in _PERSONALITIES:
        yield _ALLOW, "personality", ((0, _CMP_EQ, value, 0),)
    for family in range(_LAST_FAMILY + 1):  # libseccomp takes one condition an argument: name the allowed ones
        if family not in _DENIED_FAMILIES:
            yield _ALLOW, "socket", ((0, _CMP_EQ, family, 0),)
    yield _ENOSYS, "io_setup", ()  # one host-wide table; programs fall back when the kernel seems not to have it
    for name, index in _ON_A_PROCESS.items():
        scope = ((0, _CMP_MASKED_EQ, _LOW, _ONE_PROCESS[name]),) if name in _ONE_PROCESS else ()
        if ordered:
            yield _EPERM, name, (*scope, (index, _CMP_MASKED_EQ, _LOW, 1))
            yield _ALLOW, name, scope
            continue
        for mask, value in _ANY_BUT_ONE:
            yield _ALLOW, name, (*scope, (index, _CMP_MASKED_EQ, mask, value))


def oci_profile() -> dict[str, object]:
    """The same list as an OCI runtime's configuration has it (``linux.seccomp``)."""
    return _profile(_rules(), {"action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS & 0xFFFF})


def sentry_profile() -> dict[str, object]:
    """The same for gVisor's kernel.

    It goes by the first rule that fits, and has room for 4,096 instructions, which the rules for the others exceed. It
    answers EPERM for every error; ENOSYS is had by handing the call to a tracer that nobody is.
    """
    return _profile(_rules(ordered=True), {"action": "SCMP_ACT_TRACE"})


def _profile(rules: Iterator[_Rule], absent: dict[str, object]) -> dict[str, object]:
    plain: list[str] = []
    calls: list[dict[str, object]] = [{"names": plain, "action": "SCMP_ACT_ALLOW"}]
    for action, name, conditions in rules:
        arguments = {"args": [_oci(*each) for each in conditions]} if conditions else {}
        if action == _ALLOW and not conditions and name not in _ON_A_PROCESS:
            plain.append(name)
        elif action == _ALLOW:
            calls.append({"names": [name], "action": "SCMP_ACT_ALLOW", **arguments})
        elif action == _EPERM:
            calls.append({"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": _EPERM & 0xFFFF, **arguments})
        else:
            calls.append({"names": [name], **absent})
    return {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": _EPERM & 0xFFFF, "syscalls": calls}


def _oci(index: int, operator: int, first: int, second: int) -> dict[str, int | str]:
    return {"index": index, "op": _OCI_OPERATORS[operator], "value": first, "valueTwo": second}


def _export(library: ctypes.CDLL, context: ctypes.c_void_p) -> bytes:
    fd = os.memfd_create("seccomp")
    try:
        code = library.seccomp_export_bpf(context, fd)
        if code != 0:
            raise SeccompUnavailable(f"libseccomp could not compile the profile (error {-code})")
        size = os.lseek(fd, 0, os.SEEK_END)
        return os.pread(fd, size, 0)
    finally:
        os.close(fd)
