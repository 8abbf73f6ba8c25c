"""``process.Process``: programs inside a sandbox, as E2B's clients start and steer them."""

from __future__ import annotations

import pybase64

from firkin.e2b.calls import STREAM_HEADERS, RpcCall
from firkin.e2b.connect_codec import Code, RpcError, end_of_stream, envelope, envelope_head
from firkin.e2b.event_streams import EventStream
from firkin.e2b.guest_paths import needs_home, resolve
from firkin.e2b.json_text import encode
from firkin.e2b.proto_json import Message, decode, read_bytes
from firkin.e2b.signal_names import describe_signal
from firkin.law.ids import ProcessId, ProcessTag
from firkin.law.processes import (
    Argv,
    ById,
    ByTag,
    Command,
    Ended,
    Exited,
    ProcessEvent,
    ProcessInfo,
    ProcessSelector,
    ProcessStream,
    PtyOutput,
    PtySize,
    Signal,
    Stderr,
    Stdout,
)
from firkin.phases import mark

_KEEPALIVE = envelope(b'{"event":{"keepalive":{}}}')
_DATA_END = b'"}}}'
_PIPE_CHUNK = 32 * 1024
_PTY_CHUNK = 16 * 1024
_STREAM_IDLE_S = 3600.0  # a person may type into it, and not every client sends keepalives
_HANGUP = 1
# E2B names two. By number `firkin sandbox exec` also passes on what its own user sends it.
_SIGNALS: dict[str | int, Signal | int] = {
    "SIGNAL_SIGTERM": Signal.TERM,
    "SIGNAL_SIGKILL": Signal.KILL,
    15: Signal.TERM,
    9: Signal.KILL,
    2: Signal.INTERRUPT,
    1: _HANGUP,
}


class _Config(Message):
    cmd: str = ""
    args: list[str] | None = None
    envs: dict[str, str] | None = None
    cwd: str | None = None


class _Size(Message):
    cols: int = 0
    rows: int = 0


class _Pty(Message):
    size: _Size | None = None


class _Start(Message):
    process: _Config | None = None
    pty: _Pty | None = None
    tag: str | None = None
    stdin: bool | None = None


class _Selector(Message):
    pid: int | None = None
    tag: str | None = None


class _Selected(Message):
    process: _Selector | None = None


class _Nothing(Message):
    pass


class _Input(Message):
    stdin: str | None = None
    pty: str | None = None


class _SendInput(Message):
    process: _Selector | None = None
    input: _Input | None = None


class _SendSignal(Message):
    process: _Selector | None = None
    signal: str | int | None = None


class _Update(Message):
    process: _Selector | None = None
    pty: _Pty | None = None


class _InputData(Message):
    input: _Input | None = None


class _StreamInput(Message):
    """One of these. A ``oneof`` leaves no trace in the JSON: its cases are fields of the message."""

    start: _Selected | None = None
    data: _InputData | None = None
    keepalive: _Nothing | None = None


async def start(call: RpcCall) -> None:
    """Start a program and stream what it says. The client's deadline is the program's too."""
    request = await call.stream_request(_Start)
    mark("request read")
    await _stream(call, await call.processes.stream(call.sandbox_id, await _command(call, request)))


async def _command(call: RpcCall, request: _Start) -> Command:
    config = request.process or _Config()
    cwd = config.cwd or None
    if cwd is not None and needs_home(cwd):
        cwd = resolve(cwd, await call.guest_user(), call.info)
    pty = None if request.pty is None else _pty_size(request.pty)
    return Command(
        mode=Argv(config.cmd, tuple(config.args or ())),
        cwd=cwd,
        env=config.envs or {},
        user=call.username,
        keep_stdin=pty is None and request.stdin is not False,
        pty=pty,
        tag=ProcessTag(request.tag) if request.tag else None,
        timeout_s=call.deadline_s,
    )


def _pty_size(pty: _Pty) -> PtySize:
    return PtySize() if pty.size is None else PtySize(rows=pty.size.rows, cols=pty.size.cols)


async def connect(call: RpcCall) -> None:
    """New output of a program that runs; what it said before is not repeated."""
    request = await call.stream_request(_Selected)
    await _stream(call, await call.processes.connect(call.sandbox_id, _selector(request.process)))


async def _stream(call: RpcCall, stream: ProcessStream) -> None:
    def written(event: ProcessEvent) -> bytes | None:
        if isinstance(event, Ended):
            answer.ends_with()
        return encode_event(event)

    answer: EventStream[ProcessEvent] = EventStream(
        call, stream, first=_started_event(stream.info), keepalive=_KEEPALIVE, encode=written
    )
    await answer.run()


def _started_event(info: ProcessInfo) -> bytes:
    return envelope(b'{"event":{"start":{"pid":%d}}}' % int(info.id))


def encode_event(event: ProcessEvent) -> bytes | None:
    """One event as envelopes; None for the start, which is sent apart. Raises `RpcError` for a deadline's kill."""
    match event:
        case Stdout(data):
            return _data(b"stdout", data, _PIPE_CHUNK)
        case Stderr(data):
            return _data(b"stderr", data, _PIPE_CHUNK)
        case PtyOutput(data):
            return _data(b"pty", data, _PTY_CHUNK)
        case Ended():
            return _end_event(event)
    return None


