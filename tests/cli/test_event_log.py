"""The log's form: one event a line, whatever a message contains."""

from __future__ import annotations

import logging
import sys

import pytest

from firkin.bootstrap.event_log import KeyValueFormatter


def line(message: str, *args: object, failed: bool = False, **facts: object) -> str:
    error = None
    if failed:
        try:
            raise ValueError("bad\nthing")
        except ValueError:
            error = sys.exc_info()
    record = logging.LogRecord("firkin.x", logging.INFO, __file__, 1, message, args, error)
    record.facts = facts
    return KeyValueFormatter().format(record).split(" ", 1)[1]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("serving", "level=info logger=firkin.x event=serving"),
        ("template ready", 'level=info logger=firkin.x event="template ready"'),
        (
            "request failed method=GET path=/a\nb",
            'level=info logger=firkin.x event="request failed" method=GET path=/a\\x0ab',
        ),
        ("sandbox=a cause='x y'", "level=info logger=firkin.x sandbox=a cause='x y'"),
    ],
)
def test_a_message_becomes_one_line_of_pairs(message: str, expected: str) -> None:
    assert line(message) == expected


def test_values_with_spaces_or_quotes_are_quoted() -> None:
    assert line("x", a='b "c"', d="/e") == 'level=info logger=firkin.x event=x a="b \\"c\\"" d=/e'


def test_a_traceback_stays_on_the_line() -> None:
    text = line("x", failed=True)
    assert "\n" not in text
    assert 'error="ValueError: bad\\nthing"' in text
