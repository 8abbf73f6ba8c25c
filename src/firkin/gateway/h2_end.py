"""One end of an intercepted HTTP/2 connection: bytes in, events out; orders in, bytes out. No I/O.

The protocol machine is the `h2` package's; this bounds it. What a peer sends is
acknowledged to the connection at once and to its stream when it was taken further,
so that a stream that nobody reads fills its own window and no other's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, Event
from h2.exceptions import NoAvailableStreamIDError, ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame

from firkin.gateway.h2_fields import Field
from firkin.gateway.h2_frames import MOST_FRAME, MOST_HEADER_BLOCK, FrameGate, GoneAway

MOST_STREAMS = 128
_MOST_STREAMS_UNTOLD = 1024  # a client that has not heard the limit yet is refused streams, not its connection
LAST_STREAM = 2**31 - 1
_CONNECTION_WINDOW = 1 << 20
_DEFAULT_WINDOW = 65535


class _Machine(H2Connection):
    """With a shorter memory of streams that are over: 65536 of them are megabytes."""

    MAX_CLOSED_STREAMS = 2048


class End:
    """`client` ends speak to the real server. `window` is what one stream may have under way."""

    def __init__(self, *, client: bool, window: int) -> None:
        # what a server sends is read and mended in h2_fields: one odd header is no reason to end a hundred streams
        config = H2Configuration(client_side=client, header_encoding=None, validate_inbound_headers=not client)
        self._machine = _Machine(config)
        wanted = {
            SettingCodes.INITIAL_WINDOW_SIZE: window,
            SettingCodes.MAX_FRAME_SIZE: MOST_FRAME,
            SettingCodes.MAX_HEADER_LIST_SIZE: MOST_HEADER_BLOCK,
            SettingCodes.MAX_CONCURRENT_STREAMS: _MOST_STREAMS_UNTOLD,
            SettingCodes.ENABLE_PUSH: 0,
        }
        self._machine.local_settings = Settings(client=client, initial_values=wanted)
        self._gate = FrameGate(server=not client)
        self._window = window
        self._unsaid = 0
        self._raw = bytearray()
        self._machine.initiate_connection()
        self._machine.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: MOST_STREAMS})
        self._machine.increment_flow_control_window(_CONNECTION_WINDOW - _DEFAULT_WINDOW)

    @property
    def waiting(self) -> int:
        """How many bytes are to go out."""
        self._raw += self._machine.data_to_send()
        return len(self._raw)

    @property
    def last_stream(self) -> int:
        """The highest that the peer opened."""
        return self._machine.highest_inbound_stream_id

    def take(self) -> bytes:
        """What is to go out."""
        self._raw += self._machine.data_to_send()
        taken, self._raw = bytes(self._raw), bytearray()
        return taken

    def receive(self, data: bytes, now: float) -> Iterator[Event | GoneAway]:
        """Frame by frame: what is done about one is done before the next is looked at.

        Raises `h2.exceptions.ProtocolError` and `TooMuch`; the connection is over then.
        """
        for piece in self._gate.passed(data, now):
            if isinstance(piece, GoneAway):
                yield piece
                continue
            for event in self._machine.receive_data(piece):
                self._note(event)
                yield event

    def _note(self, event: Event) -> None:
        if isinstance(event, DataReceived) and event.flow_controlled_length:
            self._unsaid += event.flow_controlled_length
            if self._unsaid >= _CONNECTION_WINDOW // 2:
                self._machine.increment_flow_control_window(self._unsaid)
                self._unsaid = 0

    def acknowledge(self, stream: int, count: int) -> bool:
        """Let the peer send so much more there. Not said, and False, while it is not worth a frame."""
        if count < self._window // 2:
            return False
        with suppress(KeyError, ProtocolError):  # it is over
            self._machine.increment_flow_control_window(count, stream)
        return True

    def next_stream(self) -> int | None:
        """The number of a stream that may be opened now, if the peer has room for one."""
        if self._machine.open_outbound_streams >= self._machine.remote_settings.max_concurrent_streams:
            return None
        with suppress(NoAvailableStreamIDError):
            return self._machine.get_next_available_stream_id()
        return None

    def send_head(self, stream: int, fields: Iterable[Field], *, ends: bool) -> None:
        self._machine.send_headers(stream, fields, end_stream=ends)

    def room(self, stream: int) -> int:
        """How much of a body fits into one frame now."""
        return max(0, min(self._machine.local_flow_control_window(stream), self._machine.max_outbound_frame_size))

    def send_data(self, stream: int, data: bytes, *, ends: bool) -> None:
        self._machine.send_data(stream, data, end_stream=ends)

    def reset(self, stream: int, code: int) -> None:
        """Nothing for a stream that is over, or a connection that is."""
        with suppress(ProtocolError):
            self._machine.reset_stream(stream, code)

    def go_away(self, last: int, code: int = ErrorCodes.NO_ERROR, text: bytes = b"") -> None:
        """Written by hand: the machine would end its streams with it."""
        frame = GoAwayFrame(0, last_stream_id=last, error_code=code, additional_data=text)
        self._raw += self._machine.data_to_send() + frame.serialize()
