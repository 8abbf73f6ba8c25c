"""The small files of a state folder that are not the engine's.

``api_key`` and ``secret`` are made once and stay; ``server.json`` says where the
running server is and goes with it. All are readable by their owner only.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from firkin.law.errors import InvalidReason, InvalidSpec, IoFailure

KEY_FILE = "api_key"
SECRET_FILE = "secret"
_SECRET_BYTES = 32
SERVER_FILE = "server.json"
TRUST_FILE = "trust.pem"

_OWN_NAMES = frozenset(
    {
        *(KEY_FILE, SECRET_FILE, SERVER_FILE, TRUST_FILE, "lock", "state.db", "state.db-wal", "state.db-shm"),
        *("build-files", "drivers", "ground", "layers", "snapshots", "started", "templates", "volumes", "logs"),
        *("config.toml", "registry-auth.json", "tls"),  # the operator's, there before the first start
        "lost+found",  # of a file system of its own
    }
)
_SQLITE = b"SQLite format 3\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRecord:
    """Where a running server is. `api_key` is the first of its keys; `ca_file`, if any, is what clients must trust."""

    url: str
    pid: int
    api_key: str
    domain: str
    driver: str
    version: str
    ca_file: str = ""

    @property
    def alive(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


def claim_state_dir(path: Path) -> None:
    """Make the state folder, or take one that is there, for its owner only.

    Raises `InvalidSpec` for one that holds other people's files: it would lose
    them from sight of everybody else, and Firkin's would lie among them.
    """
    make_state_dir(path)
    try:
        if not _is_ours(path):
            raise _refused(f"{path} holds other files and is not a state folder of Firkin's; choose an empty folder")
        path.chmod(0o700)  # disks, templates and secrets of all tenants are below it
    except OSError as error:
        raise _refused(f"the state folder {path} cannot be taken: {error.strerror}; choose one") from None


def make_state_dir(path: Path) -> None:
    """Make `path`, for its owner only. Raises `InvalidSpec` when that is impossible."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(f"the state folder {path} cannot be made: {error.strerror}; choose one") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise _refused(f"the state folder {path} cannot be written; choose one")


def _is_ours(path: Path) -> bool:
    """Empty, or with nothing but names of ours (a first start may have failed half-way), or with our database."""
    strange = [name for name in os.listdir(path) if _plain(name) not in _OWN_NAMES]
    return not strange or ((path / "drivers").is_dir() and _is_database(path / "state.db"))


def _plain(name: str) -> str:
    """Without what a write that was cut off adds: see `replace_file`."""
    return name[1:].rpartition(".")[0] if name.startswith(".") else name


def _is_database(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except OSError:
        return False


def _refused(detail: str) -> InvalidSpec:
    return InvalidSpec("open state folder", InvalidReason.INVALID_SETTINGS, f"{detail} with --state-dir")


def generated_key(state_dir: Path) -> str:
    """The key of this state folder, made on first use: ``e2b_`` and 40 hex digits."""
    return _once(state_dir / KEY_FILE, lambda: f"e2b_{secrets.token_hex(20)}")


def server_secret(state_dir: Path) -> bytes:
    """32 random bytes that access tokens are derived from, made on first use. `IoFailure` for anything else."""
    path = state_dir / SECRET_FILE
    text = _once(path, lambda: secrets.token_hex(_SECRET_BYTES))
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) != _SECRET_BYTES:
        raise IoFailure(
            "read",
            str(path),
            f"it is damaged; it holds {2 * _SECRET_BYTES} hexadecimal digits. Restore it, or remove it: the access"
            " tokens and signed links that were made with it are void then",
        )
    return secret


def write_server_record(state_dir: Path, record: ServerRecord) -> None:
    replace_file(state_dir / SERVER_FILE, json.dumps(asdict(record)) + "\n")


def remove_server_record(state_dir: Path, pid: int) -> None:
    """Remove the record if it is that of `pid`: a newer server's stays."""
    record = read_server_record(state_dir)
    if record is not None and record.pid == pid:
        (state_dir / SERVER_FILE).unlink(missing_ok=True)


def read_server_record(state_dir: Path) -> ServerRecord | None:
    """The record of the last server, or None when there is none. It may be dead: see `alive`."""
    try:
        raw = json.loads((state_dir / SERVER_FILE).read_text())
        return _record(raw)
    except FileNotFoundError:
        return None
    except PermissionError:
        raise IoFailure("read", str(state_dir / SERVER_FILE), "it belongs to another user") from None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _record(raw: Mapping[str, object]) -> ServerRecord:
    texts = {name: str(raw[name]) for name in ("url", "api_key", "domain", "driver", "version")}
    return ServerRecord(pid=int(str(raw["pid"])), ca_file=str(raw.get("ca_file", "")), **texts)


def _once(path: Path, make: Callable[[], str]) -> str:
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        text = ""
    except OSError as error:
        raise IoFailure("read", str(path), error.strerror or str(error)) from None
    if text:
        return text
    replace_file(path, make() + "\n")
    return path.read_text().strip()


def replace_file(path: Path, text: str) -> None:
    """Write for the owner only, through a temporary name: a reader sees the old text or the new, never half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise IoFailure("write", str(path), error.strerror or str(error)) from None
