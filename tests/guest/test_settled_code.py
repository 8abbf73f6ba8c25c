"""Settled code does what it did, and no call changes a byte of it. In processes of their own: it is for good."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.guest.conftest import SOURCES

pytestmark = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="only Python 3.11 counts in its code in a way that can be ended"
)

_FUNCTIONS = """
import ctypes, json, sys
sys.path.insert(0, {sources!r})
from firkin.guest import settled_code

class Odd:
    kept = 3
    def __init__(self, value): self.value = value
    def method(self, by=1): return self.value * by
    def __getattr__(self, name): return len(name)

def never(a, b):
    return [one for one in (a, b, Odd(a).method(b))]

def special(numbers):
    total = 0
    for one in numbers:
        total += one * 2
    return total

def unlike(things):  # one instruction meets another type each time: it never gets a special form
    said = []
    for a, b in things:
        said.append((a + b, a < b, a == b, Odd(a).value, Odd(b).missing, sorted([a, b])[0], {{a: b}}[a]))
        x, y = (a, b) if len(said) % 2 else [a, b]
        holder = {{}} if len(said) % 2 else [None]
        holder[0] = y
        said.append(holder[0])
    return said

THINGS = [(1, 2), (1.5, 2.5), ("a", "b"), ((1,), (2,)), (1, 2.5), (2**70, 2**71), (True, 7)]

def memory(function):
    code = function.__code__
    return ctypes.string_at(id(code) + 48, code.__sizeof__() - 48)  # after what it refers to

def run():
    return [never(2, 3), special(range(50)), unlike(THINGS), never("x", 2)[0]]
"""

_CHANGES = (
    _FUNCTIONS
    + """
for _ in range(12):
    special(range(50)); unlike(THINGS)
settled = settled_code.settle() if {settle} else -1
changed = []
for function in (never, special, unlike):
    first = memory(function)
    for _ in range(100):
        run()
    if memory(function) != first:
        changed.append(function.__name__)
print(json.dumps([settled, changed, repr(run())]))
"""
)


def _said(script: str) -> list[object]:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    told: list[object] = json.loads(done.stdout)
    return told


def test_no_call_changes_a_byte_of_settled_code() -> None:
    as_it_was = _said(_CHANGES.format(sources=SOURCES, settle=False))
    settled = _said(_CHANGES.format(sources=SOURCES, settle=True))
    assert as_it_was[1] == ["never", "unlike"]  # what this is for
    assert settled[1] == []
    assert int(str(settled[0])) > 100
    assert settled[2] == as_it_was[2]


def test_what_has_a_special_form_keeps_it() -> None:
    script = _FUNCTIONS.format(sources=SOURCES) + (
        "for _ in range(12): special(range(50))\n"
        "before = special.__code__._co_code_adaptive\n"
        "assert before != special.__code__.co_code\n"
        "settled_code.settle()\n"
        "after = special.__code__._co_code_adaptive\n"
        "plain = settled_code._plain_forms()\n"
        "print(json.dumps([before[0::2].hex() == after[0::2].hex(), len(plain)]))\n"
    )
    assert _said(script) == [True, 11]


@pytest.mark.parametrize(
    "strange",
    [
        "settled_code._FIRST_CALLS = 48",
        "settled_code._NEVER_CALLED = -7",
        "settled_code._as_it_runs = lambda code: code.co_code",
        "settled_code.sys = type(sys)('sys'); settled_code.sys.implementation = sys.implementation\n"
        "settled_code.sys.version_info = (3, 12, 0)",
    ],
    ids=["another place", "another count", "other instructions", "another version"],
)
def test_an_interpreter_that_is_not_as_expected_is_left_alone(strange: str) -> None:
    script = _FUNCTIONS.format(sources=SOURCES) + (
        f"{strange}\nfirst = memory(never)\nprint(json.dumps([settled_code.settle(), memory(never) == first]))\n"
    )
    assert _said(script) == [0, True]
