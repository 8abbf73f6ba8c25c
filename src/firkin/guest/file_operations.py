"""The operations on names: stat, list, make, rename, remove, own."""

from __future__ import annotations

import os
import stat

from firkin.guest.connections import Taker
from firkin.guest.entries import encoded_at_most
from firkin.guest.faults import Refused, refusal
from firkin.guest.loop import Job
from firkin.guest.replacing import UPLOAD_PREFIX
from firkin.wire import codec
from firkin.wire.frames import MAX_PAYLOAD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from firkin.guest.accounts import Account, Accounts
    from firkin.guest.connections import Stream
    from firkin.guest.entries import Entries
    from firkin.guest.loop import Loop
    from firkin.wire.codec import Object

_ENTRIES_AN_EVENT = 100
_BYTES_AN_EVENT = MAX_PAYLOAD // 2  # with the entry that goes above it, which may take nearly as much, it is one frame
_NAMES_AT_MOST = 100_000
_NAME_BYTES_AT_MOST = 4 << 20
_REMOVALS_A_LISTING = 4096
_REMOVALS_A_STEP = 200
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Steps(Taker):
    """A stream that is answered by a job, step by step."""

    __slots__ = ("_job", "_stream")

    def __init__(self, loop: Loop, stream: Stream, steps: Iterator[bool], path: str | None = None) -> None:
        self._stream = stream
        stream.taker = self
        self._job = Job(loop, self._told(steps, path))

    def _told(self, steps: Iterator[bool], path: str | None) -> Iterator[bool]:
        try:
            yield from steps
        except Exception as error:  # noqa: BLE001 — told to the host
            self._stream.error(error, path)

    def resume(self) -> None:
        self._job.wake()

    def cancelled(self) -> None:
        self._job.stop()


class FileOperations:
    __slots__ = ("_accounts", "_entries", "_loop")

    def __init__(self, loop: Loop, accounts: Accounts, entries: Entries) -> None:
        self._loop = loop
        self._accounts = accounts
        self._entries = entries

    def operations(self) -> dict[str, Callable[[Stream, Object], None]]:
        return {
            "stat": self.stat,
            "list": self.list,
            "mkdir": self.mkdir,
            "rename": self.rename,
            "remove": self.remove,
            "chown": self.chown,
            "symlink": self.symlink,
            "readlink": self.readlink,
        }

    def stat(self, stream: Stream, args: Object) -> None:
        stream.result(self._entries.of(path_of(args), follow=codec.flag(args, "follow")))

    def list(self, stream: Stream, args: Object) -> None:
        path, depth = path_of(args), codec.integer(args, "depth", 1)
        Steps(self._loop, stream, self._listing(stream, path, depth), path)

    def _listing(self, stream: Stream, path: str, depth: int) -> Iterator[bool]:
        batch: list[Object] = []
        size = 0
        todo = [iter(_names(self._entries, path))]
        folders = [path]
        while todo:
            name = next(todo[-1], None)
            if name is None:
                todo.pop()
                folders.pop()
                continue
            if name.startswith(UPLOAD_PREFIX):
                continue
            entry = self._entry_of(os.path.join(folders[-1], name))
            if entry is None:
                continue
            batch.append(entry)
            size += encoded_at_most(entry)
            if entry["type"] == "directory" and (depth <= 0 or len(todo) < depth):
                todo.append(iter(_names_left(self._entries, entry["path"])))
                folders.append(entry["path"])
            if len(batch) >= _ENTRIES_AN_EVENT or size > _BYTES_AN_EVENT:
                stream.event({"entries": batch})
                batch, size = [], 0
                yield stream.connection.roomy
        if batch:
            stream.event({"entries": batch})
        stream.result({})

    def _entry_of(self, path: str) -> Object | None:
        try:
            return self._entries.of(path)
        except Refused as refused:
            if refused.code in ("not_found", "permission"):  # gone since its directory was read, or the agent's own
                return None
            raise

    def mkdir(self, stream: Stream, args: Object) -> None:
        path = path_of(args)
        account = self._accounts.lookup(codec.text(args, "user", ""))
        if codec.flag(args, "parents"):
            make_parents(path, account)
        try:
            _make_directory(path, account)
            if args.get("mode") is not None:
                os.chmod(path, codec.integer(args, "mode") & 0o7777)
        except FileExistsError:
            code = "exists" if os.path.isdir(path) else "not_directory"
            raise Refused(code, f"{path}: already exists", path) from None
        stream.result(self._entries.of(path))

    def rename(self, stream: Stream, args: Object) -> None:
        path, target = path_of(args), path_of(args, "target")
        account = self._accounts.lookup(codec.text(args, "user", ""))
        os.lstat(path)
        make_parents(target, account)
        os.rename(path, target)
        stream.result(self._entries.of(target))

    def remove(self, stream: Stream, args: Object) -> None:
        path = path_of(args)
        if os.path.normpath(path) in ("/", "//"):
            raise Refused("invalid", "the root directory cannot be removed", path)
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
        elif codec.flag(args, "recursive"):
            Steps(self._loop, stream, _removing(stream, path), path)
            return
        else:
            os.rmdir(path)
        stream.result({})

    def chown(self, stream: Stream, args: Object) -> None:
        account = self._accounts.lookup(codec.text(args, "user", ""))
        os.chown(path_of(args), account.uid, account.gid)
        stream.result({})

    def symlink(self, stream: Stream, args: Object) -> None:
        path = path_of(args)
        account = self._accounts.lookup(codec.text(args, "user", ""))
        os.symlink(codec.text(args, "target"), path)
        os.chown(path, account.uid, account.gid, follow_symlinks=False)
        stream.result(self._entries.of(path))

    def readlink(self, stream: Stream, args: Object) -> None:
        path = path_of(args)
        self._entries.refuse_proc(path)
        stream.result({"target": os.readlink(path)})