def _data(field: bytes, data: bytes, most: int) -> bytes:
    """Messages of at most `most` bytes of output each, as E2B's own service sends them."""
    head = b'{"event":{"data":{"' + field + b'":"'
    parts: list[bytes] = []
    view = memoryview(data)
    for at in range(0, len(data), most):
        text = pybase64.b64encode(view[at : at + most])
        parts += (envelope_head(len(head) + len(text) + len(_DATA_END)), head, text, _DATA_END)
    return b"".join(parts)


def _end_event(event: Ended) -> bytes:
    if event.timed_out:
        raise RpcError(Code.DEADLINE_EXCEEDED, "the process was killed: its deadline has passed")
    exited = isinstance(event.status, Exited)
    code = event.status.code if isinstance(event.status, Exited) else -1
    status = f"exit status {code}" if isinstance(event.status, Exited) else describe_signal(event.status.signal)
    end: dict[str, object] = {"exitCode": code, "exited": exited, "status": status}
    if code:
        end["error"] = f"{status} (out of memory)" if event.out_of_memory else status
    return envelope(encode({"event": {"end": end}}))


async def list_processes(call: RpcCall) -> None:
    await call.unary_request(_Nothing)
    found = await call.processes.list(call.sandbox_id)
    await call.answer({"processes": [_described(info) for info in found]})


def _described(info: ProcessInfo) -> dict[str, object]:
    config = {"cmd": "".join(info.argv[:1]), "args": info.argv[1:], "envs": info.env, "cwd": info.cwd}
    described: dict[str, object] = {"config": config, "pid": int(info.id)}
    return {**described, "tag": info.tag} if info.tag else described


async def send_input(call: RpcCall) -> None:
    request = await call.unary_request(_SendInput)
    selector, given = _selector(request.process), _read_input(request.input)
    await _write(call, await _recipient(call, selector), *given)
    await call.answer(b"{}")


def _read_input(given: _Input | None) -> tuple[bytes, bool]:
    """The bytes, and whether they are for a terminal."""
    if given is not None and given.stdin is not None:
        return read_bytes(given.stdin), False
    if given is not None and given.pty is not None:
        return read_bytes(given.pty), True
    raise RpcError(Code.INVALID_ARGUMENT, "input needs stdin or pty")


async def _recipient(call: RpcCall, selector: ProcessSelector) -> ProcessInfo:
    """The program itself: a tag may be another's by the time of the next write."""
    stream = await call.processes.connect(call.sandbox_id, selector)
    await stream.aclose()
    return stream.info


async def _write(call: RpcCall, recipient: ProcessInfo, data: bytes, to_terminal: bool) -> None:
    """Input for a pipe and input for a terminal are told apart, and the wrong one is refused."""
    if recipient.pty and not to_terminal:
        raise RpcError(Code.INTERNAL, "error writing to stdin: tty assigned to process")
    if to_terminal and not recipient.pty:
        raise RpcError(Code.INTERNAL, "error writing to tty: tty not assigned to process")
    await call.while_connected(call.processes.send_input(call.sandbox_id, ById(recipient.id), data))


async def stream_input(call: RpcCall) -> None:
    """A stream of input: first the program, then data and keepalives."""
    async with call.deadline():
        with call.directory.holding(call.sandbox_id, call.exchange):
            await _take_stream(call)
    await call.exchange.answer(200, envelope(b"{}") + end_of_stream(), STREAM_HEADERS)


async def _take_stream(call: RpcCall) -> None:
    reader = call.envelopes()
    recipient: ProcessInfo | None = None
    async for chunk in call.exchange.chunks(idle_s=_STREAM_IDLE_S):
        for message in reader.feed(chunk):
            if not message.ends_stream:
                recipient = await _take_input(call, decode(message.payload, _StreamInput), recipient)
    reader.finish()


async def _take_input(call: RpcCall, event: _StreamInput, recipient: ProcessInfo | None) -> ProcessInfo | None:
    if event.start is not None:
        return await _recipient(call, _selector(event.start.process))
    if event.data is not None:
        if recipient is None:
            raise RpcError(Code.INVALID_ARGUMENT, "the first message must be start")
        await _write(call, recipient, *_read_input(event.data.input))
    return recipient


async def send_signal(call: RpcCall) -> None:
    request = await call.unary_request(_SendSignal)
    selector = _selector(request.process)
    signal = _SIGNALS.get(request.signal) if request.signal is not None else None
    if signal is None:
        raise RpcError(Code.UNIMPLEMENTED, f"invalid signal: {str(request.signal)[:32]}; use SIGTERM or SIGKILL")
    await call.processes.signal(call.sandbox_id, selector, signal)
    await call.answer(b"{}")


async def close_stdin(call: RpcCall) -> None:
    request = await call.unary_request(_Selected)
    await call.processes.close_stdin(call.sandbox_id, _selector(request.process))
    await call.answer(b"{}")


async def update(call: RpcCall) -> None:
    """Resize a terminal. Without a size it changes nothing, of a program that must be there."""
    request = await call.unary_request(_Update)
    selector = _selector(request.process)
    if request.pty is not None and request.pty.size is not None:
        await call.processes.resize_pty(call.sandbox_id, selector, _pty_size(request.pty))
    else:
        await _recipient(call, selector)
    await call.answer(b"{}")


def _selector(given: _Selector | None) -> ProcessSelector:
    if given is not None and given.pid:
        return ById(ProcessId(str(given.pid)))
    if given is not None and given.tag:
        return ByTag(ProcessTag(given.tag))
    raise RpcError(Code.INVALID_ARGUMENT, "the process must be named by pid or tag")
