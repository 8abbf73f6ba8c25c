"""Ranges, encodings and multipart uploads, without a server."""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import AsyncIterator

import pytest

from firkin.e2b.byte_ranges import ByteRange, Conditions, Unsatisfiable, etag, http_date, read_ranges
from firkin.e2b.encodings import accepts_gzip, check_content_encoding, gunzipped, gzipped
from firkin.e2b.exchange import Refused
from firkin.e2b.multipart import MultipartUpload


async def chunked(data: bytes, step: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), step):
        yield data[at : at + step]


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (None, []),
        ("bytes=0-9", [ByteRange(0, 10)]),
        ("bytes=90-", [ByteRange(90, 10)]),
        ("bytes=90-1000", [ByteRange(90, 10)]),
        ("bytes=-5", [ByteRange(95, 5)]),
        ("bytes=-500", [ByteRange(0, 100)]),
        ("bytes=0-", [ByteRange(0, 100)]),
        ("bytes= 3 - 4 ", [ByteRange(3, 2)]),
        ("bytes=0-1,500-", [ByteRange(0, 2)]),
        ("bytes=0-1,5-6,-1", [ByteRange(0, 2), ByteRange(5, 2), ByteRange(99, 1)]),
        ("bytes=0-59,40-99", []),
        ("bytes=" + ",".join(["0-0"] * 101), []),
        ("bytes=", []),
    ],
)
def test_ranges_are_read_and_too_many_are_the_whole_file(header: str | None, found: list[ByteRange]) -> None:
    assert read_ranges(header, 100) == found


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=-0", "bytes=100-,200-300"])
def test_a_range_behind_the_end_cannot_be_served(header: str) -> None:
    with pytest.raises(Unsatisfiable, match="overlap"):
        read_ranges(header, 100)


@pytest.mark.parametrize(
    "header", ["bytes=9-2", "bytes=-", "bytes=abc", "bytes=1", "bytes=1-2-3", "bytes=0-1,x", "bytes", "lines=0-1"]
)
def test_what_is_no_range_is_refused(header: str) -> None:
    with pytest.raises(Unsatisfiable, match="invalid"):
        read_ranges(header, 100)


@pytest.mark.parametrize("header", ["bytes=0-", "bytes=5-9", "bytes=-5"])
def test_of_an_empty_file_any_range_is_the_whole(header: str) -> None:
    assert read_ranges(header, 0) == []


def test_conditions_compare_tag_and_time() -> None:
    modified = 1_700_000_000 * 10**9 + 5
    tag, date = etag(10, modified), http_date(modified)
    assert Conditions(if_none_match=tag).unchanged(tag, modified)
    assert not Conditions(if_none_match='"other"', if_modified_since=date).unchanged(tag, modified)
    assert Conditions(if_modified_since=date).unchanged(tag, modified)
    assert Conditions(if_match='"other"').failed(tag, modified)
    assert Conditions(if_match=f"W/{tag}").failed(tag, modified)
    assert Conditions(if_none_match=f'"x", W/{tag}').unchanged(tag, modified)
    assert Conditions(if_unmodified_since="Thu, 01 Jan 1970 00:00:00 GMT").failed(tag, modified)
    assert not Conditions(if_unmodified_since="nonsense").failed(tag, modified)
    assert Conditions(if_range=date).range_holds(tag, modified)
    assert not Conditions(if_range='"other"').range_holds(tag, modified)


@pytest.mark.parametrize(
    ("header", "gzip_wanted"),
    [
        (None, False),
        ("gzip", True),
        ("gzip, deflate, br", True),
        ("identity", False),
        ("gzip;q=0.5, identity", False),
        ("gzip;q=0", False),
        ("br", False),
        ("*", False),
        ("identity;q=0, *", True),
    ],
)
def test_gzip_is_sent_only_to_those_who_want_it(header: str | None, gzip_wanted: bool) -> None:
    assert accepts_gzip(header) is gzip_wanted


def test_a_client_that_takes_nothing_we_have_is_told() -> None:
    with pytest.raises(Refused) as refused:
        accepts_gzip("br, identity;q=0")
    assert refused.value.status == 406


def test_an_unknown_content_encoding_is_refused() -> None:
    assert check_content_encoding("gzip")
    assert not check_content_encoding(None)
    with pytest.raises(Refused):
        check_content_encoding("br")


@pytest.mark.parametrize("step", [1, 7, 1000, 10**7])
async def test_gzip_survives_any_step(step: int) -> None:
    data = bytes(range(256)) * 200
    packed = b"".join([part async for part in gzipped(chunked(data, 5000))])
    assert gzip.decompress(packed) == data
    twice = packed + packed  # a gzip file of two members
    assert b"".join([part async for part in gunzipped(chunked(twice, max(step, 50)))]) == data * 2