def path_of(args: Object, key: str = "path") -> str:
    path = codec.text(args, key)
    if not path.startswith("/") or "\0" in path:
        raise Refused("invalid", "a path must be absolute and without NUL", path)
    return path


def make_parents(path: str, account: Account) -> None:
    """Every missing directory above `path`, 0755 and the user's. Raises OSError."""
    missing = []
    parent = os.path.dirname(path.rstrip("/")) or "/"
    while not os.path.lexists(parent):
        missing.append(parent)
        parent = os.path.dirname(parent)
    for folder in reversed(missing):
        try:
            _make_directory(folder, account)
        except FileExistsError:
            continue


def _make_directory(path: str, account: Account) -> None:
    os.mkdir(path, 0o755)
    os.chown(path, account.uid, account.gid, follow_symlinks=False)


def _names(entries: Entries, path: str, *, follow: bool = True) -> list[str]:
    try:
        fd = entries.open_directory(path, follow=follow)
        try:
            return sorted(_bounded(fd, path))
        finally:
            os.close(fd)
    except OSError as error:
        raise refusal(error, path) from None


def _names_left(entries: Entries, path: str) -> list[str]:
    """As `_names`, empty when the directory went away, became something else or cannot be read: one such
    directory must not cost the whole list."""
    try:
        return _names(entries, path, follow=False)
    except Refused as refused:
        if refused.code == "limit":
            raise
        return []


def _bounded(folder: int, path: str) -> list[str]:
    """The names in a directory. A hostile one could hold more than this process has memory for."""
    found, size = [], 0
    with os.scandir(folder) as entries:
        for entry in entries:
            found.append(entry.name)
            size += len(entry.name)
            if len(found) > _NAMES_AT_MOST or size > _NAME_BYTES_AT_MOST:
                raise Refused("limit", f"{path}: more than {_NAMES_AT_MOST} names, too many to list", path)
    return found


def _some_names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry, _ in zip(entries, range(_REMOVALS_A_LISTING), strict=False)]


def _removing(stream: Stream, path: str) -> Iterator[bool]:
    """Depth first through descriptors, so that no renamed parent or symlink leads elsewhere."""
    parent = os.open(os.path.dirname(path.rstrip("/")) or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    open_folders = [parent]
    names = [os.path.basename(path.rstrip("/"))]
    pending: list[list[str]] = [[names[0]]]
    done = 0
    try:
        while pending:
            if not pending[-1]:
                if len(pending) > 1 and (more := _some_names(open_folders[-1])):
                    pending[-1] = more
                    yield True
                    continue
                pending.pop()
                os.close(open_folders.pop())
                if pending:
                    _rmdir(names.pop(), open_folders[-1])
                continue
            name = pending[-1].pop()
            if _unlink(name, open_folders[-1]):
                done += 1
                if done % _REMOVALS_A_STEP == 0:
                    yield True
                continue
            open_folders.append(os.open(name, _DIRECTORY, dir_fd=open_folders[-1]))
            pending.append(_some_names(open_folders[-1]))
            names.append(name)
    finally:
        for fd in open_folders:
            os.close(fd)
    stream.result({})


def _unlink(name: str, folder: int) -> bool:
    """False when it is a directory."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return True
    except IsADirectoryError:
        return False
    return True


def _rmdir(name: str, folder: int) -> None:
    try:
        os.rmdir(name, dir_fd=folder)
    except FileNotFoundError:
        return
