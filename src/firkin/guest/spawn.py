"""Start a program as another user, fast, and come back as the agent.

vfork is cheap but CPython refuses it when the child has to change its user, so
the *agent* changes: it keeps its permitted capabilities across setresuid
(PR_SET_KEEPCAPS), vforks, and takes everything back. The program ends up with
no capability, an unchanged bounding set and normal securebits, so sudo works.
Around the spawn the agent also steps into the users' control group and back:
moving oneself costs microseconds, moving another process milliseconds.
"""

from __future__ import annotations

import _posixsubprocess
import errno
import fcntl
import os
import signal
import struct
import sys
import termios

from firkin.guest import syscalls
from firkin.guest.faults import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from firkin.guest.accounts import Account

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UMASK = 0o022
_PROGRAMS_OOM_SCORE = b"500"  # of 1000: before an agent of ten times the size, whatever the limit
_SHORTAGES = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_PIPE_FLAGS = os.O_CLOEXEC
_TAKES_VFORK_FLAG = sys.version_info < (3, 14)
_fork_exec: Callable[..., int] = _posixsubprocess.fork_exec  # its arguments differ between minors


class SpawnPlan:
    """What the driver knows about spawning.

    `enter`, `leave`: open descriptors of control group ``tasks`` or
    ``cgroup.procs`` files, written "0" before and after each spawn. `nofile`: the
    limit of open files of every program, 0 leaves it. `hardened`: no program
    gains privileges, not even through sudo.
    """

    __slots__ = ("enter", "hardened", "leave", "nofile")

    def __init__(
        self,
        *,
        enter: tuple[int, ...] = (),
        leave: tuple[int, ...] = (),
        nofile: int = 0,
        hardened: bool = False,
    ) -> None:
        self.enter = enter
        self.leave = leave
        self.nofile = nofile
        self.hardened = hardened


class Program:
    """What to start: resolved, encoded, as the kernel wants it."""

    __slots__ = ("account", "argv", "cwd", "env")

    def __init__(self, account: Account, argv: list[str], cwd: str, env: dict[str, str]) -> None:
        if not argv or not argv[0]:
            raise Refused("invalid", "the program name is empty")
        self.account = account
        self.argv = argv
        self.env = {
            "PATH": DEFAULT_PATH,
            "HOME": account.home,
            "USER": account.name,
            "LOGNAME": account.name,
            "SHELL": account.shell,
        }
        self.env.update(env)
        self.cwd = _workdir(account, cwd)

    def files(self) -> list[bytes]:
        """Where the program may be, in order."""
        name = self.argv[0]
        if "/" in name:
            return [os.fsencode(name)]
        folders = self.env.get("PATH", DEFAULT_PATH).split(":")
        return [os.fsencode(f"{folder or '.'}/{name}") for folder in folders]

    def words(self) -> list[bytes]:
        return [os.fsencode(word) for word in self.argv]

    def settings(self) -> list[bytes]:
        return [os.fsencode(f"{name}={value}") for name, value in self.env.items()]


def _workdir(account: Account, cwd: str) -> str:
    if not cwd:
        return account.home if os.path.isdir(account.home) else "/"
    return os.path.join("/", account.home, cwd)


