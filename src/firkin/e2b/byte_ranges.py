"""Ranges and conditions of a download (RFC 9110), decided from the file's size and change time.

Ranges are read as E2B's own service reads them, which is as Go's library does:
what is no range of bytes is refused, not ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime

_MOST_RANGES = 100
_SPAN = re.compile(r"([0-9]{0,19})\s*-\s*([0-9]{0,19})")


@dataclass(frozen=True, slots=True)
class ByteRange:
    """From `offset`, `length` bytes; both within the file."""

    offset: int
    length: int

    def content_range(self, size: int) -> bytes:
        return b"bytes %d-%d/%d" % (self.offset, self.offset + self.length - 1, size)


class Unsatisfiable(Exception):
    """The answer is 416; `str()` says why: no range of bytes, or one behind the end of the file."""


def read_ranges(header: str | None, size: int) -> list[ByteRange]:
    """The ranges asked for. Raises `Unsatisfiable`.

    None of them: the whole file, which is also the answer to any range of an empty
    file, and to ranges that together are more than the file or very many.
    """
    if not header:
        return []
    unit, equals, text = header.partition("=")
    if unit != "bytes" or not equals:
        raise Unsatisfiable("invalid range")
    spans = [part.strip() for part in text.split(",") if part.strip()]
    found = [_read_span(span, size) for span in spans]
    within = [each for each in found if each is not None]
    if not within and found and size:
        raise Unsatisfiable("invalid range: failed to overlap")
    too_much = len(within) > _MOST_RANGES or sum(each.length for each in within) > size
    return [] if too_much else within


def _read_span(span: str, size: int) -> ByteRange | None:
    """None: it lies behind the end."""
    match = _SPAN.fullmatch(span)
    if match is None or match.groups() == ("", ""):
        raise Unsatisfiable("invalid range")
    first, last = match.groups()
    if not first:
        length = min(int(last), size)
        return ByteRange(size - length, length) if length else None
    offset = int(first)
    if offset >= size:
        return None
    if last and int(last) < offset:
        raise Unsatisfiable("invalid range")
    end = min(int(last), size - 1) if last else size - 1
    return ByteRange(offset, end - offset + 1)


def etag(size: int, modified_at_ns: int, *, gzip: bool = False) -> str:
    """The strong tag of the file's bytes, or of their gzip form, which are other bytes."""
    return f'"{modified_at_ns:x}-{size:x}{"-gzip" if gzip else ""}"'


def http_date(modified_at_ns: int) -> str:
    return format_datetime(datetime.fromtimestamp(_seconds(modified_at_ns), UTC), usegmt=True)


def _seconds(modified_at_ns: int) -> int:
    return max(0, min(modified_at_ns // 10**9, 253402300799))


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """The conditional headers of a request, as sent."""

    if_match: str | None = None
    if_none_match: str | None = None
    if_modified_since: str | None = None
    if_unmodified_since: str | None = None
    if_range: str | None = None

    def failed(self, tag: str, modified_at_ns: int) -> bool:
        """Whether the answer is 412."""
        if self.if_match is not None:
            return not _lists(self.if_match, tag, weak=False)
        limit = _date(self.if_unmodified_since)
        return limit is not None and _seconds(modified_at_ns) > limit

    def unchanged(self, tag: str, modified_at_ns: int) -> bool:
        """Whether the answer is 304."""
        if self.if_none_match is not None:
            return _lists(self.if_none_match, tag, weak=True)
        limit = _date(self.if_modified_since)
        return limit is not None and _seconds(modified_at_ns) <= limit

    def range_holds(self, tag: str, modified_at_ns: int) -> bool:
        """Whether a range may be served: the file is the one that the client began with."""
        if self.if_range is None:
            return True
        if self.if_range.startswith('"'):
            return self.if_range == tag
        return _date(self.if_range) == _seconds(modified_at_ns)


def _lists(header: str, tag: str, *, weak: bool) -> bool:
    """`weak`: a tag that is only weakly the same will do."""
    tags = {part.strip() for part in header.split(",")}
    if weak:
        tags = {each.removeprefix("W/") for each in tags}
    return "*" in tags or tag in tags


def _date(header: str | None) -> int | None:
    try:
        return None if header is None else int(parsedate_to_datetime(header).timestamp())
    except (ValueError, OverflowError):
        return None