@pytest.mark.parametrize("body", [b"plain text", gzip.compress(b"x" * 1000)[:-4], b""], ids=["plain", "cut", "empty"])
async def test_a_broken_gzip_body_is_refused(body: bytes) -> None:
    with pytest.raises(Refused) as refused:
        [part async for part in gunzipped(chunked(body, 10))]
    assert refused.value.status == 400


UPLOAD = (
    b'--edge\r\nContent-Disposition: form-data; name="note"\r\n\r\nignored\r\n'
    b'--edge\r\nContent-Disposition: form-data; name="file"; filename="/a/b.txt"\r\n'
    b"Content-Type: text/plain\r\n\r\nhello\r\nworld\r\n"
    b'--edge\r\nContent-Disposition: form-data; name="file"; filename="\xc3\xbc"\r\n\r\n\r\n--edge--\r\n'
)


@pytest.mark.parametrize("step", [1, 2, 3, 11, 64, 10_000])
async def test_a_multipart_upload_survives_any_step(step: int) -> None:
    upload = MultipartUpload(chunked(UPLOAD, step), "multipart/form-data; boundary=edge")
    found = []
    async for part in upload.parts():
        if part.name == "file":
            found.append((part.filename, b"".join([data async for data in upload.body()])))
    assert found == [("/a/b.txt", b"hello\r\nworld"), ("ü", b"")]


async def everything(upload: MultipartUpload) -> None:
    async for _ in upload.parts():
        [data async for data in upload.body()]


@pytest.mark.parametrize("cut", [10, 60, 150, len(UPLOAD) - 12])
async def test_a_multipart_upload_that_breaks_off_is_refused(cut: int) -> None:
    upload = MultipartUpload(chunked(UPLOAD[:cut], 16), "multipart/form-data; boundary=edge")
    with pytest.raises(Refused):
        await everything(upload)


def test_a_multipart_upload_needs_a_boundary() -> None:
    with pytest.raises(Refused):
        MultipartUpload(chunked(b"", 1), "multipart/form-data")


@pytest.mark.parametrize(
    ("data", "smaller"),
    [(b"", False), (b"text " * 100_000, True), (os.urandom(500_000), False)],
    ids=["empty", "text", "noise"],
)
async def test_gzip_gives_the_bytes_back_and_spends_no_time_on_what_does_not_shrink(data: bytes, smaller: bool) -> None:
    packed = b"".join([chunk async for chunk in gzipped(chunked(data, 65536))])
    assert gzip.decompress(packed) == data
    assert (len(packed) < len(data) / 2) is smaller


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ("filename*=UTF-8''%2Ftmp%2Fst%C3%A4r.txt", "/tmp/stär.txt"),
        ("filename=\"plain\"; filename*=utf-8'en'better", "better"),
        ("filename=\"; filename*=utf-8''no\"", "; filename*=utf-8''no"),
        ("filename=\"plain\"; filename*=koi8-r''x", "plain"),
    ],
)
async def test_the_extended_name_of_a_file_is_decoded(options: str, name: str) -> None:
    body = f'--b\r\nContent-Disposition: form-data; name="file"; {options}\r\n\r\nx\r\n--b--\r\n'.encode()
    parts = MultipartUpload(chunked(body, 7), "multipart/form-data; boundary=b").parts()
    assert [part.filename async for part in parts] == [name]


@pytest.mark.parametrize(
    "hostile",
    ['x="' + '\\"' * 2000, 'x="' + '\\"' * 2000 + "\\", ";" * 4000, '";' * 2000, "x=1;" * 1000],
    ids=["escaped quotes", "a backslash at the end", "semicolons", "open quotes", "options"],
)
async def test_a_head_made_to_be_read_slowly_is_read_at_once(hostile: str) -> None:
    head = f'Content-Disposition: form-data; name="file"; filename="a"; {hostile}'
    body = f"--b\r\n{head}\r\n\r\nx\r\n".encode() * 10 + b"--b--\r\n"
    began = time.process_time()
    upload = MultipartUpload(chunked(body, len(body)), f"multipart/form-data; boundary=b; {hostile * 10}")
    assert [(part.name, part.filename) async for part in upload.parts()] == [("file", "a")] * 10
    assert time.process_time() - began < 0.2  # one quote that is never closed took 0.4 s


@pytest.mark.parametrize("head", ["X-A: " + "a" * 5000, "\r\n".join(f"X-{n}: a" for n in range(9))])
async def test_the_head_of_a_part_has_a_limit(head: str) -> None:
    upload = MultipartUpload(
        chunked(f"--b\r\n{head}\r\n\r\nx\r\n--b--\r\n".encode(), 64), "multipart/form-data; boundary=b"
    )
    with pytest.raises(Refused, match="malformed"):
        await everything(upload)