class Spawner:
    """Starts programs as children of this process."""

    __slots__ = ("_capabilities", "_devnull", "_euid", "_groups", "_plan")

    def begin(self, plan: SpawnPlan) -> None:
        """Learn who this process has become and open what every spawn needs."""
        self._plan = plan
        self._euid = os.geteuid()
        self._groups = os.getgroups()
        self._capabilities = syscalls.capabilities()
        self._devnull = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)

    def piped(self, program: Program, *, stdin: bool) -> tuple[int, int, int, int]:
        """Its pid and our ends of stdin (-1 when it reads /dev/null), stdout and stderr. Raises `Refused`."""
        files, words, settings = program.files(), program.words(), program.settings()
        opened: list[int] = []
        kept: list[int] = []
        try:
            in_read, in_write = _pipe(opened) if stdin else (self._devnull, -1)
            out_read, out_write = _pipe(opened)
            err_read, err_write = _pipe(opened)
            fail_read, fail_write = _pipe(opened)
            ends = (in_read, in_write, out_read, out_write, err_read, err_write, fail_read, fail_write)
            pid = self._vfork(program, files, words, settings, ends)
            _expose(pid)
            os.close(fail_write)
            opened.remove(fail_write)
            _check_started(os.read(fail_read, 256), program)
            kept = [in_write, out_read, err_read]
            return pid, in_write, out_read, err_read
        except OSError as error:
            raise _spawn_refusal(error) from None
        finally:
            for fd in opened:
                if fd not in kept:
                    os.close(fd)

    def _vfork(
        self,
        program: Program,
        files: list[bytes],
        words: list[bytes],
        settings: list[bytes],
        ends: tuple[int, ...],
    ) -> int:
        # Every descriptor of ours is close-on-exec, so close_fds (a walk through /proc) is not needed.
        tail: tuple[object, ...] = (True, True, -1, None, None, None, UMASK, None)
        if _TAKES_VFORK_FLAG:
            tail += (True,)
        self._enter()
        try:
            try:
                self._become(program.account)
                pid: int = _fork_exec(words, files, False, (), os.fsencode(program.cwd), settings, *ends, *tail)
            finally:
                self._return(program.account)
        finally:
            self._leave()
        return pid

    def on_terminal(self, program: Program, rows: int, cols: int) -> tuple[int, int]:
        """Its pid and the terminal's master. Raises `Refused`."""
        files, words, settings = program.files(), program.words(), program.settings()
        opened: list[int] = []
        try:
            master, slave = os.openpty()
            opened += [master, slave]
            fail_read, fail_write = _pipe(opened)
            resize(master, rows, cols)
            self._enter()
            try:
                pid = os.fork()
                if pid == 0:
                    self._run_on(slave, fail_write, program, files, words, settings)
            finally:
                self._leave()
            _expose(pid)
            for fd in (slave, fail_write):
                os.close(fd)
                opened.remove(fd)
            _check_started(os.read(fail_read, 256), program)
            opened.remove(master)
            return pid, master
        except OSError as error:
            raise _spawn_refusal(error) from None
        finally:
            for fd in opened:
                os.close(fd)

    def _run_on(
        self,
        slave: int,
        fail_write: int,
        program: Program,
        files: list[bytes],
        words: list[bytes],
        settings: list[bytes],
    ) -> None:
        """In the forked child; never returns."""
        stage, number = "noexec", errno.EINVAL
        try:
            _take_terminal(slave, program.account.uid if self._euid == 0 else -1)
            self._drop_to(program.account)
            os.umask(UMASK)
            os.chdir(program.cwd)
            stage = ""
            number = _exec_first(files, words, settings)
        except OSError as error:
            number = error.errno or errno.EINVAL
        except BaseException:  # noqa: BLE001 — a copy of the agent must not go on living
            number = errno.EINVAL
        os.write(fail_write, b"OSError:%x:%s" % (number, stage.encode()))
        os._exit(255)

    def _drop_to(self, account: Account) -> None:
        if self._euid == 0:
            os.setgroups(account.groups)
            os.setresgid(account.gid, account.gid, account.gid)
            os.setresuid(account.uid, account.uid, account.uid)

    def _become(self, account: Account) -> None:
        if self._euid != 0:
            if account.uid != self._euid:
                raise Refused("permission", f"this agent cannot run programs as {account.name!r}")
            return
        syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)
        os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)

    def _return(self, account: Account) -> None:
        if self._euid != 0:
            return
        if account.uid:
            syscalls.set_capabilities(self._capabilities)
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(self._groups)
        syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 0)

    def _enter(self) -> None:
        try:
            for fd in self._plan.enter:
                os.write(fd, b"0")
        except OSError:
            self._leave()
            raise

    def _leave(self) -> None:
        for fd in self._plan.leave:
            try:
                os.write(fd, b"0")
            except OSError:  # staying in the users' group is worse than dying of it only for the users' limits
                continue


def _expose(pid: int) -> None:
    """Let the kernel's OOM killer prefer this program, and what it will start, to the agent.

    The agent stands in the programs' memory group while it spawns, and is larger
    than most of them: killed for their appetite, it would take the sandbox along.
    """
    try:
        fd = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:  # it has ended, or /proc is not there
        return
    try:
        os.write(fd, _PROGRAMS_OOM_SCORE)
    except OSError:
        return
    finally:
        os.close(fd)


def resize(master: int, rows: int, cols: int) -> None:
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))


def _pipe(opened: list[int]) -> tuple[int, int]:
    ends = os.pipe2(_PIPE_FLAGS)
    opened += ends
    return ends


def _take_terminal(slave: int, owner: int) -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    if owner >= 0:
        os.fchown(slave, owner, -1)
    for fd in (0, 1, 2):
        os.dup2(slave, fd)


def _exec_first(files: list[bytes], words: list[bytes], settings: list[bytes]) -> int:
    """Becomes the first of `files` that can be executed, or returns the errno that tells most."""
    environment = dict(setting.split(b"=", 1) for setting in settings)
    told = errno.ENOENT
    for file in files:
        try:
            os.execve(file, words, environment)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR) and told == errno.ENOENT:
                told = error.errno or errno.EINVAL
    return told


def _check_started(report: bytes, program: Program) -> None:
    """`report` is what the child said before exec: nothing when all went well, else ``OSError:hex:stage``."""
    if not report:
        return
    _, number_text, stage = (*report.split(b":", 2), b"", b"")[:3]
    try:
        number = int(number_text, 16)
    except ValueError:
        number = errno.EINVAL
    if number in _SHORTAGES:
        raise Refused("limit", os.strerror(number))
    if stage:
        raise _cwd_refusal(number, program)
    name = program.argv[0]
    if number == errno.ENOENT:
        where = "does not exist" if "/" in name else "was not found on PATH"
        raise Refused("cannot_start", f"{name!r} {where}")
    raise Refused("cannot_start", f"{name!r}: {os.strerror(number)}")


def _cwd_refusal(number: int, program: Program) -> Refused:
    if number in (errno.ENOENT, errno.ENOTDIR):
        return Refused("cwd_missing", f"cwd {program.cwd!r} does not exist")
    if number == errno.EACCES:
        return Refused("cwd_missing", f"cwd {program.cwd!r}: {os.strerror(number)}")
    return Refused("cannot_start", os.strerror(number))


def _spawn_refusal(error: OSError) -> Refused:
    code = "limit" if error.errno in _SHORTAGES else "cannot_start"
    return Refused(code, os.strerror(error.errno or 0))
