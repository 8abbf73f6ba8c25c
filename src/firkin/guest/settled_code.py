"""Code that no longer writes to itself.

CPython 3.11 keeps counts in its code: of a function's first calls, until it is prepared to be specialised, and in each
instruction for which no special form was found, of its runs until the next try. A fork copies a page for each count: a
quarter of those that an agent has to itself.

`settle` ends the counting. What was not prepared by then never will be; an instruction without a special form becomes
the plain one, which does the same; special forms stay. Nothing is computed in another way.

Where the counts lie is no part of Python's interface (it is in cpython.h, `PyCodeObject`). So it is tried out on a
function first, and where anything is not as it is in 3.11, nothing is done. Before 3.11 there were no such counts.
Since 3.12 they lie between the instructions; its most used objects are not counted instead.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from types import CodeType, FunctionType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

_FIRST_CALLS = 52  # in the object, a short that is counted up to 0 (co_warmup)
_NEVER_CALLED = -8
_CACHE = 0  # the instruction that stands for a place to remember something


def settle() -> int:
    """Settle every function of this process; returns how many. 0: this interpreter is not known well enough.

    For a process with one thread, which runs no function for the first time meanwhile.
    """
    plain = _plain_forms()
    if not plain:
        return 0
    settled = set()
    for code in _codes(gc.get_objects()):
        if id(code) not in settled:
            settled.add(id(code))
            _settle(code, plain)
    return len(settled)


def _settle(code: CodeType, plain: dict[int, int]) -> None:
    first_calls = _first_calls(code)
    if first_calls.value:
        first_calls.value = 0  # as of one that is prepared already
        return
    runs, forms, first = _as_it_runs(code), code.co_code, _first_instruction(code)
    for at in range(0, len(forms), 2):
        if plain.get(runs[at]) == forms[at]:
            ctypes.c_ubyte.from_address(first + at).value = forms[at]


def _codes(objects: Iterable[object]) -> Iterator[CodeType]:
    """Of functions, and of those within them that are made when they run."""
    waiting = [one.__code__ for one in objects if type(one) is FunctionType]
    while waiting:
        code = waiting.pop()
        yield code
        waiting += [one for one in code.co_consts if type(one) is CodeType]


def _plain_forms() -> dict[int, int]:
    """Each instruction that looks for a special form, and the plain one that it was. None where anything is strange."""
    if sys.implementation.name != "cpython" or sys.version_info[:2] != (3, 11):
        return {}
    probe = _probe()
    code = probe.__code__
    if code.__sizeof__() < CodeType.__basicsize__ + len(code.co_code) or CodeType.__itemsize__ != 2:
        return {}
    first_calls = _first_calls(code)
    for expected in range(_NEVER_CALLED, 1):
        lies_there = ctypes.string_at(_first_instruction(code), len(code.co_code))
        if first_calls.value != expected or lies_there != _as_it_runs(code):
            return {}
        probe(False, None, None)
    instructions, forms = _as_it_runs(code)[::2], code.co_code[::2]
    with_places = [at for at in range(len(forms) - 1) if forms[at + 1] == _CACHE != forms[at]]
    plain = {instructions[at]: forms[at] for at in with_places}
    strange = any(plain.get(instructions[at]) != forms[at] for at in with_places) or not plain.keys().isdisjoint(forms)
    return {} if strange else plain


def _first_calls(code: CodeType) -> ctypes.c_short:
    return ctypes.c_short.from_address(id(code) + _FIRST_CALLS)


def _first_instruction(code: CodeType) -> int:
    return id(code) + CodeType.__basicsize__


def _as_it_runs(code: CodeType) -> bytes:
    run: bytes = code._co_code_adaptive  # type: ignore[attr-defined]  # of 3.11, without a name for others
    return run


def _probe() -> Callable[..., None]:
    """A function with every instruction that has special forms, of which it never gets to one."""

    def probe(go_on: bool, a: Any, b: Any) -> None:  # anything: it is not run
        if go_on:
            a.name = len(a.name)
            a.name()
            a[b] = a[b] + (a < b)
            a, b = b

    return FunctionType(probe.__code__.replace(), {})  # code that never ran
