"""What the server says: lists, entries, signals and errors, in the words that clients read."""

from __future__ import annotations

import base64
import stat
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, quote, urlencode

import pytest

from firkin.e2b.connect_codec import Code
from firkin.e2b.envd_filesystem import entry_json, permissions
from firkin.e2b.envd_process import encode_event
from firkin.e2b.error_map import as_file_refusal, as_refusal, as_rpc_error, dead_sandbox
from firkin.e2b.listing import ListQuery, read_metadata, token_after
from firkin.e2b.signal_names import describe_signal
from firkin.law.errors import (
    CapacityRejected,
    FileFault,
    FilesystemFailure,
    NotFound,
    ProcessFailure,
    ProcessFault,
    ResourceKind,
)
from firkin.law.files import FileEntry, FileType, SandboxPath
from firkin.law.ids import SandboxId
from firkin.law.processes import Ended, Exited, PtyOutput, Signaled, Stdout
from firkin.law.resources import SandboxResources
from firkin.law.sandboxes import SandboxInfo
from firkin.law.states import SandboxState

from .raw import messages

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def sandbox(name: str, seconds: int, **fields: object) -> SandboxInfo:
    return SandboxInfo(
        id=SandboxId(name),
        state=SandboxState.RUNNING,
        created_at=NOON,
        started_at=NOON + timedelta(seconds=seconds),
        resources=SandboxResources(),
        **fields,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(("kind", "field", "most"), [(Stdout, "stdout", 32768), (PtyOutput, "pty", 16384)])
def test_output_comes_in_messages_of_bounded_size(kind: type[Stdout | PtyOutput], field: str, most: int) -> None:
    data = bytes(range(256)) * 300
    encoded = encode_event(kind(data))
    assert encoded is not None
    pieces = [base64.b64decode(message["event"]["data"][field]) for message in messages(encoded)]
    assert b"".join(pieces) == data
    assert {len(piece) for piece in pieces[:-1]} == {most}


@pytest.mark.parametrize("values", [{"a": "b"}, {"k&=": "v&w=x+y %25", "ü": "é"}, {}])
def test_metadata_filters_are_read_as_the_sdk_writes_them(values: dict[str, str]) -> None:
    text = urlencode({quote(key): quote(value) for key, value in values.items()})
    received = dict(parse_qsl(urlencode({"metadata": text}))).get("metadata", "")
    assert read_metadata(received) == values


def test_pages_never_show_a_sandbox_twice_even_when_others_end() -> None:
    everything = [sandbox(f"i{number}", number // 2) for number in range(9)]
    seen: list[str] = []
    query = ListQuery()
    while page := query.rest(query.matching(everything))[:2]:
        seen += [info.id for info in page]
        everything.remove(page[-1])
        last = page[-1]
        query = ListQuery(after=(last.started_at or NOON, last.id))
    assert sorted(seen) == sorted(f"i{number}" for number in range(9))
    assert token_after(last)


def test_the_order_is_newest_first_unless_asked_otherwise() -> None:
    everything = [sandbox("ib", 2), sandbox("ia", 1), sandbox("ic", 3)]
    assert [info.id for info in ListQuery().matching(everything)] == ["ic", "ib", "ia"]
    assert [info.id for info in ListQuery(ascending=True).matching(everything)] == ["ia", "ib", "ic"]
    assert [info.id for info in ListQuery(started_after=everything[0].started_at).matching(everything)] == ["ic", "ib"]


@pytest.mark.parametrize(
    ("kind", "mode", "text"),
    [
        (FileType.FILE, 0o644, "-rw-r--r--"),
        (FileType.DIRECTORY, 0o755, "drwxr-xr-x"),
        (FileType.SYMLINK, 0o777, "Lrwxrwxrwx"),
        (FileType.DIRECTORY, 0o1777, "dtrwxrwxrwx"),
        (FileType.FILE, 0o4755, "urwxr-xr-x"),
        (FileType.OTHER, stat.S_IFIFO | 0o644, "prw-r--r--"),
        (FileType.OTHER, stat.S_IFSOCK | 0o755, "Srwxr-xr-x"),
        (FileType.OTHER, stat.S_IFCHR | 0o666, "Dcrw-rw-rw-"),
        (FileType.OTHER, stat.S_IFCHR | 0o1666, "Dctrw-rw-rw-"),
        (FileType.OTHER, stat.S_IFBLK | 0o660, "Drw-rw----"),
        (FileType.OTHER, 0o644, "?rw-r--r--"),
    ],
)
def test_permissions_are_printed_as_go_prints_them(kind: FileType, mode: int, text: str) -> None:
    assert permissions(FileEntry(path=SandboxPath("/f"), file_type=kind, size_bytes=0, mode=mode)) == text


def test_a_symlink_shows_what_it_leads_to() -> None:
    link = FileEntry(
        path=SandboxPath("/l"),
        file_type=FileType.SYMLINK,
        size_bytes=3,
        mode=0o777,
        symlink_target="/d",
        target_type=FileType.DIRECTORY,
        target_mode=0o750,
        modified_at_ns=1_500_000_000,
    )
    shown = entry_json(link)
    assert shown["type"] == "FILE_TYPE_DIRECTORY"
    assert shown["mode"] == 0o750
    assert shown["size"] == "3"
    assert shown["symlinkTarget"] == "/d"
    assert shown["modifiedTime"] == "1970-01-01T00:00:01.500000000Z"


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (-1_500_000_000, "1969-12-31T23:59:58.500000000Z"),
        (-315_619_200 * 10**9, "1960-01-01T00:00:00Z"),
        (-(10**30), "0001-01-01T00:00:00Z"),
        (10**30, "9999-12-31T23:59:59Z"),
    ],
)
def test_a_file_is_as_old_as_it_says(nanoseconds: int, text: str) -> None:
    file = FileEntry(path=SandboxPath("/f"), file_type=FileType.FILE, size_bytes=0, modified_at_ns=nanoseconds)
    assert entry_json(file)["modifiedTime"] == text


def test_events_are_the_ones_that_clients_parse() -> None:
    assert encode_event(Stdout(b"hi"))[5:] == b'{"event":{"data":{"stdout":"aGk="}}}'
    assert encode_event(Ended(status=Exited(0)))[5:] == (
        b'{"event":{"end":{"exitCode":0,"exited":true,"status":"exit status 0"}}}'
    )
    assert encode_event(Ended(status=Signaled(9)))[5:] == (
        b'{"event":{"end":{"exitCode":-1,"exited":false,"status":"signal: killed","error":"signal: killed"}}}'
    )


def test_signals_have_the_names_of_go() -> None:
    assert [describe_signal(number) for number in (1, 9, 15, 31, 40)] == [
        "signal: hangup",
        "signal: killed",
        "signal: terminated",
        "signal: bad system call",
        "signal: signal 40",
    ]


def test_a_missing_sandbox_and_a_dead_one_are_said_as_the_sdk_reads_them() -> None:
    missing = as_refusal(NotFound("inspect", ResourceKind.SANDBOX, "i1"))
    assert (missing.status, missing.message) == (404, "Sandbox \"i1\" doesn't exist or you don't have access to it")
    assert dead_sandbox("i1").body() == b'{"code":502,"message":"The sandbox was not found","sandboxId":"i1"}'


def test_a_full_machine_may_be_asked_again() -> None:
    refusal = as_refusal(CapacityRejected("create", "memory", requested=2, available=1))
    assert refusal.status == 503
    assert (b"should-retry", b"true") in refusal.headers()
    assert (b"retry-after", b"1") in refusal.headers()


def test_failures_inside_keep_their_kind() -> None:
    cases = [
        (NotFound("x", ResourceKind.PROCESS, "7"), Code.NOT_FOUND, "process with pid 7 not found"),
        (NotFound("x", ResourceKind.USER, "bob"), Code.UNAUTHENTICATED, "invalid username: 'bob'"),
        (FilesystemFailure("x", FileFault.NO_SPACE, "full"), Code.RESOURCE_EXHAUSTED, "full"),
        (
            ProcessFailure("x", ProcessFault.STDIN_CLOSED, "closed"),
            Code.INTERNAL,
            "error writing to stdin: stdin not enabled or closed",
        ),
    ]
    for error, code, text in cases:
        told = as_rpc_error(error)
        assert (told.code, told.message) == (code, text)


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (NotFound("x", ResourceKind.FILE, "/f"), 404, "path '/f' does not exist"),
        (NotFound("x", ResourceKind.USER, "x"), 401, "error looking up user 'x': user: unknown user x"),
        (FilesystemFailure("x", FileFault.NO_SPACE, ""), 507, "not enough disk space available"),
        (FilesystemFailure("x", FileFault.IS_A_DIRECTORY, ""), 400, "path is a directory: /f"),
    ],
)
def test_file_failures_have_the_words_of_the_protocol(error: Exception, status: int, text: str) -> None:
    refusal = as_file_refusal(error, "/f")  # type: ignore[arg-type]
    assert (refusal.status, refusal.message) == (status, text)
